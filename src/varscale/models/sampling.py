"""Sampling token maps scale by scale, with guidance, top-k, top-p, smooth mode and a key-value cache.

Source: VAR, arXiv:2404.02905, and its released code: guidance rises linearly from 0 at the coarsest scale; a scale is
drawn whole; ties at the k-th logit are kept; ``smooth`` is its more_smooth. Differs: each image has a random stream of
its own, so an image does not change with the batch it is drawn in (but for the rounding of matrix products, which can
move a draw that lies on an edge); guidance mixes what the linear head takes, not the logits, which is the same and
costs one head instead of two.
Shapes: B images, N tokens of one scale, L all tokens, V codebook size, M candidates for a token, C code channels,
H x W latent grid, D width, K scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from varscale.data.counter import uniform
from varscale.models.noise import gumbel
from varscale.models.var import VAR
from varscale.tokenizers.residual import ResidualPyramid

SEGMENT = 64  # codes


@dataclass(frozen=True)
class Sampler:
    """How logits become tokens. The released protocol for FID is guidance 1.5, top-k 900, top-p 0.96.

    Args:
        guidance: t in (1 + t) cond - t uncond. A number g rises with the scales, t_k = g k / (K - 1), as released; a
            tuple gives t_k of every scale as it is. All 0: the null class is not computed.
        top_k: keep the k largest logits and their ties (0: all).
        top_p: keep the smallest set of at least that probability (0 and 1: all).
        temperature: logits are divided by it; a number or one a scale.
        smooth: what the next scale sees is a mixture of codes, softmax((logits (1 + r) + Gumbel) / tau) E with
            r = k / (K - 1), tau = max(0.27 (1 - 0.95 r), 0.005), instead of the code that was drawn. Smoother pictures
            by the authors; not their protocol for FID.

    Raises:
        ValueError: for a value outside its range; ``check`` raises it for what does not fit a model.
    """

    guidance: float | tuple[float, ...] = 1.5
    top_k: int = 0
    top_p: float = 0.0
    temperature: float | tuple[float, ...] = 1.0
    smooth: bool = False

    def __post_init__(self) -> None:
        if min(_values(self.guidance), default=0.0) < 0:
            raise ValueError(f"guidance is {self.guidance}; it must be at least 0, and 0 leaves the class alone")
        if not min(_values(self.temperature), default=1.0) > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0 (top_k=1 takes the likeliest)")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 0, and 0 keeps all")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be in [0, 1], and 0 keeps all")

    def check(self, num_scales: int, vocabulary: int) -> None:
        """Raise ``ValueError`` unless the settings fit a model of K scales and V codes."""
        for name in ("guidance", "temperature"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != num_scales:
                raise ValueError(
                    f"{name} has {len(value)} values, but the model has {num_scales} scales; give one a scale, or one "
                    "number"
                )
        if self.top_k > vocabulary:
            raise ValueError(
                f"top_k is {self.top_k}, but the codebook has {vocabulary} codes; use at most that, or 0 for all"
            )

    @property
    def guided(self) -> bool:
        """Whether any scale needs the null class."""
        return max(_values(self.guidance)) > 0

    def guide(self, cond: Tensor, uncond: Tensor, k: int, num_scales: int) -> Tensor:
        """Classifier-free guidance of scale k, of logits or of anything they are affine in."""
        t = self.guidance[k] if isinstance(self.guidance, tuple) else self.guidance * ramp(k, num_scales)
        return torch.add(cond, cond - uncond, alpha=t) if t else cond

    def candidates(self, logits_BNV: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
        """Logits (B, N, M) after temperature of the codes that may be drawn, and their ids, or None where M is V.

        A candidate outside the top k or the top p has logit -inf; the largest always stays.
        """
        temperature = self.temperature[k] if isinstance(self.temperature, tuple) else self.temperature
        logits = logits_BNV if temperature == 1 else logits_BNV / temperature
        ids = None
        cut = 0 < self.top_p < 1
        if 0 < self.top_k < logits.shape[-1]:
            logits, ids = _top_k(logits, self.top_k, ordered=cut)
        elif cut:
            logits, ids = logits.sort(dim=-1, descending=True)
        if cut:
            ascending = logits.softmax(-1).flip(-1).cumsum(-1)
            drop = (ascending <= 1 - self.top_p).flip(-1)
            drop[..., 0] = False
            logits = logits.masked_fill(drop, -torch.inf)
        return logits, ids


def ramp(k: int, num_scales: int) -> float:
    """r = k / (K - 1): 0 at the coarsest scale, 1 at the finest."""
    return k / max(1, num_scales - 1)


def _values(setting: float | tuple[float, ...]) -> tuple[float, ...]:
    return setting if isinstance(setting, tuple) else (setting,)


def _top_k(logits_BNV: Tensor, k: int, *, ordered: bool) -> tuple[Tensor, Tensor]:
    """At least the k largest logits and all ties of the k-th, with ids; what else there is, is -inf."""
    V = logits_BNV.shape[-1]
    # A few more than k show that no tie is left out; logits of bf16 have many.
    wanted = min(V, k + 1 + k // 16)
    values, ids = logits_BNV.topk(wanted, sorted=ordered)
    kth = values.kthvalue(wanted - k + 1, dim=-1, keepdim=True).values
    if wanted < V and bool((values.amin(-1, keepdim=True) == kth).any()):
        wanted = int((logits_BNV >= kth).sum(-1).max())
        values, ids = logits_BNV.topk(wanted, sorted=ordered)
    return values.masked_fill(values < kth, -torch.inf), ids


def draw(logits_BNM: Tensor, uniform_BN: Tensor) -> Tensor:
    """Places (B, N) among the candidates: the inverse of the cumulative distribution at ``uniform_BN`` in [0, 1)."""
    weights = logits_BNM.softmax(-1)
    M = weights.shape[-1]
    if M <= SEGMENT or M % SEGMENT:
        return _invert(weights, uniform_BN)[0]
    # First the segment, then the place in it: a cumulative sum over all V costs four times as much.
    segments = weights.unflatten(-1, (-1, SEGMENT))
    segment_BN, share_BN = _invert(segments.sum(-1), uniform_BN)
    inside = segments.gather(-2, segment_BN[..., None, None].expand(-1, -1, 1, SEGMENT)).squeeze(-2)
    return segment_BN * SEGMENT + _invert(inside, share_BN)[0]


def _invert(weights_BNM: Tensor, uniform_BN: Tensor) -> tuple[Tensor, Tensor]:
    """The interval that ``uniform_BN`` falls into when [0, 1) is divided by weight, and how far into it, in [0, 1].

    An interval of weight 0 is never taken.
    """
    # A CPU adds up in order and in float64, so an empty interval stays empty; a parallel sum may round its two ends
    # apart, which only float64 makes negligible.
    dtype = torch.float32 if weights_BNM.device.type == "cpu" else torch.float64
    ends = weights_BNM.cumsum(-1, dtype=dtype)
    total = ends[..., -1:]
    target = (uniform_BN.unsqueeze(-1) * total).to(dtype)
    # Rounding may put the target at the very end, where only empty intervals follow.
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    place = torch.searchsorted(ends, target, right=True)
    width = weights_BNM.gather(-1, place)
    share = (target - (ends.gather(-1, place) - width)) / width
    return place.squeeze(-1), share.squeeze(-1).clamp(0, 1)


def smooth_codes(
    logits_BNM: Tensor, ids_BNM: Tensor | None, noise_BNM: Tensor, codebook_VC: Tensor, r: float
) -> Tensor:
    """Mixtures of codes (B, N, C) of the released more_smooth; see ``Sampler``."""
    tau = max(0.27 * (1 - 0.95 * r), 0.005)
    weights = ((logits_BNM * (1 + r) + noise_BNM) / tau).softmax(-1)
    if ids_BNM is not None:
        weights = weights.new_zeros(*weights.shape[:-1], len(codebook_VC)).scatter_(-1, ids_BNM, weights)
    return weights @ codebook_VC


@dataclass(frozen=True)
class Kept:
    """Tokens that are not drawn: where ``keep_BL`` is true, scale k + 1 sees the code of ``ids_BL`` instead."""

    ids_BL: Tensor
    keep_BL: Tensor


@dataclass(frozen=True)
class Generated:
    """Token maps that were drawn, and the latent they make.

    ids_BL: int64 as drawn, before kept ones are put back. latent_BCHW: F_K float32, which the decoder takes; it is that
    of the ids unless codes were mixed (``smooth``) or kept.
    """

    ids_BL: Tensor
    latent_BCHW: Tensor


@torch.no_grad()
def generate(
    model: VAR,
    pyramid: ResidualPyramid,
    labels_B: Tensor,
    *,
    sampler: Sampler,
    seed: int,
    images: Sequence[int] | None = None,
    kept: Kept | None = None,
) -> Generated:
    """Draw token maps for the classes ``labels_B``.

    Args:
        labels_B: classes; ``model.num_classes`` is the null class.
        seed: with the number of each image (``images``, by default 0..B-1), decides its random stream.
        kept: tokens of images that are edited.

    Raises:
        ValueError: for a label outside the classes, or a sampler that does not fit the model.
    """
    if labels_B.numel() == 0 or int(labels_B.min()) < 0 or int(labels_B.max()) > model.num_classes:
        raise ValueError(
            f"labels are {labels_B.tolist()}; they must be one or more classes of 0..{model.num_classes - 1}, or "
            f"{model.num_classes} for the null class"
        )
    schedule, quantizer, K = model.schedule, pyramid.quantizer, model.schedule.num_scales
    sampler.check(K, quantizer.vocabulary)
    B, device = len(labels_B), labels_B.device
    numbers_B1 = np.asarray(range(B) if images is None else images, dtype=np.int64)[:, None]
    null_B = torch.full_like(labels_B, model.num_classes)
    prepared = model.prepare(torch.cat((labels_B, null_B)) if sampler.guided else labels_B)
    x = prepared.start_BND
    f_hat = quantizer.codebook.new_zeros(B, pyramid.channels, *schedule.last[1:])
    drawn: list[Tensor] = []
    for k, (part, (_, h, w)) in enumerate(zip(schedule.slices, schedule.scales, strict=True)):
        features = model.step(k, x, prepared)
        if sampler.guided:
            features = sampler.guide(features[:B].float(), features[B:].float(), k, K)
        logits, ids = sampler.candidates(model.head(features).float(), k)
        # A hash of (seed, image, token): torch's CPU generator would keep only 32 bits of such a seed.
        tokens_N = np.arange(part.start, part.stop)
        place_BN = draw(logits, torch.from_numpy(uniform(seed, numbers_B1, tokens_N)).to(device))
        ids_BN = place_BN if ids is None else ids.gather(-1, place_BN.unsqueeze(-1)).squeeze(-1)
        drawn.append(ids_BN)
        if sampler.smooth:
            every = torch.arange(quantizer.vocabulary, device=device) if ids is None else ids
            noise = gumbel(seed, numbers_B1, tokens_N, every)
            mixed = smooth_codes(logits, ids, noise, quantizer.codebook, ramp(k, K))
            codes = mixed.transpose(1, 2).unflatten(2, (h, w))
        else:
            codes = quantizer.codes(ids_BN.view(B, h, w))
        if kept is not None:
            given = quantizer.codes(kept.ids_BL[:, part].unflatten(1, (h, w)))
            codes = torch.where(kept.keep_BL[:, part].unflatten(1, (h, w)).unsqueeze(1), given, codes)
        f_hat = pyramid.add(f_hat, codes, k)
        if k < K - 1:
            words = model.embed_words(pyramid.next_input(f_hat, k).flatten(2).transpose(1, 2))
            x = torch.cat((words, words)) if sampler.guided else words  # both halves see the same image
    return Generated(torch.cat(drawn, dim=1), f_hat)


def sample(
    model: VAR,
    pyramid: ResidualPyramid,
    labels_B: Tensor,
    *,
    sampler: Sampler,
    seed: int,
    images: Sequence[int] | None = None,
) -> Tensor:
    """The ids (B, L) of ``generate``."""
    return generate(model, pyramid, labels_B, sampler=sampler, seed=seed, images=images).ids_BL
