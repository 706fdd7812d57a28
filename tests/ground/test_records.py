"""Records: written whole or not at all, read back equal, refused when they are not what they say."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import pytest

from varscale.records import (
    CURVE_FILE,
    CurveWriter,
    RecordError,
    Run,
    atomic_write,
    columns_table,
    read_curve,
    read_run,
    run_id,
    write_run,
)  # fmt: skip


def make_run(**changes: Any) -> Run:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Run):
        if field.default is dataclasses.MISSING:
            values[field.name] = {"int": 1, "float": 1.0}.get(str(field.type), "x")
    values |= {"status": "running", "flops_rule": "dense"}
    values |= {"params_token": 6, "params_image": 3, "params_blocks": 9, "params_embed": 2, "params_head": 1}
    values |= {"params_total": 12}
    return Run(**(values | changes))


def test_round_trip(tmp_path: Path) -> None:
    run = make_run(val_nats_per_token_avg=3.5)
    write_run(tmp_path, run)
    assert read_run(tmp_path) == run
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [({"status": "done"}, "status"), ({"flops_rule": "mine"}, "flops_rule"), ({"params_total": 13}, "params_total")],
)
def test_inconsistent_rows_are_refused(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(RecordError, match=names):
        make_run(**changes)


def test_missing_and_unknown_columns_are_all_named() -> None:
    values = make_run().to_dict()
    del values["seed"], values["width"]
    with pytest.raises(RecordError, match=r"'seed', 'width'.*'sede'"):
        Run.from_dict(values | {"sede": 1})


def test_cut_off_record_names_the_file(tmp_path: Path) -> None:
    write_run(tmp_path, make_run())
    path = tmp_path / "run.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(RecordError, match=str(path)):
        read_run(tmp_path)


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_run(tmp_path, make_run(val_nats_per_token_avg=float("nan")))
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space"), atomic_write(path) as file:
        file.write(b"new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_curve_keeps_rows_up_to_the_resumed_step(tmp_path: Path) -> None:
    writer = CurveWriter(tmp_path, "abc")
    for step in (1, 2, 3):
        writer.append(
            step=step, images_seen=step, tokens_seen=1e9, flops=1e30, values={"val": [("nats", None, 0.1 * step)]}
        )
    with (tmp_path / CURVE_FILE).open("a") as file:
        file.write("abc,4,4,1e9")  # the process died here
    CurveWriter(tmp_path, "abc", keep=lambda row: int(row["step"]) <= 2)
    rows = read_curve(tmp_path / CURVE_FILE)
    assert [row["step"] for row in rows] == ["1", "2"]
    assert float(rows[1]["value"]) == 0.2 and float(rows[0]["flops"]) == 1e30


def test_curve_refuses_nan(tmp_path: Path) -> None:
    writer = CurveWriter(tmp_path, "abc")
    with pytest.raises(ValueError, match="finite"):
        writer.append(
            step=1, images_seen=1, tokens_seen=1, flops=1, values={"val": [("nats", 0, 1.0), ("b", 1, float("inf"))]}
        )
    assert read_curve(tmp_path / CURVE_FILE) == []


def test_run_id_depends_on_values_not_on_order() -> None:
    assert run_id({"a": 1, "b": 2}) == run_id({"b": 2, "a": 1}) != run_id({"a": 1, "b": 3})


def test_every_column_has_a_unit_and_a_meaning() -> None:
    table = columns_table()
    for field in dataclasses.fields(Run):
        assert field.metadata["unit"] and len(field.metadata["doc"]) > 5
        assert f"`{field.name}`" in table


def test_the_glossary_holds_the_columns_as_they_are(repository: Path) -> None:
    glossary = (repository / "docs/GLOSSARY.md").read_text()
    assert glossary.rpartition("<!-- columns -->\n")[2] == columns_table()
