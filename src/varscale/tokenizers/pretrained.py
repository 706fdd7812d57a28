"""Released tokenizers of VAR: their state dicts by name, nothing is downloaded.

Source: VAR, arXiv:2404.02905, ``vae_ch160v4096z32.pth``. Sizes are read from the tensors, so the same loader takes
every width, codebook and number of refiners of that architecture; the schedule is not in the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from varscale.schedule import VAR_256, ScaleSchedule
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.trunk_released import ReleasedTrunk

HIT_COUNTER = "quantize.ema_vocab_hit_SV"  # statistics of training, of no use to a loaded tokenizer
RENAMES = (
    (r"(encoder|decoder|quant_conv|post_quant_conv)\.", r"trunk.\1."),
    (r"quantize\.embedding\.weight$", "pyramid.quantizer.codebook"),
    (r"quantize\.quant_resi\.qresi_ls\.(\d+)\.", r"pyramid.refiners.\1.conv."),
    (r"quantize\.quant_resi\.qresi\.", "pyramid.refiners.0.conv."),
    (r"quantize\.quant_resi\.(\d+)\.", r"pyramid.refiners.\1.conv."),
)


def house_name(name: str) -> str:
    """The name in ``VQAutoencoder`` of a released tensor. Raises ``ValueError`` for a name of another architecture."""
    for pattern, replacement in RENAMES:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    raise ValueError(f"{name!r} is no tensor of a released VAR tokenizer; give the state dict of its VQVAE")


def load_released_tokenizer(state_dict: Mapping[str, Tensor], schedule: ScaleSchedule = VAR_256) -> VQAutoencoder:
    """The tokenizer of a released state dict, in evaluation mode.

    Args:
        state_dict: tensors by their released names.
        schedule: maps of the wanted resolution, ``VAR_256`` or ``VAR_512`` with the same weights.

    Raises:
        ValueError: when tensors are missing, superfluous or of the wrong shape, listed by name.
    """
    renamed = {house_name(name): tensor for name, tensor in state_dict.items() if name != HIT_COUNTER}
    if "pyramid.quantizer.codebook" not in renamed or "trunk.encoder.conv_in.weight" not in renamed:
        raise ValueError("no codebook or no encoder among the tensors; give the state dict of a released VAR tokenizer")
    vocabulary, channels = renamed["pyramid.quantizer.codebook"].shape
    per_scale = any(re.match(r"quantize\.quant_resi\.\d", name) for name in state_dict)
    shared = len({name.split(".")[2] for name in renamed if name.startswith("pyramid.refiners.")})
    tokenizer = VQAutoencoder(
        resolution=schedule.last[1] * ReleasedTrunk.stride,
        schedule=str(schedule),
        vocabulary=vocabulary,
        latent_channels=channels,
        trunk="released",
        width=renamed["trunk.encoder.conv_in.weight"].shape[0],
        refiners=None if per_scale else shared,
        codebook_update="gradient",
        kmeans_start=False,
    )
    own = tokenizer.state_dict()
    parameters = {name for name, _ in tokenizer.named_parameters()}
    wrong = [f"missing {name}" for name in sorted(parameters - renamed.keys())]
    wrong += [f"superfluous {name}" for name in sorted(renamed.keys() - parameters)]
    wrong += [
        f"{name} has shape {tuple(renamed[name].shape)}, not {tuple(own[name].shape)}"
        for name in sorted(parameters & renamed.keys())
        if renamed[name].shape != own[name].shape
    ]
    if wrong:
        raise ValueError(f"not a released VAR tokenizer with the schedule {schedule}: " + "; ".join(wrong[:8]))
    tokenizer.load_state_dict(own | renamed)
    return tokenizer.eval()
