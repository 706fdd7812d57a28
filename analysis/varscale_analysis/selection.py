"""Comparing laws on the same points: likelihood, AIC, AICc, BIC and the likelihood ratio of nested laws.

Every objective is the likelihood of an error density proportional to exp(-rho(r) / s): normal for squares, Laplace for
absolute deviations, asymmetric Laplace for a quantile, and for Huber's loss the normal with exponential tails; its
scale s is fitted too. Log residuals are turned into a density of y by 1 / y, so laws fitted to log y and to y can be
compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import chdtrc, erf

from varscale_analysis.objective import FitError, Floats, Objective

if TYPE_CHECKING:
    from varscale_analysis.laws.result import LawFit


def log_likelihood(objective: Objective, residual_n: Floats, y_n: Floats, w_n: Floats) -> float:
    """Log-likelihood of y with the scale fitted; weights count as precisions, scaled to mean 1."""
    w = w_n / w_n.mean()
    count = len(y_n)
    total = float(objective.value(residual_n[None], w[None])[0])
    jacobian = -float(np.log(y_n).sum()) if objective.residual == "log" else 0.0
    weights = 0.5 * float(np.log(w).sum()) if objective.loss in ("squares", "huber") else float(np.log(w).sum())
    total = max(total, 1e-300)
    if objective.loss == "squares":
        return weights + jacobian - 0.5 * count * float(np.log(2 * np.pi * total / count) + 1)
    if objective.delta is None:
        scale = total / count
        side = 0.5 if objective.tau is None else objective.tau * (1 - objective.tau)
        return weights + jacobian + count * float(np.log(side / scale)) - count
    delta = objective.delta

    log_s, width = np.array([np.log(total / count)]), 12.0
    for _ in range(6):  # the likelihood of s has one maximum: closer grids around it
        log_s = log_s + np.linspace(-width, width, 61)
        s = np.exp(log_s)
        # With t = delta / sqrt(2 s) the density integrates to sqrt(2 pi s) erf(t) + 2 s / delta exp(-t^2).
        t = delta / np.sqrt(2 * s)
        norm = np.sqrt(2 * np.pi * s) * erf(t) + 2 * s / delta * np.exp(-(t**2))
        value = -count * np.log(norm) - total / s
        log_s, width = log_s[[np.argmax(value)]], width / 20
    return weights + jacobian + float(value.max())


@dataclass(frozen=True)
class LawScore:
    """One law's row.

    Attributes:
        law: its name.
        params: free parameters, the error's scale not counted.
        log_likelihood: see ``log_likelihood``.
        aic, aicc, bic: criteria, lower is better; aicc is None where it has no meaning, with at most params + 2 points.
        weight: Akaike weight by aicc, by aic where one is missing.
    """

    law: str
    params: int
    log_likelihood: float
    aic: float
    aicc: float | None
    bic: float
    weight: float


@dataclass(frozen=True)
class LikelihoodRatio:
    """Whether a larger law is worth its parameters.

    Attributes:
        statistic: twice the gain of log-likelihood.
        extra: parameters that the larger law has more.
        p: of the chi-squared distribution with ``extra`` degrees of freedom.
        at_bound: the smaller law lies on a bound of the larger (E = 0), where p is conservative by up to a factor of 2.
    """

    statistic: float
    extra: int
    p: float
    at_bound: bool


def compare_laws(fits: dict[str, LawFit]) -> tuple[LawScore, ...]:
    """AIC, AICc and BIC of fits to the same y, best first.

    Raises ``FitError`` for fits of different points.
    """
    (first, *others) = fits.values()
    for other in others:
        _same_points(first, other)
    rows = []
    for name, fit in fits.items():
        k, count, ll = fit.form.num_params + 1, fit.rows, fit.diagnostics.log_likelihood
        aic = 2 * k - 2 * ll
        aicc = aic + 2 * k * (k + 1) / (count - k - 1) if count > k + 1 else None
        rows.append(LawScore(name, k - 1, ll, aic, aicc, k * float(np.log(count)) - 2 * ll, 1.0))
    by_aicc = all(row.aicc is not None for row in rows)
    value = np.array([row.aicc if by_aicc else row.aic for row in rows], dtype=np.float64)
    weight = np.exp(-(value - value.min()) / 2)
    weight /= weight.sum()
    order = np.argsort(value)
    return tuple(replace(rows[i], weight=float(weight[i])) for i in order)


def likelihood_ratio(smaller: LawFit, larger: LawFit) -> LikelihoodRatio:
    """Whether the larger law is worth its parameters; the smaller must be a case of it.

    Raises ``FitError`` for different points or objectives, or when the second law has no more parameters.
    """
    _same_points(smaller, larger)
    if smaller.objective != larger.objective:
        raise FitError(f"fitted by {smaller.objective.label} and by {larger.objective.label}; fit both alike")
    extra = larger.form.num_params - smaller.form.num_params
    if extra < 1:
        raise FitError(f"{larger.law} has no more free parameters than {smaller.law}; name the larger law second")
    statistic = 2 * (larger.diagnostics.log_likelihood - smaller.diagnostics.log_likelihood)
    return LikelihoodRatio(
        statistic, extra, float(chdtrc(extra, max(statistic, 0.0))), bool(larger.certificate.at_bounds)
    )


def _same_points(a: LawFit, b: LawFit) -> None:
    if len(a.points.y) != len(b.points.y) or not np.array_equal(np.sort(a.points.y), np.sort(b.points.y)):
        raise FitError(f"{a.law} and {b.law} were fitted to different points; compare fits of the same rows")
