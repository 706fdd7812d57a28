"""Which of the processes that work together this one is; whoever starts them initialises ``torch.distributed``."""

from __future__ import annotations

import torch.distributed as dist


def place() -> tuple[int, int]:
    """The rank of this process and how many there are; 0 and 1 where it is alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
