"""varscale report: one self-contained ``report.html`` of a study, with its figures, tokenizer and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from varscale.app.fit import analyse_study
from varscale.app.identity import TOKENIZER_FILE
from varscale.records import RUN_FILE, Run, read_json, read_run
from varscale_analysis.report import ReportImage, write_report

RECONSTRUCTIONS, SAMPLES, STRIP = "reconstructions.png", "samples.png", "coarse_to_fine.png"


def main(cfg: DictConfig) -> None:
    """Write the report."""
    analysis = analyse_study(cfg)
    analysis.write()
    tokenizer = Path(cfg.paths.tokenizer)
    path = write_report(
        Path(cfg.paths.study), analysis, images(tokenizer, Path(cfg.paths.runs)), tokenizer_metrics(tokenizer)
    )
    print(f"written: {path}")


def images(tokenizer: Path, runs: Path) -> list[ReportImage]:
    """Reconstructions, then one grid of samples a size (its first seed), then the strip of the largest size."""
    shown = []
    if (tokenizer / RECONSTRUCTIONS).exists():
        caption = "Held-out images, and how the tokenizer rebuilds them from the scales so far."
        shown.append(ReportImage("Reconstructions, scale by scale", caption, tokenizer / RECONSTRUCTIONS))
    sizes = first_of_each_size(runs)
    for run, folder in sizes:
        caption = f"{run.params_total:,} parameters, L_avg {run.val_nats_per_token_avg:.4f} nat/token, seed {run.seed}"
        shown.append(ReportImage(f"Samples, width {run.width}, depth {run.depth}", caption, folder / SAMPLES))
    if sizes:
        run, folder = sizes[-1]
        caption = f"Samples of the largest model ({run.params_total:,} parameters) after each scale."
        shown.append(ReportImage("Coarse to fine", caption, folder / STRIP))
    return shown


def first_of_each_size(runs: Path) -> list[tuple[Run, Path]]:
    """The finished, sampled run of the lowest seed of every size, smallest size first."""
    found: dict[int, tuple[Run, Path]] = {}
    for folder in sorted(runs.glob("*/")):
        if not (folder / RUN_FILE).exists() or not (folder / SAMPLES).exists():
            continue
        run = read_run(folder)
        if (
            run.status == "finished"
            and run.seed < found.get(run.params_total, (run.replace(seed=2**62), folder))[0].seed
        ):
            found[run.params_total] = (run, folder)
    return [found[size] for size in sorted(found)]


def tokenizer_metrics(folder: Path) -> list[dict[str, Any]]:
    """PSNR, codebook usage and perplexity of each scale."""
    if not (folder / TOKENIZER_FILE).exists():
        return []
    return [
        {
            "side": scale["side"],
            "PSNR, dB": round(scale["psnr_db"], 2),
            "usage of the codebook": round(scale["usage"], 3),
            "perplexity": round(scale["perplexity"], 1),
        }
        for scale in read_json(folder / TOKENIZER_FILE)["metrics"]["scales"]
    ]
