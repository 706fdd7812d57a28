"""Lightning's Trainer as both stages use it: checkpoints, records, signals and the order of data are ours."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning

from varscale.training.checkpoints import Checkpoints
from varscale.training.strategy import build_strategy


def build_trainer(
    folder: Path,
    checkpoints: Checkpoints,
    callbacks: Sequence[lightning.Callback],
    *,
    steps: int,
    accelerator: str,
    devices: int,
    nodes: int = 1,
    division: str = "auto",
    unused_parameters: bool = False,
    **settings: Any,
) -> lightning.Trainer:
    """A Trainer of ``steps`` steps in ``folder``; ``division`` and ``unused_parameters`` as in ``build_strategy``.

    Args:
        devices: of each of the ``nodes`` machines.
        settings: further ones of Lightning's Trainer.
    """
    strategy = build_strategy(
        division, accelerator=accelerator, devices=devices, nodes=nodes, unused_parameters=unused_parameters
    )
    trainer = lightning.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        max_steps=steps,
        max_epochs=-1,
        callbacks=list(callbacks),
        plugins=[checkpoints],
        logger=False,
        # A job's output is a file on the run's disk; when that is full, the bar would end the run.
        enable_progress_bar=sys.stdout.isatty(),
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **settings,
    )
    # `Saving` hears signals, between two steps. Lightning (2.6) would write a checkpoint of its own within a step on
    # Slurm's SIGUSR1 and prefer it at the next start, and on several devices wait for the device before every batch.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer
