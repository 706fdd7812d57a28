"""Frontiers by three routes: time of a bootstrap through each, and coverage of the exponent's 90 % interval.

    python benchmarks/bench_frontier.py [--draws 1000] [--curves 12] [--points 500] [--repeats 5] [--coverage 0]

Every table comes from L = E + A N^-alpha + B D^-beta with C = 6 N D, noise of .002 (share of the loss along a curve) or
.003 nat (a run of an IsoFLOP profile). CPU seconds are the least of the repeats, of this process. ``--coverage T``
simulates T tables a design and prints how often the interval of the N_opt exponent holds the truth. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import product

import numpy as np

from varscale_analysis import CurveSet, FitError, Frontier
from varscale_analysis.laws import ChinchillaLaw

E, A, B, ALPHA, BETA = 1.82, 482.0, 2085.0, 0.348, 0.366
A_EXPONENT = BETA / (ALPHA + BETA)
G = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
NAMES = {"n": "N", "y": "L"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--curves", type=int, default=12)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--coverage", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    curves = training_curves(rng, options.curves, options.points)
    runs = isoflop_runs(rng, 12, 9, 0.003)
    fit = ChinchillaLaw(n="N", d="D").fit(runs, "L", bootstrap=options.draws)
    routes: dict[str, Callable[[], Frontier]] = {
        "envelope": lambda: Frontier.from_envelope(curves, **NAMES, bootstrap=options.draws),
        "isoflop_akima": lambda: isoflop(runs, "akima", options.draws),
        "isoflop_cubic": lambda: isoflop(runs, "cubic", options.draws),
        "law": lambda: Frontier.from_law(fit),
    }
    results = {name: measure(route, options.repeats) for name, route in routes.items()}
    report: dict[str, object] = {**vars(options), "true_exponent": A_EXPONENT, "routes": results}
    if options.coverage:
        report["coverage"] = coverage(options.coverage)
    print(json.dumps(report, indent=2))


def training_curves(rng: np.random.Generator, curves: int, points: int) -> CurveSet:
    """One curve a size, from a thirtieth of its optimal compute to eight times it."""
    n_R = np.geomspace(1e7, 4e9, curves)
    flops, losses = [], []
    for n in n_R:
        c = np.geomspace(1 / 30, 8, points) * 6 * (n / G) ** (1 / A_EXPONENT)
        flops.append(c)
        losses.append((E + A * n**-ALPHA + B * (c / 6 / n) ** -BETA) * np.exp(0.002 * rng.standard_normal(points)))
    return CurveSet(n_R, tuple(flops), tuple(losses), 1 / (6 * n_R))


def isoflop_runs(
    rng: np.random.Generator, budgets: int, sizes: int, noise: float, scatter: float = 0.0
) -> dict[str, np.ndarray]:
    """Sizes within a factor of 4 of the optimum of each budget, off it by a random shift.

    ``scatter`` displaces the optimum of each budget, as untuned recipes do: a standard deviation in log N.
    """
    c = np.repeat(np.geomspace(1e17, 1e20, budgets), sizes)
    shift = np.repeat(rng.uniform(-0.3, 0.3, budgets), sizes)
    n = G * (c / 6) ** A_EXPONENT * np.tile(np.geomspace(0.25, 4, sizes), budgets) * np.exp(shift)
    d = c / (6 * n)
    felt = n * np.exp(np.repeat(scatter * rng.standard_normal(budgets), sizes))
    loss = E + A * felt**-ALPHA + B * (c / (6 * felt)) ** -BETA + noise * rng.standard_normal(len(c))
    return {"C": c, "N": n, "D": d, "L": loss}


def isoflop(runs: dict[str, np.ndarray], minimum: str, draws: int, seed: int = 0) -> Frontier:
    return Frontier.from_isoflop(runs, flops="C", d="D", **NAMES, minimum=minimum, bootstrap=draws, seed=seed)  # type: ignore[arg-type]


def measure(route: Callable[[], Frontier], repeats: int) -> dict[str, object]:
    """Least CPU and wall seconds of the repeats, and what was found."""
    cpu, wall = [], []
    for _ in range(repeats):
        start = time.process_time(), time.perf_counter()
        frontier = route()
        cpu.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    assert frontier.n_opt is not None
    exponent = frontier.n_opt.parameter
    return {
        "cpu_s": round(min(cpu), 4),
        "wall_s": round(min(wall), 4),
        "n_exponent": exponent.value,
        "interval": [exponent.low, exponent.high],
        "draws": len(frontier.n_opt.draws),
    }


def coverage(tables: int) -> dict[str, dict[str, float]]:
    """Share of tables whose 90 % interval of the N_opt exponent holds the truth, and its mean width, by design."""
    designs: dict[str, Callable[[np.random.Generator, int], Frontier]] = {}
    for sizes in (6, 12):
        designs[f"envelope, {sizes} curves of 200 points"] = lambda rng, seed, sizes=sizes: Frontier.from_envelope(
            training_curves(rng, sizes, 200), **NAMES, bootstrap=300, seed=seed
        )
    for minimum, scatter in product(("parabola", "cubic", "akima"), (0.0, 0.1)):
        for budgets, sizes in ((4, 6), (6, 7), (12, 9)):
            name = f"isoflop by {minimum}, {budgets} budgets of {sizes} sizes, optima displaced by {scatter:g}"
            designs[name] = lambda rng, seed, m=minimum, b=budgets, s=sizes, t=scatter: isoflop(
                isoflop_runs(rng, b, s, 0.003, t), m, 300, seed
            )
    out = {}
    for name, make in designs.items():
        rng = np.random.default_rng(1)
        inside, widths, refused = [], [], 0
        for seed in range(tables):
            try:
                exponent = make(rng, seed).n_exponent
            except FitError:
                exponent = None
            if exponent is None or exponent.low is None or exponent.high is None:
                refused += 1
                continue
            inside.append(exponent.low <= A_EXPONENT <= exponent.high)
            widths.append(exponent.high - exponent.low)
        out[name] = {"covered": float(np.mean(inside)), "width": float(np.mean(widths)), "refused": refused / tables}
    return out


if __name__ == "__main__":
    main()
