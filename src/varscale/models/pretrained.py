"""The released VAR checkpoints: their names and ours. A pure mapping of names and shapes; nothing is downloaded.

Source: FoundationVision/VAR, models/var.py, models/basic_var.py.
Shapes: D width, H heads, L tokens, K scales, V codebook size, C code channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from varscale.codes import CodeSpec
from varscale.models.shape import Shape
from varscale.models.var import VAR
from varscale.schedule import ScaleSchedule

# Buffers that are rebuilt from the configuration; a checkpoint may or may not hold them.
BUFFERS = re.compile(r"lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias")
RENAMED = (
    (r"^pos_start$", "start_1ND"),
    (r"^pos_1LC$", "position_1LD"),
    (r"^class_emb\.", "class_embed."),
    (r"^lvl_embed\.", "level_embed."),
    (r"^head_nm\.ada_lin\.1\.", "head_norm."),
    (r"^shared_ada_lin\.1\.", "shared_norms."),
    (r"\.attn\.mat_qkv\.", ".attention.qkv."),
    (r"\.attn\.scale_mul_1H11$", ".attention.log_scale_H11"),
    (r"\.attn\.", ".attention."),
    (r"\.ffn\.fc1\.", ".feed_forward.up."),
    (r"\.ffn\.fc2\.", ".feed_forward.down."),
    (r"\.ada_lin\.1\.", ".norms.linear."),
    (r"\.ada_gss$", ".norms.offset_16D"),
)


def our_name(released: str) -> str:
    """The name in ``VAR`` of a released tensor."""
    for pattern, name in RENAMED:
        released = re.sub(pattern, name, released)
    return released


def load_released_var(state: Mapping[str, Tensor], schedule: ScaleSchedule) -> VAR:
    """Build a ``VAR`` from a released state dict; depth, width, AdaLN form and classes are read off the shapes.

    Raises:
        ValueError: if the tokens of the checkpoint are not the schedule's; ``RuntimeError`` for names that do not fit.
    """
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    tokens, width = state["pos_1LC"].shape[1:]
    if tokens != schedule.num_tokens:
        raise ValueError(
            f"the checkpoint has {tokens} tokens, the schedule {schedule} has {schedule.num_tokens}; "
            "give the schedule it was trained with"
        )
    scale = state.get("blocks.0.attn.scale_mul_1H11")
    heads = width // 64 if scale is None else scale.shape[1]
    model = VAR(
        Shape(depth, width, heads, 0.1 * depth / 24),
        schedule=schedule,
        code=CodeSpec.index(state["head.weight"].shape[0]),
        latent_channels=state["word_embed.weight"].shape[1],
        num_classes=state["class_emb.weight"].shape[0] - 1,
        shared_adaln="shared_ada_lin.1.weight" in state,
        l2_norm=scale is not None,
    )
    ours = {our_name(name): tensor for name, tensor in state.items() if not BUFFERS.fullmatch(name)}
    ours["input_std"] = model.input_std
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    # Two tensors only differ by leading axes of length one.
    fitted = {
        name: t.reshape(shapes[name]) if name in shapes and t.numel() == shapes[name].numel() else t
        for name, t in ours.items()
    }
    model.load_state_dict(fitted)
    return model
