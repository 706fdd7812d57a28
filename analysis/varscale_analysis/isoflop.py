"""IsoFLOP profiles: the loss of different sizes trained on one compute budget, and the size at the minimum.

Source: Hoffmann et al., arXiv:2203.15556, approach 2 (parabola in log N); Porian et al., arXiv:2406.19146 (Akima
interpolation of log loss, optima weighted by 1 / std^2). Differs: minima are those of the interpolating polynomial, not
of a grid; a profile whose minimum lies at an edge, or that has a second valley, is refused by name; the noise of a loss
is stated or estimated (from the seeds, else from how far points near the minimum lie from the cubic through their
neighbours).

Shapes: S sizes of a profile, B draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from varscale_analysis import akima
from varscale_analysis.fit import FitError, Floats
from varscale_analysis.optima import Optimum

Minimum = Literal["parabola", "cubic", "akima"]
SIZES_NEEDED: dict[Minimum, int] = {"parabola": 3, "cubic": 4, "akima": 4}
BUDGET_TOLERANCE = 0.1  # two runs share a budget when their compute differs by at most this factor - 1
DIP_SDS = 3.0 * np.sqrt(2.0)  # a dip is the difference of two losses
DIP_SHARE = 0.25  # of the rise from the minimum to the lower end: a deeper dip is never noise
EDGE_SHARE = 0.5  # of the resamples with their minimum at an edge: then so is the profile's
SPACING_SHARE = 1 / 3  # an interpolated minimum is not known better than this share of the spacing of the sizes

_FOUND, _EDGE, _NOT_CONVEX = 0, 1, 2


@dataclass(frozen=True, eq=False)
class IsoflopProfile:
    """The losses of the sizes at one budget.

    Attributes:
        flops: geometric mean of the compute of its runs, FLOP.
        n_S, loss_S, runs_S: the sizes, ascending; their mean loss over seeds; the runs of each.
        d_S: geometric mean of the tokens of each size; None if not given.
        noise: standard deviation of the loss of one run; None where it is neither stated nor can be estimated.
        minimum: how the profile is interpolated.
        optimum: the best size; None if refused, ``refusal`` says why.
    """

    flops: float
    n_S: Floats
    d_S: Floats | None
    loss_S: Floats
    runs_S: Floats
    noise: float | None
    minimum: Minimum
    optimum: Optimum | None = None
    refusal: str | None = None

    def loss_at(self, n: ArrayLike) -> Floats:
        """The interpolated loss at sizes ``n``; NaN outside the measured ones."""
        x = np.atleast_1d(np.log(np.asarray(n, dtype=np.float64))).ravel()
        values = interpolate(np.log(self.n_S), self.loss_S[:, None], self.runs_S, self.minimum, x)[:, 0]
        inside = (x >= np.log(self.n_S[0]) - 1e-12) & (x <= np.log(self.n_S[-1]) + 1e-12)
        return np.where(inside, values, np.nan).reshape(np.shape(n))

    def redrawn(self, draws: int, rng: np.random.Generator) -> Floats:
        """The losses (S, B) drawn again from the noise; (S, 0) where the noise is not known."""
        if self.noise is None:
            return np.empty((len(self.n_S), 0))
        sd_S = self.noise / np.sqrt(self.runs_S)
        drawn = self.loss_S[:, None] + sd_S[:, None] * rng.standard_normal((len(self.n_S), draws))
        return np.maximum(drawn, 1e-3 * self.loss_S[:, None])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        arrays = {name: getattr(self, name).tolist() for name in ("n_S", "loss_S", "runs_S")}
        return {
            **vars(self),
            **arrays,
            "d_S": None if self.d_S is None else self.d_S.tolist(),
            "optimum": None if self.optimum is None else vars(self.optimum),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> IsoflopProfile:
        """The inverse of ``to_dict``."""
        fields = dict(values)
        for name in ("n_S", "loss_S", "runs_S", "d_S"):
            fields[name] = None if values[name] is None else np.asarray(values[name], dtype=np.float64)
        fields["optimum"] = None if values["optimum"] is None else Optimum(**values["optimum"])
        return cls(**fields)


def read_profiles(
    c_n: Floats,
    n_n: Floats,
    d_n: Floats | None,
    loss_n: Floats,
    *,
    minimum: Minimum = "akima",
    tolerance: float = BUDGET_TOLERANCE,
    noise: float | None = None,
) -> tuple[IsoflopProfile, ...]:
    """Group runs by budget and average the seeds; no minimum is looked for yet.

    Args:
        c_n, n_n, d_n, loss_n: compute (FLOP), size, tokens and loss of each run.
        tolerance: runs whose compute differs by at most this factor - 1 share a budget.
        noise: standard deviation of the loss of one run, in the unit of the loss; by default estimated.

    Raises ``FitError`` for one size, for no budget shared by two runs, and for computes without gaps between budgets.
    """
    if len(np.unique(n_n)) < 2:
        raise FitError(f"every run has N = {n_n[0]:.6g}; an IsoFLOP profile needs several sizes at one budget")
    profiles = []
    for members in _budgets(c_n, tolerance):
        n_S, place = np.unique(n_n[members], return_inverse=True)
        runs_S = np.bincount(place).astype(np.float64)
        loss_S = np.bincount(place, loss_n[members]) / runs_S
        d_S = None if d_n is None else np.exp(np.bincount(place, np.log(d_n[members])) / runs_S)
        flops = float(np.exp(np.log(c_n[members]).mean()))
        spread = loss_n[members] - loss_S[place]
        profiles.append(
            (IsoflopProfile(flops, n_S, d_S, loss_S, runs_S, noise, minimum), spread, len(members) - len(n_S))
        )
    if noise is None:
        noise = _noise_of_seeds([(spread, freedom) for _, spread, freedom in profiles])
        if noise is None:
            noise = _noise_of_shape([profile for profile, _, _ in profiles])
    return tuple(replace(profile, noise=noise) for profile, _, _ in profiles)


def locate(profile: IsoflopProfile, draws: int, rng: np.random.Generator) -> tuple[IsoflopProfile, Floats]:
    """The profile with its optimum or the reason for its refusal, and draws (B, 3) of log N*, log D*, log L*.

    A draw whose minimum lies at an edge is NaN. Without noise there are no draws.
    """
    refusal = _second_valley(profile)
    nothing = np.full((0, 3), np.nan)
    needed = SIZES_NEEDED[profile.minimum]
    if len(profile.n_S) < needed:
        refusal = f"{len(profile.n_S)} sizes, a minimum by {profile.minimum} needs {needed}"
    if refusal is not None:
        return replace(profile, refusal=refusal), nothing
    x_S = np.log(profile.n_S)
    at, least, state = minima(x_S, profile.loss_S[:, None], profile.runs_S, profile.minimum)
    if state[0] == _NOT_CONVEX or (state[0] == _EDGE and _is_hill(profile)):
        return replace(
            profile, refusal="not convex: the loss does not fall to a minimum and rise again with N"
        ), nothing
    if state[0] == _EDGE:
        small = at[0] < x_S.mean()
        where = "smallest" if small else "largest"
        advice = "smaller" if small else "larger"
        reason = f"the minimum lies at the edge: the {where} size ({profile.n_S[0 if small else -1]:.4g}) is the best; "
        return replace(profile, refusal=reason + f"train a {advice} one at this budget"), nothing
    drawn = profile.redrawn(draws, rng)
    at_B, least_B, state_B = minima(x_S, drawn, profile.runs_S, profile.minimum)
    found = state_B == _FOUND
    if len(found) and found.mean() < 1 - EDGE_SHARE:
        reason = f"in {1 - found.mean():.0%} of the resamples the minimum lies at an edge or is none, with a noise of "
        return replace(profile, refusal=reason + f"{profile.noise:.3g} a run; add sizes or seeds"), nothing
    out = np.stack([at_B, _log_tokens(profile, at_B), np.log(np.maximum(least_B, 1e-300))], axis=-1)
    out[~found] = np.nan
    if profile.d_S is None:
        out[:, 1] = np.nan
    n_sd, d_sd, loss_sd = (float(np.std(column)) if len(column) > 1 else None for column in out[found].T)
    if profile.minimum == "akima" and n_sd is not None and d_sd is not None:
        floor = SPACING_SHARE * float(np.ptp(x_S)) / (len(x_S) - 1)
        n_sd, d_sd = float(np.hypot(n_sd, floor)), float(np.hypot(d_sd, floor))
    tokens = float(np.exp(_log_tokens(profile, at)[0])) if profile.d_S is not None else None
    optimum = Optimum(
        profile.flops, float(np.exp(at[0])), tokens, float(least[0]), n_sd, d_sd if tokens else None, loss_sd
    )
    return replace(profile, optimum=optimum), out


def minima(x_S: Floats, loss_SB: Floats, w_S: Floats, minimum: Minimum) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Place (log N), loss and state (0 found, 1 at an edge, 2 not convex) of the minimum of B profiles."""
    draws = loss_SB.shape[1]
    if draws == 0:
        return np.empty(0), np.empty(0), np.empty(0, dtype=np.int64)
    if minimum == "akima":
        at, value = akima.minimum(x_S, np.log(loss_SB))
        edge = (at <= x_S[0] + 1e-9) | (at >= x_S[-1] - 1e-9)
        return at, np.exp(value), np.where(edge, _EDGE, _FOUND)
    c_PB = _polynomial(x_S, loss_SB, w_S, 2 if minimum == "parabola" else 3)
    middle, half = _frame(x_S)
    c1, c2 = c_PB[1], c_PB[2]
    c3 = c_PB[3] if minimum == "cubic" else np.zeros(draws)
    discriminant = c2**2 - 3 * c3 * c1
    root = np.sqrt(np.maximum(discriminant, 0.0))
    # The root with positive curvature, in the form that does not cancel: for a parabola it is -c1 / (2 c2).
    first, second = c2 + root, 3 * c3
    use_first = c2 > 0
    t = np.where(
        use_first, -c1 / np.where(use_first, first, 1.0), (root - c2) / np.where(use_first | (second == 0), 1.0, second)
    )
    convex = (discriminant > 0) & (use_first | (second != 0))
    inside = np.abs(t) < 1
    state = np.where(~convex, _NOT_CONVEX, np.where(inside, _FOUND, _EDGE))
    t = np.where(convex, np.clip(t, -1.0, 1.0), 0.0)
    powers = t ** np.arange(len(c_PB))[:, None]
    return middle + half * t, (c_PB * powers).sum(0), state


def interpolate(x_S: Floats, loss_SB: Floats, w_S: Floats, minimum: Minimum, x_n: Floats) -> Floats:
    """The losses (n, B) of the interpolated profiles at log sizes ``x_n``."""
    if minimum == "akima":
        return np.exp(akima.evaluate(x_S, np.log(loss_SB), np.clip(x_n, x_S[0], x_S[-1])))
    c_PB = _polynomial(x_S, loss_SB, w_S, 2 if minimum == "parabola" else 3)
    middle, half = _frame(x_S)
    return np.asarray((((x_n - middle) / half)[:, None] ** np.arange(len(c_PB))) @ c_PB)


def _budgets(c_n: Floats, tolerance: float) -> list[NDArray[np.int64]]:
    order = np.argsort(c_n, kind="stable").astype(np.int64)
    log_c = np.log(c_n[order])
    width = float(np.log1p(tolerance))
    groups = np.split(order, np.flatnonzero(np.diff(log_c) > width) + 1)
    for members in groups:
        low, high = float(c_n[members].min()), float(c_n[members].max())
        if np.log(high / low) > width * (1 + 1e-9):
            raise FitError(
                f"the runs cannot be grouped by budget: between {low:.4g} and {high:.4g} FLOP there is no gap above "
                f"{tolerance:.0%}, yet the ends differ by more; train at a few budgets, or use the envelope or the law"
            )
    if max(len(members) for members in groups) < 2:
        raise FitError(
            f"no two of the {len(c_n)} runs share a budget within {tolerance:.0%}, so there is no IsoFLOP profile; "
            "raise the tolerance, or use the envelope or the law"
        )
    return groups


def _noise_of_seeds(parts: list[tuple[Floats, int]]) -> float | None:
    freedom = sum(part[1] for part in parts)
    return float(np.sqrt(sum(float((part[0] ** 2).sum()) for part in parts) / freedom)) if freedom else None


def _noise_of_shape(profiles: list[IsoflopProfile]) -> float | None:
    """From the lowest point and its neighbours: how far each lies from the cubic through the four points around it.

    None where no point has four around it. The median of the squares, because a neighbourhood that no cubic follows
    has nothing to say about the noise.
    """
    squares = []
    for profile in profiles:
        x_S, lowest = np.log(profile.n_S), int(np.argmin(profile.loss_S))
        for i in range(max(2, lowest - 1), min(len(x_S) - 2, lowest + 2)):
            others = np.array([i - 2, i - 1, i + 1, i + 2])
            d = x_S[others]
            weight = np.array([np.prod((x_S[i] - np.delete(d, j)) / (d[j] - np.delete(d, j))) for j in range(4)])
            deviation = profile.loss_S[i] - weight @ profile.loss_S[others]
            squares.append(deviation**2 / (1 / profile.runs_S[i] + (weight**2 / profile.runs_S[others]).sum()))
    return float(np.sqrt(np.median(squares) / 0.455)) if squares else None  # 0.455: median of chi-squared, 1 d.o.f.


def _second_valley(profile: IsoflopProfile) -> str | None:
    """Why the measured losses are not a single valley; None if they are, within the noise."""
    loss_S, lowest = profile.loss_S, int(np.argmin(profile.loss_S))
    rise = float(min(loss_S[0], loss_S[-1]) - loss_S[lowest])
    allowed = DIP_SHARE * rise if profile.noise is None else min(DIP_SDS * profile.noise, DIP_SHARE * rise)
    for side in (np.arange(lowest, -1, -1), np.arange(lowest, len(loss_S))):
        dip = np.maximum.accumulate(loss_S[side]) - loss_S[side]
        if rise > 0 and dip.max() > allowed:
            where = profile.n_S[side[int(np.argmax(dip))]]
            return (
                f"not convex: a second valley at N = {where:.4g}, {dip.max():.3g} below the hill beside it (at most "
                f"{allowed:.3g} would be noise); train these sizes again"
            )
    return None


def _is_hill(profile: IsoflopProfile) -> bool:
    return bool((profile.loss_S[1:-1] > max(profile.loss_S[0], profile.loss_S[-1])).any())


def _frame(x_S: Floats) -> tuple[float, float]:
    return float(x_S[0] + x_S[-1]) / 2, float(x_S[-1] - x_S[0]) / 2


def _polynomial(x_S: Floats, loss_SB: Floats, w_S: Floats, degree: int) -> Floats:
    """Coefficients (degree + 1, B), lowest power first, in t from -1 to 1, by weighted least squares."""
    middle, half = _frame(x_S)
    design = ((x_S - middle) / half)[:, None] ** np.arange(degree + 1)
    root = np.sqrt(w_S)[:, None]
    return np.asarray(np.linalg.pinv(design * root) @ (loss_SB * root))


def _log_tokens(profile: IsoflopProfile, x_n: Floats) -> Floats:
    """log D at log N, along the profile."""
    if profile.d_S is None:
        return np.zeros(len(x_n))
    return np.interp(x_n, np.log(profile.n_S), np.log(profile.d_S))
