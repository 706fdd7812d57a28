"""Half the compute: frontiers of trunk and branches, and of weight averages, against those of separate decayed runs.

    varscale collect sweeps=trunk; varscale collect sweeps=cooldown; varscale collect sweeps=separate
    python benchmarks/bench_half_compute.py outputs/trunk outputs/cooldown outputs/separate [--figure half.png]

Takes three studies with ``runs.csv`` (and ``curves.csv``): a trunk a size at a constant rate with a weight average, its
cooldown branches, and separate runs of the same sizes and horizons. Prints JSON: for each of the three the compute
spent and the exponents of N_opt(C), by a law L(N, D) and by the lower envelope of loss against compute; the differences
to the separate runs with their 90 % intervals; and how far the losses of the same size and horizon lie apart.

A trunk's steps count once and a branch's from where it left the trunk. The averages stand at the measured steps of the
trunks, not at the horizons, so they have no losses to set side by side. Points of one size and seed are not
independent, least of all those of one trunk: intervals of the law take them as branches of one trunk, those of the
envelope draw whole sizes, and whole seeds of each.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from varscale_analysis import ChinchillaLaw, ComputeCost, CurveSet, FitError, Frontier, RunTable, compare_frontiers
from varscale_analysis.curve_set import CURVE_METRICS
from varscale_analysis.figures.style import BLUE, GREEN, ORANGE, label, log_log, panels, png

ROUTES = ("law", "envelope")
COLUMNS = {"run": "run", "flops": "C", "n": "N", "y": "L", "d": "D"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trunk", type=Path, help="study of the trunks")
    parser.add_argument("cooldown", type=Path, help="study of the branches")
    parser.add_argument("separate", type=Path, help="study of the separate runs")
    parser.add_argument("--n", default="params_nonembed")
    parser.add_argument("--y", default="val_nats_per_token_avg")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--figure", type=Path, help="a PNG of the losses against compute")
    options = parser.parse_args()
    tables = {name: RunTable.read(getattr(options, name) / "runs.csv") for name in ("trunk", "cooldown", "separate")}
    report, points = compare(tables, n=options.n, y=options.y, draws=options.draws)
    print(json.dumps(report, indent=2))
    if options.figure is not None:
        options.figure.write_bytes(figure(points, options.y))


def compare(
    tables: Mapping[str, RunTable], *, n: str, y: str, draws: int
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """The report, and the points (run, N, D, C, L) behind each of its three designs.

    Args:
        tables: of trunk, cooldown and separate.

    Raises ``ValueError`` for branches without a trunk among the trunks, and for sizes or horizons that differ.
    """
    trunk, cooldown, separate = (
        tables[name].comparable(fixed_tokens=False) for name in ("trunk", "cooldown", "separate")
    )
    check(trunk, cooldown, separate, n)
    once = float(trunk.values("flops_train").sum())
    anew = 1 - cooldown.values("branch_step") / cooldown.values("steps")
    spent = {
        "separate": float(separate.values("flops_train").sum()),
        "cooldown": once + float((cooldown.values("flops_train") * anew).sum()),
        "average": once,
    }
    points = {
        "separate": ends(separate, n, y),
        "cooldown": ends(cooldown, n, y),
        "average": along(trunk, n, y, float(separate.values("tokens_seen").min())),
    }
    frontiers = {name: routes(frame, draws) for name, frame in points.items()}
    c_n = points["separate"]["C"]
    computes = [float(c) for c in np.geomspace(c_n.min(), c_n.max(), 3)]
    designs, differences = {}, []
    for name, found in frontiers.items():
        designs[name] = {
            "flops_spent": spent[name],
            "share_of_separate": spent[name] / spent["separate"],
            "runs": int(points[name]["run"].nunique()),
            "losses": len(points[name]),
            "n_exponent": {route: exponent(found[route]) for route in ROUTES},
        }
    for route in ROUTES:
        base = frontiers["separate"][route]
        for name in ("cooldown", "average"):
            other = frontiers[name][route]
            if isinstance(base, Frontier) and isinstance(other, Frontier):
                rows = compare_frontiers([base, other], computes, names=["separate", name]).differences
                differences += [{"by": route, **vars(row), "disagrees": row.disagrees} for row in rows]
    return {
        "n": n,
        "y": y,
        "draws": draws,
        "designs": designs,
        "differences": differences,
        "losses_cooldown_minus_separate": side_by_side(points),
    }, points


def check(trunk: RunTable, cooldown: RunTable, separate: RunTable, n: str) -> None:
    """Raise ``ValueError`` unless trunks, branches and separate runs have the same sizes, seeds and horizons."""
    of = list(map(str, cooldown.rows["trunk_id"]))
    names = [n, "seed"]
    trunks = dict(zip(map(str, trunk.rows["run_id"]), zip(*map(trunk.values, names), strict=True), strict=True))
    strangers = [run for run in of if run not in trunks]
    if strangers:
        raise ValueError(
            f"{len(strangers)} branches are not of these trunks (the first is of {strangers[0]}); collect both"
        )
    for run, design in zip(of, zip(*map(cooldown.values, names), strict=True), strict=True):
        if trunks[run] != design:
            raise ValueError(f"a branch of size and seed {design} is of trunk {run}, whose are {trunks[run]}")
    if idle := set(trunks) - set(of):
        raise ValueError(f"{len(idle)} trunks have no branch (such as {min(idle)}), and their steps would count")
    designs = [Counter(zip(*map(t.values, [n, "steps", "seed"]), strict=True)) for t in (cooldown, separate)]
    if designs[0] != designs[1]:
        apart = (designs[0] - designs[1]) + (designs[1] - designs[0])
        raise ValueError(f"branches and separate runs differ in sizes, steps and seeds: {sorted(apart)[:4]}")


def ends(table: RunTable, n: str, y: str) -> pd.DataFrame:
    """The last loss of every run; the horizons of one size and seed are one curve."""
    size, seed = table.values(n), table.values("seed")
    runs = [f"{a:.0f}-{b:.0f}" for a, b in zip(size, seed, strict=True)]
    columns = {"C": table.values("flops_train"), "D": table.values("tokens_seen"), "L": table.values(y)}
    frame = pd.DataFrame({"run": runs, "N": size, **columns, "steps": table.values("steps")})
    return frame.sort_values(["N", "run", "C"], ignore_index=True)


def along(table: RunTable, n: str, y: str, tokens: float) -> pd.DataFrame:
    """The measured losses of every trunk from ``tokens`` on."""
    assert table.curves is not None, "the trunk's study has no curves.csv: collect it"
    parts = []
    per_flop = table.values("tokens_seen") / table.values("flops_train")
    for run, size, ratio in zip(map(str, table.rows["run_id"]), table.values(n), per_flop, strict=True):
        c_n, loss_n = table.curves.of(run, CURVE_METRICS[y])
        keep = c_n * ratio >= 0.99 * tokens
        parts.append(pd.DataFrame({"run": run, "N": size, "C": c_n[keep], "D": c_n[keep] * ratio, "L": loss_n[keep]}))
    return pd.concat(parts, ignore_index=True)


def routes(points: pd.DataFrame, draws: int) -> dict[str, Frontier | str]:
    """The frontier by each route, or why there is none."""
    found: dict[str, Frontier | str] = {}
    columns = {name: points[name].to_numpy(np.float64) for name in ("C", "N", "D", "L")}
    try:
        runs = {"trunk_id": points["run"].to_numpy(), "run_id": np.arange(len(points))}
        fit = ChinchillaLaw(n="N", d="D").fit({**columns, **runs}, "L", bootstrap=draws)
        found["law"] = Frontier.from_law(fit, cost=ComputeCost.from_columns(columns["C"], columns["N"], columns["D"]))
    except FitError as error:
        found["law"] = str(error)
    try:
        curves = CurveSet.from_frame(points, **COLUMNS, drop=0.0)
        found["envelope"] = Frontier.from_envelope(curves, n="N", y="L", bootstrap=draws)
    except FitError as error:
        found["envelope"] = str(error)
    return found


def exponent(frontier: Frontier | str) -> dict[str, Any]:
    """The exponent of N_opt(C) with its interval, or why there is none."""
    if isinstance(frontier, str):
        return {"absent": frontier}
    if frontier.n_exponent is None:
        return {"absent": frontier.absent["N_opt"]}
    parameter = frontier.n_exponent
    return {"value": parameter.value, "low": parameter.low, "high": parameter.high, "basis": frontier.basis}


def side_by_side(points: Mapping[str, pd.DataFrame]) -> dict[str, float | None]:
    """Losses of the branches minus those of the separate runs of the same size and steps, each averaged over seeds.

    Beside them the standard deviation between the seeds of the separate runs; None with one seed.
    """
    means = [points[name].groupby(["N", "steps"])["L"].mean() for name in ("cooldown", "separate")]
    apart = means[0] - means[1]
    spread = points["separate"].groupby(["N", "steps"])["L"].std().pow(2).mean() ** 0.5
    return {
        "designs": len(apart),
        "mean": float(apart.mean()),
        "standard_deviation": float(apart.std()),
        "largest": float(apart.abs().max()),
        "seed_spread_of_separate_runs": float(spread) if np.isfinite(spread) else None,
    }


def figure(points: Mapping[str, pd.DataFrame], y: str) -> bytes:
    """Loss against compute, one line a size and design, as PNG."""
    styles = {"separate": (BLUE, "o-"), "cooldown": (ORANGE, "s--"), "average": (GREEN, "^:")}
    with panels(height=3.2) as (drawn, (axes,)):
        for name, (colour, style) in styles.items():
            frame = points[name]
            for i, (_, size) in enumerate(frame.groupby("N")):
                mean = size.groupby("C")["L"].mean()
                text = name if i == 0 else None
                axes.plot(mean.index, mean.to_numpy(), style, color=colour, linewidth=0.7, markersize=2.2, label=text)
        axes.set_xlabel(label("flops_train"))
        axes.set_ylabel(label(y))
        axes.legend()
        log_log(axes)
    return png(drawn)


if __name__ == "__main__":
    main()
