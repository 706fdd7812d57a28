"""Released tokenizers of VAR: their names and ours, both ways. Nothing is downloaded.

Source: VAR, arXiv:2404.02905, ``vae_ch160v4096z32.pth``; FoundationVision/VAR, models/vqvae.py, models/quant.py. Sizes
are read from the tensors, so the same loader takes every width, codebook and number of refiners of that architecture;
the schedule is not in the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from varscale.schedule import VAR_256, ScaleSchedule
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.checkpoint_file import CheckpointError, agreed_size, check_tensors
from varscale.tokenizers.trunk_released import ReleasedTrunk

HIT_COUNTER = "quantize.ema_vocab_hit_SV"  # (K, V), statistics of training, of no use to a loaded tokenizer
CODEBOOK = "quantize.embedding.weight"
RELEASED_REFINE_RATIO = 0.5  # not in the files


def released_tokenizer_state_dict(tokenizer: VQAutoencoder) -> dict[str, Tensor]:
    """The tokenizer under its released names, with the hit counter at zero, as a tokenizer has it before training.

    Raises:
        ValueError: for a tokenizer that the released architecture cannot hold.
    """
    config = tokenizer.config
    if config.trunk != "released":
        raise ValueError(
            f"the tokenizer has the {config.trunk} trunk, and there is no released architecture for it to be written "
            "as; use format=varscale, or train a tokenizer with the released trunk, such as tokenizer=vae_ch32"
        )
    if config.refine_ratio != RELEASED_REFINE_RATIO:
        raise ValueError(
            f"the tokenizer refines with ratio {config.refine_ratio}, released ones with {RELEASED_REFINE_RATIO}, and "
            "their files do not state it; use format=varscale"
        )
    if config.refiners is None:
        phi = "quantize.quant_resi.{}."
    else:
        phi = "quantize.quant_resi.qresi." if config.refiners == 1 else "quantize.quant_resi.qresi_ls.{}."
    parameters = dict(tokenizer.named_parameters())
    codebook = parameters.pop("pyramid.quantizer.codebook").detach()
    counter = codebook.new_zeros(tokenizer.schedule.num_scales, config.vocabulary)
    names = {HIT_COUNTER: counter, CODEBOOK: codebook}
    for name, parameter in parameters.items():
        if match := re.fullmatch(r"pyramid\.refiners\.(\d+)\.conv\.(\w+)", name):
            names[phi.format(match[1]) + match[2]] = parameter.detach()
        else:
            names[name.removeprefix("trunk.")] = parameter.detach()
    return names


def load_released_tokenizer(state_dict: Mapping[str, Tensor], schedule: ScaleSchedule = VAR_256) -> VQAutoencoder:
    """The tokenizer of a released state dict, in evaluation mode.

    Args:
        state_dict: tensors by their released names; see ``checkpoint_file.read_state_dict``.
        schedule: maps of the wanted resolution, ``VAR_256`` or ``VAR_512`` with the same weights.

    Raises:
        CheckpointError: when tensors are missing, unexpected or of the wrong shape, all listed by their released name;
            for a transformer's state dict.
    """
    state = {name: tensor for name, tensor in state_dict.items() if name != HIT_COUNTER}  # its K may be another
    if any(re.match(r"(blocks\.\d|word_embed|class_emb|pos_1LC)", name) for name in state):
        raise CheckpointError(
            "this is the state dict of a VAR transformer, not of a tokenizer; give it as model=, and as tokenizer= "
            "the VQ-VAE it was trained with, such as vae_ch160v4096z32.pth"
        )
    if any(name.startswith(("trunk.", "pyramid.")) for name in state):
        raise CheckpointError("these are varscale's own names, not released ones; give the folder as paths.tokenizer")
    per_scale = any(re.match(r"quantize\.quant_resi\.\d", name) for name in state)
    shared = [int(match[1]) for name in state if (match := re.match(r"quantize\.quant_resi\.qresi_ls\.(\d+)", name))]
    settings = {
        "resolution": schedule.last[1] * ReleasedTrunk.stride,
        "schedule": str(schedule),
        "vocabulary": agreed_size(state, "codebook size", (re.escape(CODEBOOK), 2, 0)),
        "latent_channels": agreed_size(
            state, "code channels", (re.escape(CODEBOOK), 2, 1), (r"(post_)?quant_conv\.bias", 1, 0)
        ),
        "trunk": "released",
        "width": agreed_size(
            state,
            "width",
            (r"encoder\.conv_in\.weight", 4, 0),
            (r"encoder\.conv_in\.bias", 1, 0),
            (r"decoder\.norm_out\.(weight|bias)", 1, 0),
        ),
        "refiners": None if per_scale else max(shared, default=0) + 1,
        "codebook_update": "gradient",
        "kmeans_start": False,
    }
    tokenizer = VQAutoencoder(**settings)
    own = {n: t for n, t in released_tokenizer_state_dict(tokenizer).items() if n != HIT_COUNTER}
    check_tensors(state, own, f"a VAR tokenizer with the schedule {schedule}")
    with torch.no_grad():  # they share memory with the parameters
        for name, tensor in own.items():
            tensor.copy_(state[name])
    return tokenizer.eval()
