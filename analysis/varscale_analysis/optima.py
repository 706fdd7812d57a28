"""From optima and their draws to N_opt(C), D_opt(C) and L_opt(C).

An optimum is the best size at one compute, whichever way it was found. N_opt and D_opt are lines in log-log, weighted
by 1 / std^2 of the logarithms where the noise of the optima is known (Porian et al., arXiv:2406.19146). Where the
optima scatter about the line by more than their noise, what is beyond it is added to the draws (the random effect of
DerSimonian and Laird, 1986); where the noise is not known, the scatter is the noise.

Coverage of the 90 % interval of the N_opt exponent, by benchmarks/bench_frontier.py and its designs (4, 6 or 12 budgets
of 6 to 9 sizes, noise .003 nat estimated from the table, 80 tables a design, standard error .03): .925 to .975 with
minima by cubic or Akima; .90 to .925 when each optimum is also displaced by .1 in log N.
Shapes: P optima, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from varscale_analysis.fit import FitError, Floats
from varscale_analysis.laws.power import PowerLaw
from varscale_analysis.laws.result import LawFit
from varscale_analysis.laws.saturating import SaturatingPowerLaw
from varscale_analysis.trend import Trend, fit_line, line


@dataclass(frozen=True)
class Optimum:
    """The best size at one compute.

    Attributes:
        flops: compute, FLOP.
        n, d: the best number of parameters and of tokens; ``d`` is None where tokens are not given.
        loss: loss there; None where it is not given.
        log_n_sd, log_d_sd, log_loss_sd: standard deviations of the logarithms; None where the noise is not known.
    """

    flops: float
    n: float
    d: float | None
    loss: float | None
    log_n_sd: float | None = None
    log_d_sd: float | None = None
    log_loss_sd: float | None = None


@dataclass(frozen=True)
class Allocation:
    """What to train with a budget.

    Attributes:
        flops: the budget, FLOP.
        n, d, loss: the best size, its tokens and the loss to expect; ``d`` and ``loss`` are None where the frontier
            has none.
        n_interval, d_interval, loss_interval: their 90 % intervals (low, high); None without draws.
        extrapolation: factor in compute outside the optima behind the frontier; 1 inside, None where their range is not
            known.
    """

    flops: float
    n: float
    n_interval: tuple[float, float] | None
    d: float | None
    d_interval: tuple[float, float] | None
    loss: float | None
    loss_interval: tuple[float, float] | None
    extrapolation: float | None


@dataclass(frozen=True)
class OptimaLines:
    """The lines through optima; None where ``absent`` says why. ``scatter``: sd of log N* beyond the noise."""

    n_opt: Trend | None
    d_opt: Trend | None
    absent: dict[str, str]
    scatter: float | None


def logs(optima: Sequence[Optimum]) -> Floats:
    """log N*, log D*, log L* (P, 3), NaN where absent."""
    values = np.array([[o.n, o.d, o.loss] for o in optima], dtype=np.float64).reshape(-1, 3)
    return np.asarray(np.log(values))


def fit_optima(
    optima: Sequence[Optimum], drawn_BP3: Floats, *, bootstrap: int, rng: np.random.Generator
) -> OptimaLines:
    """N_opt(C) and D_opt(C) through optima at fixed computes.

    Args:
        drawn_BP3: draws of log N*, log D*, log L*, NaN where a draw has no optimum; may be empty.
        bootstrap: draws to make from the scatter where there are none.
    """
    c_P = np.array([optimum.flops for optimum in optima])
    z_P3 = logs(optima)
    sd_P3 = np.array([[o.log_n_sd, o.log_d_sd] for o in optima], dtype=np.float64)
    absent: dict[str, str] = {}
    found: dict[str, Trend] = {}
    scatter = None
    for i, (name, unit) in enumerate((("N_opt", "parameter"), ("D_opt", "token"))):
        z_P, sd_P = z_P3[:, i], sd_P3[:, i]
        if not np.isfinite(z_P).all():
            absent[name] = "tokens are not given; name their column"
            continue
        w_P = 1 / sd_P**2 if (np.isfinite(sd_P) & (sd_P > 0)).all() else np.ones(len(z_P))
        try:
            drawn_BP, beyond = _scattered(np.log(c_P), z_P, w_P, drawn_BP3[:, :, i], bootstrap, rng)
            x_BP = np.broadcast_to(np.log(c_P), drawn_BP.shape)
            found[name] = fit_line(name, unit, c_P, np.exp(z_P), w_P, x_BP, drawn_BP, w_P)
        except FitError as error:
            absent[name] = str(error)
            continue
        scatter = beyond if name == "N_opt" else scatter
    return OptimaLines(found.get("N_opt"), found.get("D_opt"), absent, scatter)


def fit_losses(
    c_P: Floats, loss_P: Floats, drawn_BP: Floats, y: str, at: str
) -> tuple[LawFit | None, LawFit | None, Trend | None, str | None]:
    """L_opt(C): power and saturating law of points of a frontier, the better one as a trend, and what is absent.

    ``drawn_BP`` holds draws of the losses, NaN where a draw has none. The trend is the saturating law where it can be
    fitted, because a power law without offset is bent by one.
    """
    weight_BP = np.isfinite(drawn_BP).astype(np.float64)
    loss_BP = np.where(weight_BP > 0, drawn_BP, 1.0)
    power, saturating, absent = None, None, None
    try:
        power = PowerLaw(n="flops_train").fit_weighted(c_P, loss_P, loss_BP, weight_BP, y, at)
        if len(c_P) < 4:
            raise FitError(f"L_opt(C) with an offset needs 4 points, there are {len(c_P)}; add budgets")
        saturating = SaturatingPowerLaw(n="flops_train").fit_weighted(c_P, loss_P, loss_BP, weight_BP, y, at)
    except FitError as error:
        absent = str(error)
    best = saturating if saturating is not None else power
    return power, saturating, None if best is None else loss_trend(best), absent


def loss_trend(fit: LawFit) -> Trend:
    """L_opt(C) of a power or saturating law of compute: E + (beta C)^alpha, with its draws."""
    theta = trend_draws(fit, np.array([fit.theta]))[0]
    draws = trend_draws(fit, fit.draws) if len(fit.draws) else np.empty((0, 3))
    return Trend("L_opt", fit.y_unit, float(theta[0]), float(theta[1]), float(theta[2]), _centre(fit), draws)


def trend_draws(fit: LawFit, theta_BP: Floats) -> Floats:
    """Offset, log scale and exponent (B, 3) of a trend, from inner parameters of a power or saturating law."""
    values = fit.form.report(theta_BP, np.array(fit.centre))
    alpha, log_beta = values["alpha"], np.log(values["beta"])
    return np.stack([values.get("E", np.zeros_like(alpha)), alpha * (log_beta + _centre(fit)), alpha], axis=-1)


def _centre(fit: LawFit) -> float:
    return float(np.log(fit.x_range).mean())


def _scattered(
    x_P: Floats, z_P: Floats, w_P: Floats, drawn_BP: Floats, bootstrap: int, rng: np.random.Generator
) -> tuple[Floats, float | None]:
    """Draws of z that hold the scatter about the line, and the standard deviation of what noise does not explain.

    The variance beyond the noise is DerSimonian and Laird's moment estimate; where it is above 0, each draw has its
    own, with the chi-squared spread of the degrees of freedom there are.
    """
    freedom = len(z_P) - 2
    if freedom < 1:
        return drawn_BP, None
    spread_P = np.nanstd(drawn_BP, axis=0) if len(drawn_BP) else np.zeros(len(z_P))
    known = bool((spread_P > 0).all())
    weight_P = 1 / spread_P**2 if known else w_P / w_P.mean()
    centre = float((weight_P * x_P).sum() / weight_P.sum())
    design = np.stack([np.ones_like(x_P), x_P - centre], axis=-1)
    normal = design.T @ (weight_P[:, None] * design)
    value, slope, good = line((x_P - centre)[None], z_P[None], weight_P[None])
    if not good[0]:
        return drawn_BP, None
    chi_squared = float((weight_P * (z_P - value[0] - slope[0] * (x_P - centre)) ** 2).sum())
    chance_B = freedom / rng.chisquare(freedom, len(drawn_BP) if known else bootstrap)
    if not known:
        sd_B = np.sqrt(chi_squared / freedom * chance_B)
        return z_P + sd_B[:, None] / np.sqrt(weight_P) * rng.standard_normal((bootstrap, len(z_P))), None
    trace = weight_P.sum() - float(np.trace(np.linalg.solve(normal, design.T @ (weight_P[:, None] ** 2 * design))))
    beyond_B = np.sqrt(np.maximum(0.0, chi_squared * chance_B - freedom) / trace) * (chi_squared > freedom)
    beyond = float(np.sqrt(max(0.0, chi_squared - freedom) / trace))
    return drawn_BP + beyond_B[:, None] * rng.standard_normal(drawn_BP.shape), beyond
