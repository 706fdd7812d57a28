"""Parameters and training FLOPs of a VAR in closed form, for a plan that must not wait for torch.

The same numbers as `varscale.models.counting` reads off the modules; the tests hold the two together. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from varscale.models.shape import Shape
from varscale.records import FlopsRule
from varscale.schedule import ScaleSchedule


@dataclass(frozen=True)
class ClosedForm:
    """What the counts of a VAR follow from; the options are those of ``VAR``.

    Args:
        shape: depth, width and heads.
        schedule: the scales.
        vocabulary: codebook size.
        latent_channels: channels of a teacher-forcing input.
    """

    shape: Shape
    schedule: ScaleSchedule
    vocabulary: int
    latent_channels: int
    shared_adaln: bool = False
    l2_norm: bool = True
    mlp_ratio: float = 4.0

    @property
    def params_nonembed(self) -> int:
        """Parameters of the blocks, of AdaLN and of the head; not of class, start, position, level, word embeddings."""
        D, hidden = self.shape.width, self._hidden
        adaln = 6 * D * D + 6 * D
        block = 4 * D * D + 3 * D + 2 * D * hidden + hidden + D + (self.shape.heads if self.l2_norm else 0)
        blocks = self.shape.depth * (block + (6 * D if self.shared_adaln else adaln))
        head = 2 * D * D + 2 * D + (D + 1) * self.vocabulary
        return blocks + head + (adaln if self.shared_adaln else 0)

    def train_flops_per_image(self, rule: FlopsRule = "dense") -> float:
        """Training FLOPs an image, forward and backward, by a rule of the run table."""
        L = self.schedule.num_tokens
        if rule == "6nd":
            return 6.0 * self.params_nonembed * L
        pairs = self.schedule.attended_pairs if rule == "blocksparse" else L * L
        forward = 2 * self._multiply_adds(pairs)
        return forward / 2 if rule == "forward_macs" else 3.0 * forward

    @property
    def _hidden(self) -> int:
        return round(self.shape.width * self.mlp_ratio)

    def _multiply_adds(self, pairs: int) -> int:
        """Of a forward pass of one image."""
        D, L, depth = self.shape.width, self.schedule.num_tokens, self.shape.depth
        token = L * (4 * D * D + 2 * D * self._hidden) + 2 * D * pairs
        adaln = 6 * D * D * (1 if self.shared_adaln else depth)
        words = (L - self.schedule.tokens_per_scale[0]) * self.latent_channels * D
        return depth * token + adaln + words + 2 * D * D + L * D * self.vocabulary
