"""Law: the form that every law of one variable shares, and the way from points to a ``LawFit``.

Exponents are reported in the convention of VAR (arXiv:2404.02905, sec. 4): L = (beta N)^alpha with alpha < 0. Losses
are raw cross-entropies in nats per token; an offset is fitted, never subtracted beforehand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from varscale_analysis.bootstrap import NoiseModel, draw_noise, interval
from varscale_analysis.fit import FitError, Floats, Objective, Solutions, curve, fit_batch, residuals, solve, starts
from varscale_analysis.laws.result import Diagnostics, LawFit, Parameter
from varscale_analysis.table import LEVEL, RunTable, unit_of

_AGREE = 1e-6  # starts agree when their objectives do, relative to the best (or to rounding, for data on the law)


@dataclass(frozen=True)
class Law(ABC):
    """A law of one variable.

    Attributes:
        n: column of x, or the name of x when arrays are given.
        per: beta is reported per this many of x's unit: 1e9 gives the paper's billions of parameters.
        objective: least squares on the log of the loss ("log", the default) or on the loss ("raw").
    """

    n: str = "params_nonembed"
    per: float = 1.0
    objective: Objective = "log"

    name: ClassVar[str]
    formula: ClassVar[str]
    has_offset: ClassVar[bool]

    @property
    def num_params(self) -> int:
        """Free parameters."""
        return 3 if self.has_offset else 2

    @abstractmethod
    def parameters(self, theta_B3: Floats, centre: float) -> dict[str, Floats]:
        """The parameters as reported, each (B,), from (E, a, alpha)."""

    def fit(
        self,
        data: RunTable | tuple[ArrayLike, ArrayLike],
        y: str = "val_nats_per_token_avg",
        *,
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> LawFit:
        """Fit the law to the usable rows of a table, or to arrays (x, y).

        Raises:
            FitError: fewer sizes than parameters, or no start that converged.
            RunTableError: rows that must not be mixed (see ``RunTable.comparable``).
        """
        if isinstance(data, RunTable):
            table = data.comparable(fixed_tokens=True)
            x_n, y_n, at = table.values(self.n), table.values(y), table.at_tokens
        else:
            x_n, y_n = (np.asarray(values, dtype=np.float64).ravel() for values in data)
            at = "on the given points"
        _check_points(x_n, y_n)
        sizes_n, size_n = np.unique(x_n, return_inverse=True)
        if len(sizes_n) < self.num_params:
            raise FitError(
                f"{self.formula} has {self.num_params} parameters, but there are {len(sizes_n)} sizes; measure at "
                f"least {self.num_params - len(sizes_n)} more" + (", or fit PowerLaw" if self.has_offset else "")
            )
        solution, certificate, u_n, centre = self._optimum(x_n, y_n)
        theta = solution.theta[0]
        residual_n = residuals(theta[None], u_n, y_n[None], self.objective)[0]
        noise = NoiseModel.estimate(residual_n, size_n.astype(np.int64), self.num_params)
        draws_B5, converged = np.empty((0, 5)), 0
        if noise is not None and bootstrap > 0:
            rng = np.random.default_rng([seed, 0])
            sd_B2 = noise.draw_sd(bootstrap, rng)
            noise_Bn = draw_noise(sd_B2, size_n.astype(np.int64), rng)
            f_n = curve(theta, u_n)
            y_Bn = f_n * np.exp(noise_Bn) if self.objective == "log" else np.maximum(f_n + noise_Bn, 1e-3 * f_n)
            drawn = fit_batch(u_n, y_Bn, np.ones_like(y_Bn), self.has_offset, self.objective, warm=theta)
            draws_B5, converged = np.concatenate([drawn.theta, sd_B2], axis=-1), int(drawn.converged.sum())
        certificate |= {"draws_converged": converged, "lack_of_fit_p": noise.lack_of_fit_p if noise else None}
        certificate |= {"seed_sd": noise.seed_sd if noise else None, "size_sd": noise.size_sd if noise else None}
        basis = f"{len(x_n)} runs, {len(sizes_n)} sizes"
        return self._result(x_n, y_n, y, at, basis, solution, centre, seed, certificate, draws_B5)

    def fit_weighted(self, x_n: Floats, y_n: Floats, draws_y_Bn: Floats, draws_w_Bn: Floats, y: str, at: str) -> LawFit:
        """Fit points whose draws come from elsewhere, such as envelopes extracted again from resampled runs.

        ``draws_w_Bn`` gives the weight of each point in each draw, 0 where a draw has none. No noise of a single run is
        attached: ``predict_interval`` equals ``curve_interval``. Raises ``FitError`` as ``fit`` does.
        """
        _check_points(x_n, y_n)
        if len(x_n) < self.num_params:
            raise FitError(f"{self.formula} has {self.num_params} parameters, but there are {len(x_n)} points")
        solution, certificate, u_n, centre = self._optimum(x_n, y_n)
        draws_B5, converged = np.empty((0, 5)), 0
        enough = (draws_w_Bn > 0).sum(-1) >= self.num_params
        if enough.any():
            drawn_y, drawn_w = draws_y_Bn[enough], draws_w_Bn[enough]
            drawn = fit_batch(u_n, drawn_y, drawn_w, self.has_offset, self.objective, warm=solution.theta[0])
            draws_B5 = np.concatenate([drawn.theta, np.zeros((int(enough.sum()), 2))], axis=-1)
            converged = int(drawn.converged.sum())
        certificate |= {"draws_converged": converged, "lack_of_fit_p": None, "seed_sd": None, "size_sd": None}
        basis = f"{len(x_n)} points"
        return self._result(x_n, y_n, y, at, basis, solution, centre, 0, certificate, draws_B5)

    def _optimum(self, x_n: Floats, y_n: Floats) -> tuple[Solutions, dict[str, Any], Floats, float]:
        """The best of all starts, its certificate, u = log x - centre, centre. Raises if it has not converged."""
        centre = float(np.log(x_n).mean())
        u_n = np.log(x_n) - centre
        grid_G3 = starts(u_n, y_n[None], np.ones((1, len(u_n))), self.has_offset, self.objective)[:, 0]
        tiled = np.broadcast_to(y_n, (len(grid_G3), len(u_n)))
        all_G = solve(grid_G3, u_n, tiled, np.ones_like(tiled), self.has_offset, self.objective)
        best = int(np.argmin(np.where(all_G.converged, all_G.objective, np.inf)))
        if not all_G.converged[best] or all_G.objective[best] > all_G.objective.min() * (1 + _AGREE) + 1e-22:
            raise FitError(
                f"{self.formula} did not converge from any of {len(grid_G3)} starts (scale-free gradient "
                f"{all_G.gradient.min():.1e}); look at the points: the loss may not fall with {self.n}"
            )
        floor = all_G.objective[best]
        agree = all_G.objective <= floor * (1 + _AGREE) + 1e-20
        rest = all_G.objective[~agree & all_G.converged]
        certificate: dict[str, Any] = {
            "starts_tried": len(grid_G3),
            "starts_agreeing": int(agree.sum()),
            "next_basin": float(rest.min() / floor - 1) if len(rest) and floor > 0 else None,
            "gradient": float(all_G.gradient[best]),
        }
        one = slice(best, best + 1)
        solution = Solutions(all_G.theta[one], all_G.objective[one], all_G.gradient[one], all_G.bound[one])
        return solution, certificate, u_n, centre

    def _result(
        self,
        x_n: Floats,
        y_n: Floats,
        y: str,
        at: str,
        basis: str,
        solution: Solutions,
        centre: float,
        seed: int,
        certificate: dict[str, Any],
        draws_B5: Floats,
    ) -> LawFit:
        x_unit, y_unit = unit_of(self.n), unit_of(y)
        beta_unit = f"1/{x_unit}" if self.per == 1.0 else f"1/({self.per:g} {x_unit})"
        units = {"E": y_unit, "beta": beta_unit, "alpha": "1"}
        bounds = dict(zip(("E", "a", "alpha"), solution.bound[0], strict=True))
        values = self.parameters(solution.theta, centre)
        drawn = self.parameters(draws_B5[:, :3], centre)
        params = {}
        for name, value in values.items():
            low, high = interval(drawn[name], LEVEL) if len(draws_B5) else (None, None)
            params[name] = Parameter(name, float(value[0]), units[name], low, high, bool(bounds.get(name, False)))
        e, a, alpha = (float(v) for v in solution.theta[0])
        diagnostics = Diagnostics(
            **certificate,
            rms=float(np.sqrt(solution.objective[0] / len(x_n))),
            degrees_of_freedom=len(x_n) - self.num_params,
            draws=len(draws_B5),
            pearson_r=_pearson(x_n, y_n),
            pearson_r_offset=_pearson(x_n, y_n - e) if self.has_offset else None,
        )
        return LawFit(
            law=self.name,
            formula=self.formula if self.n.startswith("params") else self.formula.replace(" N)", " C)"),
            x=self.n,
            x_unit=x_unit,
            y=y,
            y_unit=y_unit,
            at=at,
            objective=self.objective,
            params=params,
            rows=len(x_n),
            sizes=len(np.unique(x_n)),
            basis=basis,
            x_range=(float(x_n.min()), float(x_n.max())),
            theta=(e, a, alpha),
            centre=centre,
            seed=seed,
            diagnostics=diagnostics,
            draws=draws_B5,
        )

    def _log_beta(self, theta_B3: Floats, centre: float) -> Floats:
        """log beta of (beta x)^alpha = exp(a + alpha (log x - centre)), x in units of ``per``."""
        alpha = theta_B3[:, 2]
        safe = np.where(np.abs(alpha) < 1e-12, np.copysign(1e-12, alpha), alpha)
        return np.asarray(theta_B3[:, 1] / safe - centre + np.log(self.per))


def _check_points(x_n: Floats, y_n: Floats) -> None:
    if x_n.shape != y_n.shape:
        raise FitError(f"{len(x_n)} values of x but {len(y_n)} of y; give one y for each x")
    for name, values in (("x", x_n), ("y", y_n)):
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            raise FitError(f"{name} has {int(bad.sum())} values that are not positive numbers; leave them out")


def _pearson(x_n: Floats, y_n: Floats) -> float | None:
    """Correlation of log x and log y; None where it is not defined (a y at or below 0, or no spread)."""
    if len(x_n) < 3 or (y_n <= 0).any() or np.ptp(np.log(y_n)) == 0 or np.ptp(x_n) == 0:
        return None
    return float(np.corrcoef(np.log(x_n), np.log(y_n))[0, 1])
