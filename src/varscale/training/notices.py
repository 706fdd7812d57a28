"""Lightning's advice that does not apply here, and why; everything else it says is shown."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NOT_APPLICABLE = (
    r".*have no `val_dataloader`.*",  # stage 1 is measured once, at its end
    r".*module\(s\) in eval mode at the start of training.*",  # the frozen tokenizer
    r".*does not have many workers.*",  # reading tokens needs none; trainer.workers is the user's choice
    r".*resum(ed|ing) from a checkpoint that ended before the epoch ended.*",  # order is a function of the step
    r".*FSDP2-wrapped module .* returned a view tensor.*",  # nothing is done in the place of logits before backward
    r".*recommended to use `self.log\(.*sync_dist=True.*",  # what is logged is the same on all ranks already
    r".*treespec, LeafSpec.*",  # Lightning 2.6 calls what torch 2.13 deprecates
)


@contextmanager
def without_advice() -> Iterator[None]:
    """Leave out the advice above, and Lightning's lines about devices and products."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in NOT_APPLICABLE:
            warnings.filterwarnings("ignore", message=message)
        yield
