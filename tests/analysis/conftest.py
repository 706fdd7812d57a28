"""A synthetic study with a known law: L(N, D) = E + (N / s)^alpha + (D / t)^-.5 - (D_end / t)^-.5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from varscale_analysis import RunTable, RunTableError, StudyAnalysis, analyse

SIDES = (1, 2, 3, 4, 6, 8)
TOKENS_PER_IMAGE = 130


@dataclass(frozen=True)
class Truth:
    """The law behind the study; at D_end the last two terms cancel."""

    offset: float = 3.37
    scale: float = 3.0e3
    alpha: float = -0.40
    token_scale: float = 4.0e5
    images: float = 19_200.0

    def loss(self, n: float, tokens: float | np.ndarray) -> np.ndarray:
        """Nats per token."""
        end = self.images * TOKENS_PER_IMAGE
        late = (np.asarray(tokens) / self.token_scale) ** -0.5 - (end / self.token_scale) ** -0.5
        return self.offset + (n / self.scale) ** self.alpha + late


def write_study(
    folder: Path,
    *,
    widths: tuple[int, ...] = (8, 12, 16, 24, 32, 48, 64),
    seeds: int = 2,
    noise: float = 0.004,
    rng_seed: int = 0,
    truth: Truth | None = None,
    per_run: Callable[[int, int], dict[str, object]] = lambda width, seed: {},
) -> Path:
    """Write runs.csv and curves.csv as ``varscale collect`` would; ``per_run`` overrides cells of a run."""
    truth = truth or Truth()
    rng = np.random.default_rng(rng_seed)
    runs, curves = [], []
    for width in widths:
        for seed in range(seeds):
            token, image = 24 * width**2, 12 * width**2
            embed, head = 300 * width, 258 * width + 256
            n = token + image + head
            tokens_end = truth.images * TOKENS_PER_IMAGE
            deviation = noise * rng.standard_normal()
            loss = float(truth.loss(n, tokens_end)) + deviation
            run = {
                "run_id": f"run{width:04d}s{seed}",
                "created_utc": f"2025-01-0{seed + 1}T00:00:00+00:00",
                "study": "synthetic",
                "status": "finished",
                "exclude_reason": "",
                "family": "var",
                "tokenizer_id": "tok0",
                "dataset_id": "data0",
                "seed": seed,
                "flops_train": 6.0 * n * tokens_end,
                "flops_rule": "dense",
                "resolution_px": 32,
                "schedule": "-".join(map(str, SIDES)),
                "num_tokens": TOKENS_PER_IMAGE,
                "code": "index(256)",
                "depth": 2,
                "width": width,
                "params_token": token,
                "params_image": image,
                "params_blocks": token + image,
                "params_embed": embed,
                "params_head": head,
                "params_total": token + image + embed + head,
                "steps": 1200,
                "lr_peak": 0.01,
                "images_seen": truth.images,
                "unique_images": truth.images,
                "tokens_seen": tokens_end,
                "val_nats_per_token_avg": loss,
                "val_nats_per_token_last": 1.07 * loss,
                "val_error_avg": 0.8 + 0.02 * (loss - 3.3),
                "val_error_last": 0.82 + 0.02 * (loss - 3.3),
                "val_images": 2000.0,
                "wall_s": 0.5 * width,
                "device": "cpu",
                "precision": "bf16-mixed",
            }
            run.update(per_run(width, seed))
            runs.append(run)
            for step, share in enumerate(np.geomspace(0.02, 1.0, 24)):
                tokens = share * tokens_end
                value = float(truth.loss(n, tokens)) + deviation
                rows = [("nats_per_token_avg", "", value), ("nats_per_token_last", "", 1.07 * value)]
                rows += [("nats_per_token", k, value * (0.8 + 0.05 * k)) for k in range(len(SIDES))]
                for metric, k, number in rows:
                    curves.append(
                        (run["run_id"], step, truth.images * share, tokens, 6.0 * n * tokens, "val", metric, k, number)
                    )
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(runs).to_csv(folder / "runs.csv", index=False)
    names = ["run_id", "step", "images_seen", "tokens_seen", "flops", "split", "metric", "scale", "value"]
    pd.DataFrame(curves, columns=names).to_csv(folder / "curves.csv", index=False)
    return folder


@pytest.fixture(scope="session")
def truth() -> Truth:
    """The law behind ``make_study``."""
    return Truth()


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Path]:
    """Writes a synthetic study into a fresh folder and returns the folder."""
    count = iter(range(1000))
    return lambda **options: write_study(tmp_path / f"study{next(count)}", **options)


@pytest.fixture(scope="session")
def isoflop_table() -> RunTable:
    """30 runs of a Chinchilla law (E 1.8, A 482, B 2085, alpha .348, beta .366), six sizes at each of five budgets."""
    rng = np.random.default_rng(3)
    rows = []
    for c in np.geomspace(1e17, 1e19, 5):
        for n in 0.0478 * c**0.5126 * np.geomspace(0.2, 5, 6):
            loss = (1.8 + 482 * n**-0.348 + 2085 * (c / 6 / n) ** -0.366) * np.exp(0.002 * rng.standard_normal())
            rows.append((n, c / 6 / n, c, loss))
    names = ["params_total", "tokens_seen", "flops_train", "val_nats_per_token_avg"]
    return RunTable.from_frame(pd.DataFrame(rows, columns=names), source="isoflop")


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures with few pixels: drawing them is most of the time of a report."""
    monkeypatch.setattr("varscale_analysis.figures.style.DPI", 40)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of 7 sizes and 2 seeds that no test changes."""
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def ladder(study: Path) -> StudyAnalysis:
    """The analysis of a study at one D, with few draws."""
    return analyse(study, bootstrap=100)


@pytest.fixture(scope="session")
def budgets(isoflop_table: RunTable) -> StudyAnalysis:
    """The analysis of IsoFLOP budgets, with few draws."""
    return analyse(isoflop_table, bootstrap=100)


FOREIGN_COLUMNS = {
    "params_total": "size",
    "tokens_seen": "tokens",
    "flops_train": "compute",
    "val_nats_per_token_avg": "loss",
}


def foreign(sizes: int = 5, budgets: int = 4) -> pd.DataFrame:
    """A grid of runs by a known law, in ones."""
    rng = np.random.default_rng(0)
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, sizes), np.geomspace(1e9, 1e11, budgets)))
    loss = (1.7 + 400 * n**-0.34 + 1000 * d**-0.3) * np.exp(0.002 * rng.standard_normal(n.size))
    return pd.DataFrame({"size": n, "tokens": d, "compute": 6 * n * d, "loss": loss})


def read(frame: pd.DataFrame, **options: object) -> RunTable:
    return RunTable.from_frame(frame, FOREIGN_COLUMNS, **options)  # type: ignore[arg-type]


def problems_of(frame: pd.DataFrame, **options: object) -> str:
    with pytest.raises(RunTableError) as caught:
        read(frame, **options)
    return str(caught.value)


@pytest.fixture(scope="session")
def mapped() -> SimpleNamespace:
    """Tables with other names for their columns: a grid of runs, the map, the table read by it, its problems."""
    return SimpleNamespace(foreign=foreign, columns=FOREIGN_COLUMNS, read=read, problems_of=problems_of)
