"""The W&B mirror: offline and online it shows each step once, whatever happens to run and server, and stops no run."""

from __future__ import annotations

import json
import logging
import re
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from varscale.records import CurveWriter, read_curve
from varscale.training import mirror as mirror_module
from varscale.training.mirror import NoMirror, WandbMirror, curve_points, open_mirror

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def _own_staging(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):  # not the user's
        monkeypatch.setenv(name, str(tmp_path_factory.mktemp(name)))


def arguments(folder: Path, run_id: str = "abc") -> dict[str, Any]:
    return {
        "folder": folder,
        "project": "varscale",
        "run_id": run_id,
        "name": "model.width=8",
        "group": "quickstart",
        "job_type": "train",
        "tags": ["quickstart"],
        "config": {"width": 8},
    }


def curve(folder: Path, *steps: int) -> list[dict[str, str]]:
    """The rows of a run's curve at some steps: a loss, and that of two scales."""
    writer = CurveWriter(folder, "abc")
    for step in steps:
        values = [("nats_per_token_avg", None, 4.0 - step / 10), ("nats_per_token", 0, 3.0), ("nats_per_token", 1, 4.0)]
        axes = {"images_seen": 2.0 * step, "tokens_seen": 260.0 * step, "flops": 1e3 * step}
        writer.append(step=step, **axes, values={"val": values, "train": [("grad_norm_mean", None, 0.5)]})
    return read_curve(folder / "curve.csv")


def offline_records(folder: Path) -> Iterator[Any]:
    """The records of the offline runs in ``folder``, whose files have the form of LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        data, part, at = path.read_bytes(), b"", 7
        while at + 7 <= len(data):
            if (left := 32768 - at % 32768) < 7:  # a block's end
                at += left
                continue
            length, kind = struct.unpack("<xxxxHB", data[at : at + 7])
            part, at = part + data[at + 7 : at + 7 + length], at + 7 + length
            if kind in (1, 4):  # whole, or the last part
                yield Record.FromString(part)
                part = b""


def items(entries: Any) -> dict[str, Any]:
    return {entry.key or "/".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


def history(folder: Path, least: int = 1) -> list[dict[str, Any]]:
    """The points logged, at least so many: W&B's own process writes them a moment later."""
    deadline = time.monotonic() + 10
    while True:
        found = [items(record.history.item) for record in offline_records(folder) if record.HasField("history")]
        if len(found) >= least or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def test_points_are_named_as_they_are_logged(tmp_path: Path) -> None:
    points = list(curve_points(curve(tmp_path, 10, 20)))
    assert [point["step"] for point in points] == [10, 20]
    assert points[1] == {
        **{"step": 20, "images_seen": 40.0, "tokens_seen": 5200.0, "flops": 2e4},
        **{"val/nats_per_token_avg": 2.0, "val/nats_per_token_0": 3.0, "val/nats_per_token_1": 4.0},
        "train/grad_norm_mean": 0.5,
    }


def test_a_run_continued_offline_is_one_whole_offline_run(tmp_path: Path) -> None:
    points = list(curve_points(curve(tmp_path, 10, 20, 30)))
    first = open_mirror("offline", **arguments(tmp_path))
    assert isinstance(first, WandbMirror)
    for point in points[:2]:
        first.log(point)
    first.finish({}, failed=True)  # killed after step 20; its last checkpoint is of step 10
    time.sleep(1.1)  # W&B names its folders by the second
    second = open_mirror("offline", **arguments(tmp_path))
    second.catch_up(curve(tmp_path, 10))
    for point in points[1:]:
        second.log(point)
    second.table("reconstructions", ["image", "original"], [[0, np.zeros((4, 4, 3), np.uint8)]])
    second.finish({"val_nats_per_token_avg": 1.0, "fid": None}, failed=False)
    logged = [point for point in history(tmp_path, least=4) if "step" in point]
    assert [point["step"] for point in logged] == [10, 20, 30]
    assert logged[2] | points[2] == logged[2]  # every value of the curve's point
    records = list(offline_records(tmp_path))
    runs = [record.run for record in records if record.HasField("run")]
    assert [(run.run_id, run.run_group, run.job_type, list(run.tags)) for run in runs] == [
        ("abc", "quickstart", "train", ["quickstart"])
    ]
    axes = {record.metric.glob_name: record.metric.step_metric for record in records if record.HasField("metric")}
    assert axes["val/*"] == axes["train/*"] == "tokens_seen"
    summary: dict[str, Any] = {}
    for record in records:
        summary |= items(record.summary.update)
    assert summary["val_nats_per_token_avg"] == 1.0 and summary["fid"] is None
    tables = [point for point in history(tmp_path) if any(key.startswith("reconstructions") for key in point)]
    assert len(tables) == 1


def test_two_runs_in_one_process_are_two_offline_runs(tmp_path: Path) -> None:
    for number in (1, 2):
        mirror = open_mirror("offline", **arguments(tmp_path, f"run{number}"))
        mirror.catch_up([])
        mirror.finish({}, failed=False)
    folders = sorted(path.name for path in (tmp_path / "wandb").glob("offline-run-*"))
    assert [name.rpartition("-")[2] for name in folders] == ["run1", "run2"]


def test_disabled_is_no_mirror(tmp_path: Path) -> None:
    mirror = open_mirror("disabled", **arguments(tmp_path))
    assert isinstance(mirror, NoMirror)
    mirror.log({"step": 1})
    mirror.catch_up([])
    mirror.table("samples", ["a"], [[1]])
    mirror.finish({}, failed=True)
    assert not list(tmp_path.iterdir())


def test_a_mirror_that_cannot_start_is_said_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        mirror = open_mirror("sideways", **arguments(tmp_path))
    assert isinstance(mirror, NoMirror)
    assert "the run goes on" in caplog.text


class Server(ThreadingHTTPServer):
    """As much of a W&B server as one run needs: it keeps the history's lines and the summary."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lines: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.known = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def graphql(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": "varscale", "entity": {"id": "e", "name": "me"}}
        bucket = {
            **{"id": "b", "name": "abc", "displayName": "n", "description": "", "config": "{}", "sweepName": None},
            **{"summaryMetrics": json.dumps(self.summary), "historyLineCount": len(self.lines), "eventsLineCount": 0},
            **{"logLineCount": 0, "historyTail": json.dumps([json.dumps(line) for line in self.lines[-1:]])},
            **{"eventsTail": "[]", "tags": [], "wandbConfig": '{"t": 1}', "project": project},
        }
        if name == "RunResumeStatus":
            return {"model": {**project, "bucket": bucket if self.known else None}}
        if name == "UpsertBucket":
            inserted, self.known = not self.known, True
            return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}


class Handler(BaseHTTPRequestHandler):
    """Answers for `Server`."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""

    def do_PUT(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            match = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            answer = {"data": self.server.graphql(match[1] if match else "", asked.get("variables") or {})}
        elif self.path.endswith("file_stream"):
            files = json.loads(body).get("files") or {}
            if "wandb-history.jsonl" in files:
                chunk = files["wandb-history.jsonl"]
                assert chunk["offset"] == len(self.server.lines)  # a resumed run appends
                self.server.lines += [json.loads(line) for line in chunk["content"]]
            for line in files.get("wandb-summary.json", {}).get("content", []):
                self.server.summary = json.loads(line)
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    import wandb

    with Server() as made:
        monkeypatch.setenv("WANDB_BASE_URL", made.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        wandb.teardown()  # its process reads the variables when it starts
        yield made
        made.shutdown()
    wandb.teardown()


def test_a_run_continued_online_is_the_same_run_with_each_step_once(server: Server, tmp_path: Path) -> None:
    rows = curve(tmp_path, 10, 20, 30, 40)
    points = list(curve_points(rows))
    first = open_mirror("online", **arguments(tmp_path))
    for point in points[:3]:
        first.log(point)
    first.finish({"status": "stopped", "mfu": 0.25}, failed=True)
    assert [line["step"] for line in server.lines if "step" in line] == [10, 20, 30]
    second = open_mirror("online", **arguments(tmp_path))  # from the checkpoint of step 20
    second.catch_up([row for row in rows if int(row["step"]) <= 20])
    for point in points[2:]:
        second.log(point)
    second.finish({"status": "finished", "val_nats_per_token_avg": 0.0, "mfu": None}, failed=False)
    assert [line["step"] for line in server.lines if "step" in line] == [10, 20, 30, 40]
    assert server.summary["status"] == "finished" and server.summary["step"] == 40 and server.summary.get("mfu") is None


def test_a_server_that_goes_away_neither_stops_nor_holds_a_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "FINISH_TIMEOUT_S", 1.0)
    points = list(curve_points(curve(tmp_path, 10, 20)))
    mirror = open_mirror("online", **arguments(tmp_path))
    mirror.log(points[0])
    server.shutdown()
    server.server_close()
    mirror.log(points[1])
    started = time.monotonic()
    mirror.finish({"status": "finished"}, failed=False)
    assert time.monotonic() - started < 15


def test_a_server_that_is_not_there_leaves_an_offline_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(mirror_module, "INIT_TIMEOUT_S", 1.0)
    with caplog.at_level(logging.WARNING):
        mirror = open_mirror("online", **arguments(tmp_path))
    assert caplog.text.count("W&B") == 1 and "mirrored offline" in caplog.text
    mirror.catch_up(curve(tmp_path, 10))
    mirror.finish({}, failed=False)
    assert [point["step"] for point in history(tmp_path)] == [10]


def test_errors_are_swallowed_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        summary: dict[str, Any] = {}  # noqa: RUF012

        def log(self, values: dict[str, float]) -> None:
            raise ConnectionError("no route")

        def finish(self, exit_code: int) -> None:
            raise ConnectionError("no route")

    mirror = WandbMirror.__new__(WandbMirror)
    mirror.run, mirror.known_step, mirror.patterns, mirror.silenced = Broken(), 0, set(), False  # type: ignore[assignment]
    mirror.log({"step": 7})
    mirror.log({"step": 8})
    mirror.finish({"loss": 1.0}, failed=False)
    assert "step 7" in caplog.text and caplog.text.count("no route") == 1
