"""varscale fit: laws, frontier and hold-out of a study, from its ``runs.csv``. Needs no torch.

While the held-out size has no finished run, its loss is predicted and registered in ``prediction.json``; once it has,
the prediction is compared with what was measured.
"""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from varscale.app.config import ConfigError
from varscale.records import read_json
from varscale_analysis import RunTable, SaturatingPowerLaw, analyse, predict_holdout
from varscale_analysis.fit import FitError
from varscale_analysis.holdout import PredictionError
from varscale_analysis.lr import one_rate_a_size
from varscale_analysis.study import PREDICTION_FILE, StudyAnalysis

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Print the summary and write ``fit.json``."""
    analysis = analyse_study(cfg)
    print(analysis.summary())
    print(f"\nwritten: {analysis.write()}")


def analyse_study(cfg: DictConfig) -> StudyAnalysis:
    """Register the prediction of the held-out size if it is due, then analyse the study."""
    folder, settings = Path(cfg.paths.study), cfg.analysis
    if settings.holdout is not None:
        register_prediction(cfg, folder)
    return analyse(folder, n=settings.n, y=settings.y, bootstrap=settings.bootstrap, seed=settings.seed)


def register_prediction(cfg: DictConfig, folder: Path) -> None:
    """Predict the held-out size and write it down, unless the size is measured already."""
    settings = cfg.analysis
    target, seeds = planned_size(folder, settings.holdout, settings.n)
    table = RunTable.read(folder / "runs.csv")
    usable = RunTable(table.usable)
    if len(usable) and (usable.values(settings.n) >= target).any():
        return
    law = SaturatingPowerLaw(n=settings.n)
    try:
        table, _ = one_rate_a_size(table, n=settings.n, y=settings.y)
        prediction = predict_holdout(
            table, law, target, y=settings.y, seeds=seeds, bootstrap=settings.bootstrap, seed=settings.seed
        )
    except (FitError, PredictionError) as error:
        log.warning("no prediction of %s is registered: %s", settings.holdout, error)
        return
    # Until the size is trained, a ladder that has changed is predicted anew; the file says what it replaces.
    prediction.write(folder / PREDICTION_FILE, replace_other=True)


def planned_size(folder: Path, holdout: str, n: str) -> tuple[float, int]:
    """N of the held-out size and the number of its runs, from ``plan.json``."""
    runs = [run for run in read_json(folder / "plan.json")["runs"] if holdout in run["overrides"]]
    sizes = sorted({float(run[n]) for run in runs})
    if len(sizes) != 1:
        raise ConfigError(
            f"analysis.holdout={holdout} names {len(sizes)} sizes of the sweep; it must be an override that its runs "
            "carry, such as model.width=64; run varscale plan with the same overrides first"
        )
    return sizes[0], len(runs)
