"""Frontier: the best size, tokens and loss at each compute, by one of three routes, as one result.

Routes: the lower envelope of training curves, the minima of IsoFLOP profiles, the closed form of a parametric law
(Hoffmann et al., arXiv:2203.15556, approaches 1 to 3). Intervals go through the route: runs or losses are drawn again,
the envelope or the minima extracted again, and every line refitted.

Shapes: P optima, B draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np

from varscale_analysis.curve_set import CurveSet
from varscale_analysis.envelope import Envelope, extract, extract_draws
from varscale_analysis.fit import FitError, Floats
from varscale_analysis.isoflop import BUDGET_TOLERANCE, IsoflopProfile, Minimum, locate, read_profiles
from varscale_analysis.laws.parameter import Parameter
from varscale_analysis.laws.result import LawFit
from varscale_analysis.optima import Allocation, Optimum, fit_losses, fit_optima, logs
from varscale_analysis.parametric import ComputeCost, LossLaw, check_units
from varscale_analysis.points import Data, Points
from varscale_analysis.table import LEVEL, RunTable, unit_of
from varscale_analysis.trend import MIN_DRAWS, Trend

Route = Literal["envelope", "isoflop", "law"]
LAW_POINTS = 96  # of the envelope, for L(C): neighbours on a finer grid repeat one another


@dataclass(frozen=True, eq=False)
class Frontier:
    """The compute frontier of a set of runs, by one route.

    Attributes:
        route: "envelope", "isoflop" or "law".
        n, d, y, flops_rule: columns (or names) of N, D and the loss, and the rule of the FLOPs.
        n_opt, d_opt, l_opt: N_opt(C), D_opt(C), L_opt(C); None where the data carry none, ``absent`` says why.
        optima: the optima behind the lines: crossings of curves, minima of profiles; none for a law.
        flops_range: compute of the first and last optimum (of the runs behind a law, if given).
        basis: what it rests on, in words.
        power, saturating: fits of L(C) to the frontier's points; None for a law, or where ``absent`` says why.
        envelope, profiles, law: what the route extracted. Refused profiles stay, with their reason.
        draws: resamples behind the intervals.
    """

    route: Route
    n: str
    d: str | None
    y: str
    flops_rule: str
    n_opt: Trend | None
    d_opt: Trend | None
    l_opt: Trend | None
    optima: tuple[Optimum, ...]
    flops_range: tuple[float, float] | None
    basis: str
    power: LawFit | None = None
    saturating: LawFit | None = None
    envelope: Envelope | None = None
    profiles: tuple[IsoflopProfile, ...] = ()
    law: LossLaw | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
    draws: int = 0

    @classmethod
    def from_envelope(
        cls,
        data: RunTable | CurveSet,
        *,
        n: str = "params_nonembed",
        y: str = "val_nats_per_token_avg",
        seed_average: bool = True,
        smooth: float | None = None,
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> Frontier:
        """Extract the lower envelope of the training curves, and fit N_opt, D_opt and L_opt.

        Args:
            data: runs with curves, or a ``CurveSet``; rows that are not comparable are refused.
            n, y: convention of N and the loss (for a ``CurveSet``, their names).
            seed_average: average the seeds of a size and length first (the minimum over seeds favours sizes with more
                seeds); of several lengths the lowest counts.
            smooth: factor of compute over which each curve is smoothed first (see ``CurveSet.smoothed``); None: not.
            bootstrap: resamples of sizes, and of seeds within a size and length, each extracted and fitted again.

        Raises ``FitError`` without curves, with fewer than 2 sizes, or fewer than 3 frontier points. Curves that cross
        fewer than twice give no N_opt(C): ``absent`` says why.
        """
        rule, tokens = "as given", "tokens"
        if isinstance(data, RunTable):
            data = data.comparable(fixed_tokens=False)
            rule, tokens = str(data.rows["flops_rule"].iloc[0]), "tokens_seen"
            data = CurveSet.from_table(data, n, y)
        data = data if smooth is None else data.smoothed(smooth)
        envelope = extract(data, seed_average=seed_average)
        points_P, between = envelope.thinned(LAW_POINTS)
        drawn = extract_draws(data, envelope, points_P, bootstrap, np.random.default_rng([seed, 2]))
        crossings = envelope.crossings
        n_opt, d_opt, absent = envelope.lines(drawn)
        averaged = "seeds averaged" if seed_average else "lowest seeds"
        if data.smoothing is not None:
            averaged += f", smoothed over a factor {data.smoothing:g} of compute"
        at = f"on the envelope of {len(data.size_R)} runs, {averaged}"
        at += ", from its first crossing to its last" if between else ""
        c_P, loss_P = envelope.flops_G[points_P], envelope.least_G[points_P]
        power, saturating, l_opt, why = fit_losses(c_P, loss_P, drawn.loss_BP, y, at)
        changes = f"{len(crossings)} crossings among {len(envelope.vertices)} changes of size"
        return cls(
            route="envelope",
            n=n,
            d=None if data.tokens_per_flop_R is None else tokens,
            y=y,
            flops_rule=rule,
            n_opt=n_opt,
            d_opt=d_opt,
            l_opt=l_opt,
            optima=tuple(Optimum(v.flops, v.n_opt, v.tokens, v.loss) for v in crossings),
            flops_range=(crossings[0].flops, crossings[-1].flops) if crossings else None,
            basis=f"{changes}, {len(data.size_R)} curves of {len(envelope.n_S)} sizes, {averaged}",
            power=power,
            saturating=saturating,
            envelope=envelope,
            absent=absent | ({"L_opt": why} if why else {}),
            draws=bootstrap,
        )

    @classmethod
    def from_isoflop(
        cls,
        data: Data,
        *,
        flops: str = "flops_train",
        n: str = "params_nonembed",
        d: str | None = "tokens_seen",
        y: str = "val_nats_per_token_avg",
        minimum: Minimum = "akima",
        tolerance: float = BUDGET_TOLERANCE,
        noise: float | None = None,
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> Frontier:
        """Group the runs by budget, find the best size of each, and fit N_opt, D_opt and L_opt to the optima.

        Args:
            data: a table, or columns by name; one row a run, each trained to its budget.
            flops, n, d, y: names of the columns of compute (FLOP), N, tokens (None: no D_opt) and loss.
            minimum: how a profile is interpolated in log N: "parabola" or "cubic" (least squares on the loss) or
                "akima" (through every log loss).
            tolerance: runs whose compute differs by at most this factor - 1 share a budget.
            noise: standard deviation of the loss of one run; by default from the seeds of a size, else from the
                deviation of each point from the cubic through its neighbours.
            bootstrap: redraws of every loss with that noise; each gives new optima and new lines.

        Raises ``FitError`` for values that are not positive numbers, two units in a column, one size, budgets that
        cannot be grouped, and when every profile is refused: each with its reason.
        """
        rule = "as given"
        if isinstance(data, RunTable):
            data = data.comparable(fixed_tokens=False)
            rule = str(data.rows["flops_rule"].iloc[0])
        points = Points.read(data, {"c": flops, "n": n} | ({} if d is None else {"d": d}), y)
        c_n, n_n, d_n, y_n = points.x["c"], points.x["n"], points.x.get("d"), points.y
        if d_n is not None:
            check_units(c_n, n_n, d_n)
        read = read_profiles(c_n, n_n, d_n, y_n, minimum=minimum, tolerance=tolerance, noise=noise)
        rng = np.random.default_rng([seed, 3])
        located = [locate(profile, bootstrap, rng) for profile in read]
        profiles = tuple(profile for profile, _ in located)
        optima = tuple(profile.optimum for profile in profiles if profile.optimum is not None)
        if not optima:
            reasons = "; ".join(f"{profile.flops:.3g} FLOP: {profile.refusal}" for profile in profiles[:6])
            raise FitError(f"none of the {len(profiles)} IsoFLOP profiles has a minimum: {reasons}")
        drawn_BP3 = np.stack([drawn for profile, drawn in located if profile.optimum is not None], axis=1)
        basis = f"{len(optima)} of {len(profiles)} profiles, minima by {minimum}, "
        if profiles[0].noise is None:
            basis += "noise not known"
        else:
            how = "estimated" if noise is None else "stated"
            basis += f"noise of a run {profiles[0].noise:.2g} ({how})"
        basis += ", branches of one trunk taken as independent" if points.trunk is not None else ""
        return cls._from_optima(
            optima,
            drawn_BP3,
            n=n,
            d=d,
            y=y,
            flops_rule=rule,
            basis=basis,
            profiles=profiles,
            draws=bootstrap,
            seed=seed,
        )

    @classmethod
    def from_optima(
        cls,
        optima: Sequence[Optimum],
        *,
        n: str = "params_nonembed",
        d: str | None = "tokens_seen",
        y: str = "val_nats_per_token_avg",
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> Frontier:
        """Fit the lines to optima found elsewhere, such as published pairs with their standard deviations.

        Where the optima have no standard deviations, the draws come from their scatter about the line.
        Raises ``FitError`` without optima.
        """
        if not optima:
            raise FitError("there are no optima; give at least two, at different computes")
        optima = tuple(optima)
        sd_P3 = np.array([[o.log_n_sd, o.log_d_sd, o.log_loss_sd] for o in optima], dtype=np.float64)
        drawn_BP3 = np.empty((0, len(optima), 3))
        if np.isfinite(sd_P3[:, 0]).all():
            rng = np.random.default_rng([seed, 3])
            drawn_BP3 = logs(optima) + np.nan_to_num(sd_P3) * rng.standard_normal((bootstrap, len(optima), 3))
        basis = f"{len(optima)} optima as given"
        return cls._from_optima(
            optima,
            drawn_BP3,
            n=n,
            d=d,
            y=y,
            flops_rule="as given",
            basis=basis,
            profiles=(),
            draws=bootstrap,
            seed=seed,
        )

    @classmethod
    def _from_optima(
        cls, optima: tuple[Optimum, ...], drawn_BP3: Floats, *, y: str, basis: str, draws: int, seed: int, **names: Any
    ) -> Frontier:
        lines = fit_optima(optima, drawn_BP3, bootstrap=draws, rng=np.random.default_rng([seed, 4]))
        absent = dict(lines.absent)
        c_P, loss_P = np.array([optimum.flops for optimum in optima]), np.exp(logs(optima)[:, 2])
        power, saturating, l_opt = None, None, None
        if np.isfinite(loss_P).all():
            drawn_BP = np.exp(drawn_BP3[:, :, 2])
            power, saturating, l_opt, why = fit_losses(c_P, loss_P, drawn_BP, y, f"at {len(optima)} optima")
            absent |= {"L_opt": why} if why else {}
        else:
            absent["L_opt"] = "the optima carry no loss"
        if lines.scatter:
            basis += f"; log N* scatters by {lines.scatter:.2g} beyond its noise"
        return cls(
            route="isoflop",
            y=y,
            n_opt=lines.n_opt,
            d_opt=lines.d_opt,
            l_opt=l_opt,
            optima=optima,
            flops_range=(float(c_P.min()), float(c_P.max())),
            basis=basis,
            power=power,
            saturating=saturating,
            absent=absent,
            draws=draws,
            **names,
        )

    @classmethod
    def from_law(
        cls, fit: LawFit, *, cost: ComputeCost | None = None, flops_range: tuple[float, float] | None = None
    ) -> Frontier:
        """The allocation of a fitted ``ChinchillaLaw``, in closed form, with the law's draws.

        Args:
            cost: how N and D make C; by default C = 6 N D. ``ComputeCost.from_columns`` reads it from runs.
            flops_range: compute of the first and last run behind the law; by default that of its points by ``cost``.

        Raises ``FitError`` for another law, or one without a compute-optimal size.
        """
        cost = ComputeCost() if cost is None else cost
        law = LossLaw.of(fit, cost)
        n, d, y = fit.form.roles["n"], fit.form.roles["d"], fit.y
        if flops_range is None:
            c_n = cost.flops(fit.points.x["n"], fit.points.x["d"])
            flops_range = float(c_n.min()), float(c_n.max())
        n_opt, d_opt, l_opt = law.trends("parameter", "token", unit_of(y))
        return cls(
            route="law",
            n=n,
            d=d,
            y=y,
            flops_rule=str(cost),
            n_opt=n_opt,
            d_opt=d_opt,
            l_opt=l_opt,
            optima=(),
            flops_range=flops_range,
            basis=f"closed form of {fit.formula}, {fit.basis}",
            law=law,
            draws=len(law.draws),
        )

    @property
    def n_exponent(self) -> Parameter | None:
        """a of N_opt ~ C^a."""
        return None if self.n_opt is None else self.n_opt.parameter

    @property
    def d_exponent(self) -> Parameter | None:
        """b of D_opt ~ C^b."""
        return None if self.d_opt is None else self.d_opt.parameter

    @property
    def l_exponent(self) -> Parameter | None:
        """c of L_opt = E + s C^c (E = 0 where no offset could be fitted)."""
        return None if self.l_opt is None else self.l_opt.parameter

    @property
    def refused(self) -> tuple[IsoflopProfile, ...]:
        """The profiles without an optimum; each says why in ``refusal``."""
        return tuple(profile for profile in self.profiles if profile.optimum is None)

    def allocate(self, flops: float) -> Allocation:
        """The best N, D and L at ``flops``, and how far outside the optima. Raises ``FitError`` without N_opt(C)."""
        if self.n_opt is None:
            raise FitError(f"no N_opt(C): {self.absent['N_opt']}")
        outside = None
        if self.flops_range is not None:
            low, high = self.flops_range
            outside = max(flops / high, low / flops, 1.0)
        n, d, loss = (_at(trend, flops) for trend in (self.n_opt, self.d_opt, self.l_opt))
        assert n[0] is not None
        return Allocation(flops, n[0], n[1], *d, *loss, outside)

    def summary(self) -> str:
        """The frontier as text: its basis, N_opt, D_opt and L_opt with intervals, what is refused or absent and why."""
        lines = [f"frontier by {self.route}, {self.y} against {self.n}, FLOP rule {self.flops_rule}: {self.basis}"]
        lines += [f"  {trend}" for trend in (self.n_opt, self.d_opt, self.l_opt) if trend is not None]
        if self.draws:
            lines.append(f"  {LEVEL:.0%} intervals from {self.draws} draws")
        fits = (self.power, self.saturating)
        lines += [f"  {line}" for fit in fits if fit is not None for line in fit.summary().splitlines()]
        lines += [f"  refused: {profile.flops:.4g} FLOP: {profile.refusal}" for profile in self.refused]
        lines += [f"  absent: {part}: {why}" for part, why in self.absent.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        parts = ("n_opt", "d_opt", "l_opt", "power", "saturating", "envelope", "law")
        saved = {name: None if (part := getattr(self, name)) is None else part.to_dict() for name in parts}
        lists = {
            "optima": [vars(optimum) for optimum in self.optima],
            "profiles": [profile.to_dict() for profile in self.profiles],
            "flops_range": None if self.flops_range is None else list(self.flops_range),
            "absent": dict(self.absent),
        }
        return {**vars(self), **saved, **lists}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``. Raises ``FitError`` for a mapping that is not a frontier."""
        readers = {"n_opt": Trend, "d_opt": Trend, "l_opt": Trend, "power": LawFit, "saturating": LawFit}
        readers |= {"envelope": Envelope, "law": LossLaw}
        try:
            fields = dict(values)
            for name, kind in readers.items():
                fields[name] = None if values[name] is None else kind.from_dict(values[name])  # type: ignore[attr-defined]
            fields["optima"] = tuple(Optimum(**optimum) for optimum in values["optima"])
            fields["profiles"] = tuple(IsoflopProfile.from_dict(profile) for profile in values["profiles"])
            fields["flops_range"] = None if values["flops_range"] is None else tuple(values["flops_range"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise FitError(f"not a saved frontier ({error!r}); write one with Frontier.to_dict") from error


def _at(trend: Trend | None, flops: float) -> tuple[float | None, tuple[float, float] | None]:
    if trend is None:
        return None, None
    if len(trend.draws) < MIN_DRAWS:
        return float(trend.predict(flops)), None
    low, high = trend.interval(flops)
    return float(trend.predict(flops)), (float(low), float(high))
