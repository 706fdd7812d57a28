"""Released VAR transformers: their names and ours, both ways. Nothing is downloaded.

Source: FoundationVision/VAR, models/var.py, models/basic_var.py.
Shapes: D width, H heads, L tokens, K scales, V codebook size, C code channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varscale.codes import CodeSpec
from varscale.models.card import Facts
from varscale.models.shape import depth_rule
from varscale.models.storage import Pretrained, build, check_pair
from varscale.models.var import VAR
from varscale.nn.attention import scale_mask, token_levels
from varscale.schedule import VAR_256, VAR_512, VAR_1024, ScaleSchedule
from varscale.tokenizers.checkpoint_file import CheckpointError, agreed_size, check_tensors, read_state_dict
from varscale.tokenizers.pretrained import load_released_tokenizer

PUBLISHED = (VAR_256, VAR_512, VAR_1024)
HEAD_DIM = 64  # of every released model; their state dicts tell the heads only with L2-normalised attention
# Buffers that follow from the configuration; a checkpoint may or may not hold them.
BUFFERS = re.compile(r"lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias")
RENAMED = (
    (r"^start_1ND$", "pos_start"),
    (r"^position_1LD$", "pos_1LC"),
    (r"^class_embed\.", "class_emb."),
    (r"^level_embed\.", "lvl_embed."),
    (r"^head_norm\.", "head_nm.ada_lin.1."),
    (r"^shared_norms\.", "shared_ada_lin.1."),
    (r"\.attention\.qkv\.", ".attn.mat_qkv."),
    (r"\.attention\.log_scale_H11$", ".attn.scale_mul_1H11"),
    (r"\.attention\.", ".attn."),
    (r"\.feed_forward\.up\.", ".ffn.fc1."),
    (r"\.feed_forward\.down\.", ".ffn.fc2."),
    (r"\.norms\.linear\.", ".ada_lin.1."),
    (r"\.norms\.offset_16D$", ".ada_gss"),
)
GATES = re.compile(r"blocks\.\d+\.norms\.(linear\.(weight|bias)|offset_16D)|shared_norms\.(weight|bias)")
LEADING_AXIS = re.compile(r".*\.(scale_mul_1H11|ada_gss)")  # the released tensors have one axis of length one more


def released_name(ours: str) -> str:
    """The released name of a parameter of ``VAR``."""
    for pattern, name in RENAMED:
        ours = re.sub(pattern, name, ours)
    return ours


def released_parameters(model: VAR) -> dict[str, Tensor]:
    """The parameters under their released names and shapes.

    The input's standard deviation is in ``word_embed``, a factor on the branches in the weights of their gates.
    """
    released = {}
    for ours, parameter in model.named_parameters():
        name, tensor = released_name(ours), parameter.detach()
        if name == "word_embed.weight":
            tensor = tensor / model.input_std
        if model.depth_multiplier != 1.0 and GATES.fullmatch(ours):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
            tensor.view(-1)[: tensor.numel() // 3] /= model.depth_multiplier  # two of six modulations
        released[name] = tensor.unsqueeze(0) if LEADING_AXIS.fullmatch(name) else tensor
    return released


def released_state_dict(model: VAR) -> dict[str, Tensor]:
    """The model under its released names, with the buffers that the released code stores.

    Raises:
        ValueError: for a model whose files would be read as another one: without L2 norm they do not tell the heads.
    """
    if not model.blocks[0].attention.l2_norm and model.width != HEAD_DIM * model.heads:
        raise ValueError(
            f"the model has {model.heads} heads of {model.width / model.heads:g}; without L2 norm a released state "
            f"dict stands for heads of {HEAD_DIM}; use format=varscale"
        )
    state = released_parameters(model)
    level_L, mask_LL = token_levels(model.schedule), scale_mask(model.schedule)
    state["lvl_1L"] = level_L.unsqueeze(0)
    state["attn_bias_for_masking"] = torch.zeros(mask_LL.shape).masked_fill_(~mask_LL, -math.inf)[None, None]
    for i in range(model.depth):
        state[f"blocks.{i}.attn.zero_k_bias"] = torch.zeros(model.width)
    return state


def load_released_var(state: Mapping[str, Tensor], schedule: ScaleSchedule | None = None) -> VAR:
    """The model of a released state dict, in evaluation mode. float32 tensors become its parameters, uncopied.

    Depth, width, heads, AdaLN form, attention mode, classes, code channels and codebook size are read off the tensors;
    the schedule off ``lvl_1L``, or, without it, off the number of tokens of the published schedules.

    Args:
        state: tensors by their released names; see ``checkpoint_file.read_state_dict``.
        schedule: needed only where the state dict does not tell it; must agree with it where it does.

    Raises:
        CheckpointError: when tensors are missing, unexpected or of the wrong shape, all listed by their released name;
            when the schedule contradicts the tensors; for a tokenizer's state dict.
    """
    refuse_others(state)
    schedule = read_schedule(state, schedule)
    settings = read_architecture(state, schedule)
    model = build(settings).eval()
    tensors = {name: tensor for name, tensor in state.items() if not BUFFERS.fullmatch(name)}
    what = f"a VAR transformer of depth {settings['depth']}, width {settings['width']} with the schedule {schedule}"
    check_tensors(tensors, released_parameters(model), what)
    check_buffers(state, schedule)
    fitted = {"input_std": torch.ones(())}
    for ours, parameter in model.named_parameters():
        fitted[ours] = tensors[released_name(ours)].float().contiguous().view(parameter.shape)
    model.load_state_dict(fitted, assign=True)
    return model


def read_released(
    model: Path | str, tokenizer: Path | str | None = None, *, schedule: ScaleSchedule | None = None
) -> Pretrained:
    """Transformer and tokenizer from released files.

    Args:
        model: a file of a VAR transformer; see ``checkpoint_file.read_state_dict``.
        tokenizer: a file of its VQ-VAE; ``None`` takes the one in a trainer's checkpoint given as ``model``.
        schedule: see ``load_released_var``.

    Raises:
        CheckpointError: names the file and what is wrong. ``ModelError`` when the two do not fit together.
    """
    with naming(model):
        transformer = load_released_var(read_state_dict(model, "var_wo_ddp"), schedule)
    file = model if tokenizer is None else tokenizer
    with naming(file):
        autoencoder = load_released_tokenizer(read_state_dict(file, "vae_local"), transformer.schedule)
    check_pair(transformer, autoencoder)
    names = dict.fromkeys(Path(path).name for path in (model, file))
    return Pretrained(transformer, autoencoder, Facts(source=", ".join(names)))


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Put the file's name before the message of a ``CheckpointError`` that lacks it."""
    try:
        yield
    except CheckpointError as error:
        raise error if str(path) in str(error) else CheckpointError(f"{path}: {error}") from None


def refuse_others(state: Mapping[str, Tensor]) -> None:
    """Raise ``CheckpointError`` for state dicts that are known not to be a released transformer's."""
    if any(name.startswith(("encoder.", "decoder.", "quantize.")) for name in state):
        raise CheckpointError(
            "this is the state dict of a VQ-VAE, not of a VAR transformer; give it as tokenizer=, and as model= the "
            "transformer, such as var_d16.pth"
        )
    if "class_embed.weight" in state:
        raise CheckpointError("these are varscale's own names, not released ones; use the folder of the run or model")
    if not any(re.match(r"blocks\.\d+\.", name) for name in state):
        raise CheckpointError(
            f"this is no state dict of a VAR transformer: it has no blocks.0.*, but {', '.join(list(state)[:4])} ...; "
            "give one such as var_d16.pth"
        )


def read_schedule(state: Mapping[str, Tensor], given: ScaleSchedule | None) -> ScaleSchedule:
    """The schedule of ``lvl_1L``, else the given one, else the published one with as many tokens and scales."""
    places = {"pos_1LC": ("pos_1LC", 3, 1), "lvl_embed": (r"lvl_embed\.weight", 2, 0)}
    if "lvl_1L" in state:
        stored = schedule_of_levels(state["lvl_1L"])
        if given is not None and given != stored:
            raise CheckpointError(
                f"the checkpoint's schedule is {stored} ({stored.num_tokens} tokens, {16 * stored.last[1]} px), the "
                f"one given is {given} ({given.num_tokens} tokens, {16 * given.last[1]} px); leave schedule= out, or "
                "give the model of that resolution"
            )
        return stored
    if given is not None:
        if "pos_1LC" in state and (tokens := agreed_size(state, "tokens", places["pos_1LC"])) != given.num_tokens:
            raise CheckpointError(
                f"the checkpoint has {tokens} tokens, the schedule given, {given}, has {given.num_tokens}; give the "
                "schedule it was trained with"
            )
        return given
    tokens = agreed_size(state, "number of tokens, without lvl_1L", places["pos_1LC"])
    scales = agreed_size(state, "number of scales, without lvl_1L", places["lvl_embed"])
    for schedule in PUBLISHED:
        if (schedule.num_tokens, schedule.num_scales) == (tokens, scales):
            return schedule
    raise CheckpointError(
        f"the checkpoint has no lvl_1L, and {tokens} tokens in {scales} scales are no published schedule "
        f"({', '.join(str(schedule.num_tokens) for schedule in PUBLISHED)} tokens); give it as schedule=1-2-..."
    )


def schedule_of_levels(level_1L: Tensor) -> ScaleSchedule:
    """The square maps of the scale of every token. Raises ``CheckpointError`` for what is no list of square maps."""
    level_L = level_1L.flatten().long()
    counts = level_L.bincount().tolist() if level_L.numel() and level_L.min() >= 0 else []
    if not counts or not torch.equal(level_L, torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))):
        raise CheckpointError("lvl_1L does not count the scales upwards from 0; the file is damaged")
    sides = [math.isqrt(count) for count in counts]
    if any(side**2 != count for side, count in zip(sides, counts, strict=True)):
        raise CheckpointError(f"lvl_1L has scales of {counts} tokens; only square maps of 1, 4, 9, ... are supported")
    return ScaleSchedule.square(*sides)


def read_architecture(state: Mapping[str, Tensor], schedule: ScaleSchedule) -> dict[str, Any]:
    """What ``storage.architecture`` says of a model, read off a released state dict."""
    width = agreed_size(
        state,
        "width",
        ("pos_1LC|pos_start", 3, 2),
        (r"class_emb\.weight|lvl_embed\.weight|head\.weight", 2, 1),
        (r"word_embed\.weight", 2, 0),
        (r"blocks\.\d+\.attn\.proj\.bias", 1, 0),
    )
    depth = 1 + max(int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name)))
    l2_norm = any(name.endswith(".scale_mul_1H11") for name in state)
    if l2_norm:
        heads = agreed_size(state, "heads", (r"blocks\.\d+\.attn\.scale_mul_1H11", 4, 1))
    elif width % HEAD_DIM == 0:
        heads = width // HEAD_DIM
    else:
        raise CheckpointError(
            f"the width {width} is no multiple of {HEAD_DIM}, and without scale_mul_1H11 nothing else tells the heads; "
            f"released models have heads of {HEAD_DIM}"
        )
    vocabulary = agreed_size(state, "codebook size", (r"head\.weight", 2, 0), (r"head\.bias", 1, 0))
    return {
        "depth": depth,
        "width": width,
        "heads": heads,
        "drop_path": depth_rule(depth).drop_path,
        "schedule": str(schedule),
        "code": str(CodeSpec.index(vocabulary)),
        "latent_channels": agreed_size(state, "code channels", (r"word_embed\.weight", 2, 1)),
        "num_classes": agreed_size(state, "classes", (r"class_emb\.weight", 2, 0)) - 1,
        "shared_adaln": any(re.search(r"shared_ada_lin|\.ada_gss$", name) for name in state),
        "l2_norm": l2_norm,
    }


def check_buffers(state: Mapping[str, Tensor], schedule: ScaleSchedule) -> None:
    """Raise ``CheckpointError`` where a stored buffer says something else than what follows from the schedule."""
    for name, tensor in state.items():
        if name.endswith("attn.zero_k_bias") and tensor.any():
            raise CheckpointError(f"{name} is not zero: this model has a key bias, which no released one has")
    if "attn_bias_for_masking" in state:
        mask_LL = scale_mask(schedule)
        stored = state["attn_bias_for_masking"].squeeze()
        if stored.shape != mask_LL.shape or not torch.equal(stored == 0, mask_LL):
            raise CheckpointError(
                f"attn_bias_for_masking of shape {tuple(stored.shape)} is not the mask of the schedule {schedule}, by "
                "which a token sees its own and all coarser scales; the file is of another kind of model"
            )
