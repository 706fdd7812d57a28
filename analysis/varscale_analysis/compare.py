"""Two families of runs: how much more compute one needs for the loss of the other, and whether their exponents differ.

A family is a set of runs over several sizes: a model, a tokenizer of one kind, a recipe. Its law L(C) is fitted to its
runs; the effective-compute multiplier at loss L is C_a(L) / C_b(L), what family a needs over what family b needs.
Where every run of a has a partner in b (same place among the sizes, same seed), the noise of partners is drawn with the
correlation of their residuals, because shared seeds and data order cancel in the comparison.

Losses under two tokenizers or two validation sets are two quantities, and are refused.
Shapes: n runs of a family, B draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from varscale_analysis.bootstrap import NoiseModel
from varscale_analysis.fit import FitError, Floats
from varscale_analysis.laws import LawFit, PowerLaw, SaturatingPowerLaw
from varscale_analysis.optima import loss_trend, trend_draws
from varscale_analysis.table import LEVEL, RunTable, unit_of
from varscale_analysis.trend import Estimate, solve_trend

_SAME = {
    "tokenizer_id": "losses under two tokenizers are two quantities",
    "dataset_id": "losses on two validation sets are two quantities",
    "flops_rule": "FLOPs by two rules are two quantities",
}


@dataclass(frozen=True)
class Multiplier:
    """C_a / C_b at one loss.

    Attributes:
        loss: where, in the unit of the loss.
        multiplier: above 1, family a needs more compute.
        extrapolated: whether a family was not measured at this loss.
    """

    loss: float
    multiplier: Estimate
    extrapolated: bool


@dataclass(frozen=True)
class FamilyComparison:
    """The comparison of two families.

    Attributes:
        names: of a and b. ``y``: the loss. ``formula``: the law of each.
        paired: whether every run has a partner of the same seed; ``correlation`` of the residuals of partners.
        multipliers: at each loss.
        exponents: alpha of a and of b. ``exponent_difference``: a - b.
        basis: the runs, in words.
        fits: the law L(C) of a and of b, with the runs it was fitted to.
    """

    names: tuple[str, str]
    y: str
    formula: str
    paired: bool
    correlation: float | None
    multipliers: tuple[Multiplier, ...]
    exponents: tuple[Estimate, Estimate]
    exponent_difference: Estimate
    basis: str
    fits: tuple[LawFit, ...] = field(repr=False)

    def summary(self) -> str:
        """The comparison as text."""
        a, b = self.names
        how = f"paired by seed, residuals correlate {self.correlation:.2f}" if self.paired else "not paired"
        lines = [f"{a} against {b}, {self.y}, {self.formula}: {self.basis}, {how}; {LEVEL:.0%} intervals"]
        lines += [
            f"  at {m.loss:.4f} {unit_of(self.y)}: {a} needs {m.multiplier} times the compute of {b}"
            + (" (extrapolated)" if m.extrapolated else "")
            for m in self.multipliers
        ]
        lines.append(
            f"  exponent {a} {self.exponents[0]}, {b} {self.exponents[1]}, difference {self.exponent_difference}"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(replace(self, fits=())), "fits": [fit.to_dict() for fit in self.fits]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``. Raises ``FitError`` for a mapping that is not a comparison."""
        try:
            fields = {**values, "names": tuple(values["names"])}
            fields["multipliers"] = tuple(
                Multiplier(**{**m, "multiplier": Estimate(**m["multiplier"])}) for m in values["multipliers"]
            )
            fields["exponents"] = tuple(Estimate(**estimate) for estimate in values["exponents"])
            fields["exponent_difference"] = Estimate(**values["exponent_difference"])
            fields["fits"] = tuple(LawFit.from_dict(fit) for fit in values["fits"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise FitError(f"not a saved comparison ({error!r}); write one with FamilyComparison.to_dict") from error


def compare_families(
    a: RunTable,
    b: RunTable,
    *,
    y: str = "val_nats_per_token_avg",
    flops: str = "flops_train",
    losses: Sequence[float] | None = None,
    offset: bool = True,
    names: tuple[str, str] = ("a", "b"),
    bootstrap: int = 1000,
    seed: int = 0,
) -> FamilyComparison:
    """Compare two families at equal loss.

    Args:
        a, b: the runs of each, over at least 3 sizes (2 without offset).
        y, flops: columns of the loss and of the compute (FLOP).
        losses: where to compare; by default the ends and the middle of the losses that both families reach.
        offset: whether L(C) has an offset E; without it both laws are straight lines in log-log.
        names: of a and b, for the summary and messages.
        bootstrap, seed: redraws of the noise behind each interval, and their seed.

    Raises ``FitError`` for different tokenizers, validation sets or FLOP rules, for families that share no loss where
    ``losses`` are not named, for a loss that a law never reaches, and where a law cannot be fitted.
    """
    tables = tuple(table.comparable(fixed_tokens=False) for table in (a, b))
    for column, why in _SAME.items():
        values = [str(table.rows[column].iloc[0]) for table in tables]
        if values[0] != values[1]:
            raise FitError(
                f"{names[0]} has {column} {values[0]}, {names[1]} has {values[1]}: {why}; measure both alike"
            )
    law = SaturatingPowerLaw(n=flops) if offset else PowerLaw(n=flops)
    points = [(table.values(flops), table.values(y)) for table in tables]
    fits = [law.fit_weighted(x, z, np.empty((0, len(x))), np.empty((0, len(x))), y, "") for x, z in points]
    place = [np.unique(x, return_inverse=True)[1].astype(np.int64) for x, _ in points]
    residual = [np.log(z / fit.predict(x)) for fit, (x, z) in zip(fits, points, strict=True)]
    partner = _partners(tables, place)
    correlation = None
    if partner is not None:
        pair = residual[0], residual[1][partner]
        correlation = float((pair[0] * pair[1]).sum() / np.sqrt((pair[0] ** 2).sum() * (pair[1] ** 2).sum()))
    drawn = _redrawn(fits, residual, place, partner, correlation, bootstrap, np.random.default_rng([seed, 6]))
    return _compared(fits, drawn, points, losses, names, y, correlation)


def _compared(
    fits: Sequence[LawFit],
    drawn: Sequence[Floats],
    points: Sequence[tuple[Floats, Floats]],
    losses: Sequence[float] | None,
    names: tuple[str, str],
    y: str,
    correlation: float | None,
) -> FamilyComparison:
    ranges = [(float(z.min()), float(z.max())) for _, z in points]
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    if losses is None:
        if low >= high:
            raise FitError(
                f"{names[0]} reaches losses from {ranges[0][0]:.4g} to {ranges[0][1]:.4g}, {names[1]} from "
                f"{ranges[1][0]:.4g} to {ranges[1][1]:.4g}: they share none; train sizes whose losses overlap, or name "
                "losses= to extrapolate"
            )
        losses = [high, float(np.sqrt(low * high)), low]
    trends = [loss_trend(fit) for fit in fits]
    multipliers = []
    for loss in losses:
        value = [float(trend.solve(loss)) for trend in trends]
        for name, number, trend in zip(names, value, trends, strict=True):
            if not np.isfinite(number):
                raise FitError(
                    f"the law of {name} never reaches {loss:.6g} {unit_of(y)}: its offset is {trend.offset:.6g}; ask "
                    "for a higher loss"
                )
        many = [solve_trend(t_B3, trend.log_centre, loss)[:, 0] for t_B3, trend in zip(drawn, trends, strict=True)]
        estimate = Estimate.of(value[0] / value[1], many[0] / many[1])
        multipliers.append(Multiplier(float(loss), estimate, not all(r[0] <= loss <= r[1] for r in ranges)))
    alphas = [Estimate.of(trend.exponent, t_B3[:, 2]) for trend, t_B3 in zip(trends, drawn, strict=True)]
    difference = Estimate.of(trends[0].exponent - trends[1].exponent, drawn[0][:, 2] - drawn[1][:, 2])
    return FamilyComparison(
        names=names,
        y=y,
        formula=fits[0].formula,
        paired=correlation is not None,
        correlation=correlation,
        multipliers=tuple(multipliers),
        exponents=(alphas[0], alphas[1]),
        exponent_difference=difference,
        basis=" and ".join(f"{fit.rows} runs of {fit.sizes} sizes" for fit in fits),
        fits=tuple(fits),
    )


def _partners(tables: Sequence[RunTable], place: Sequence[NDArray[np.int64]]) -> NDArray[np.int64] | None:
    """For each run of a, the run of b of the same seed at the same place among the sizes; None unless all pair."""
    if not all(table.has("seed") for table in tables):
        return None
    keys = [
        list(zip(at.tolist(), table.values("seed").tolist(), strict=True))
        for at, table in zip(place, tables, strict=True)
    ]
    if len(set(keys[0])) < len(keys[0]) or sorted(keys[0]) != sorted(keys[1]):
        return None
    index = {key: i for i, key in enumerate(keys[1])}
    return np.array([index[key] for key in keys[0]], dtype=np.int64)


def _redrawn(
    fits: Sequence[LawFit],
    residual: Sequence[Floats],
    place: Sequence[NDArray[np.int64]],
    partner: NDArray[np.int64] | None,
    correlation: float | None,
    draws: int,
    rng: np.random.Generator,
) -> list[Floats]:
    """Draws (B, 3) of each family's L(C): offset, log scale, exponent. A draw that does not converge is NaN."""
    normal: list[tuple[Floats, Floats]] = []
    for at in place:
        normal.append((rng.standard_normal((draws, len(at))), rng.standard_normal((draws, int(at.max()) + 1))))
    if partner is not None and correlation is not None:
        rest = np.sqrt(1 - correlation**2)
        own = normal[1][0].copy()
        own[:, partner] = correlation * normal[0][0] + rest * own[:, partner]
        normal[1] = own, correlation * normal[0][1] + rest * normal[1][1]
    out = []
    sd_seed = int(rng.integers(2**32))
    for fit, r_n, at, (own, shared) in zip(fits, residual, place, normal, strict=True):
        noise = NoiseModel.estimate(r_n, at, fit.form.num_params)
        if noise is None:
            raise FitError(f"{fit.rows} runs leave no degree of freedom for the noise of {fit.formula}; add runs")
        # Partners have one noise, not known exactly: a draw that has it larger for one has it larger for the other.
        sd_B2 = noise.draw_sd(draws, rng if partner is None else np.random.default_rng(sd_seed))
        noise_Bn = sd_B2[:, :1] * own + (sd_B2[:, 1:] * shared)[:, at]
        fitted_n = fit.points.y * np.exp(-r_n)
        solved = fit.problem.solve(np.repeat(np.array([fit.theta]), draws, axis=0), fitted_n * np.exp(noise_Bn))
        theta_B3 = trend_draws(fit, solved.theta)
        theta_B3[~solved.converged] = np.nan
        out.append(theta_B3)
    return out
