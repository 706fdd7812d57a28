"""Lack of fit: a law that holds is rejected as often as stated, one that does not is told by its pattern."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from varscale_analysis import ChinchillaLaw, FitError, Objective, RunTable, SaturatingPowerLaw, lack_of_fit

N = np.repeat([1e4, 2e4, 4e4, 8e4, 16e4, 32e4], 2)


def ladder(rng: np.random.Generator, bend: float = 0.0) -> pd.DataFrame:
    """Two seeds of each of six sizes, .2 % apart; ``bend`` lifts the two in the middle."""
    loss = 2.0 + (N / 1e3) ** -0.3 + bend * np.isin(N, [4e4, 8e4])
    return pd.DataFrame({"n": N, "loss": loss * np.exp(0.002 * rng.standard_normal(len(N)))})


def test_a_law_that_holds_is_doubted_as_often_as_the_p_value_says() -> None:
    rng = np.random.default_rng(0)
    law = SaturatingPowerLaw(n="n")
    p = np.array([lack_of_fit(law.fit(ladder(rng), "loss")).p for _ in range(120)])
    assert 0.04 <= (p < 0.1).mean() <= 0.18  # two standard errors about 10 %
    assert 0.4 < p.mean() < 0.6


def test_a_law_that_does_not_is_said() -> None:
    fit = SaturatingPowerLaw(n="n").fit(ladder(np.random.default_rng(1), bend=0.05), "loss")
    found = lack_of_fit(fit)
    assert found.doubtful and "does not describe these runs" in found.summary()
    assert 0.0005 < found.seed_sd < 0.004 < found.missed_sd < 0.03
    assert (found.lack_df, found.seed_df) == (3, 6)


def test_branches_of_one_trunk_are_no_replicates(repository: Path) -> None:
    table = RunTable.read(repository / "docs/results/cifar10-branches/cooldown/runs.csv")
    found = lack_of_fit(ChinchillaLaw().fit(table, "val_nats_per_token_avg"))
    assert found.seed_df == 8  # 16 trunks of 8 sizes, although 48 designs were run twice
    assert found.doubtful and found.missed_sd > 3 * found.seed_sd


def test_what_cannot_be_tested() -> None:
    frame = ladder(np.random.default_rng(2))
    law = SaturatingPowerLaw(n="n")
    with pytest.raises(FitError, match="no design was run with several seeds"):
        lack_of_fit(law.fit(frame[::2], "loss"))
    with pytest.raises(FitError, match="3 designs and 3 parameters"):
        lack_of_fit(law.fit(pd.concat([frame[:6], frame[:6] * [1, 1.001]]), "loss"))
    with pytest.raises(FitError, match="unequal weights"):
        weighted = SaturatingPowerLaw(n="n", objective=Objective(weights="w"))
        lack_of_fit(weighted.fit(frame.assign(w=np.arange(1.0, 13.0)), "loss"))
