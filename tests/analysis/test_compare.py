"""Two families at equal loss: a known multiplier is found, pairing narrows it, unlike losses are refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from varscale_analysis import FitError, RunTable, compare_families

MakeStudy = Callable[..., Path]
FACTOR = 0.7  # the second family reaches a loss with this share of the parameters, so of the compute


@pytest.fixture
def families(make_study: MakeStudy, truth) -> Callable[..., tuple[RunTable, RunTable]]:  # type: ignore[no-untyped-def]
    """Two studies whose laws differ by a factor in N; ``paired`` gives them the same noise and seeds."""

    def make(paired: bool = True, **second: object) -> tuple[RunTable, RunTable]:
        options = {"noise": 0.004, "rng_seed": 1}
        better = dataclasses.replace(truth, scale=truth.scale * FACTOR)
        other = options | second if paired else options | {"rng_seed": 2} | second
        studies = make_study(truth=truth, **options), make_study(truth=better, **other)
        return RunTable.read(studies[0] / "runs.csv"), RunTable.read(studies[1] / "runs.csv")

    return make


def test_a_known_multiplier_is_recovered(families: Callable[..., tuple[RunTable, RunTable]]) -> None:
    a, b = families(paired=False)
    found = compare_families(a, b, names=("base", "new"))
    assert len(found.multipliers) == 3
    for at in found.multipliers:
        assert not at.extrapolated
        assert at.multiplier.value == pytest.approx(1 / FACTOR, rel=0.15)
        assert at.multiplier.low is not None and at.multiplier.high is not None
        assert at.multiplier.low < 1 / FACTOR < at.multiplier.high
    difference = found.exponent_difference
    assert difference.low is not None and difference.high is not None
    assert difference.low < 0 < difference.high
    back = compare_families(b, a, names=("new", "base"))
    assert back.multipliers[1].multiplier.value == pytest.approx(1 / found.multipliers[1].multiplier.value, rel=1e-6)
    assert "base needs" in found.summary() and "times the compute of new" in found.summary()
    assert json.dumps(found.to_dict())


def test_shared_seeds_narrow_the_interval(families: Callable[..., tuple[RunTable, RunTable]]) -> None:
    widths = {}
    for paired in (True, False):
        found = compare_families(*families(paired=paired))
        assert found.paired  # both have the same sizes and seeds; only with shared noise do the residuals correlate
        assert found.correlation is not None
        assert (found.correlation > 0.9) == paired
        middle = found.multipliers[1].multiplier
        assert middle.low is not None and middle.high is not None
        widths[paired] = middle.high / middle.low - 1
    assert widths[True] < 0.5 * widths[False]


def test_a_family_needs_exactly_its_own_compute(families: Callable[..., tuple[RunTable, RunTable]]) -> None:
    a, _ = families()
    found = compare_families(a, a, bootstrap=200)
    for estimate in [at.multiplier for at in found.multipliers]:
        assert (estimate.low, estimate.value, estimate.high) == pytest.approx((1, 1, 1), abs=1e-6)


def test_families_of_other_sizes_are_not_paired(families: Callable[..., tuple[RunTable, RunTable]]) -> None:
    a, b = families(widths=(8, 12, 16, 24, 32, 48))
    found = compare_families(a, b)
    assert not found.paired
    assert found.correlation is None
    assert "not paired" in found.summary()


def test_tables_without_seeds_are_compared_unpaired(families: Callable[..., tuple[RunTable, RunTable]]) -> None:
    a, b = (dataclasses.replace(table, rows=table.rows.assign(seed=np.nan)) for table in families())
    assert not compare_families(a, b, bootstrap=50).paired


def test_other_tokenizers_validation_sets_and_rules_are_refused(
    families: Callable[..., tuple[RunTable, RunTable]],
) -> None:
    refused = {
        "tokenizer_id": "two tokenizers",
        "dataset_id": "two validation sets",
        "flops_rule": "two rules",
    }
    for column, match in refused.items():
        a, b = families(per_run=lambda width, seed, column=column: {column: "other"})
        with pytest.raises(FitError, match=match):
            compare_families(a, b)


def test_families_without_a_common_loss_say_so(families: Callable[..., tuple[RunTable, RunTable]]) -> None:
    a, b = families()
    raised = dataclasses.replace(b, rows=b.rows.assign(val_nats_per_token_avg=b.rows["val_nats_per_token_avg"] + 5.0))
    with pytest.raises(FitError, match="they share none"):
        compare_families(a, raised)
    with pytest.raises(FitError, match=r"law of b never reaches 3\.7"):
        compare_families(a, raised, losses=[3.7])
    lowest = float(np.min(a.values("val_nats_per_token_avg")))
    beyond = compare_families(a, b, losses=[lowest - 0.02])
    assert beyond.multipliers[0].extrapolated
    assert "(extrapolated)" in beyond.summary()
