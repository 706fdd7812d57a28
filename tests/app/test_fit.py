"""varscale fit: what a registered prediction is made from."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from varscale.app.fit import register_prediction
from varscale_analysis import Prediction, RunTable

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "lr-by-size"


def test_the_prediction_is_made_from_one_rate_a_size(tmp_path: Path) -> None:
    """The largest size of a real scan, predicted from the others: six rates each, one of them each in the law."""
    table = RunTable.read(RESULTS / "runs.csv")
    rows = pd.read_csv(RESULTS / "runs.csv", dtype=str, keep_default_na=False)
    rows[table.rows["width"] < 64].to_csv(tmp_path / "runs.csv", index=False)
    n = float(table.values("params_nonembed").max())
    plan = {"runs": [{"overrides": ["model.width=64"], "params_nonembed": n}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    settings = {"holdout": "model.width=64", "n": "params_nonembed", "y": "val_nats_per_token_avg"}
    register_prediction(OmegaConf.create({"analysis": {**settings, "bootstrap": 100, "seed": 0}}), tmp_path)
    prediction = Prediction.read(tmp_path / "prediction.json")
    best = table.select(width=64).values("val_nats_per_token_avg").min()
    assert prediction.runs == prediction.sizes == 5
    assert prediction.value == pytest.approx(best, rel=0.01)
