"""Two processes train one codebook: masses, codes and restarts must not drift apart, and reports cover all images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from varscale.evaluation.reconstruction import ReconstructionMeter
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.tokenizers.vq import VectorQuantizer

RANKS = 2
STEPS = 12


def features_of(rank: int, step: int) -> Tensor:
    return torch.randn(100, 4, generator=torch.Generator().manual_seed(10 * step + rank))


def pixels_of(rank: int) -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(rank)) * 2 - 1


def train(quantizer: VectorQuantizer, features: list[Tensor]) -> int:
    restarts = 0
    for batch in features:
        quantizer.start(batch, seed=5)
        restarts += quantizer.observe(batch, quantizer.nearest(batch.T[None, :, :, None]).flatten(), seed=5)
    return restarts


def meter() -> ReconstructionMeter:
    torch.manual_seed(0)
    return ReconstructionMeter(VQAutoencoder(width=16, blocks=1, vocabulary=32).eval())


def of_one_rank(rank: int, folder: str, update: str, restart_below: float | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    torch.manual_seed(rank)  # the start must come from one rank
    quantizer = VectorQuantizer(16, 4, update=update, decay=0.5, restart_below=restart_below)  # type: ignore[arg-type]
    restarts = train(quantizer, [features_of(rank, step) for step in range(STEPS)])
    measured = meter()
    measured.update(pixels_of(rank))
    result = {"state": quantizer.state_dict(), "restarts": restarts, "report": measured.report()}
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("update", "restart_below"), [("gradient", 0.8), ("ema", 0.8), ("ema", None)])
def test_ranks_agree(tmp_path: Path, update: str, restart_below: float | None) -> None:
    spawn(of_one_rank, (str(tmp_path), update, restart_below), nprocs=RANKS)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(RANKS))
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name
    assert first["report"] == second["report"] and first["report"].images == 8
    whole = meter()
    whole.update(torch.cat([pixels_of(0), pixels_of(1)]))
    assert first["report"].scales[-1].psnr_db == pytest.approx(whole.report().scales[-1].psnr_db, abs=1e-4)
    if restart_below is not None:
        assert first["restarts"] > 0
    one = VectorQuantizer(16, 4, update=update, decay=0.5, restart_below=restart_below)  # type: ignore[arg-type]
    one.start(features_of(0, 0), seed=5)
    train(one, [torch.cat([features_of(rank, step) for rank in range(RANKS)]) for step in range(STEPS)])
    torch.testing.assert_close(first["state"]["codebook"], one.codebook.detach())
