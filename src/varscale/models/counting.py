"""Exact parameter counts by role, and training FLOPs by four rules, read off the modules so that they cannot drift.

A multiply-add counts as two FLOPs, backward costs twice forward, element-wise work is not counted. AdaLN runs once an
image: 6 N tokens with all parameters overstates VAR's cost by 1.2 to 1.4 times.
Sources: VAR's released code; Kaplan et al., arXiv:2001.08361, sec. 2.1 (6 N D).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from varscale.models.var import VAR
from varscale.records import FlopsRule
from varscale.schedule import ScaleSchedule


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by role, as in the run table."""

    params_token: int
    params_image: int
    params_embed: int
    params_head: int

    @property
    def params_blocks(self) -> int:
        """Token-wise and image-wise parameters of the blocks."""
        return self.params_token + self.params_image

    @property
    def params_total(self) -> int:
        """All parameters."""
        return self.params_blocks + self.params_embed + self.params_head

    @property
    def params_nonembed(self) -> int:
        """All parameters without class, start, position, level and word embeddings."""
        return self.params_total - self.params_embed


def count_parameters(model: VAR) -> ParameterCount:
    """Count by role. The roles must be disjoint and complete, or this asserts."""
    counts = {role: sum(p.numel() for p in parameters) for role, parameters in model.roles().items()}
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    return ParameterCount(**{f"params_{role}": count for role, count in counts.items()})


def linear_flops(layer: nn.Linear, times: int) -> int:
    """Forward FLOPs of a linear layer applied ``times`` times."""
    return 2 * layer.in_features * layer.out_features * times


def forward_flops(model: VAR, *, attention_pairs: int, schedule: ScaleSchedule | None = None) -> int:
    """Forward FLOPs an image over ``schedule`` (the model's, or its coarsest scales), ``attention_pairs`` a head."""
    schedule = schedule or model.schedule
    L, n_0 = schedule.num_tokens, schedule.tokens_per_scale[0]
    flops = linear_flops(model.word_embed, L - n_0)
    flops += linear_flops(model.head_norm, 1) + linear_flops(model.head, L)
    if model.shared_adaln:
        flops += linear_flops(model.shared_norms, 1)
    for block in model.blocks:
        for name, layer in block.named_modules():
            if isinstance(layer, nn.Linear):
                flops += linear_flops(layer, 1 if name.startswith("norms") else L)
        flops += 4 * model.width * attention_pairs  # scores and weighted values
    return flops


def attention_pairs(schedule: ScaleSchedule, rule: FlopsRule) -> int:
    """Query-key pairs a head: all L^2 under ``dense``, those the mask leaves under ``blocksparse``."""
    return schedule.attended_pairs if rule == "blocksparse" else schedule.num_tokens**2


def train_flops_per_image(model: VAR, rule: FlopsRule = "dense", schedule: ScaleSchedule | None = None) -> float:
    """Training FLOPs an image (forward and backward), by the named rule of the run table.

    ``schedule`` is the model's, or its coarsest scales where only those are trained.

    ``dense``: structural, attention over L^2. ``blocksparse``: structural, attended pairs only. ``6nd``: 6 N_nonembed
    L. ``forward_macs``: multiply-adds of the dense forward, the unit VAR's published C behaves like.
    """
    schedule = schedule or model.schedule
    if rule == "6nd":
        return 6.0 * count_parameters(model).params_nonembed * schedule.num_tokens
    forward = forward_flops(model, attention_pairs=attention_pairs(schedule, rule), schedule=schedule)
    return forward / 2 if rule == "forward_macs" else 3.0 * forward
