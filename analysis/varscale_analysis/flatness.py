"""Flatness of the optimum: which sizes come within x % of the best loss of a budget, and what missing it costs.

A flat optimum is cheap to miss and hard to locate: the exponent of N_opt(C) is then uncertain, and matters less. The
cost of training f N_opt instead of N_opt at compute C is given as loss, and as the multiplier C / C', where C' is the
compute at which the best size reaches the same loss. From a law in closed form, or from measured profiles (IsoFLOP
profiles; for an envelope, the curves of all sizes cut at one compute). Nothing is said beyond the sizes measured.

Shapes: G points of a grid of log N, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from varscale_analysis.fit import FitError, Floats
from varscale_analysis.frontier import Frontier
from varscale_analysis.isoflop import IsoflopProfile, Minimum, interpolate, locate
from varscale_analysis.parametric import LossLaw, loss_at
from varscale_analysis.parametric import optimum as law_optimum
from varscale_analysis.table import unit_of
from varscale_analysis.trend import Estimate, Trend, solve_trend

FACTORS = (0.25, 0.5, 2.0, 4.0)
_GRID = 601
_REACH = np.log(1000.0)  # of the sizes looked at on either side of a law's optimum
_DRAWS = 400


@dataclass(frozen=True)
class MissCost:
    """What ``factor`` times the best size costs at the same compute.

    Attributes:
        excess: loss above the best, in the unit of the loss.
        compute_multiplier: times the compute that the best size needs for the same loss; None without L_opt(C).
    """

    factor: float
    excess: Estimate
    compute_multiplier: Estimate | None


@dataclass(frozen=True)
class Flatness:
    """The optimum of one budget.

    Attributes:
        flops: compute, FLOP.
        n_opt, loss: the best size and its loss.
        within: the share of the loss that is allowed above the best.
        n_low, n_high: the sizes between which the loss is within it; None where they are not among the sizes measured.
        costs: one entry a factor that lies among the sizes measured.
    """

    flops: float
    n_opt: float
    loss: float
    within: float
    n_low: Estimate | None
    n_high: Estimate | None
    costs: tuple[MissCost, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def flatness_of(
    frontier: Frontier,
    flops: Sequence[float] | None = None,
    *,
    within: float = 0.01,
    factors: Sequence[float] = FACTORS,
    seed: int = 0,
) -> tuple[Flatness, ...]:
    """How flat the optimum is, at each compute.

    Args:
        frontier: by any route; by an envelope its curves are cut at each compute.
        flops: computes (FLOP). By default every profile with an optimum, every crossing of an envelope, and for a law
            the ends and the middle of its runs' compute. A profile is taken where its budget is within 10 %.
        within: share of the best loss, 0.01 for one per cent.
        factors: of N_opt, whose cost is wanted.
        seed: of the losses drawn again from the noise of a profile.

    Raises ``ValueError`` for shares and factors that are not positive, ``FitError`` where no profile has an optimum.
    """
    if not within > 0 or not all(factor > 0 for factor in factors):
        raise ValueError(f"within ({within:g}) and factors ({', '.join(f'{f:g}' for f in factors)}) must be above 0")
    if frontier.law is not None:
        return tuple(
            _of_law(frontier.law, float(c), within, factors, frontier.l_opt) for c in _law_flops(frontier, flops)
        )
    rng = np.random.default_rng([seed, 5])
    profiles = _profiles(frontier, flops)
    return tuple(_of_profile(profile, within, factors, frontier.l_opt, rng) for profile in profiles)


def flatness_table(rows: Sequence[Flatness], y: str) -> str:
    """The results as text, one line for each of ``rows``; ``y`` names the loss and so its unit."""
    lines = [
        f"{'FLOP':>10}  {'N_opt':>10}  {y:>12}  sizes within the share   cost of f N_opt ({unit_of(y)}, x compute)"
    ]
    for row in rows:
        low, high = (f"{end.value:.3g}" if end is not None else "not measured" for end in (row.n_low, row.n_high))
        costs = "; ".join(
            f"{c.factor:g}: +{c.excess.value:.3g}"
            + (f", x{c.compute_multiplier.value:.2f}" if c.compute_multiplier is not None else "")
            for c in row.costs
        )
        spread = f"{row.within:.1%}: {low} to {high}"
        lines.append(f"{row.flops:>10.3g}  {row.n_opt:>10.4g}  {row.loss:>12.4f}  {spread}   {costs}")
    return "\n".join(lines)


def slice_profile(frontier: Frontier, flops: float) -> IsoflopProfile:
    """The curves of an envelope cut at one compute: loss against N, located by the strongest minimum its sizes allow.

    Raises ``FitError`` outside the curves, and with fewer than 3 sizes there.
    """
    envelope = frontier.envelope
    assert envelope is not None
    if not envelope.flops_G[0] <= flops <= envelope.flops_G[-1]:
        raise FitError(
            f"{flops:.4g} FLOP lies outside the curves, which run from {envelope.flops_G[0]:.4g} to "
            f"{envelope.flops_G[-1]:.4g}; ask for a compute among them"
        )
    log_c = np.log(envelope.flops_G)
    loss_S = np.array([np.interp(np.log(flops), log_c, row) for row in envelope.loss_SG])
    there = np.isfinite(loss_S)
    if there.sum() < 3:
        raise FitError(f"{int(there.sum())} sizes have a curve at {flops:.4g} FLOP; a minimum needs 3")
    minimum: Minimum = "akima" if there.sum() > 3 else "parabola"
    sizes = envelope.n_S[there]
    return locate(
        IsoflopProfile(flops, sizes, None, loss_S[there], np.ones(len(sizes)), None, minimum),
        0,
        np.random.default_rng(0),
    )[0]


def _law_flops(frontier: Frontier, flops: Sequence[float] | None) -> Sequence[float]:
    if flops is not None:
        return flops
    if frontier.flops_range is None:
        raise FitError("the law does not know the compute of its runs; name the computes to look at")
    low, high = frontier.flops_range
    return [low, float(np.sqrt(low * high)), high]


def _profiles(frontier: Frontier, flops: Sequence[float] | None) -> list[IsoflopProfile]:
    if frontier.envelope is not None:
        wanted = [optimum.flops for optimum in frontier.optima] if flops is None else flops
        found = [slice_profile(frontier, float(c)) for c in wanted]
    elif flops is None:
        found = list(frontier.profiles)
    else:
        budgets = np.array([profile.flops for profile in frontier.profiles])
        found = []
        for c in flops:
            near = np.flatnonzero(np.abs(np.log(budgets / c)) <= np.log(1.1))
            if not len(near):
                have = ", ".join(f"{budget:.3g}" for budget in budgets)
                raise FitError(f"no profile has a budget within 10 % of {c:.4g} FLOP; there are {have}")
            found.append(frontier.profiles[int(near[0])])
    kept = [profile for profile in found if profile.optimum is not None]
    if not kept:
        reasons = "; ".join(f"{profile.flops:.3g} FLOP: {profile.refusal}" for profile in found[:6]) or "no crossings"
        raise FitError(f"no profile has an optimum ({reasons})")
    return kept


def _of_profile(
    profile: IsoflopProfile, within: float, factors: Sequence[float], l_opt: Trend | None, rng: np.random.Generator
) -> Flatness:
    optimum = profile.optimum
    assert optimum is not None and optimum.loss is not None
    drawn_SB = profile.redrawn(_DRAWS, rng)
    losses = np.concatenate([profile.loss_S[:, None], drawn_SB], axis=1)
    log_n = np.log(profile.n_S)
    x_G = np.linspace(log_n[0], log_n[-1], _GRID)
    loss_BG = interpolate(log_n, losses, profile.runs_S, profile.minimum, x_G).T
    ends = _ends(np.broadcast_to(x_G, loss_BG.shape), loss_BG, within)
    excess = []
    for factor in factors:
        x = np.log(optimum.n * factor)
        inside = bool(log_n[0] <= x <= log_n[-1])
        at = interpolate(log_n, losses, profile.runs_S, profile.minimum, np.array([x]))[0]
        excess.append(at - loss_BG.min(1) if inside else np.full(len(loss_BG), np.nan))
    theta = None if l_opt is None else l_opt.theta
    costs = _costs(profile.flops, factors, excess, l_opt, theta)
    return Flatness(profile.flops, optimum.n, optimum.loss, within, _estimate(ends[0]), _estimate(ends[1]), costs)


def _of_law(law: LossLaw, flops: float, within: float, factors: Sequence[float], l_opt: Trend | None) -> Flatness:
    theta_B5 = np.concatenate([law.value[None], law.draws])
    n_trend, _, l_trend = law_optimum(theta_B5, law.cost)
    log_n_B = n_trend[:, 1] + n_trend[:, 2] * np.log(flops)
    best_B = l_trend[:, 0] + np.exp(l_trend[:, 1] + l_trend[:, 2] * np.log(flops))

    shift_G = np.linspace(-_REACH, _REACH, _GRID)
    x_BG = log_n_B[:, None] + shift_G
    loss_BG = loss_at(theta_B5, law.cost, np.log(flops), x_BG)
    ends = _ends(x_BG, loss_BG, within)
    # Each draw trains the size that the fitted law calls f N_opt, and pays what its own law says.
    fixed = log_n_B[0] + np.log(np.asarray(factors, dtype=np.float64))
    at_BF = loss_at(theta_B5, law.cost, np.log(flops), fixed)
    costs = _costs(flops, factors, list((at_BF - best_B[:, None]).T), l_opt, l_trend)
    n_opt, best = float(np.exp(log_n_B[0])), float(best_B[0])
    return Flatness(flops, n_opt, best, within, _estimate(ends[0]), _estimate(ends[1]), costs)


def _ends(x_BG: Floats, loss_BG: Floats, within: float) -> tuple[Floats, Floats]:
    """N (B,) on either side of the minimum where the loss is ``within`` of it; NaN where it is not reached."""
    lowest_B = np.argmin(loss_BG, axis=1)
    level_B = loss_BG.min(1) * (1 + within)
    out = []
    for side in (-1, 1):
        n_B = np.full(len(loss_BG), np.nan)
        for b, (x_G, loss_G, i, level) in enumerate(zip(x_BG, loss_BG, lowest_B, level_B, strict=True)):
            path = np.arange(i, -1 if side < 0 else len(x_G), side)
            above = np.flatnonzero(loss_G[path] >= level)
            if len(above):
                j, k = path[above[0]], path[above[0]] - side
                share = (level - loss_G[k]) / (loss_G[j] - loss_G[k])
                n_B[b] = np.exp(x_G[k] + share * (x_G[j] - x_G[k]))
        out.append(n_B)
    return out[0], out[1]


def _costs(
    flops: float, factors: Sequence[float], excess: list[Floats], l_opt: Trend | None, theta_B3: Floats | None
) -> tuple[MissCost, ...]:
    costs = []
    for factor, excess_B in zip(factors, excess, strict=True):
        if not np.isfinite(excess_B[0]):
            continue
        multiplier = None
        if l_opt is not None and theta_B3 is not None:
            best_B = theta_B3[:, 0] + np.exp(theta_B3[:, 1] + theta_B3[:, 2] * (np.log(flops) - l_opt.log_centre))
            reached = solve_trend(theta_B3, l_opt.log_centre, (best_B + excess_B)[:, None])[:, 0]
            multiplier = _estimate(flops / reached)
        value = _estimate(excess_B)
        assert value is not None
        costs.append(MissCost(factor, value, multiplier))
    return tuple(costs)


def _estimate(values_B: Floats) -> Estimate | None:
    """The first value, with the interval of the others; None where the first is NaN."""
    return Estimate.of(float(values_B[0]), values_B[1:]) if np.isfinite(values_B[0]) else None
