"""Groups of parameters for AdamW: which decay, and under CompleteP which rate, decay and epsilon each role takes.

Sources: VAR's released code (which parameters decay); CompleteP, arXiv:2505.01618, table 1 with alpha = 1, for factors
by width and depth, which extends muP (arXiv:2203.03466, table 8) to depth. Both speak of a transformer whose head has a
factor 1 / m_N on its output; here the head's weights take it (the same function under Adam: arXiv:2203.03466, tables 3
and 8), so that they count as the other matrices do, but for epsilon. What the table does not have is placed by what it
acts on: AdaLN's linear layers are matrices of width x width; its gates sit on the branches.
Shapes: D width, H heads.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from varscale.models.var import VAR

# Embeddings of positions and levels, gates and temperatures are not decayed, whatever their shape.
UNDECAYED = ("bias", "start_1ND", "position_1LD", "level_embed.weight", "offset_16D", "log_scale_H11")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter of a generative model is decayed: matrices (the class embedding included), nothing else."""
    return parameter.ndim > 1 and not name.endswith(UNDECAYED)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups: decayed matrices (the class embedding included), and everything else."""
    decayed, undecayed = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if decays(name, parameter) else undecayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]


def complete_p_groups(model: VAR, *, lr: float, weight_decay: float, eps: float) -> list[dict[str, Any]]:
    """AdamW groups of a model that continues a base of width / m_N and depth / m_L by CompleteP with alpha = 1.

    - Matrices with the width on the input side (in the blocks, AdaLN's, the head): rate lr / m_N, decay times m_N, so
      that a step decays by lr * weight_decay at every width. Everything else (embeddings, biases, temperatures, the
      offsets of shared AdaLN): rate lr, and decay as it is where it is decayed.
    - Epsilon falls as the gradients do: 1 / m_N, in the blocks also 1 / m_L; those of the head itself do not fall.
    - The rate does not depend on depth.

    Raises:
        ValueError: if the model has no base.
    """
    if model.base_width is None:
        raise ValueError(
            "optim.lr_rule=complete_p needs the shape that optim.lr belongs to; set model.base_width and "
            "model.base_depth (the model's branches and its initialisation follow from them too)"
        )
    m_N, m_L = model.width_multiplier, model.depth_multiplier
    groups: dict[tuple[float, float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = name.startswith(("blocks.", "shared_norms.", "head"))
        matrix = inner and decays(name, parameter)
        rate = lr / m_N if matrix else lr
        decay = weight_decay * (m_N if matrix else 1.0) if decays(name, parameter) else 0.0
        gradient = 1.0 if name.startswith("head.") else m_N * (m_L if name.startswith("blocks.") else 1.0)
        groups.setdefault((rate, decay, eps / gradient), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay, "eps": epsilon}
        for (rate, decay, epsilon), parameters in groups.items()
    ]
