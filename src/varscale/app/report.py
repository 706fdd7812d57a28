"""varscale report: one self-contained ``report.html`` of a study, with its figures, tokenizer and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from varscale.app.fit import analyse_study
from varscale.app.identity import TOKENIZER_FILE
from varscale.app.run_folders import (
    ANIMATION,
    ATTENTION_HEADS,
    ATTENTION_SCALES,
    ATTENTION_SHARES,
    SAMPLES,
    STRIP,
    first_of_each_size,
)
from varscale.records import Run, read_json
from varscale_analysis.report import ReportImage, write_report

RECONSTRUCTIONS = "reconstructions.png"


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
    """Reconstructions, then one grid of samples a size (its first seed), then what the largest size sees."""
    shown = []
    if (tokenizer / RECONSTRUCTIONS).exists():
        caption = "Held-out images, and how the tokenizer rebuilds them from the scales so far."
        shown.append(ReportImage("Reconstructions, scale by scale", caption, tokenizer / RECONSTRUCTIONS))
    sizes = first_of_each_size(runs)
    for run, folder in sizes:
        caption = f"{run.params_total:,} parameters, L_avg {run.val_nats_per_token_avg:.4f} nat/token, seed {run.seed}"
        shown.append(ReportImage(f"Samples, width {run.width}, depth {run.depth}", caption, folder / SAMPLES))
    if sizes:
        shown += views(*sizes[-1])
    return shown


def views(run: Run, folder: Path) -> list[ReportImage]:
    """The strip of the largest model, and what ``varscale sample`` has written of its animation and attention."""
    of = f"the largest model ({run.params_total:,} parameters)"
    relative = "Colour is the weight over that of uniform attention; above a map stands the share of its scale."
    wanted = [
        ReportImage("Coarse to fine", f"Samples of {of} after each scale.", folder / STRIP),
        ReportImage("Coarse to fine, animated", f"Samples of {of}, one frame a scale.", folder / ANIMATION),
        ReportImage(
            "Where the attention of each scale goes",
            f"Rows: the scale that is predicted; columns: the scale it looks at. Samples of {of}, beside "
            "what attention would be if every visible token had the same weight.",
            folder / ATTENTION_SHARES,
            pixels=False,
        ),
        ReportImage(
            "Attention of one place at every scale",
            f"A row is a query, outlined on the finished sample; the maps are what it looks at, in {of}. {relative}",
            folder / ATTENTION_SCALES,
            pixels=False,
        ),
        ReportImage(
            "Attention head by head",
            f"One query of the finest map in the middle block of {of}. {relative}",
            folder / ATTENTION_HEADS,
            pixels=False,
        ),
    ]
    return [image for image in wanted if image.path.name == STRIP or image.path.exists()]


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
