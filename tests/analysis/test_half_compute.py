"""The comparison of trunk and branches with separate runs, on studies of a known law."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from varscale_analysis import RunTable

HORIZONS = (200, 300, 400, 600, 800, 1200)
TOKENS_PER_STEP = 16 * 130
WORSE = 0.005  # nat, of every branch
E, A, B, ALPHA, BETA = 2.0, 60.0, 400.0, 0.4, 0.4  # so that N_opt ~ C^.5


@pytest.fixture
def bench(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository / "benchmarks")
    import bench_half_compute

    return bench_half_compute


def loss(n: Any, tokens: Any) -> Any:
    return E + A * n**-ALPHA + B * tokens**-BETA


def runs(make_study: Callable[..., Path], kind: str, steps: int, noise: float = 0.001) -> pd.DataFrame:
    """The rows of one horizon; ``kind`` is part of their ids. Branches lose ``WORSE``."""
    rng = np.random.default_rng([steps, *kind.encode()])

    def row(width: int, seed: int) -> dict[str, object]:
        token, image, head = 24 * width**2, 12 * width**2, 258 * width + 256
        n, tokens = token + image + head, steps * TOKENS_PER_STEP
        measured = float(loss(n, tokens)) + noise * rng.standard_normal() + WORSE * (kind == "cooldown")
        values = {"run_id": f"{kind}{width}s{seed}x{steps}", "tokens_seen": tokens, "flops_train": 6.0 * n * tokens}
        branch = {"trunk_id": f"trunk{width}s{seed}x960", "branch_step": round(0.8 * steps)}
        return values | branch | {"steps": steps, "val_nats_per_token_avg": measured, "images_seen": 16.0 * steps}

    return RunTable.read(make_study(widths=(8, 12, 16, 24, 32, 48), per_run=row) / "runs.csv").rows


def tables(make_study: Callable[..., Path]) -> dict[str, RunTable]:
    folder = make_study(widths=(8, 12, 16, 24, 32, 48))
    trunk = RunTable(runs(make_study, "trunk", 960))
    curves = pd.read_csv(folder / "curves.csv").head(0)
    parts, rng = [curves], np.random.default_rng(0)
    for run, n in zip(trunk.rows["run_id"], trunk.values("params_nonembed"), strict=True):
        step = np.unique(np.geomspace(40, 960, 12).round())
        tokens = step * TOKENS_PER_STEP
        measured = loss(n, tokens) + 0.001 * rng.standard_normal(len(step))
        axes = {"images_seen": 16 * step, "tokens_seen": tokens, "flops": 6 * n * tokens, "split": "val", "scale": ""}
        parts.append(
            pd.DataFrame({"run_id": run, "step": step, **axes, "metric": "nats_per_token_avg", "value": measured})
        )
    pd.concat(parts)[curves.columns].to_csv(folder / "curves.csv", index=False)
    trunk.rows.to_csv(folder / "runs.csv", index=False)
    ends = {
        kind: RunTable(pd.concat([runs(make_study, kind, steps) for steps in HORIZONS], ignore_index=True))
        for kind in ("cooldown", "separate")
    }
    return {"trunk": RunTable.read(folder / "runs.csv"), **ends}


def test_the_designs_agree_on_a_known_law_and_strangers_are_refused(
    make_study: Callable[..., Path], bench: ModuleType
) -> None:
    given = tables(make_study)
    report, points = bench.compare(given, n="params_nonembed", y="val_nats_per_token_avg", draws=450)
    json.dumps(report)
    assert report["designs"]["cooldown"]["share_of_separate"] == pytest.approx((960 + 0.2 * 3500) / 3500)
    assert report["designs"]["average"]["share_of_separate"] == pytest.approx(960 / 3500)
    assert report["designs"]["separate"]["losses"] == 72 and report["designs"]["separate"]["runs"] == 12
    for name in ("separate", "cooldown", "average"):
        law = report["designs"][name]["n_exponent"]["law"]
        assert law["value"] == pytest.approx(0.5, abs=0.1) and law["low"] < law["value"] < law["high"]
        assert "12 trunks" in law["basis"]
        envelope = report["designs"][name]["n_exponent"]["envelope"]
        assert envelope["value"] == pytest.approx(0.5, abs=0.05)  # two crossings
        assert envelope["low"] < envelope["value"] < envelope["high"]
    apart = [row for row in report["differences"] if row["by"] == "law" and row["quantity"] == "exponent of N_opt"]
    assert [row["route"] for row in apart] == ["cooldown - separate", "average - separate"]
    assert not any(row["disagrees"] for row in apart)
    losses = report["losses_cooldown_minus_separate"]
    assert losses["designs"] == 36 and losses["mean"] == pytest.approx(WORSE, abs=5e-4)  # standard error 1.7e-4
    assert losses["largest"] < 0.01 and losses["standard_deviation"] > 5e-4
    assert bench.figure(points, "val_nats_per_token_avg").startswith(b"\x89PNG")
    options = {"n": "params_nonembed", "y": "val_nats_per_token_avg", "draws": 0}
    shorter = given["separate"].where(given["separate"].values("steps") < 1200)
    with pytest.raises(ValueError, match="differ in sizes, steps and seeds"):
        bench.compare({**given, "separate": shorter}, **options)
    half = {name: given[name].where(given[name].values("seed") == 0) for name in ("trunk", "cooldown")}
    with pytest.raises(ValueError, match="differ in sizes, steps and seeds"):  # half the seeds cost half the compute
        bench.compare({**half, "separate": given["separate"]}, **options)
    with pytest.raises(ValueError, match="6 trunks have no branch"):
        bench.compare({**given, "cooldown": half["cooldown"]}, **options)
    other = given["trunk"].rows.assign(seed=1 - given["trunk"].values("seed"))
    with pytest.raises(ValueError, match="a branch of size and seed"):
        bench.compare({**given, "trunk": replace(given["trunk"], rows=other)}, **options)
    others = replace(given["trunk"], rows=given["trunk"].rows.assign(run_id=given["separate"].rows["run_id"][:12]))
    with pytest.raises(ValueError, match="72 branches are not of these trunks"):
        bench.compare({**given, "trunk": others}, **options)


def test_the_page_says_what_its_tables_give(bench: ModuleType, repository: Path) -> None:
    page = repository / "docs/results/half-compute"
    tables = {name: RunTable.read(page / name / "runs.csv") for name in ("trunk", "cooldown", "separate")}
    report, _ = bench.compare(tables, n="params_nonembed", y="val_nats_per_token_avg", draws=60)
    text = (page / "README.md").read_text()
    for name in ("cooldown", "average"):
        design = report["designs"][name]
        assert design["share_of_separate"] < 0.5
        assert f"**{design['share_of_separate']:.3f}**".replace("0.", ".") in text
    for design in report["designs"].values():
        assert f"{design['n_exponent']['law']['value']:.3f} [".replace("0.", ".") in text
    (apart,) = (
        row
        for row in report["differences"]
        if row["route"] == "cooldown - separate" and row["quantity"] == "exponent of N_opt"
    )
    assert not apart["disagrees"] and f"{apart['value']:+.3f}".replace("0.", ".") in text
