"""Runs of a Weights & Biases project, as the rows and curves that the study's own folders would give.

A run that varscale mirrored carries its record: the config holds the row as it was at the start, the summary as it was
at the end (`varscale.training.mirror`), the history its curve. Any other project is read by a map of its columns.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, get_args, get_type_hints

from tqdm import tqdm

from varscale.records import RecordError, Run, Status
from varscale.training.mirror import AXES
from varscale_analysis.run_flags import PROMISES, SHORTFALL, STATUS_WORDS

PAGE = 50  # runs a request
HISTORY_PAGE = 1000  # steps a request
WAITS_S = (1.0, 4.0, 16.0)  # before a request that failed is made again
EXTRA = ("params_nonembed", "steps_done", "budget_tokens")  # columns of a mapped table that a record does not have
METRICS = ("nats_per_token_avg", "nats_per_token_last", "error_avg", "error_last")
LOSSES = tuple(f"val_{metric}" for metric in METRICS)
# The columns of a record that a run shows under other names while it trains.
LIVE = {"flops_train": "flops"} | {f"val_{metric}": f"val/{metric}" for metric in METRICS}
# What asking again does not help, and the remedy.
_REFUSALS = (
    (("API key", "401"), "log in with `wandb login`, or set WANDB_API_KEY"),
    (("not find", "not found", "404", "403"), "check project=ENTITY/PROJECT, and that this account may read it"),
)
_KINDS = get_type_hints(Run)
_T = TypeVar("_T")


class WandbError(RecordError):
    """A W&B project that cannot be read: names the project, the server, the reason and the remedy."""


@dataclass(frozen=True)
class WandbRuns:
    """What a project holds.

    Attributes:
        columns: of the rows: those of a record, then the extra ones that were mapped.
        rows: one a run, in the order of the runs' names; a cell that is not known is None.
        curves: the rows of ``curves.csv``.
        left_out: what is not in rows or curves, by the run's name, with the reason.
        foreign: how many rows varscale did not write.
    """

    columns: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    curves: tuple[dict[str, Any], ...]
    left_out: tuple[tuple[str, str], ...]
    foreign: int


def connect() -> Any:
    """The ``wandb.Api``, with the credentials and the server that W&B is configured with."""
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    return wandb.Api()


def read_project(
    project: str | None, *, study: str, columns: Mapping[str, str], curves: Mapping[str, str]
) -> WandbRuns:
    """Read all runs of a study from a W&B project.

    Args:
        project: ENTITY/PROJECT.
        study: runs that varscale wrote for another study are left out; those of others get this one.
        columns: column of the run table to the key of the summary, or else of the config (dots lead into nested ones).
            Without it only runs that varscale wrote are read; of these it overrides the records.
        curves: for runs of others, axis (step, images_seen, tokens_seen, flops) or metric (nats_per_token_avg, ...) to
            the key of the history.

    Of several runs with one ``run_id`` the newest finished one counts. A run whose loss is not finite is diverged, one
    that fell short of its budget by more than 1 % is stopped. Raises ``WandbError`` when W&B or the project cannot be
    reached, for a name that does not exist, and when there is no run to read.
    """
    project = _checked(project, columns, curves)
    server = _Server(project)
    api = server.ask(connect, waits_s=())  # wandb itself tries for a while
    server.name = str(getattr(api, "settings", {}).get("base_url", server.name))

    def listed() -> list[Any]:
        found = api.runs(project, per_page=PAGE, lazy=False)
        return list(tqdm(found, f"runs of {project}", total=len(found), leave=False, disable=None))

    runs = sorted(server.ask(listed), key=lambda run: (str(run.name), str(run.id)))
    chosen: dict[str, tuple[dict[str, Any], Any, bool]] = {}
    left_out: list[tuple[str, str]] = []
    seen: set[str] = set()
    for run in runs:
        config, summary = dict(run.config), dict(run.summary)
        mapped = {ours: _find(theirs, summary, config) for ours, theirs in columns.items()}
        seen |= {ours for ours, value in mapped.items() if value is not None}
        own = "run_id" in config and "schema_version" in config
        try:
            row = _record(run, config, summary, mapped, study) if own else _foreign(run, mapped, study)
        except (RecordError, TypeError) as error:
            left_out.append((str(run.name), str(error)))
            continue
        new, old = (row, run, own), chosen.get(row["run_id"])
        if old is not None:
            new, old = (new, old) if _age(new[0]) >= _age(old[0]) else (old, new)
            left_out.append((str(old[1].name), f"{new[1].name} is the same run, finished or newer"))
        chosen[row["run_id"]] = new
    if runs and (absent := sorted(columns.keys() - seen)):
        raise WandbError(
            f"no run of {project} has {', '.join(f'{columns[ours]!r} (for {ours})' for ours in absent)} in its summary "
            "or config; take the keys from the overview of a run on W&B"
        )
    if not chosen:
        reasons = "".join(f"\n  {name}: {why}" for name, why in left_out[:5])
        raise WandbError(
            f"{project} on {server.name} holds {len(runs)} runs, and none is a run of the study {study}: give "
            f"study=..., or, where varscale did not write them, name their columns, as "
            f"collect.columns={{params_total: n_params, val_nats_per_token_avg: val_loss}}{reasons}"
        )
    points: list[dict[str, Any]] = []
    for row, run, own in tqdm(chosen.values(), f"curves of {project}", leave=False, disable=None):
        history = server.ask(partial(_history, run, None if own else curves))
        curve, dropped = _curve(row["run_id"], history)
        points += curve
        if dropped:
            left_out.append((str(run.name), f"{dropped} measurements that are not finite are not in its curve"))
    return WandbRuns(
        columns=(*_KINDS, *(name for name in EXTRA if name in columns)),
        rows=tuple(row for row, _, _ in chosen.values()),
        curves=tuple(points),
        left_out=tuple(left_out),
        foreign=sum(not own for _, _, own in chosen.values()),
    )


@dataclass
class _Server:
    """Asks W&B, again where that may help, and says in one message why it could not be asked."""

    project: str
    name: str = field(default_factory=lambda: os.environ.get("WANDB_BASE_URL", "the W&B server"))

    def ask(self, request: Callable[[], _T], waits_s: Sequence[float] | None = None) -> _T:
        """What ``request`` returns. wandb raises errors of its own, of requests and plain ones: all are taken."""
        for wait in (*(WAITS_S if waits_s is None else waits_s), None):
            try:
                return request()
            except Exception as error:
                text = str(error).strip() or type(error).__name__
                refusal = next((remedy for words, remedy in _REFUSALS if any(word in text for word in words)), None)
                if wait is None or refusal is not None:
                    remedy = refusal or "check the network and WANDB_BASE_URL, then type the command again"
                    raise WandbError(
                        f"cannot read the project {self.project} on {self.name}: {text.rstrip('.')}; {remedy}. The "
                        "runs' own folders hold the same records: varscale collect"
                    ) from error
                time.sleep(wait)
        raise AssertionError("the last wait is None")


def _checked(project: str | None, columns: Mapping[str, str], curves: Mapping[str, str]) -> str:
    """The project. Raises ``WandbError`` for what no server is needed to refuse."""
    if project is None or project.count("/") != 1 or not all(project.split("/")):
        raise WandbError(f"source=wandb needs project=ENTITY/PROJECT, got {project}")
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "disabled", "dryrun"):
        raise WandbError(
            f"WANDB_MODE is {mode}, so {project} cannot be read from the W&B server; unset it, or read the runs' own "
            "folders: varscale collect"
        )
    for key, given, known in (
        ("collect.columns", columns, (*_KINDS, *EXTRA)),
        ("collect.curves", curves, (*AXES, *METRICS)),
    ):
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}"
                raise WandbError(f"{key} has the name {name}, which is not ours. {hint}")
    return project


def _record(
    run: Any, config: Mapping[str, Any], summary: Mapping[str, Any], mapped: Mapping[str, Any], study: str
) -> dict[str, Any]:
    """The row of a run that varscale wrote. Raises ``RecordError`` for one of another study, or that is not whole."""
    if config.get("study") != study:
        raise RecordError(f"it belongs to the study {config.get('study')}; collect it with study={config.get('study')}")
    values = {name: config[name] for name in _KINDS if name in config}
    live = {name: summary[theirs] for name in _KINDS if (theirs := LIVE.get(name, name)) in summary}
    final = {name: summary[name] for name in _KINDS if name in summary}
    # A resumed run shows the record of its last stop until it ends again.
    values |= final | live if run.state == "running" else live | final
    status = str(run.state) if run.state == "running" or "status" not in final else str(final["status"])
    values |= {name: value for name, value in mapped.items() if value is not None and name in _KINDS}
    row = Run.from_dict({name: _typed(name, value) for name, value in values.items()} | {"status": "running"}).to_dict()
    row |= {name: _typed(name, mapped[name]) for name in EXTRA if name in mapped}
    return row | {"status": _status(status, row)}


def _foreign(run: Any, mapped: Mapping[str, Any], study: str) -> dict[str, Any]:
    """The row of a run that varscale did not write, by the map of its columns."""
    if not mapped:
        raise RecordError("varscale did not write it (its config has no run_id); name its columns in collect.columns")
    row: dict[str, Any] = dict.fromkeys(_KINDS) | {"run_id": run.id, "created_utc": run.created_at, "study": study}
    row |= {name: _typed(name, value) for name, value in mapped.items() if value is not None}
    return row | {"status": _status(str(row["status"] or run.state), row)}


def _status(word: str, row: Mapping[str, Any]) -> str:
    """Our status of a run whose own or W&B's is ``word``."""
    word = STATUS_WORDS.get(word.lower(), word.lower())
    if word not in get_args(Status):
        return "failed"
    if word != "finished":
        return word
    losses = [row[name] for name in LOSSES if row[name] is not None]
    if not all(math.isfinite(loss) for loss in losses):
        return "diverged"
    for reached, promised in PROMISES:
        done, budget = row.get(reached), row.get(promised)
        if done is not None and budget is not None and done < (1 - SHORTFALL) * budget:
            return "stopped"
    return word


def _typed(name: str, value: Any) -> Any:
    """A value as its column holds it: JSON knows neither 1600.0 from 1600 nor NaN from "NaN"."""
    kinds = {kind for kind in (_KINDS.get(name, float), *get_args(_KINDS.get(name))) if isinstance(kind, type)}
    if value is None or isinstance(value, bool):
        return value
    try:
        number = float(value) if kinds & {int, float} else math.nan
    except (TypeError, ValueError):
        raise RecordError(f"{name} is {value!r}, not a number; map another key to it") from None
    if float in kinds:
        return number
    if int in kinds:
        return int(number) if number.is_integer() else number
    return str(value)


def _find(key: str, *places: Mapping[str, Any]) -> Any:
    """The value of a key in the first place that has it, whole or as a path of dots; None where there is none."""
    for place in places:
        node: Any = place.get(key)
        if node is None:
            node = place
            for part in key.split("."):
                node = node.get(part) if hasattr(node, "get") else None
        if node is not None:
            return node
    return None


def _age(row: Mapping[str, Any]) -> tuple[bool, str]:
    return row["status"] == "finished", str(row["created_utc"])


def _history(run: Any, curves: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """The history under our names, in the order it was logged; by the map of a foreign run, one scan a metric."""
    if curves is None:
        return list(run.scan_history(page_size=HISTORY_PAGE))
    axes = {"step": "_step"} | {name: key for name, key in curves.items() if name in AXES}
    rows: list[dict[str, Any]] = []
    for metric in METRICS:
        if metric in curves:
            names = axes | {f"val/{metric}": curves[metric]}
            # A scan returns only the rows that hold all its keys.
            scan = run.scan_history(keys=list(names.values()), page_size=HISTORY_PAGE)
            rows += [{ours: row[theirs] for ours, theirs in names.items()} for row in scan]
    return rows


def _curve(run_id: str, history: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """The rows of a curve, and how many measurements were left out because they are no finite numbers.

    A resumed run logs some steps again: the last measurement of a step counts.
    """
    points: dict[tuple[Any, ...], dict[str, Any]] = {}
    for logged in history:
        axes: dict[str, Any] = {axis: _number(logged.get(axis)) for axis in AXES}
        if axes["step"] is None:
            continue
        axes["step"] = int(axes["step"])
        for key, value in logged.items():
            split, slash, name = key.partition("/")
            if not slash or value is None or isinstance(value, Mapping | list):  # no measurement: pictures, tables
                continue
            scaled = re.fullmatch(r"(.+)_(\d+)", name)
            metric, scale = (scaled[1], int(scaled[2])) if scaled else (name, None)
            where = {"run_id": run_id, **axes, "split": split, "metric": metric, "scale": scale}
            points[axes["step"], split, metric, scale] = {**where, "value": _number(value)}
    rows = sorted(points.values(), key=_place)
    finite = [row for row in rows if row["value"] is not None]
    return finite, len(rows) - len(finite)


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The order of a curve: W&B does not keep that of a point's values."""
    rank = METRICS.index(row["metric"]) if row["metric"] in METRICS else len(METRICS)
    return row["step"], row["split"], rank, row["metric"], -1 if row["scale"] is None else row["scale"]


def _number(value: Any) -> float | None:
    """A logged value as a finite number; None for anything else. W&B gives NaN and infinity as text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
