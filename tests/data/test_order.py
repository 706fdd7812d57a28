"""The order of images: pure, complete, different by seed."""

from __future__ import annotations

import numpy as np
import pytest

from varscale.data.counter import counter_hash, integers, uniform
from varscale.data.order import IMAGES_PER_SEED, batch_indices


def test_every_epoch_is_a_permutation_though_batches_straddle_epochs() -> None:
    steps = [batch_indices(seed=3, step=step, batch=8, size=20) for step in range(5)]  # 40 images: two epochs of 20
    indices, draws = (np.concatenate(rows) for rows in zip(*steps, strict=True))
    assert draws.tolist() == [0] * 20 + [1] * 20
    assert sorted(indices[:20]) == sorted(indices[20:]) == list(range(20))
    assert indices[:20].tolist() != indices[20:].tolist()


def test_order_does_not_depend_on_the_batch_size_or_on_earlier_calls() -> None:
    whole, _ = batch_indices(seed=1, step=0, batch=60, size=17)
    later, _ = batch_indices(seed=1, step=3, batch=12, size=17)
    assert later.tolist() == whole[36:48].tolist()


def test_a_batch_larger_than_the_split_passes_through_it_again() -> None:
    indices, draws = batch_indices(seed=0, step=0, batch=7, size=3)
    assert draws.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert sorted(indices[:3]) == sorted(indices[3:6]) == [0, 1, 2]


def test_seeds_differ_and_infinite_streams_are_disjoint_and_never_repeat() -> None:
    assert batch_indices(seed=0, step=0, batch=50, size=50)[0].tolist() != (
        batch_indices(seed=1, step=0, batch=50, size=50)[0].tolist()
    )
    streams = [batch_indices(seed=seed, step=step, batch=16, size=None)[0] for seed in (0, 1) for step in range(4)]
    assert len(set(np.concatenate(streams).tolist())) == 2 * 4 * 16


def test_positions_of_an_image_are_spread_evenly() -> None:
    # Where image 0 of 10 stands in 2,000 epochs: 200 +- 13 (one deviation) in each place.
    places = [batch_indices(seed=5, step=epoch, batch=10, size=10)[0].tolist().index(0) for epoch in range(2000)]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 28  # chi-squared, 9 degrees of freedom: exceeded once in 1,000


@pytest.mark.parametrize(
    "wrong",
    [{"batch": 0}, {"step": -1}, {"seed": -1}, {"seed": 2**22}, {"size": 0}, {"step": IMAGES_PER_SEED, "size": None}],
)
def test_out_of_range_arguments_are_refused(wrong: dict[str, int | None]) -> None:
    with pytest.raises(ValueError, match=r"must|needs|past"):
        batch_indices(**{"seed": 0, "step": 0, "batch": 4, "size": 10, **wrong})  # type: ignore[arg-type]


def test_the_hash_is_splitmix64() -> None:
    # The first output of the published generator with state 0 is the mix of 0; a name of one part mixes twice.
    first = 0xE220A8397B1DCDAF
    again = (first + 0x9E3779B97F4A7C15) % 2**64
    again = (again ^ again >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    again = (again ^ again >> 27) * 0x94D049BB133111EB % 2**64
    assert int(counter_hash(0)[0]) == again ^ again >> 31


def test_uniform_numbers_are_uniform_and_name_each_value() -> None:
    values = uniform(7, np.arange(200)[:, None], np.arange(100))
    assert values.shape == (200, 100) and values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 4 / np.sqrt(12 * values.size)
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 4 / np.sqrt(values.size)
    assert values[13, 57] == uniform(7, 13, 57)[0]
    assert len(np.unique(values)) == values.size
    assert set(integers(3, np.arange(100)).tolist()) == {0, 1, 2}
