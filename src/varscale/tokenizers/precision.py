"""Full float32 for the quantiser: token ids are decisions between near neighbours and must not depend on a fast mode.

Autocast, TF32 on CUDA (the default of cuDNN convolutions) and bf16 products of oneDNN (a setting of
``torch.set_float32_matmul_precision``) all round to 8-11 bits, which changes ids between training, caching and
sampling.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Inside, autocast is off and float32 products are IEEE float32; afterwards everything is as it was."""
    backends = torch.backends
    switches = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
