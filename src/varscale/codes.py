"""CodeSpec: what one token is, the seam between tokenizer and model.

Embedding, head and loss of a model are chosen from it, so a bitwise or a continuous tokenizer needs no new trainer.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, Self


@dataclass(frozen=True)
class CodeSpec:
    """One token: an ``index`` below ``size``, ``size`` independent ``bits``, or ``size`` ``continuous`` channels."""

    kind: Literal["index", "bits", "continuous"]
    size: int

    def __post_init__(self) -> None:
        if self.kind not in ("index", "bits", "continuous"):
            raise ValueError(f"unknown kind of code {self.kind!r}; it is index, bits or continuous")
        if self.size < 1:
            raise ValueError(f"a code of size {self.size} holds nothing; the size must be at least 1")

    @classmethod
    def index(cls, vocabulary: int) -> Self:
        """An index into a codebook of ``vocabulary`` entries (V)."""
        return cls("index", vocabulary)

    @classmethod
    def bits(cls, count: int) -> Self:
        """``count`` bits a token (Infinity, arXiv:2412.04431)."""
        return cls("bits", count)

    @classmethod
    def continuous(cls, channels: int) -> Self:
        """``channels`` real numbers a token."""
        return cls("continuous", channels)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of ``str``: ``index(4096)``."""
        match = re.fullmatch(r"(index|bits|continuous)\((\d+)\)", text.strip())
        if match is None:
            raise ValueError(f"cannot read the code {text!r}; write it as index(4096), bits(16) or continuous(16)")
        return cls(match.group(1), int(match.group(2)))  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.kind}({self.size})"

    @property
    def nats(self) -> float:
        """Nats a token of a uniform guess: ln V for an index, size ln 2 for bits. Raises for a continuous code."""
        if self.kind == "continuous":
            raise ValueError("a continuous code has no uniform guess; its loss is a density")
        return math.log(self.size) if self.kind == "index" else self.size * math.log(2)
