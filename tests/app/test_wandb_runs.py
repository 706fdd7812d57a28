"""A W&B project comes back as the rows and curves of the runs' own folders; what cannot be read is named."""

from __future__ import annotations

import csv
import inspect
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from varscale.app import wandb_runs
from varscale.app.cli import main as command_line
from varscale.app.collect import CURVES_FILE, RUNS_FILE, collect
from varscale.app.wandb_runs import WandbError, WandbRuns, read_project
from varscale.records import CurveWriter, Run, read_curve, read_run
from varscale_analysis import ChinchillaLaw, Frontier, RunTable, SaturatingPowerLaw

Trained = Callable[..., Run]
PROJECT = "team/scaling"
COLUMNS = {"params_total": "model.n_params", "tokens_seen": "tokens", "val_nats_per_token_avg": "eval/loss"}


@dataclass
class FakeRun:
    """The attributes of ``wandb.apis.public.Run`` that are read."""

    id: str
    name: str
    state: str = "finished"
    created_at: str = "2026-01-01T00:00:00Z"
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    failures: int = 0

    def scan_history(
        self,
        keys: list[str] | None = None,
        page_size: int = 1000,
        min_step: int = 0,
        max_step: int | None = None,
        use_cache: bool = True,
    ) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(self.history):
            if number == 1 and self.failures:
                self.failures -= 1
                raise RuntimeError("HTTP 502: bad gateway")
            row = {"_step": number, **row}
            if keys is None or all(key in row for key in keys):
                yield row if keys is None else {key: row[key] for key in keys}


class FakeRuns(list[FakeRun]):
    """What ``Api.runs`` returns."""


@dataclass
class FakeApi:
    """The part of ``wandb.Api`` that is used."""

    stored: list[FakeRun]
    settings: dict[str, str] = field(default_factory=lambda: {"base_url": "https://wandb.example"})
    error: Exception | None = None

    def runs(
        self,
        path: str | None = None,
        filters: dict[str, Any] | None = None,
        order: str = "+created_at",
        per_page: int = 50,
        include_sweeps: bool = False,
        lazy: bool = True,
    ) -> FakeRuns:
        assert path == PROJECT and not lazy
        if self.error is not None:
            raise self.error
        return FakeRuns(self.stored)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No waiting, no settings from outside; Hydra configures the root logger, give it back as it was."""
    monkeypatch.setattr(wandb_runs, "WAITS_S", (0.0, 0.0))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("VARSCALE_OUTPUTS", raising=False)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def serve(monkeypatch: pytest.MonkeyPatch, *runs: FakeRun, error: Exception | None = None) -> None:
    monkeypatch.setattr(wandb_runs, "connect", lambda: FakeApi(list(runs), error=error))


def read(columns: dict[str, str] | None = None, curves: dict[str, str] | None = None, study: str = "s") -> WandbRuns:
    return read_project(PROJECT, study=study, columns=columns or {}, curves=curves or {})


@pytest.fixture
def trained(record: Callable[..., Run]) -> Callable[..., Run]:
    """Writes the records of a run of some width, as the recorder leaves them."""

    def write(folder: Path, width: int, **changes: Any) -> Run:
        token = 24 * width**2
        n, tokens = token * 1.5 + 258 * width, 33600.0
        loss, flops = 2.0 + (n / 100) ** -0.4, 6.0 * n * tokens
        sizes = {"params_token": token, "params_image": token // 2, "params_blocks": token + token // 2}
        sizes |= {"params_embed": 300 * width, "params_head": 258 * width}
        sizes |= {"params_total": token + token // 2 + 558 * width, "width": width}
        losses = {"val_nats_per_token_avg": loss, "val_nats_per_token_last": 1.1 * loss}
        errors = {"val_error_avg": 0.8, "val_error_last": 0.9}
        own = {"run_id": f"w{width}s0", "git_dirty": False, "budget_flops": flops, "flops_train": flops}
        run = record(folder, steps=(), **own | sizes | losses | errors | changes)
        writer = CurveWriter(folder, run.run_id)
        for step in (10, 50, 100):
            at = loss + 0.1 * np.log(100 / step)
            val = [("nats_per_token_avg", None, at), ("nats_per_token_last", None, 1.1 * at), ("error_avg", None, 0.8)]
            val += [("nats_per_token", k, at * (0.9 + 0.1 * k)) for k in range(3)]
            axes = {"images_seen": 16.0 * step, "tokens_seen": 336.0 * step, "flops": 6.0 * n * 336.0 * step}
            train = [("nats_per_token_avg", None, at), ("grad_norm_mean", None, 0.5)]
            writer.append(step=step, **axes, values={"train": train, "val": val})
        return run

    return write


def mirrored(folder: Path, **changes: Any) -> FakeRun:
    """The W&B run of a folder: the config at the start, the summary at the end, through W&B's JSON."""
    run = read_run(folder)
    start = {"status": "running", "flops_train": 0.0, "images_seen": 0.0, "tokens_seen": 0.0, "wall_s": None}
    start |= {f"val_{metric}": None for metric in wandb_runs.METRICS}
    points: dict[str, dict[str, Any]] = {}
    for row in read_curve(folder / "curve.csv"):
        axes = {axis: float(row[axis]) for axis in ("step", "images_seen", "tokens_seen", "flops")}
        name = f"{row['split']}/{row['metric']}" + (f"_{row['scale']}" if row["scale"] else "")
        points.setdefault(row["step"], axes)[name] = float(row["value"])
    history = [*points.values(), {"samples": {"_type": "table-file"}, "step": 100, "pictures/grid": {"_type": "image"}}]
    final = {name: value for name, value in run.to_dict().items() if value is not None}
    stored = {
        "config": {**run.to_dict(), **start, "config": {"seed": run.seed}},
        "summary": {"_step": 3, "_wandb": {"runtime": 5}, **list(points.values())[-1], **final},
        "history": history,
    }
    return FakeRun(run.run_id, folder.name, **{**json.loads(json.dumps(stored), parse_float=shortest), **changes})


def shortest(number: str) -> float | int:
    """W&B gives a whole number back as an integer."""
    return int(float(number)) if float(number).is_integer() else float(number)


def cells(path: Path) -> list[tuple[tuple[str, str], ...]]:
    with path.open(newline="") as file:
        return sorted(tuple(row.items()) for row in csv.DictReader(file))


def test_the_verb_reads_a_mirrored_study_as_its_folders_do(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / "runs" / f"width={width}" for width in (8, 12, 16, 24)]
    for folder, width in zip(folders, (8, 12, 16, 24), strict=True):
        trained(folder, width)
    collect(tmp_path / "runs", tmp_path / "folders")
    serve(monkeypatch, *(mirrored(folder) for folder in reversed(folders)), FakeRun("tokenizer-1", "tokenizer"))
    monkeypatch.chdir(tmp_path)
    code = command_line(["collect", "source=wandb", f"project={PROJECT}", "study=s"])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert "4 runs (4 finished) of team/scaling in outputs/s/runs.csv" in told.out
    assert "tokenizer is left out: varscale did not write it" in told.err
    assert cells(tmp_path / "outputs/s" / RUNS_FILE) == cells(tmp_path / "folders" / RUNS_FILE)
    assert cells(tmp_path / "outputs/s" / CURVES_FILE) == cells(tmp_path / "folders" / CURVES_FILE)
    table = RunTable.read(tmp_path / "outputs/s" / RUNS_FILE)
    assert SaturatingPowerLaw().fit(table, bootstrap=0).rows == 4
    assert (tmp_path / "outputs/s" / RUNS_FILE).read_text().startswith("schema_version,run_id,")


def test_a_server_that_cannot_be_reached_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(monkeypatch, error=ConnectionError("connection refused"))
    monkeypatch.chdir(tmp_path)
    code = command_line(["collect", "source=wandb", f"project={PROJECT}", "study=s"])
    told = capsys.readouterr().err
    assert code == 2 and "Traceback" not in told
    for part in (PROJECT, "https://wandb.example", "connection refused", "check the network", "varscale collect"):
        assert part in told
    assert not (tmp_path / "outputs/s").exists() or not list((tmp_path / "outputs/s").glob("*.csv"))


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (
            type("UsageError", (Exception,), {})("No API key configured. Use `wandb login` to log in."),
            "set WANDB_API_KEY",
        ),
        (ValueError("Could not find project scaling"), "check project=ENTITY/PROJECT"),
        (RuntimeError("HTTP 403: permission denied"), "this account may read it"),
        (TimeoutError(), "cannot read the project team/scaling on .*: TimeoutError; check the network"),
    ],
)
def test_each_failure_has_its_remedy(monkeypatch: pytest.MonkeyPatch, error: Exception, remedy: str) -> None:
    serve(monkeypatch, error=error)
    with pytest.raises(WandbError, match=remedy):
        read()


def test_no_key_is_told_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise type("UsageError", (Exception,), {})("No API key configured.")

    monkeypatch.setattr(wandb_runs, "connect", refuse)
    with pytest.raises(WandbError, match=r"team/scaling.*No API key configured.*wandb login"):
        read()


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_w_and_b_that_is_offline_is_named(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(WandbError, match=f"WANDB_MODE is {mode}, so team/scaling cannot be read.*unset it"):
        read()


@pytest.mark.parametrize("project", [None, "scaling", "/scaling", "a/b/c"])
def test_a_project_is_entity_and_name(project: str | None) -> None:
    with pytest.raises(WandbError, match="source=wandb needs project=ENTITY/PROJECT"):
        read_project(project, study="s", columns={}, curves={})


def test_a_passing_failure_is_asked_again(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path / "a", 8)
    serve(monkeypatch, run := mirrored(tmp_path / "a", failures=2))
    assert len(read().curves) == 3 * 8 and run.failures == 0
    run.failures = 3
    with pytest.raises(WandbError, match="HTTP 502"):
        read()


def test_the_newest_finished_run_of_an_id_counts(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, latest = "2026-01-02T00:00:00+00:00", "2026-01-03T00:00:00+00:00"
    trained(tmp_path / "old", 8, val_nats_per_token_avg=9.0)
    trained(tmp_path / "new", 8, val_nats_per_token_avg=3.0, created_utc=new)
    trained(tmp_path / "unfinished", 8, status="stopped", created_utc=latest)
    serve(monkeypatch, *(mirrored(tmp_path / name) for name in ("old", "new", "unfinished")))
    found = read()
    assert [row["val_nats_per_token_avg"] for row in found.rows] == [3.0] and len(found.curves) == 3 * 8
    assert [name for name, _ in found.left_out] == ["old", "unfinished"]
    assert "new is the same run" in found.left_out[0][1]


@pytest.mark.parametrize(
    ("state", "final", "expected"),
    [
        ("running", None, "running"),
        ("crashed", None, "failed"),
        ("killed", None, "stopped"),
        ("preempted", None, "stopped"),
        ("failed", "diverged", "diverged"),
        ("finished", "stopped", "stopped"),
        ("finished", "finished", "finished"),
        ("running", "stopped", "running"),
        ("odd", None, "failed"),
    ],
)
def test_states_are_our_statuses(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, final: str | None, expected: str
) -> None:
    trained(tmp_path / "a", 8, status=final or "finished")
    run = mirrored(tmp_path / "a", state=state)
    if final is None:  # it never wrote its end: only what it logged is there
        run.summary = {
            key: value for key, value in run.summary.items() if "/" in key or key in ("step", "tokens_seen", "flops")
        }
    serve(monkeypatch, run)
    (row,) = read().rows
    assert row["status"] == expected
    assert row["tokens_seen"] == 33600.0 and row["flops_train"] > 0 and row["val_nats_per_token_avg"] is not None


def test_a_run_that_fell_short_is_stopped_and_one_without_a_loss_diverged(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path / "short", 8, flops_train=1e6)
    trained(tmp_path / "nan", 16)
    nan = mirrored(tmp_path / "nan")
    nan.summary["val_nats_per_token_avg"] = "NaN"
    nan.history[1]["val/nats_per_token_avg"] = "NaN"
    serve(monkeypatch, mirrored(tmp_path / "short"), nan)
    found = read()
    assert {row["run_id"]: row["status"] for row in found.rows} == {"w8s0": "stopped", "w16s0": "diverged"}
    assert ("nan", "1 measurements that are not finite are not in its curve") in found.left_out


def test_a_step_logged_again_counts_once(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path / "a", 8)
    run = mirrored(tmp_path / "a")
    run.history.insert(1, {**run.history[1], "val/nats_per_token_avg": 99.0})
    serve(monkeypatch, run)
    values = [row["value"] for row in read().curves if (row["split"], row["metric"]) == ("val", "nats_per_token_avg")]
    assert len(values) == 3 and max(values) < 99


def test_runs_of_another_study_are_left_out(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path / "a", 8)
    trained(tmp_path / "b", 16, study="other")
    serve(monkeypatch, mirrored(tmp_path / "a"), mirrored(tmp_path / "b"))
    found = read()
    assert [row["run_id"] for row in found.rows] == ["w8s0"]
    assert found.left_out == (("b", "it belongs to the study other; collect it with study=other"),)
    with pytest.raises(WandbError, match="none is a run of the study third: give study="):
        read(study="third")


def foreign(n: float, tokens: float, **changes: Any) -> FakeRun:
    loss = 1.7 + 400 * n**-0.34 + 1000 * tokens**-0.3
    history = [
        {"trainer/step": i, "seen": tokens * i / 20, "cost": 6 * n * tokens * i / 20, "eval/loss": loss + 2 / i}
        for i in range(1, 21)
    ]
    history += [{"trainer/step": i, "train/loss": 3.0} for i in range(5)]
    values = {"config": {"model": {"n_params": n}, "seed": 1}, "summary": {"tokens": tokens, "eval/loss": loss}}
    return FakeRun(f"id{n:g}-{tokens:g}", f"run{n:g}-{tokens:g}", **{**values, "history": history, **changes})


def test_a_foreign_project_is_read_by_a_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = [foreign(n, d) for n in np.geomspace(1e7, 1e9, 4) for d in np.geomspace(1e9, 1e11, 4)]
    grid[3].state, grid[5].summary["eval/loss"] = "crashed", "NaN"
    serve(monkeypatch, *grid)
    monkeypatch.chdir(tmp_path)
    columns = "{params_total: model.n_params, tokens_seen: tokens, val_nats_per_token_avg: eval/loss}"
    curves = "{step: trainer/step, tokens_seen: seen, flops: cost, nats_per_token_avg: eval/loss}"
    arguments = [
        "source=wandb",
        f"project={PROJECT}",
        "study=lm",
        f"collect.columns={columns}",
        f"collect.curves={curves}",
    ]
    code = command_line(["collect", *arguments])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert "16 runs (1 diverged, 1 failed, 14 finished)" in told.out and "RunTable.from_csv" in told.out
    table = RunTable.from_csv(tmp_path / "outputs/lm/runs.csv", constants={"flops_rule": "6nd"})
    assert len(table) == 16 and len(table.usable) == 14
    assert ChinchillaLaw(n="params_total").fit(table, bootstrap=0).values()["alpha"] == pytest.approx(0.34, abs=1e-3)
    frontier = Frontier.from_envelope(table, n="params_total", seed_average=False, bootstrap=0)
    assert frontier.envelope is not None and len(frontier.envelope.n_S) == 4


def test_a_map_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, foreign(1e7, 1e9))
    with pytest.raises(WandbError, match=r"collect\.columns has the name params_totl.*Did you mean params_total\?"):
        read({"params_totl": "n"})
    with pytest.raises(WandbError, match=r"collect\.curves has the name nats.*There are: step"):
        read(COLUMNS, {"nats": "loss"})
    with pytest.raises(WandbError, match=r"no run of team/scaling has 'sead' \(for seed\)"):
        read(COLUMNS | {"seed": "sead"})
    with pytest.raises(
        WandbError, match=r"none is a run of the study s.*name their columns.*\n  run1e\+07-1e\+09: varscale did"
    ):
        read()
    assert read(COLUMNS | {"seed": "seed"}).rows[0]["seed"] == 1


def test_partial_foreign_runs_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    run = foreign(1e7, 1e9)
    run.summary["global_step"], run.config["max_steps"] = 900, 1000
    serve(monkeypatch, run)
    found = read(COLUMNS | {"steps": "max_steps", "steps_done": "global_step"})
    assert found.rows[0]["status"] == "stopped" and found.columns[-1] == "steps_done" and not found.curves


def test_the_fake_takes_what_wandb_takes() -> None:
    import wandb
    from wandb.apis.public import Run as WandbRun

    for fake, real in ((FakeApi.runs, wandb.Api.runs), (FakeRun.scan_history, WandbRun.scan_history)):
        assert set(inspect.signature(fake).parameters) <= set(inspect.signature(real).parameters)
    for name in ("id", "name", "state", "config", "summary"):
        assert hasattr(WandbRun, name)
