"""``python -m varscale_analysis fit FOLDER`` and ``report FOLDER``: the analysis on a machine without torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from varscale_analysis.report import write_report
from varscale_analysis.study import analyse
from varscale_analysis.table import SIZES


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 with a message on stderr for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m varscale_analysis", description=__doc__)
    parser.add_argument(
        "verb", choices=("fit", "report"), help="fit: fit.json and a table; report: report.html as well"
    )
    parser.add_argument("folder", help="a study folder with runs.csv and curves.csv")
    parser.add_argument("--n", default="params_nonembed", choices=SIZES, help="convention of N (default %(default)s)")
    parser.add_argument(
        "--y", default="val_nats_per_token_avg", help="loss of hold-out and frontier (default %(default)s)"
    )
    parser.add_argument("--tokens", type=float, help="only runs trained on this many tokens (within 1 %%)")
    parser.add_argument("--bootstrap", type=int, default=1000, help="draws of each interval (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default %(default)s)")
    options = parser.parse_args(arguments)
    try:
        analysis = analyse(
            options.folder,
            n=options.n,
            y=options.y,
            tokens=options.tokens,
            bootstrap=options.bootstrap,
            seed=options.seed,
        )
        print(analysis.summary())
        print(f"\nwritten: {analysis.write()}")
        if options.verb == "report":
            print(f"written: {write_report(options.folder, analysis)}")
    except (ValueError, OSError) as error:
        print(f"varscale_analysis: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
