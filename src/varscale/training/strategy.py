"""How a run is divided among devices: each has the whole model (DDP), or a share of every matrix (FSDP2).

Either way a step trains the same images, with the same random numbers, and takes the same mean over the batch as one
device would, so that results differ by rounding only. Sharded weights are gathered in float32, block by block, and
computed with as on one device (autocast); gradients are averaged in float32.
Sources: Li et al., arXiv:2006.15704 (DDP); Zhao et al., arXiv:2304.11277 (FSDP).
"""

from __future__ import annotations

from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy, Strategy
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from varscale.models.var import VAR
from varscale.training.checkpoints import Checkpoints
from varscale.training.shards import read_shards, spread_whole, write_shards

Division = Literal["auto", "ddp", "fsdp"]
PATIENCE = timedelta(minutes=30)  # of a process for the others, at a checkpoint or while one compiles
GENERATOR_LEFT_OUT = "tokenizer."  # of the task's parameters: frozen, and stored once beside the run


def backend(accelerator: str) -> str:
    """Of the process group: decisions and measurements travel between CPUs, and never wait for a GPU's queue."""
    return "cpu:gloo,cuda:nccl" if accelerator == "gpu" else "gloo"


def build_strategy(
    division: str, *, accelerator: str, devices: int, nodes: int, unused_parameters: bool = False
) -> Strategy | Literal["auto"]:
    """Lightning's strategy.

    Args:
        division: ``auto`` is ``ddp`` where there are several devices.
        devices: of each machine.
        unused_parameters: whether some parameters take no part in a step (a refiner that no scale uses).

    Raises:
        ValueError: for another division.
    """
    if division not in get_args(Division):
        raise ValueError(f"trainer.strategy is {division!r}; it must be one of {', '.join(get_args(Division))}")
    world = devices * nodes
    if division == "fsdp":
        return Sharded(world, process_group_backend=backend(accelerator))
    if world == 1:
        return "auto"
    # Buffers are constant, or the same on all ranks after every step.
    renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # since torch 2.13
    buffers = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DDPStrategy(
        process_group_backend=backend(accelerator),
        timeout=PATIENCE,
        gradient_as_bucket_view=True,  # gradients are not kept twice
        find_unused_parameters=unused_parameters,
        **buffers,
    )


class Sharded(ModelParallelStrategy):
    """FSDP2: parameters, gradients and optimiser states are divided among the devices.

    Checkpoints are folders of shards (``varscale.training.shards``), whole or absent and verified as all others
    (``Checkpoints``, the trainer's plugin); a checkpoint of a single file is read too.
    """

    def __init__(self, world: int, *, process_group_backend: str) -> None:
        super().__init__(
            data_parallel_size=world,
            tensor_parallel_size=1,
            process_group_backend=process_group_backend,
            timeout=PATIENCE,
        )

    def setup_environment(self) -> None:
        """The processes and their mesh, of one dimension.

        Lightning's has a second one of size 1, for a tensor parallelism that is not used; with several backends torch
        may fail to split the group of a bound device for it (pytorch issue 159200).
        """
        ParallelStrategy.setup_environment(self)
        self._setup_distributed()
        mesh = init_device_mesh(self.root_device.type, (self.world_size,), mesh_dim_names=("data_parallel",))
        assert self.lightning_module is not None
        self._device_mesh = self.lightning_module._device_mesh = mesh

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write all shards aside; rank 0 then describes and renames them."""
        io = self.checkpoint_io
        assert isinstance(io, Checkpoints)
        path, step, failure = Path(self.broadcast(filepath)), int(checkpoint["global_step"]), None
        aside = io.aside(path)
        try:
            write_shards(checkpoint, aside)
        except OSError as error:
            failure = error
        if self.is_global_zero:
            io.take(aside, path, step, failure)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load weights and optimiser; returns the rest."""
        io, module = self.checkpoint_io, self.lightning_module
        assert isinstance(io, Checkpoints) and module is not None
        path, (optimizer,) = Path(self.broadcast(checkpoint_path)), self.optimizers
        if path.is_dir():
            return io.without_records(read_shards(path, module, optimizer, left_out=GENERATOR_LEFT_OUT))
        return spread_whole(io.load_checkpoint(path, weights_only=True), module, optimizer)


def shard(model: VAR, mesh: DeviceMesh) -> None:
    """Divide the parameters of ``model`` among the devices of ``mesh``, in place; a block at a time is made whole."""
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
