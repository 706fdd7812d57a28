"""ScaleSchedule: the pyramid of token maps, coarse to fine, that tokenizer, cache and model agree on.

Source: VAR, arXiv:2404.02905, sec. 3.2 (the sides r_1 ... r_K). Maps are (t, h, w), so that video fits later.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Self


@dataclass(frozen=True)
class ScaleSchedule:
    """K token maps of shape ``(t, h, w)``, coarse to fine. Frozen, hashable, torch-free.

    Raises:
        ValueError: if it is empty, a side is below 1, or a map is smaller than the one before it.
    """

    scales: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("a schedule needs at least one scale; write it as 1-2-4 or 1x1-2x2-4x4")
        for k, scale in enumerate(self.scales):
            if len(scale) != 3 or min(scale) < 1:
                raise ValueError(f"scale {k} of the schedule is {scale}; every side must be at least 1")
            if k and any(side < before for side, before in zip(scale, self.scales[k - 1], strict=True)):
                raise ValueError(
                    f"scale {k} of the schedule, {scale}, is smaller than the one before, {self.scales[k - 1]}; "
                    "order the scales coarse to fine"
                )

    @classmethod
    def square(cls, *sides: int) -> Self:
        """Square image maps: ``square(1, 2, 4)`` has 1 + 4 + 16 tokens."""
        return cls(tuple((1, side, side) for side in sides))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``1-2-4`` (square), ``1x1-2x3`` (h x w) or ``1x1x1-2x4x4`` (t x h x w); the inverse of ``str``."""
        scales: list[tuple[int, int, int]] = []
        for part in str(text).strip().split("-"):
            if not re.fullmatch(r"\d+(x\d+){0,2}", part):
                raise ValueError(f"cannot read the schedule {text!r} at {part!r}; write it as 1-2-4 or 1x1-2x2-4x4")
            sides = [int(side) for side in part.split("x")]
            if len(sides) == 1:
                sides = [1, sides[0], sides[0]]
            elif len(sides) == 2:
                sides = [1, *sides]
            scales.append((sides[0], sides[1], sides[2]))
        return cls(tuple(scales))

    def __str__(self) -> str:
        if all(t == 1 and h == w for t, h, w in self.scales):
            return "-".join(str(h) for _, h, _ in self.scales)
        if all(t == 1 for t, _, _ in self.scales):
            return "-".join(f"{h}x{w}" for _, h, w in self.scales)
        return "-".join(f"{t}x{h}x{w}" for t, h, w in self.scales)

    @property
    def num_scales(self) -> int:
        """K."""
        return len(self.scales)

    @cached_property
    def tokens_per_scale(self) -> tuple[int, ...]:
        """n_k = t h w of each scale."""
        return tuple(t * h * w for t, h, w in self.scales)

    @cached_property
    def num_tokens(self) -> int:
        """L, the tokens of all scales."""
        return sum(self.tokens_per_scale)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Where scale k lies in a row of all L tokens."""
        ends = list(accumulate(self.tokens_per_scale))
        return tuple(slice(end - n, end) for end, n in zip(ends, self.tokens_per_scale, strict=True))

    @cached_property
    def attended_pairs(self) -> int:
        """Query-key pairs when scale k attends to scales 0..k: sum_k n_k (n_0 + ... + n_k); 286,434 for VAR-256."""
        return sum(n * part.stop for n, part in zip(self.tokens_per_scale, self.slices, strict=True))

    def coarsest(self, count: int) -> ScaleSchedule:
        """The first ``count`` scales."""
        if not 1 <= count <= self.num_scales:
            raise ValueError(f"{count} scales of the schedule {self}; it has {self.num_scales}, and 1 is the fewest")
        return self if count == self.num_scales else ScaleSchedule(self.scales[:count])

    def scales_in(self, tokens: int) -> int:
        """How many of the coarsest scales ``tokens`` tokens are. Raises ``ValueError`` when they end inside a scale."""
        for count, part in enumerate(self.slices, start=1):
            if part.stop == tokens:
                return count
        ends = ", ".join(str(part.stop) for part in self.slices)
        raise ValueError(f"{tokens} tokens are not whole scales of the schedule {self}, which end at {ends}")

    @property
    def last(self) -> tuple[int, int, int]:
        """The finest map, which must equal the tokenizer's latent grid."""
        return self.scales[-1]

    def check_latent_grid(self, grid: Sequence[int]) -> None:
        """Raise ``ValueError`` unless the last scale equals the latent grid ``(h, w)`` or ``(t, h, w)``."""
        wanted = (1, *grid) if len(grid) == 2 else tuple(grid)
        if self.last != wanted:
            raise ValueError(
                f"the schedule {self} ends at {'x'.join(map(str, self.last))}, but the latent grid of the tokenizer "
                f"at this resolution is {'x'.join(map(str, wanted))}; let the last scale equal the latent grid"
            )


VAR_256 = ScaleSchedule.square(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
VAR_512 = ScaleSchedule.square(1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
VAR_1024 = ScaleSchedule.square(1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)  # accepted by the release, no weights
