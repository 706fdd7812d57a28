"""Size rules by name: from one number to depth, width, heads and drop path.

Sources: VAR, arXiv:2404.02905, sec. 3.2 (width 64 d, heads d, drop path 0.1 d / 24). The ladder rule keeps the depth
and varies the width, which gives a cleaner law at the sizes a CPU can train.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Depth in blocks, width C, attention heads, maximal drop-path rate (rises linearly from block 0)."""

    depth: int
    width: int
    heads: int
    drop_path: float

    def __post_init__(self) -> None:
        for name in ("depth", "width", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")


def depth_rule(depth: int, drop_path: float | None = None) -> Shape:
    """VAR's rule: width 64 d, d heads of 64, drop path 0.1 d / 24 unless stated."""
    return Shape(depth, 64 * depth, depth, 0.1 * depth / 24 if drop_path is None else drop_path)


def ladder_rule(width: int, depth: int = 2, head_dim: int = 16) -> Shape:
    """The CPU ladder: fixed depth, as many heads as ``width / head_dim`` rounds to (at least one), no drop path."""
    return Shape(depth, width, max(1, round(width / head_dim)), 0.0)
