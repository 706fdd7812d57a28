"""The analysis on a machine without torch.

``fit`` prints laws, frontiers and checks of a study folder or of any CSV, and writes them to fit.json; ``report`` draws
the figures and writes report.html as well.

    python -m varscale_analysis report outputs/quickstart
    python -m varscale_analysis fit mine.csv --columns params_total=n tokens_seen=tokens val_nats_per_token_avg=loss
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from varscale_analysis.analysis import LAWS, analyse
from varscale_analysis.column_map import parse_columns
from varscale_analysis.objective import Objective
from varscale_analysis.report import write_report
from varscale_analysis.study import FIT_FILE, StudyAnalysis
from varscale_analysis.table import SIZES, RunTable, RunTableError

_LOSSES = {"squares": "squares", "huber": "huber", "lad": "absolute", "quantile": "quantile"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 with a message on stderr for input that cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except (ValueError, OSError) as error:
        print(f"varscale_analysis: {error}", file=sys.stderr)
        return 2
    return 0


def parse_objective(text: str) -> Objective:
    """``squares``, ``huber:1e-3``, ``lad`` or ``quantile:0.9``, each with ``:raw`` for residuals of the loss itself.

    Raises ``ValueError`` for another word or a number that is missing or not one.
    """
    word, *rest = text.split(":")
    residual = "raw" if rest[-1:] == ["raw"] else "log"
    numbers = rest[:-1] if residual == "raw" else rest
    try:
        number = float(*numbers) if numbers else None
        loss = _LOSSES[word]
        delta = 1e-3 if number is None and loss == "huber" else number if loss != "quantile" else None
        return Objective(residual, loss, delta=delta, tau=number if loss == "quantile" else None)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the objective {text!r} is none ({error}); write squares, huber:1e-3, lad or quantile:0.9, and :raw after "
            "it for residuals of the loss instead of its logarithm"
        ) from None


def _run(options: argparse.Namespace) -> None:
    source, out = Path(options.source), None if options.out is None else Path(options.out)
    folder = source if source.is_dir() else None
    if options.verb == "report" and folder is None and out is None:
        raise ValueError(f"{source} is a single table; name a folder for its report: --out FOLDER")
    objective = parse_objective(options.objective)
    analysis = _analysis(source, folder, objective, options)
    print(analysis.summary())
    target = folder if out is None else out
    if target is None:
        return
    print(f"\nwritten: {analysis.write(target / FIT_FILE)}")
    if options.verb == "report":
        print(f"written: {write_report(target, analysis)}")


def _analysis(source: Path, folder: Path | None, objective: Objective, options: argparse.Namespace) -> StudyAnalysis:
    maps = [parse_columns(pairs) for pairs in (options.columns, options.units, options.constants)]
    wanted = parse_columns(options.select)
    path = source if folder is None else source / "runs.csv"
    table: Path | RunTable
    if any(maps):
        table = _selected(RunTable.from_csv(path, maps[0], units=maps[1], constants=maps[2]), wanted)
    elif wanted or folder is None:
        table = _selected(RunTable.read(path), wanted)
    else:
        table = folder
    return analyse(
        table,
        n=options.n,
        y=options.y,
        laws=options.law,
        objective=objective,
        tokens=options.tokens,
        bootstrap=options.bootstrap,
        seed=options.seed,
    )


def _selected(table: RunTable, wanted: Mapping[str, str]) -> RunTable:
    """The rows whose columns have the wanted values, of which a command line knows only the text."""
    values: dict[str, object] = dict(wanted)
    for name, value in wanted.items():
        if name in table.rows and table.rows[name].dtype.kind in "iuf":
            try:
                values[name] = float(value)
            except ValueError:
                raise RunTableError([f"{name} holds numbers, {value!r} is none; select one of its values"]) from None
    found = table.select(**values)
    if not len(found):
        asked = ", ".join(f"{name}={value}" for name, value in wanted.items())
        raise RunTableError([f"none of the {len(table)} rows has {asked}; look at the values of these columns"])
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m varscale_analysis", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("fit", "report"))
    parser.add_argument("source", metavar="TABLE_OR_FOLDER", help="a CSV, or a folder with runs.csv and curves.csv")
    for name, pair, text in (
        ("--columns", "OURS=THEIRS", "columns of the run table and what the CSV calls them"),
        ("--units", "OURS=UNIT", "what a column counts in, such as B, PFLOP, 1e6"),
        ("--constants", "OURS=VALUE", "columns with one value, such as flops_rule=6nd"),
        ("--select", "COLUMN=VALUE", "only the rows that have this value"),
    ):
        parser.add_argument(name, metavar=pair, help=text, nargs="+", default=[], action="extend")
    parser.add_argument("--n", choices=SIZES, help="convention of N (default: params_nonembed, if the table has it)")
    parser.add_argument("--y", default="val_nats_per_token_avg", help="the loss (default %(default)s)")
    parser.add_argument(
        "--law", nargs="+", choices=LAWS, help="laws to fit; the first is checked (default: by the table)"
    )
    parser.add_argument(
        "--objective",
        default="squares",
        help="squares, huber:1e-3, lad or quantile:0.9, with :raw (default %(default)s)",
    )
    parser.add_argument("--tokens", type=float, help="laws of N from runs trained on this many tokens (within 1 %%)")
    parser.add_argument("--bootstrap", type=int, default=1000, help="draws of each interval (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default %(default)s)")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: into a folder given as the source)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
