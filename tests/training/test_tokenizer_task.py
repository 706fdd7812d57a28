"""Stage-1 training: it learns, measures each scale, warns of collapse, and resumes exactly."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from varscale.data.dead_leaves import DeadLeaves
from varscale.data.loader import train_loader
from varscale.data.source import ImageBatch
from varscale.evaluation.reconstruction import (
    ReconstructionReport,
    ScaleReconstruction,
    measure_reconstruction,
    reconstruction_picture,
    reconstruction_report,
)
from varscale.tokenizers.autoencoder import VQAutoencoder
from varscale.training.health import DivergedError
from varscale.training.notices import without_advice
from varscale.training.optim import Optimisation
from varscale.training.tokenizer_task import TokenizerTask, collapsed_scales

SOURCE = DeadLeaves(val_size=64)
OPTIM = Optimisation(lr=5e-3, schedule="cosine", final=0.01, clip=1.0)


def small(**settings: object) -> VQAutoencoder:
    torch.manual_seed(0)
    return VQAutoencoder(**{"width": 32, "blocks": 1, "vocabulary": 32, **settings})


def validation() -> DataLoader[ImageBatch]:
    batch = SOURCE.read("val", np.arange(64), 0)
    return DataLoader([batch], batch_size=None)  # type: ignore[arg-type]


def trainer(folder: Path, steps: int, **settings: object) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        default_root_dir=folder,
        max_steps=steps,
        accelerator="cpu",
        log_every_n_steps=5,
        num_sanity_val_steps=0,
        **{**quiet, "enable_checkpointing": False, **settings},
    )


def fit(task: TokenizerTask, folder: Path, *, first: int = 0, last: int, resume: Path | None = None) -> TokenizerTask:
    loader = train_loader(SOURCE, seed=0, batch=16, first_step=first, last_step=last)
    run = trainer(folder, last)
    with without_advice():
        run.fit(task, loader, ckpt_path=resume, weights_only=True)
        run.validate(task, validation(), verbose=False)
    run.save_checkpoint(folder / f"{last}.ckpt")
    return task


def test_training_raises_the_psnr_of_every_scale(tmp_path: Path) -> None:
    tokenizer = small()
    before = reconstruction_report(tokenizer, validation())
    task = fit(TokenizerTask(tokenizer, steps=60, optim=Optimisation(lr=5e-3)), tmp_path, last=60)
    after = reconstruction_report(tokenizer, validation())
    assert [s.side for s in after] == [1, 2, 3, 4, 6, 8]
    assert all(a.psnr_db > b.psnr_db + 1 for a, b in zip(after, before, strict=True))
    assert after[-1].psnr_db > after[0].psnr_db + 2
    assert task.report is not None and task.report.images == 64 and list(task.report.scales) == after
    names = {(row["split"], row["metric"], row["scale"]) for row in task.metrics}
    assert {("val", "psnr_db", k) for k in range(6)} | {("val", "perplexity", 3), ("val", "usage", None)} <= names
    assert {("train", "l1", None), ("train", "vq", None), ("val", "unquantised_psnr_db", None)} <= names
    health = {"dead_codes", "restarted", "grad_norm_mean", "grad_norm_max", "loss_spikes", "images_per_s"}
    assert health <= {metric for split, metric, _ in names if split == "train"}
    steps = [row["step"] for row in task.metrics if row["metric"] == "loss"]
    assert steps == list(range(5, 61, 5))


@pytest.mark.parametrize("settings", [{"codebook_update": "gradient"}, {"codebook_update": "ema"}])
def test_a_resumed_run_ends_bit_equal(tmp_path: Path, settings: dict[str, object]) -> None:
    # A fast decay, so that codes die and are restarted within the run.
    settings = {**settings, "codebook_decay": 0.5, "restart_below": 0.3}

    def task() -> TokenizerTask:
        return TokenizerTask(small(**settings), steps=12, optim=OPTIM, ema_decay=0.5, seed=3)

    whole = fit(task(), tmp_path, last=12)
    assert sum(row["value"] for row in whole.metrics if row["metric"] == "restarted") > 0
    assert {row["step"] for row in whole.metrics if row["metric"] == "dead_codes"} == {5, 10, 12}
    fit(task(), tmp_path, last=7)
    resumed = fit(task(), tmp_path, first=7, last=12, resume=tmp_path / "7.ckpt")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    rows = [
        [row for row in run.metrics if row["step"] != 7 and row["metric"] != "images_per_s"] for run in (whole, resumed)
    ]
    assert len(rows[0]) > 30 and rows[1] == rows[0]  # step 7 was measured because it ended there


def test_the_weight_average_is_what_is_evaluated(tmp_path: Path) -> None:
    task = fit(TokenizerTask(small(), steps=6, optim=OPTIM, ema_decay=0.9), tmp_path, last=6)
    assert task.evaluated is not task.tokenizer
    assert task.evaluated.fingerprint != task.tokenizer.fingerprint
    assert not any(p.requires_grad for p in task.evaluated.parameters())
    assert task.report == measure_reconstruction(task.evaluated, validation())
    assert TokenizerTask(small(), steps=6, optim=OPTIM).evaluated.fingerprint == small().fingerprint


def test_mixed_precision_leaves_the_quantiser_in_float32(tmp_path: Path) -> None:
    task = TokenizerTask(small(), steps=3, optim=OPTIM)
    loader = train_loader(SOURCE, seed=0, batch=16, first_step=0, last_step=3)
    seen: dict[str, torch.dtype] = {}
    task.tokenizer.trunk.encoder[1].register_forward_hook(lambda m, i, o: seen.update(trunk=o.dtype))
    task.tokenizer.pyramid.refiners[0].register_forward_hook(lambda m, i, o: seen.update(pyramid=o.dtype))
    with without_advice():
        trainer(tmp_path, 3, precision="bf16-mixed").fit(task, loader)
    assert seen == {"trunk": torch.bfloat16, "pyramid": torch.float32}


def test_further_terms_are_trained_and_logged(tmp_path: Path) -> None:
    class Difference(nn.Module):
        def forward(self, reconstruction: Tensor, pixels: Tensor) -> Tensor:
            return (reconstruction - pixels).abs().mean()

    task = fit(TokenizerTask(small(), steps=5, optim=OPTIM, reconstruction_terms=[Difference()]), tmp_path, last=5)
    values = {row["metric"]: row["value"] for row in task.metrics if row["split"] == "train"}
    assert values["term_0"] == pytest.approx(values["l1"])
    assert values["loss"] == pytest.approx(0.2 * values["l1"] + values["l2"] + values["vq"] + values["term_0"])


def test_a_collapsed_scale_is_told_in_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = small(restart_below=None, kmeans_start=False)
    with torch.no_grad():
        tokenizer.pyramid.quantizer.codebook[1:] = 1e3  # out of reach: only code 0 is ever the nearest
        tokenizer.pyramid.quantizer.codebook[0] = 0
    with caplog.at_level(logging.WARNING):
        fit(TokenizerTask(tokenizer, steps=1, optim=Optimisation(lr=1e-6)), tmp_path, last=1)
    told = [r.getMessage() for r in caplog.records if "has collapsed" in r.getMessage()]
    assert len(told) == 6
    assert told[3].startswith(
        "scale 3 (4 x 4) has collapsed: its 1024 tokens use 3.1% of the 32 codes with a perplexity"
    )


def test_few_tokens_are_no_collapse() -> None:
    scale = ScaleReconstruction(scale=0, side=1, psnr_db=10.0, usage=0.02, perplexity=12.0, tokens=16)
    report = ReconstructionReport((scale,), 20.0, 0.02, 12.0, 16)
    assert collapsed_scales(report, 4096) == []
    assert collapsed_scales(dataclasses.replace(report, scales=(dataclasses.replace(scale, tokens=10**6),)), 4096)


def test_divergence_stops_the_run(tmp_path: Path) -> None:
    task = TokenizerTask(small(kmeans_start=False), steps=3, optim=OPTIM)
    with torch.no_grad():
        task.tokenizer.trunk.decoder[0].weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"loss at step 0 is nan; lower stage1.optim.lr \(now 0\.\d+\)"):
        fit(task, tmp_path, last=3)


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="steps is 0; a run needs at least 1"):
        TokenizerTask(small(), steps=0, optim=OPTIM)
    with pytest.raises(ValueError, match="lr is 0"):
        TokenizerTask(small(), steps=1, optim=Optimisation(lr=0.0))
    with pytest.raises(ValueError, match="warmup is 2"):
        TokenizerTask(small(), steps=1, optim=Optimisation(lr=1e-3, warmup=2.0))


def test_psnr_and_perplexity_by_hand() -> None:
    tokenizer = small(kmeans_start=False)
    pixels = SOURCE.read("val", np.arange(8), 0).pixels
    report = measure_reconstruction(tokenizer, [ImageBatch(p, torch.zeros(4), torch.zeros(4)) for p in pixels.split(4)])
    ids = tokenizer.encode(pixels)
    errors = (tokenizer.decode(ids) - pixels).double().square().mean((1, 2, 3))
    assert report.scales[-1].psnr_db == pytest.approx((10 * torch.log10(4 / errors)).mean().item())
    last = ids[:, tokenizer.schedule.slices[-1]].flatten()
    shares = torch.bincount(last, minlength=32).double() / last.numel()
    entropy = -(shares[shares > 0] * shares[shares > 0].log()).sum()
    assert report.scales[-1].perplexity == pytest.approx(entropy.exp().item())
    assert report.scales[-1].usage == pytest.approx((shares > 0).double().mean().item())
    assert report.scales[-1].tokens == 8 * 64 and report.images == 8
    with pytest.raises(ValueError, match="no images to reconstruct"):
        measure_reconstruction(tokenizer, [])


def test_the_picture_shows_the_original_beside_every_scale() -> None:
    tokenizer = small(kmeans_start=False)
    pixels = SOURCE.read("val", np.arange(3), 0).pixels
    picture = reconstruction_picture(tokenizer, pixels)
    assert picture.size == (7 * 98 - 2, 16 + 3 * 98 - 2)
    original = picture.crop((0, 16, 96, 112)).resize((32, 32), Image.Resampling.NEAREST)
    wanted = ((pixels[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(original), wanted)
    last = picture.crop((6 * 98, 16 + 2 * 98, 6 * 98 + 96, 16 + 2 * 98 + 96)).resize((32, 32), Image.Resampling.NEAREST)
    decoded = ((tokenizer.decode(tokenizer.encode(pixels))[2] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(last), decoded)
    heading = np.asarray(picture.crop((0, 0, 96, 16)))
    assert heading.min() < 100
