"""Law: the form that every law shares, and the way from data to a ``LawFit`` with intervals.

Losses are raw cross-entropies in nats per token; an offset is fitted or given in the open, never subtracted beforehand.
Shapes: B draws, n points, P inner parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from varscale_analysis.bootstrap import NoiseModel, draw_noise, pairs, signs, within, without_each
from varscale_analysis.certificate import Certificate, agreement
from varscale_analysis.fit import FitError, Floats, Problem, designs_used
from varscale_analysis.form import Form
from varscale_analysis.laws.diagnostics import Diagnostics
from varscale_analysis.laws.parameter import Parameter
from varscale_analysis.laws.result import LawFit
from varscale_analysis.points import Data, Points
from varscale_analysis.profile import profile_of
from varscale_analysis.selection import log_likelihood
from varscale_analysis.solver import Solutions
from varscale_analysis.table import LEVEL, unit_of

Intervals = Literal["noise", "pairs", "seeds", "wild", "jackknife", "profile"]
CHECKED = 0.05  # of the draws, fitted again from many starts
CHECK_STARTS = 4
CERTIFIED = 0.95  # the least share of draws that must be certified


@dataclass(frozen=True)
class Law(Form):
    """A law that can be fitted."""

    def fit(
        self,
        data: Data,
        y: str = "val_nats_per_token_avg",
        *,
        bootstrap: int | Floats = 1000,
        intervals: Intervals | None = None,
        groups: str | None = None,
        seed: int = 0,
        certify: bool = True,
        certified_share: float = CERTIFIED,
    ) -> LawFit:
        """Fit the law to the usable rows of a run table, to a data frame or mapping of columns, or to arrays.

        Args:
            data: see ``Points.read``; arrays are (n, y), (n, d, y) and so on, in the order of ``roles``.
            y: the fitted column.
            bootstrap: draws of the intervals; 0 for none. With "pairs" it may be the draws themselves, weights (B, n):
                how often each draw holds each point.
            intervals: "noise" (the default for squares; its coverage is measured, see ``bootstrap``), "pairs" (the
                default for other losses), "seeds", "wild" (the default for joint laws), "jackknife" or "profile".
            groups: what pairs, wild and jackknife keep together: "rows", "designs", "sizes", "trunks" or a column; by
                default "trunks" where runs branched from shared ones (columns trunk_id and run_id), else "rows".
            seed: of the draws.
            certify: False reports a fit that is not certified, with its faults.
            certified_share: the least share of draws that must be certified.

        Raises:
            FitError: points that cannot be fitted, fewer than parameters, a fit or a bootstrap that is not certified.
            RunTableError: rows that must not be mixed (see ``RunTable.comparable``).
        """
        points = self.read(data, y)
        problem, theta, least, certificate = self._optimum(points, certify)
        if intervals is None:
            intervals = "wild" if self.correlated else "noise" if self.criterion.loss == "squares" else "pairs"
        groups = groups if groups is not None else "rows" if points.trunk is None else "trunks"
        given = None if isinstance(bootstrap, int) else np.atleast_2d(np.asarray(bootstrap, dtype=np.float64))
        if given is not None and (intervals != "pairs" or given.shape[1] != len(points)):
            raise FitError(f"draws given as weights need intervals='pairs' and {len(points)} columns, one a point")
        noise = _noise(problem, theta)
        draws = _Draws.none(len(theta))
        if (given is not None or bootstrap) and len(points) > self.num_params:
            rng = np.random.default_rng([seed, 0])
            count = len(given) if given is not None else int(bootstrap)
            if intervals == "noise" and noise is not None:
                draws = _from_noise(problem, theta, noise, count, rng)
            elif intervals == "wild":
                f_n, spread_n = problem.values(theta[None])[0], _inflated(problem, theta)
                signed_Bn = signs(points.group(groups), count, rng) * spread_n
                draws = _refit(problem, theta, _displaced(problem, f_n, signed_Bn), None, rng)
            elif intervals in ("pairs", "seeds", "jackknife"):
                if intervals == "pairs":
                    weights = given if given is not None else pairs(points.group(groups), count, rng)
                else:
                    weights = (
                        within(points.design, count, rng)
                        if intervals == "seeds"
                        else without_each(points.group(groups))
                    )
                draws = _refit(problem, theta, None, weights * points.w, rng)
            if intervals != "profile":
                draws.demand(certified_share)
        kind = "none"
        if len(draws.theta):
            kind = f"{intervals} of {groups}" if intervals in ("pairs", "wild", "jackknife") else intervals
            kind = "noise of trunks" if intervals == "noise" and points.trunk is not None else kind
        elif intervals == "profile" and bootstrap and len(points) > self.num_params:
            kind = "profile"
        basis = f"{len(points)} runs, {len(np.unique(next(iter(points.x.values()))))} sizes"
        basis += "" if points.trunk is None else f", {int(points.trunk.max()) + 1} trunks"
        return self._result(problem, theta, least, certificate, noise, draws, kind, basis, seed)

    def fit_weighted(self, x_n: Floats, y_n: Floats, draws_y_Bn: Floats, draws_w_Bn: Floats, y: str, at: str) -> LawFit:
        """Fit points of a law of one column whose draws come from elsewhere, such as envelopes extracted again.

        ``draws_w_Bn`` gives the weight of each point in each draw, 0 where a draw has none; draws with fewer points
        than parameters are left out. No noise of a single run is attached: ``predict_interval`` equals
        ``curve_interval``. Raises ``FitError`` as ``fit`` does.
        """
        points = replace(Points.read((x_n, y_n), self.roles, y), at=at)
        problem, theta, least, certificate = self._optimum(points, certify=True)
        draws = _Draws.none(len(theta))
        if len(draws_y_Bn):
            safe_Bn = np.where(draws_w_Bn > 0, draws_y_Bn, 1.0)
            draws = _refit(problem, theta, safe_Bn, np.asarray(draws_w_Bn, dtype=np.float64), np.random.default_rng(0))
            draws = replace(draws, noise=np.zeros((len(draws.theta), 2)))
        kind = "given draws" if len(draws.theta) else "none"
        return self._result(problem, theta, least, certificate, None, draws, kind, f"{len(points)} points", 0)

    def read(self, data: Data, y: str) -> Points:
        """The points of this law's columns."""
        return Points.read(data, self.roles, y, self.criterion.weights, fixed_tokens=self.fixed_tokens)

    def _optimum(self, points: Points, certify: bool) -> tuple[Problem, Floats, float, Certificate]:
        problem = Problem(self, points)
        theta, least, certificate = problem.optimum()
        if certify and not certificate.certified:
            raise FitError(
                f"{self.formula} did not converge to a certified optimum: {'; '.join(certificate.faults)}. Look at the "
                f"points (the loss may not fall with {next(iter(self.roles.values()))}), or pass certify=False"
            )
        return problem, theta, least, certificate

    def _result(
        self,
        problem: Problem,
        theta: Floats,
        least: float,
        certificate: Certificate,
        noise: NoiseModel | None,
        draws: _Draws,
        kind: str,
        basis: str,
        seed: int,
    ) -> LawFit:
        points = problem.points
        residual = problem.residuals(theta)
        offset = self.report(theta[None], problem.centre).get("E")
        diagnostics = Diagnostics(
            objective=least,
            rms=float(np.sqrt((points.w * residual**2).sum() / points.w.sum())),
            degrees_of_freedom=len(points) - self.num_params,
            log_likelihood=log_likelihood(self.criterion, residual, points.y, points.w),
            draws_asked=draws.asked,
            draws=len(draws.theta),
            draws_checked=draws.checked,
            draws_agreeing=draws.agreeing,
            seed_sd=noise.seed_sd if noise else None,
            size_sd=noise.size_sd if noise else None,
            lack_of_fit_p=noise.lack_of_fit_p if noise else None,
            pearson_r=_pearson(points, 0.0),
            pearson_r_offset=None if offset is None else _pearson(points, float(offset[0])),
        )
        bare = LawFit(
            form=self,
            points=points,
            theta=tuple(map(float, theta)),
            centre=tuple(map(float, problem.centre)),
            params={},
            derived={},
            certificate=certificate,
            diagnostics=diagnostics,
            intervals=kind,
            basis=basis,
            seed=seed,
            draws=draws.theta,
            noise=draws.noise,
        )
        reported, (lower, upper) = self.report(theta[None], problem.centre), problem.limits
        units = self.units(points.y_unit, {role: unit_of(column) for role, column in self.roles.items()})

        def parameter(name: str, value: float, unit: str) -> Parameter:
            index = self.names.index(name) if name in self.names else None
            given = index is not None and bool(lower[index] == upper[index])
            low, high = None, None
            if len(draws.theta) and not given:
                low, high = bare.interval(name)
            elif kind == "profile" and not given and name not in certificate.at_bounds:
                low, high = profile_of(problem, theta, name).interval(LEVEL)
            finite = low is not None and high is not None and np.isfinite(low) and np.isfinite(high)
            ends = (low, high) if finite else (None, None)
            return Parameter(name, value, unit, *ends, name in certificate.at_bounds, given)

        params = {name: parameter(name, float(value[0]), units[name]) for name, value in reported.items()}
        derived = {name: parameter(name, float(value[0]), "1") for name, value in self.derived(reported).items()}
        return replace(bare, params=params, derived=derived)


@dataclass(frozen=True)
class _Draws:
    """Refits that are certified, with their noise, and how the others went."""

    theta: Floats
    noise: Floats
    asked: int
    checked: int
    agreeing: int

    @classmethod
    def none(cls, params: int) -> _Draws:
        return cls(np.empty((0, params)), np.empty((0, 2)), 0, 0, 0)

    def demand(self, share: float) -> None:
        """Raises ``FitError`` when fewer than ``share`` of the draws are certified."""
        if self.asked and len(self.theta) < share * self.asked:
            raise FitError(
                f"only {len(self.theta)} of {self.asked} draws are certified, {share:.0%} are asked for: the others "
                "have too few different points or no clear optimum; choose intervals='noise' or 'profile', a law with "
                "fewer parameters, or a smaller certified_share"
            )


def _noise(problem: Problem, theta: Floats) -> NoiseModel | None:
    """The noise model of residuals scaled to the mean weight; None without a degree of freedom."""
    points = problem.points
    standard = problem.residuals(theta) * np.sqrt(points.w / points.w.mean())
    if points.trunk is None:
        return NoiseModel.estimate(standard, points.design, problem.form.num_params)
    basis_nP, counts = _leverages(problem, theta), np.bincount(points.trunk)
    sums_PG = np.array([np.bincount(points.trunk, column) for column in basis_nP.T])
    return NoiseModel.estimate(standard, points.trunk, problem.form.num_params, float((sums_PG**2 / counts).sum()))


def _from_noise(problem: Problem, theta: Floats, noise: NoiseModel, count: int, rng: np.random.Generator) -> _Draws:
    points = problem.points
    sd_B2 = noise.draw_sd(count, rng)
    shared = points.design if points.trunk is None else points.trunk
    noise_Bn = draw_noise(sd_B2, shared, rng) / np.sqrt(points.w / points.w.mean())
    drawn = _refit(problem, theta, _displaced(problem, problem.values(theta[None])[0], noise_Bn), None, rng, sd_B2)
    return drawn


def _displaced(problem: Problem, f_n: Floats, noise_Bn: Floats) -> Floats:
    """The law with noise on the scale of the residuals; raw noise leaves y above 0."""
    if problem.objective.residual == "log":
        return np.asarray(f_n * np.exp(noise_Bn))
    return np.maximum(f_n + noise_Bn, 1e-3 * f_n)


def _inflated(problem: Problem, theta: Floats) -> Floats:
    """Residuals over sqrt(1 - leverage)."""
    leverage = np.minimum((_leverages(problem, theta) ** 2).sum(-1), 0.95)
    return np.asarray(problem.residuals(theta) / np.sqrt(1.0 - leverage))


def _leverages(problem: Problem, theta: Floats) -> Floats:
    """An orthonormal basis (n, P) of what the free parameters move: its squares sum to the leverage of each point."""
    jacobian = problem.jacobian(theta) * np.sqrt(problem.points.w)
    free = problem.limits[0] < problem.limits[1]
    basis, _, _ = np.linalg.svd(jacobian[free].T, full_matrices=False)
    return np.asarray(basis)


def _refit(
    problem: Problem,
    theta: Floats,
    y_Bn: Floats | None,
    w_Bn: Floats | None,
    rng: np.random.Generator,
    noise_B2: Floats | None = None,
) -> _Draws:
    """Fit every draw from the optimum; a random 5 % from many starts, and all of them if one of these finds better."""
    asked = len(y_Bn) if y_Bn is not None else len(w_Bn) if w_Bn is not None else 0
    usable = np.ones(asked, dtype=bool)
    if w_Bn is not None:
        usable = designs_used(problem.points, w_Bn) >= problem.form.num_params
    rows = np.flatnonzero(usable)
    if not len(rows):
        return replace(_Draws.none(len(theta)), asked=asked)
    y = None if y_Bn is None else y_Bn[rows]
    w = None if w_Bn is None else w_Bn[rows]
    found = problem.solve(np.repeat(theta[None], len(rows), axis=0), y, w)
    picked = np.sort(rng.choice(len(rows), max(1, round(CHECKED * len(rows))), replace=False))
    again = _from_starts(problem, y, w, picked)
    agree = found.objective[picked] <= again.objective * (1 + agreement(problem.objective)) + 1e-20
    retry = np.flatnonzero(~found.converged) if agree.all() else np.arange(len(rows))
    if len(retry):
        found = _better(found, _from_starts(problem, y, w, retry), retry)
    good = found.converged & np.isfinite(found.objective)
    noise = np.empty((0, 2)) if noise_B2 is None else noise_B2[rows][good]
    return _Draws(found.theta[good], noise, asked, len(picked), int(agree.sum()))


def _from_starts(problem: Problem, y: Floats | None, w: Floats | None, index: NDArray[np.int64]) -> Solutions:
    """The best fit of some draws over starts spread over the grid."""
    starts = problem.starts[:: max(1, len(problem.starts) // CHECK_STARTS)]
    times = len(starts)
    solved = problem.solve(
        np.tile(starts, (len(index), 1)),
        None if y is None else np.repeat(y[index], times, axis=0),
        None if w is None else np.repeat(w[index], times, axis=0),
    )
    value = np.where(solved.converged, solved.objective, np.inf).reshape(-1, times)
    return solved.pick(np.arange(len(index)) * times + np.argmin(value, axis=1))


def _better(old: Solutions, new: Solutions, index: NDArray[np.int64]) -> Solutions:
    """``old`` with the fits at ``index`` replaced where the new one is lower, or is certified and the old is not."""
    take = (new.objective < old.objective[index]) | ~old.converged[index]
    take &= new.converged
    out = old.pick(np.arange(len(old.theta)))
    for name in Solutions.__dataclass_fields__:
        getattr(out, name)[index[take]] = getattr(new, name)[take]
    return out


def _pearson(points: Points, offset: float) -> float | None:
    """Correlation of log x and log(y - offset) for one column; None where it is not defined."""
    if len(points.x) != 1:
        return None
    (x_n,), y_n = points.x.values(), points.y - offset
    if len(x_n) < 3 or (y_n <= 0).any() or np.ptp(np.log(y_n)) == 0 or np.ptp(x_n) == 0:
        return None
    return float(np.corrcoef(np.log(x_n), np.log(y_n))[0, 1])
