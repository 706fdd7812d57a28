"""The W&B workspace: its panels ask for what runs log, and nothing is created without a login."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from varscale.app import dashboard
from varscale.app.cli import main
from varscale.app.dashboard import DashboardError
from varscale.app.resources import group_choices
from varscale.evaluation.heldout import HeldOut
from varscale.records import Run
from varscale.training.health import Health
from varscale.training.mirror import AXES

WANDB_SWEEPS = ["wandb_ladder", "wandb_lr"]


def config(**changes: Any) -> DictConfig:
    values = {
        "study": "depth",
        "logger": {"mode": "online", "project": "varscale"},
        "dashboard": {"entity": None, "name": "scaling study"},
        "tokenizer": {"schedule": "1-2-4"},
    }
    return OmegaConf.create(values | changes)


def named(value: Any) -> set[str]:
    """All texts of a JSON value."""
    if isinstance(value, dict):
        return set().union(*(named(part) for part in value.values()), set())
    if isinstance(value, list):
        return set().union(*(named(part) for part in value), set())
    return {value} if isinstance(value, str) else set()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_panels_ask_for_what_runs_log() -> None:
    made = dashboard.workspace(config(), "me")
    texts = named(json.loads(made._to_model().spec.model_dump_json(by_alias=True)))
    metrics = {text for text in texts if re.fullmatch(r"(val|train)/\w+", text)}
    held_out = HeldOut(1.0, 1.0, (1.0, 1.0, 1.0), 0.5, 0.5, 0.1, 4)
    logged = {f"val/{name}" + ("" if k is None else f"_{k}") for name, k, _ in held_out.curve_values()}
    health = Health("optim.lr (1)")
    health.loss_count = health.norm_count = 1
    logged |= {f"train/{name}" for name, _, _ in health.row()[1]} | {"train/nats_per_token_avg", "train/images_per_s"}
    assert {f"val/nats_per_token_{k}" for k in range(3)} <= metrics and metrics <= logged
    columns = {field.name for field in dataclasses.fields(Run)}
    wanted = {"params_total", "flops_train", "val_nats_per_token_avg", "mfu"}
    assert wanted <= {text.removeprefix("summary:") for text in texts} and wanted <= columns
    assert {"tokens_seen", "flops"} <= texts and {"tokens_seen", "flops"} <= set(AXES)
    assert made.name == "depth: scaling study" and made.project == "varscale"


def test_it_is_saved_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Fake:
        entity, project, url = "me", "varscale", "https://wandb.ai/me/varscale?nw=1"
        saved = 0

        def save(self) -> Fake:
            if self.saved:
                raise ConnectionError("no route")
            self.saved += 1
            return self

    fake = Fake()
    monkeypatch.setattr(dashboard, "workspace", lambda cfg, entity: fake)
    dashboard.main(config(dashboard={"entity": "me", "name": "x"}))
    assert "https://wandb.ai/me/varscale?nw=1" in capsys.readouterr().out
    with pytest.raises(DashboardError, match=r"did not take the workspace of me/varscale \(no route\)"):
        dashboard.save(fake)


def test_without_a_login_or_with_wandb_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import wandb

    monkeypatch.setattr(type(wandb.api), "api_key", None)
    with pytest.raises(DashboardError, match="no W&B login on this machine; log in with wandb login"):
        dashboard.main(config())
    with pytest.raises(DashboardError, match=r"logger\.mode=disabled"):
        dashboard.main(config(logger={"mode": "disabled", "project": "varscale"}))


@pytest.mark.parametrize("name", WANDB_SWEEPS)
def test_a_sweep_of_wandbs_own_sweeper(
    name: str, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its form by W&B's documentation of sweep configurations, and a run of it as the agent would call it."""
    sweep = yaml.safe_load((repository / f"sweeps/{name}.yaml").read_text())
    assert sweep["method"] in ("grid", "random", "bayes")
    assert sweep["metric"] == {"name": "val/nats_per_token_avg", "goal": "minimize"}
    assert set(sweep) <= {"program", "method", "name", "metric", "parameters", "command", "early_terminate"}
    chosen = {}
    for key, parameter in sweep["parameters"].items():
        if "distribution" in parameter:
            assert parameter["distribution"] == "log_uniform_values" and 0 < parameter["min"] < parameter["max"]
            assert sweep["method"] != "grid"
            chosen[key] = parameter["min"]
        else:
            assert set(parameter) in ({"value"}, {"values"})
            chosen[key] = parameter.get("value", parameter.get("values", [None])[0])
    words = {"${env}": "", "${program}": sweep["program"], "${args_no_hyphens}": "ARGS"}
    line = [words.get(word, word) for word in sweep["command"]]
    assert line[:3] == ["", "varscale", "train"] and line[-1] == "ARGS"
    overrides = [*line[3:-1], *(f"{key}={value}" for key, value in chosen.items())]
    assert main(["train", "--cfg", "job", "--resolve", *overrides, f"paths.outputs={tmp_path}"]) == 0
    composed = yaml.safe_load(capsys.readouterr().out)
    assert composed["logger"]["mode"] == "online" and composed["paths"]["cache"] == f"{tmp_path}/quickstart/cache"
    assert (composed["study"] == "quickstart") == (name == "wandb_ladder")  # only the ladder's runs are of its study


@pytest.mark.parametrize("name", WANDB_SWEEPS)
def test_hydra_refuses_a_sweep_of_wandbs(
    name: str, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert name not in group_choices(repository)["sweeps"]
    assert main(["train", f"sweeps={name}", f"paths.outputs={tmp_path}"]) == 2
    assert "the configuration has no key program" in capsys.readouterr().err
