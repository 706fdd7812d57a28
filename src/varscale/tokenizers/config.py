"""TokenizerConfig: one class of settings from the patch trunk for small images to the released architecture.

The defaults are the 32 px patch tokenizer; ``RELEASED`` is ``vae_ch160v4096z32`` of VAR, arXiv:2404.02905.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from varscale.schedule import ScaleSchedule
from varscale.tokenizers.vq import CodebookUpdate

TRAINING_ONLY = frozenset(
    {"dropout", "commitment", "codebook_update", "codebook_decay", "restart_below", "kmeans_start"}
    | {"l1_weight", "l2_weight", "vq_weight"}
)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Settings of a ``VQAutoencoder``.

    Raises:
        ValueError: if the resolution is no multiple of the stride, or the schedule does not end at the latent grid.
    """

    resolution: int = 32  # px
    schedule: str = "1-2-3-4-6-8"
    vocabulary: int = 256  # V
    latent_channels: int = 8  # C

    trunk: Literal["patch", "released"] = "patch"
    width: int = 128  # channels of the patch trunk's convolutions, or of the released trunk's finest level
    patch: int = 4  # px, stride of the patch trunk; the released one has stride 16
    blocks: int = 2  # residual blocks on each side of the patch trunk
    dropout: float = 0.0  # released trunk only

    refiners: int | None = 4  # phi shared by the scales; None for one a scale
    refine_ratio: float = 0.5  # r of phi
    commitment: float = 0.25  # beta

    codebook_update: CodebookUpdate = "ema"  # the release trains it by gradient
    codebook_decay: float = 0.95  # per step, of the mass of a code (and of its mean with ema)
    restart_below: float | None = 0.03  # share of uniform mass below which a code is restarted; None never
    kmeans_start: bool = True

    l1_weight: float = 0.2
    l2_weight: float = 1.0
    vq_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.trunk not in ("patch", "released"):
            raise ValueError(f"unknown trunk {self.trunk!r}; it is patch or released")
        for name in ("resolution", "vocabulary", "latent_channels", "width", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.resolution % self.stride:
            raise ValueError(
                f"a resolution of {self.resolution} px is no multiple of the trunk's stride of {self.stride} px; "
                f"use a multiple of {self.stride}"
            )
        self.scale_schedule.check_latent_grid((self.resolution // self.stride,) * 2)

    @property
    def stride(self) -> int:
        """Pixels along a side for each position of the latent grid."""
        return self.patch if self.trunk == "patch" else 16

    @property
    def scale_schedule(self) -> ScaleSchedule:
        """The schedule, parsed."""
        return ScaleSchedule.parse(self.schedule)

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        return asdict(self)

    def of_tokens(self) -> dict[str, Any]:
        """The settings that decide tokens and pixels, given the weights: all but those of training."""
        return {name: value for name, value in self.to_dict().items() if name not in TRAINING_ONLY}


RELEASED = TokenizerConfig(
    resolution=256,
    schedule="1-2-3-4-5-6-8-10-13-16",
    vocabulary=4096,
    latent_channels=32,
    trunk="released",
    width=160,
    codebook_update="gradient",
)
