"""Memory of a training step, before anything is spent: the step is run on tensors without storage, and what would be
alive at each operation is added up.

So the peak is that of forward, backward and update as they are, on the path a CPU takes or on that of a GPU: what
autograd keeps, gradients as they come while activations go, copies in bf16, the logits. What libraries allocate inside
an operation is a constant. On a CPU a run's record has the peak of its whole process, so there come on top what that
holds before the model is built, and what glibc's allocator keeps of what was freed, up to 32 MiB a piece (to have it
give that back at once, MALLOC_MMAP_THRESHOLD_=65536 in the environment, would cost 20 to 30 % of the time).
Shapes: B batch, L tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from varscale.models.var import VAR
from varscale.nn import attention, cross_entropy, linear
from varscale.tokenizers import autoencoder
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.tokens import TokenBatch

RUN_DEPTHS = (2, 3)  # from which deeper models are worked out
FLOAT = 4  # bytes of a weight, a gradient, a moment
# Bytes that libraries take inside operations: measured on an x86 CPU (depth 2 to 6, 4 to 16 images, fp32 and bf16: 6 to
# 29 MB); on a GPU the workspace of cuBLAS on Hopper, as documented.
LIBRARIES = {"cpu": 25_000_000, "cuda": 32 * 2**20}
PROCESS = 585_000_000  # bytes of a run's process on a CPU before it builds the model: imported libraries
HEAP_PIECE = 2**25  # bytes, above which glibc gives freed memory back at once
ENCODED = (2, 3)  # images, from which larger batches are worked out


@dataclass(frozen=True)
class StepMemory:
    """Bytes that training needs on each device, at its peak.

    weights: parameters. states: the optimiser's two moments, and an average of the weights. gradients: those that stay
    allocated, or add up over several passes, throughout the step. tokenizer: its weights. working: what comes and goes
    in a step, activations above all; gradients too, where they are not kept. encoding: what comes and goes while the
    tokenizer encodes images. measuring: what comes and goes in a held-out measurement. libraries: what they take
    inside operations. working_pieces, measuring_pieces: what of the two glibc's heap keeps for later.
    """

    weights: int
    states: int
    gradients: int
    tokenizer: int
    working: int
    encoding: int
    measuring: int
    libraries: int
    working_pieces: int = 0
    measuring_pieces: int = 0

    @property
    def total(self) -> int:
        """The peak, above what the process takes before it builds the model."""
        lasting = self.weights + self.states + self.gradients + self.tokenizer + self.libraries
        return lasting + max(self.working, self.encoding, self.measuring)

    def of_run(self, device_type: str) -> int:
        """The peak as the run's ``peak_mem_bytes`` will have it: on a CPU that of the whole process.

        Its heap keeps the pieces of a step, which hardly serve a measurement of other shapes, and the other way round.
        """
        if device_type == "cuda":
            return self.total
        working, measuring = self.working + self.measuring_pieces, self.measuring + self.working_pieces
        return PROCESS + replace(self, working=working, measuring=measuring).total


class LiveBytes(TorchDispatchMode):
    """The bytes of storages that operations within make, while they are alive, and their highest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.pieces_now = self.pieces = 0  # those that a heap keeps
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return out

    def count(self, tensor: Tensor, size: int | None = None) -> None:
        """Take in the tensor's storage, of ``size`` bytes instead of its own."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes() if size is None else size
        self._add(self.sizes[key])
        self.peak, self.pieces = max(self.peak, self.now), max(self.pieces, self.pieces_now)
        weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        """A storage is freed."""
        self._add(-self.sizes.pop(key))

    def _add(self, size: int) -> None:
        self.now += size
        self.pieces_now += size if abs(size) <= HEAP_PIECE else 0


def step_memory(
    model: VAR,
    batch: int,
    *,
    dtype: torch.dtype,
    device_type: str,
    passes: int = 1,
    averaged: bool = False,
    measured: int = 0,
    tokenizer: VQAutoencoder | None = None,
    encodes: bool = False,
    strategy: Literal["alone", "ddp", "fsdp"] = "alone",
    devices: int = 1,
) -> StepMemory:
    """What a step takes on one device.

    Args:
        model: on the meta device; moved to tensors without storage in place.
        batch: images of one pass on this device.
        dtype: arithmetic of training; below float32 by autocast.
        device_type: ``cpu`` or ``cuda``, which decides which kernels compute.
        passes: of a step, whose gradients add up.
        averaged: whether an average of the weights is kept.
        measured: images of a held-out batch; 0 for none.
        tokenizer: that stands beside the model on the device; on the meta device, moved as the model is.
        encodes: whether the run trains from images, which the tokenizer encodes.
        strategy: how the run is divided among ``devices``.
    """
    weights = FLOAT * sum(p.numel() for p in model.parameters())
    kept_gradients = passes > 1 or strategy != "alone"  # DDP's buckets stay allocated
    with FakeTensorMode(allow_non_fake_inputs=True), _kernels_of(device_type):
        model.to_empty(device="cpu")
        working, working_pieces = _peak(model, batch, dtype, train=True, drop_gradients=kept_gradients)
        measuring, measuring_pieces = _peak(model, measured, torch.float32, train=False) if measured else (0, 0)
        encoding = _encoding(tokenizer, max(batch, measured)) if tokenizer is not None and encodes else 0
    beside = 0 if tokenizer is None else sum(t.nbytes for t in (*tokenizer.parameters(), *tokenizer.buffers()))
    memory = StepMemory(
        weights=weights,
        states=(3 if averaged else 2) * weights,
        gradients=weights if kept_gradients else 0,
        tokenizer=beside,
        working=working,
        encoding=encoding,
        measuring=measuring,
        libraries=LIBRARIES[device_type],
        working_pieces=working_pieces,
        measuring_pieces=measuring_pieces,
    )
    return _sharded(memory, model, devices) if strategy == "fsdp" else memory


def _peak(model: VAR, batch: int, dtype: torch.dtype, *, train: bool, drop_gradients: bool = False) -> tuple[int, int]:
    """The highest sum of what comes and goes in a training step, or in a measurement, and that of a heap's pieces.

    A deep model is not run as a whole: its blocks are alike, so the peak of each stretch of a step is linear in depth.
    Between the second and the last but one block of backward it is nowhere higher than at one of them.
    """
    settings = {"train": train, "drop_gradients": drop_gradients}
    few, more = RUN_DEPTHS
    if model.depth <= more:
        of_stretches, pieces = _peaks(model, batch, dtype, **settings)
        return max(of_stretches), pieces
    peaks = []
    for depth in RUN_DEPTHS:
        with _of_depth(model, depth):
            of_stretches, pieces = _peaks(model, batch, dtype, **settings)
        peaks.append([pieces, *(of_stretches[i] for i in ((0, 1, -2, -1) if train else (0,)))])
    slope = (model.depth - more) / (more - few)
    pieces, *of_stretches = (round(high + slope * (high - low)) for low, high in zip(*peaks, strict=True))
    return max(of_stretches), pieces


def _peaks(model: VAR, batch: int, dtype: torch.dtype, *, train: bool, drop_gradients: bool) -> tuple[list[int], int]:
    """The peaks of the stretches: up to the gradients of the last block, from there block by block to the end.

    And the peak of a heap's pieces throughout.
    """
    L, n_0 = model.schedule.num_tokens, model.schedule.tokens_per_scale[0]
    training = model.training
    model.train(train)
    live, peaks = LiveBytes(), []

    def gradient_of_a_block(_: Tensor) -> None:
        peaks.append(live.peak)
        live.peak = live.now

    hooked = [(block.feed_forward.down.weight, gradient_of_a_block) for block in model.blocks]  # type: ignore[union-attr]
    if drop_gradients:
        hooked += [(parameter, lambda p: setattr(p, "grad", None)) for parameter in model.parameters()]
    handles = [parameter.register_post_accumulate_grad_hook(hook) for parameter, hook in hooked]  # type: ignore[union-attr, operator]
    with live, torch.set_grad_enabled(train):
        for tensor in (*model.parameters(), *model.buffers()):
            live.count(tensor, 0)
        ids = torch.empty(batch, L, dtype=torch.int64)
        labels = torch.empty(batch, dtype=torch.int64)
        tokens = TokenBatch(ids, labels, torch.empty(batch, L - n_0, model.latent_channels))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model.loss(tokens, errors=not train).per_token_avg_B.mean()
        if train:
            loss.backward()  # type: ignore[no-untyped-call]
        peaks.append(live.peak)
    for handle in handles:
        handle.remove()
    model.zero_grad()
    model.train(training)
    return peaks, live.pieces


def _encoding(tokenizer: VQAutoencoder, batch: int) -> int:
    """The highest sum of what comes and goes while images are encoded: linear in their number."""
    tokenizer.to_empty(device="cpu")

    def peak(images: int) -> int:
        live = LiveBytes()
        with live, torch.no_grad():
            for tensor in (*tokenizer.parameters(), *tokenizer.buffers()):
                live.count(tensor, 0)
            tokenizer.encode(torch.empty(images, 3, tokenizer.resolution, tokenizer.resolution))
        return live.peak

    if batch <= ENCODED[-1]:
        return peak(batch)
    few, more = (peak(images) for images in ENCODED)
    return more + (batch - ENCODED[-1]) * (more - few)


@contextmanager
def _of_depth(model: VAR, depth: int) -> Iterator[None]:
    """The model with its first ``depth`` blocks only."""
    whole, blocks = model.depth, model.blocks
    model.depth, model.blocks = depth, blocks[:depth]
    try:
        yield
    finally:
        model.depth, model.blocks = whole, blocks


def _sharded(memory: StepMemory, model: VAR, devices: int) -> StepMemory:
    """The same with weights, states and gradients divided, and what is gathered of them in turn.

    Whole at a time: what stands outside the blocks, two blocks (one is fetched while the other computes), and the
    gradients of one until they are summed up over the devices.
    """
    block = FLOAT * sum(p.numel() for p in model.blocks[0].parameters())
    outside = memory.weights - model.depth * block
    gathered = outside + 2 * block
    share = replace(
        memory, **{name: -(-getattr(memory, name) // devices) for name in ("weights", "states", "gradients")}
    )
    summed = max(block, outside)
    return replace(share, working=memory.working + gathered + summed, measuring=memory.measuring + gathered)


@contextmanager
def _kernels_of(device_type: str) -> Iterator[None]:
    """The CPU's own kernels only where it is a CPU that computes: a GPU takes torch's."""
    if device_type == "cpu":
        yield
        return
    before = linear.HAS_ONEDNN, cross_entropy.MINIMUM, attention.written_out, autoencoder.PART_BYTES
    linear.HAS_ONEDNN, cross_entropy.MINIMUM, autoencoder.PART_BYTES = False, 2**62, 2**62
    attention.written_out = lambda device_type, dtype: False
    try:
        yield
    finally:
        linear.HAS_ONEDNN, cross_entropy.MINIMUM, attention.written_out, autoencoder.PART_BYTES = before
