"""Sampling token maps scale by scale, with guidance, top-k, top-p and a key-value cache.

Source: VAR, arXiv:2404.02905, and its released code: guidance rises linearly from 0 at the coarsest scale; a scale is
drawn whole; ties at the k-th logit are kept. Differs: each image has a random stream of its own, so an image does not
change with the batch it is drawn in.
Shapes: B images, N tokens of one scale, V codebook size, C code channels, K scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from varscale.data.counter import uniform
from varscale.models.var import VAR
from varscale.nn.attention import KeyValueCache
from varscale.tokenizers.residual import ResidualPyramid


@dataclass(frozen=True)
class Sampler:
    """How logits become tokens.

    Args:
        guidance: t in (1 + t r) cond - t r uncond with r = k / (K - 1); 0 samples without the null class.
        top_k: keep the k largest logits (0: all). top_p: keep the smallest set of that probability (0: all).
        temperature: logits are divided by it.
    """

    guidance: float = 1.5
    top_k: int = 0
    top_p: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.guidance < 0 or self.top_k < 0 or not 0 <= self.top_p <= 1 or not self.temperature > 0:
            raise ValueError(f"{self}: guidance and top_k must be at least 0, top_p in [0, 1], temperature above 0")

    def guide(self, cond: Tensor, uncond: Tensor, k: int, num_scales: int) -> Tensor:
        """Classifier-free guidance of scale k."""
        t = self.guidance * k / max(1, num_scales - 1)
        return (1 + t) * cond - t * uncond

    def restrict(self, logits_BNV: Tensor) -> Tensor:
        """Logits outside the top k and the top p become -inf; the largest always stays."""
        if 0 < self.top_k < logits_BNV.shape[-1]:
            kth = logits_BNV.topk(self.top_k, dim=-1).values[..., -1:]
            logits_BNV = logits_BNV.masked_fill(logits_BNV < kth, -torch.inf)
        if 0 < self.top_p < 1:
            ascending, order = logits_BNV.sort(dim=-1)
            drop = ascending.softmax(-1).cumsum(-1) <= 1 - self.top_p
            drop[..., -1] = False
            logits_BNV = logits_BNV.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
        return logits_BNV

    def draw(self, logits_BNV: Tensor, uniform_BN: Tensor) -> Tensor:
        """Token ids (B, N): the inverse of the cumulative distribution at ``uniform_BN`` in [0, 1)."""
        probabilities = self.restrict(logits_BNV.float() / self.temperature).softmax(-1)
        cumulative = probabilities.double().cumsum(-1)
        target = uniform_BN.double().unsqueeze(-1) * cumulative[..., -1:]
        ids = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
        # Rounding may put the target past the last token that has any probability.
        last = probabilities.shape[-1] - 1 - (probabilities.flip(-1) > 0).to(torch.uint8).argmax(-1)
        return ids.clamp(max=last)


@torch.no_grad()
def sample(
    model: VAR,
    pyramid: ResidualPyramid,
    labels_B: Tensor,
    *,
    sampler: Sampler,
    seed: int,
    images: Sequence[int] | None = None,
) -> Tensor:
    """Draw token maps (B, L) int64 for the classes ``labels_B``.

    Args:
        labels_B: classes; ``model.num_classes`` is the null class.
        seed: with the number of each image (``images``, by default 0..B-1), decides its random stream.

    Raises:
        ValueError: for a label outside the classes.
    """
    if labels_B.numel() == 0 or int(labels_B.min()) < 0 or int(labels_B.max()) > model.num_classes:
        raise ValueError(f"labels must be one or more classes in 0..{model.num_classes}, got {labels_B.tolist()}")
    B, device, schedule = len(labels_B), labels_B.device, model.schedule
    numbers_B1 = np.asarray(range(B) if images is None else images, dtype=np.int64)[:, None]
    guided = sampler.guidance > 0
    classes = torch.cat((labels_B, torch.full_like(labels_B, model.num_classes))) if guided else labels_B
    x, cond = model.start_tokens(classes)
    condition = model.block_condition(cond)
    head_dim = model.width // model.heads
    shape = (len(classes), model.heads, schedule.num_tokens, head_dim)
    cache = KeyValueCache(model.depth, shape, dtype=x.dtype, device=device)
    f_hat = x.new_zeros(B, pyramid.channels, *schedule.last[1:], dtype=torch.float32)
    drawn: list[Tensor] = []
    for k, (_, h, w) in enumerate(schedule.scales):
        logits = model.step(k, x, cond, condition, cache).float()
        if guided:
            logits = sampler.guide(logits[:B], logits[B:], k, schedule.num_scales)
        # A hash of (seed, image, token): torch's CPU generator would keep only 32 bits of such a seed.
        tokens_N = np.arange(schedule.slices[k].start, schedule.slices[k].stop)
        uniform_BN = torch.from_numpy(uniform(seed, numbers_B1, tokens_N)).to(device)
        ids_BN = sampler.draw(logits, uniform_BN)
        drawn.append(ids_BN)
        f_hat = pyramid.add(f_hat, pyramid.quantizer.codes(ids_BN.view(B, h, w)), k)
        if k < schedule.num_scales - 1:
            words = model.embed_words(pyramid.next_input(f_hat, k).flatten(2).transpose(1, 2))
            x = torch.cat((words, words)) if guided else words
    return torch.cat(drawn, dim=1)
