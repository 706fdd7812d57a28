"""Images to what a cache stores: batches prepared by workers, encoded in a stated precision.

Shapes: B batch, R side of the image in px, L all tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from varscale.cache.manifest import Span
from varscale.data.loader import as_it_is
from varscale.data.source import ImageBatch, ImageSource
from varscale.tokenizers.precision import full_float32
from varscale.tokenizers.protocol import Tokenizer

PRECISIONS = ("fp32", "bf16")


@torch.no_grad()
def encode(tokenizer: Tokenizer, pixels_B3RR: Tensor, precision: str) -> Tensor:
    """Ids (B, L) of pixels on the tokenizer's device.

    ``fp32`` is IEEE float32, TF32 of CUDA devices excluded; ``bf16`` is of the trunk only, the quantiser is always
    float32. Raises ``ValueError`` for another precision.
    """
    kind = pixels_B3RR.device.type
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; it is {' or '.join(PRECISIONS)}")
    with torch.autocast(kind, torch.bfloat16) if precision == "bf16" else full_float32(kind):
        return tokenizer.encode(pixels_B3RR)


@dataclass(frozen=True)
class SpanBatches(Dataset[ImageBatch]):
    """The batches of some shards, one after another; no batch reaches into the next shard.

    So what is encoded together, and with it every bit of the result, does not depend on which process writes a shard.
    """

    source: ImageSource
    spans: Sequence[Span]
    images: dict[str, int]  # images of each split: row r is image r mod images at draw r // images
    batch: int

    def places(self) -> Iterator[tuple[int, int]]:
        """(number of the shard in ``spans``, first image of the batch in it), in order."""
        for number, span in enumerate(self.spans):
            yield from ((number, at) for at in range(0, span.images, self.batch))

    def __getitem__(self, place: tuple[int, int]) -> ImageBatch:
        number, at = place
        span = self.spans[number]
        rows = span.start + np.arange(at, min(at + self.batch, span.images))
        draws, indices = np.divmod(rows, self.images[span.split])
        return self.source.read(span.split, indices, draws)

    def load(self, *, workers: int, pin_memory: bool) -> Iterator[ImageBatch]:
        """All batches in order, prepared ahead by ``workers`` processes, which start with the first one."""
        yield from DataLoader(
            self,
            batch_size=None,
            sampler=list(self.places()),  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=as_it_is,
            pin_memory=pin_memory,
        )
