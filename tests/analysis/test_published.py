"""Published laws other than Besiroglu's: Gadre et al. (arXiv:2403.08540), and VAR's own form in its own units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from varscale_analysis import ChinchillaLaw, ErrorOfLossLaw

SMALL = ("d=96_l=8_h=4", "d=512_l=8_h=4", "d=576_l=24_h=8", "d=1024_l=24_h=8")


@pytest.fixture(scope="module")
def runs(test_data: Path) -> pd.DataFrame:
    """The runs on RedPajama."""
    rows = pd.read_csv(test_data / "laws" / "gadre2024_testbed.csv")
    return rows[rows["dataset_name"] == "rpj"]


def the_five(runs: pd.DataFrame) -> np.ndarray:
    """N = .011, .079, .154, .411B at M = 20 and .011B at M = 320."""
    at_20 = (runs["tokens_per_param"] == 20) & runs["model_name"].isin(SMALL)
    return (at_20 | ((runs["tokens_per_param"] == 320) & (runs["model_name"] == SMALL[0]))).to_numpy()


def test_gadre_is_reproduced_to_a_thousandth_of_a_percentage_point(runs: pd.DataFrame) -> None:
    five = the_five(runs)
    loss = ChinchillaLaw("n_params", "d_tokens", tied=True, objective="raw").fit(runs[five], "loss_c4_val", bootstrap=0)
    with_1b = five | ((runs["model_name"] == "open_lm_1b") & (runs["tokens_per_param"] == 20)).to_numpy()
    error = ErrorOfLossLaw("loss_c4_val", objective="raw").fit(runs[with_1b], "err_avg_subset", bootstrap=0)
    assert (loss.rows, error.rows) == (5, 6)
    for model, tokens, in_loss, in_error in (("open_lm_1b", 640, 0.7103, 3.6365), ("open_lm_7b", 20, 0.7320, 0.0464)):
        run = runs[(runs["model_name"] == model) & (runs["tokens_per_param"] == tokens)].iloc[0]
        predicted = float(loss.predict(n=run["n_params"], d=run["d_tokens"]))
        assert 100 * abs(predicted / run["loss_c4_val"] - 1) == pytest.approx(in_loss, abs=1e-3)
        downstream = float(error.predict(predicted))
        assert 100 * abs(downstream / run["err_avg_subset"] - 1) == pytest.approx(in_error, abs=1e-3)
