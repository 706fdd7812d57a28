"""Candidates: the runs that the next sweep may contain, what each costs, and what may be spent on all.

FLOPs are training FLOPs by one rule; the exact numbers of a model family can be handed in, otherwise C = 6 N D.
Shapes: G candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from varscale_analysis.belief import columns
from varscale_analysis.fit import Floats
from varscale_analysis.laws.law import Law
from varscale_analysis.parametric import ComputeCost
from varscale_analysis.table import TOKENS_TOLERANCE

MOST_EPOCHS = 4.0  # repeated so often, data is nearly as good as new (Muennighoff et al., arXiv:2305.16264)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Runs to choose from.

    Attributes:
        x: columns of the law by role, each (G,).
        flops: training FLOPs of one run.
        tokens: training tokens of one run.
        number: place of each among those first given, so that a caller finds its own back.
    """

    x: Mapping[str, Floats]
    flops: Floats
    tokens: Floats
    number: NDArray[np.int64]

    @classmethod
    def of(cls, law: Law, x: Mapping[str, ArrayLike], *, flops: ArrayLike, tokens: ArrayLike) -> Self:
        """From one row a run: ``x`` by role, exact FLOPs, tokens.

        Raises ``ValueError`` for a role that is missing, numbers that are not positive, a run that stands there twice,
        or (for a law of N alone, whose E and exponent belong to one D) tokens more than 1 % apart.
        """
        x_G = columns(law, x)
        count = len(next(iter(x_G.values())))
        cost_G, tokens_G = (np.array(np.broadcast_to(np.asarray(v, dtype=np.float64), count)) for v in (flops, tokens))
        for name, values in (("flops", cost_G), ("tokens", tokens_G)):
            if not (np.isfinite(values) & (values > 0)).all():
                raise ValueError(f"{name} of the candidates must be finite and above 0, got {values.min():g}")
        if len(np.unique(np.stack(list(x_G.values())), axis=1).T) < count:
            raise ValueError(
                f"a candidate stands there twice, with equal {', '.join(law.roles.values())}; give it once"
            )
        if law.fixed_tokens and tokens_G.max() > tokens_G.min() * (1 + TOKENS_TOLERANCE):
            raise ValueError(
                f"{law.formula} holds for one number of training tokens, but the candidates have {tokens_G.min():.4g} "
                f"to {tokens_G.max():.4g}; offer one D, or design for a law of N and D"
            )
        return cls(x_G, cost_G, tokens_G, np.arange(count))

    @classmethod
    def grid(cls, law: Law, n: ArrayLike, d: ArrayLike, *, cost: ComputeCost | None = None) -> Self:
        """All sizes ``n`` with all tokens ``d`` (one number for a law of N alone), at ``cost``, by default 6 N D."""
        n_G, d_G = (a.ravel() for a in np.meshgrid(np.ravel(n).astype(float), np.ravel(d).astype(float), indexing="ij"))
        x = {"n": n_G, "d": d_G} if "d" in law.roles else {"n": n_G}
        return cls.of(law, x, flops=(cost or ComputeCost()).flops(n_G, d_G), tokens=d_G)

    def __len__(self) -> int:
        return len(self.flops)

    def within(
        self,
        *,
        max_size: float | None = None,
        max_tokens: float | None = None,
        unique_tokens: float | None = None,
        max_epochs: float = MOST_EPOCHS,
        max_flops: float | None = None,
    ) -> Candidates:
        """Those within the limits; ``unique_tokens`` allows ``max_epochs`` times as many tokens.

        Raises ``ValueError`` when none is left.
        """
        keep = np.ones(len(self), dtype=bool)
        size_G = next(iter(self.x.values()))
        epochs = None if unique_tokens is None else max_epochs * unique_tokens
        for values, most in (
            (size_G, max_size),
            (self.tokens, max_tokens),
            (self.tokens, epochs),
            (self.flops, max_flops),
        ):
            keep &= True if most is None else values <= most * (1 + 1e-9)
        if not keep.any():
            raise ValueError(
                f"no candidate is left: the smallest has {size_G.min():.4g} of the first column, "
                f"{self.tokens.min():.4g} tokens, {self.flops.min():.4g} FLOP; raise the limits, or offer smaller runs"
            )
        x = {role: values[keep] for role, values in self.x.items()}
        return replace(self, x=x, flops=self.flops[keep], tokens=self.tokens[keep], number=self.number[keep])


@dataclass(frozen=True)
class Budget:
    """What may be spent on the sweep.

    Attributes:
        flops: in all, FLOP.
        basis: where it comes from, in words.
        speed: FLOP/s of one run; needed for wall times.
        jobs: runs side by side.
        wall_s: time until the last run ends, seconds; None for no limit.
    """

    flops: float
    basis: str = ""
    speed: float | None = None
    jobs: int = 1
    wall_s: float | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.flops) and self.flops > 0):
            raise ValueError(f"a budget is a finite number of FLOP above 0, got {self.flops:g}")
        if self.jobs < 1 or (self.speed is not None and not self.speed > 0):
            raise ValueError(f"jobs={self.jobs} must be at least 1 and speed={self.speed} FLOP/s above 0")
        if self.wall_s is not None and (self.speed is None or not self.wall_s > 0):
            raise ValueError("a wall time must be above 0 and needs the speed of a run; give peak FLOP/s and MFU")

    @classmethod
    def gpu_hours(
        cls,
        hours: float,
        *,
        peak_flops: float,
        mfu: float,
        devices: int = 1,
        jobs: int = 1,
        wall_hours: float | None = None,
        basis: str | None = None,
    ) -> Self:
        """``hours`` of devices of ``peak_flops`` FLOP/s, of which a run reaches the share ``mfu``; ``devices`` a run.

        Raises ``ValueError`` for an MFU that is no share.
        """
        if not 0 < mfu <= 1:
            raise ValueError(f"MFU is the share of the peak that training reaches, above 0 and at most 1, got {mfu:g}")
        text = basis or f"{hours:g} GPU-hours"
        text += f" at {mfu:.0%} of {peak_flops:.3g} FLOP/s"
        wall_s = None if wall_hours is None else 3600.0 * wall_hours
        speed = peak_flops * mfu
        return cls(3600.0 * hours * speed, text, speed * devices, jobs, wall_s)

    @classmethod
    def money(cls, amount: float, price: float, **machine: float) -> Self:
        """``amount`` at ``price`` a GPU-hour, in one currency; the rest as ``gpu_hours``.

        Raises ``ValueError`` for a price that is not above 0.
        """
        if not price > 0:
            raise ValueError(f"a price of {price:g} a GPU-hour buys no finite number of hours; give one above 0")
        hours = amount / price
        text = f"{amount:g} at {price:g} a GPU-hour, {hours:.4g} GPU-hours"
        return cls.gpu_hours(hours, basis=text, **machine)  # type: ignore[arg-type]

    def makespan(self, flops_R: Floats) -> float | None:
        """Seconds until runs of these FLOPs end, the longest first, each on the job that is free first."""
        if self.speed is None:
            return None
        busy = np.zeros(self.jobs)
        for flops in np.sort(flops_R)[::-1]:
            busy[np.argmin(busy)] += flops / self.speed
        return float(busy.max())
