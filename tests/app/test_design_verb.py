"""varscale design: the written sweep plans exactly the proposed runs, is launched like any other, and is not lost."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from varscale.app import design as verb_module
from varscale.app.cli import main
from varscale.app.config import ConfigError
from varscale.app.sweeper import combined
from varscale.app.sweeps import composed_runs
from varscale_analysis import Candidates, Goal, SaturatingPowerLaw, SweepDesign, design_sweep
from varscale_analysis.atomic import write_json

SATURATING = ["design.form=saturating", "design.guess={E: 3.2, beta: 2.8e-4, alpha: -0.5}", "design.noise=0.003"]
CHINCHILLA = ["design.guess={E: 3.1, A: 60, B: 300, alpha: 0.5, beta: 0.5}", "design.noise=0.003"]


@pytest.fixture
def proposed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, list[SweepDesign]]]:
    """Runs ``varscale design`` in an empty current folder; returns its code and what was proposed.

    Runs of the same sizes are composed once a test.
    """
    monkeypatch.chdir(tmp_path)
    composed = functools.cache(lambda jobs: composed_runs(jobs))

    def call(*overrides: str) -> tuple[int, list[SweepDesign]]:
        seen: list[SweepDesign] = []

        def noted(*args: object, **options: object) -> SweepDesign:
            seen.append(design_sweep(*args, **options, tables=20))  # type: ignore[arg-type]
            return seen[-1]

        monkeypatch.setattr(verb_module, "design_sweep", noted)
        monkeypatch.setattr(verb_module, "composed_runs", lambda jobs: composed(tuple(map(tuple, jobs))))
        return main(["design", "paths.outputs=out", *overrides]), seen

    return call


def plan(*overrides: str) -> list[dict[str, object]]:
    assert main(["plan", "-cd", ".", "paths.outputs=out", "plan.device=h100", *overrides]) == 0
    return json.loads(next(Path("out").glob("*/plan.json")).read_text())["runs"]


def test_a_sweep_of_sizes_and_steps_plans_what_was_proposed(
    proposed: Callable[..., tuple[int, list[SweepDesign]]], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["design.budget=4e12", "design.goal=n_opt", "design.at=1e15", "design.max_runs=6", "design.max_seeds=2"]
    options += ["design.name=wide", "data=dead_leaves_rich", "train.batch=8", "study=mine", "design.min_sizes=4"]
    options += ["design.sizes='model.width=8,16,32,64'", "design.steps=[300,1200,4800]"]
    code, (design,) = proposed(*CHINCHILLA, *options)
    assert code == 0
    out = capsys.readouterr().out
    assert design.summary() in out and "varscale train -cd . -m sweeps=wide" in out
    runs = plan("sweeps=wide")
    assert Path("out/mine/plan.json").exists()
    assert len(runs) == design.num_runs <= 6
    steps, index = {row["steps"] for row in runs}, 0
    assert steps <= {300, 1200, 4800} and len(steps) == 3 and {row["batch"] for row in runs} == {8}
    for run in design.runs:
        for seed in range(run.seeds):
            row = runs[index]
            assert (row["params_nonembed"], row["tokens"]) == (run.at["params_nonembed"], run.at["tokens_seen"])
            assert row["flops"] == run.flops and list(row["overrides"])[-1] == f"seed={seed}"  # type: ignore[call-overload]
            index += 1
    assert sum(row["flops"] for row in runs) == pytest.approx(design.flops) and design.flops <= 4e12  # type: ignore[misc]
    # Without saying which of its runs is meant, train refuses.
    assert main(["train", "-cd", ".", "sweeps=wide"]) == 2
    assert "model.width and train.steps and seed" in capsys.readouterr().err
    assert proposed(*CHINCHILLA, *options, "design.goal=gamma", "design.at=null")[0] == 2
    assert "design.goal=gamma: chinchilla has no 'gamma'" in capsys.readouterr().err


def test_a_law_of_n_goes_on_from_the_runs_in_hand(
    proposed: Callable[..., tuple[int, list[SweepDesign]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On top of a sweep: its groups and values, new seeds of sizes that are there, and never over another file."""
    rng, n = np.random.default_rng(0), np.repeat([4978.0, 14562.0, 29012.0, 48324.0, 101542.0], 2)
    y = (3.2 + (2.8e-4 * n) ** -0.5) * np.exp(0.003 * rng.standard_normal(len(n)))
    fit = SaturatingPowerLaw().fit({"params_nonembed": n, "val_nats_per_token_avg": y}, bootstrap=100).to_dict()
    points = {**fit["points"], "at": "at D = 2.496e+06 tokens"}
    write_json(tmp_path / "fit.json", {"fits": {"saturating/val_nats_per_token_avg": {**fit, "points": points}}})
    options = ["sweeps=quickstart", "design.law=fit.json", "design.budget=1.5e13", "design.max_runs=3"]
    options += ["design.sizes='model.width=8,24,64'"]
    code, (design,) = proposed(*options)
    assert code == 0 and design.runs_in_hand == 10 and design.before is not None
    file = yaml.safe_load(Path("sweeps/next.yaml").read_text())
    assert file["defaults"][0] == "quickstart" and file["hydra"]["sweeper"]["params"] is None
    runs = plan("sweeps=next")
    assert [row["overrides"] for row in runs] == file["hydra"]["sweeper"]["runs"]
    assert [(row["params_nonembed"], row["flops"]) for row in runs] == [
        (run.at["params_nonembed"], run.flops) for run in design.runs for _ in range(run.seeds)
    ]
    firsts = {str(row["overrides"][0]): str(row["overrides"][1]) for row in reversed(runs)}  # type: ignore[index]
    assert all(seed == ("seed=0" if size == "model.width=64" else "seed=2") for size, seed in firsts.items())
    before = Path("sweeps/next.yaml").read_text()
    assert proposed(*options)[0] == 0
    capsys.readouterr()
    assert proposed(*options, "design.goal=E")[0] == 2
    assert "exists and is another sweep" in capsys.readouterr().err
    assert Path("sweeps/next.yaml").read_text() == before
    prior = verb_module.read_fit(Path("fit.json"), None, "val_nats_per_token_avg")
    with pytest.raises(ConfigError, match=r"but these runs would train on 1\.248e\+06"):
        verb_module.check_tokens(prior, [verb_module.Candidate((), {"tokens_seen": 1.248e6})])
    with pytest.raises(ConfigError, match="there are: saturating/val_nats_per_token_avg"):
        verb_module.read_fit(Path("fit.json"), "power/val_nats_per_token_avg", "val_nats_per_token_avg")


@pytest.fixture
def settings(repository: Path) -> Callable[..., DictConfig]:
    """The verb's keys, with some of them set, and what it needs of the others."""

    def build(*overrides: str) -> DictConfig:
        section = OmegaConf.load(repository / "conf/design.yaml").design
        cfg = OmegaConf.create({"design": section, "analysis": {"n": "params_nonembed", "y": "loss"}})
        cfg.merge_with({"trainer": {"devices": 2}, "model": {"_target_": "varscale.models.var.VAR.by_depth"}})
        cfg.merge_with_dotlist([f"design.{override}" for override in overrides])
        return cfg

    return build


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "a law that is known"),
        (["law=fit.json", "guess.E=3"], "a law that is known"),
        (["law=nothing.json"], r"nothing\.json"),
        (["guess.E=3", "form=saturatng"], "Did you mean saturating?"),
        (["guess.E=3", "form=saturating"], "beta, alpha have no value"),
    ],
)
def test_a_law_that_is_not_known(settings: Callable[..., DictConfig], overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verb_module.prior_of(settings(*overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "give one budget"),
        (["budget=1e13", "gpu_hours=3"], "give one budget"),
        (["gpu_hours=3"], "need a device"),
        (["budget=1e13", "wall_hours=1"], "need a device"),
        (["gpu_hours=3", "device=h10"], "Did you mean h100?"),
        (["money=3", "device=h100"], "design.price"),
        (["gpu_hours=3", "device=h100", "mfu=40"], "share of the peak"),
        (["budget=3", "device=h100", "mfu=0"], "must be above 0"),
    ],
)
def test_a_budget_that_is_none(settings: Callable[..., DictConfig], overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verb_module.budget_of(settings(*overrides))


def test_flop_hours_and_money_are_one_budget(settings: Callable[..., DictConfig]) -> None:
    by_hours = verb_module.budget_of(settings("gpu_hours=100", "device=h100", "mfu=0.3", "jobs=4", "wall_hours=9"))
    by_money = verb_module.budget_of(settings("money=250", "price=2.5", "device=h100", "mfu=0.3"))
    by_flops = verb_module.budget_of(settings(f"budget={by_hours.flops}", "device=h100", "mfu=0.3"))
    assert by_hours.flops == by_money.flops == pytest.approx(by_flops.flops) == pytest.approx(100 * 3600 * 989e12 * 0.3)
    assert by_hours.speed == 2 * 989e12 * 0.3 and (by_hours.jobs, by_hours.wall_s) == (4, 9 * 3600)


def test_goals_sizes_and_names(settings: Callable[..., DictConfig]) -> None:
    law, columns = SaturatingPowerLaw(), {"n": [1e5, 1e6]}
    offered = Candidates.of(law, columns, flops=[1e12, 1e13], tokens=1e6)
    for options, message in (
        (["goal=n_opt"], "needs design.at"),
        (["goal=E", "at=1e9"], "has no use for design.at"),
        (["goal=loss", "at=1e9", "at_tokens=1e9"], "has no use for design.at_tokens"),
        (["goal=n_opt", "at=1e20"], "a law of N and D"),
    ):
        with pytest.raises(ConfigError, match=message):
            verb_module.goal_of(settings(*options), law, offered)
    assert verb_module.goal_of(settings("goal=loss", "at=1e7"), law, offered) == Goal.loss(n=1e7)
    assert verb_module.size_overrides(settings())[:2] == ["model.depth=4", "model.depth=6"]
    with pytest.raises(ConfigError, match="names one size"):
        verb_module.size_overrides(settings("sizes=model.depth=8"))
    with pytest.raises(ConfigError, match="holds for one D"):
        verb_module.candidates_of(settings("steps=[3]"), law)
    with pytest.raises(ConfigError, match="a sweep has params_nonembed"):
        verb_module.candidates_of(settings(), SaturatingPowerLaw("n_active"))
    for name, message in (("depth", "would hide yours"), ("../x", "no name of a sweep")):
        with pytest.raises(ConfigError, match=message):
            verb_module.sweep_path(settings(f"name={name}", "folder=/nowhere"))


def test_a_wrong_key_is_a_users_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["design", *SATURATING, "design.bugdet=1e13"]) == 2
    assert "Did you mean design.budget?" in capsys.readouterr().err


def test_listed_runs_are_launched(start: Callable[..., subprocess.Popen[str]], study: Path) -> None:
    (study / "sweeps/listed.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /hydra/sweeper: runs\n"
        "hydra: {sweeper: {runs: [[model.width=8, train.steps=7], [model.width=16, train.steps=3, seed=1]]}}\n"
    )
    process = start("train", "-m", "sweeps=listed", "train.lr=0.1")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    folders = {path.parent.name: path.read_text().split() for path in study.glob("outputs/runs/*/started")}
    assert set(folders) == {
        "model.width=16,seed=1,train.lr=0.1,train.steps=3", "model.width=8,train.lr=0.1,train.steps=7",
    }  # fmt: skip
    assert sorted(words[2:] for words in folders.values()) == [["3", "16", "1"], ["7", "8", "0"]]


def test_listed_runs_combine_with_what_holds_for_all() -> None:
    runs = [["a=1", "b=1"], ["a=2", "b=1"], ["+a=3", "b=2"]]
    assert combined(runs, [[]]) == runs
    assert combined([], [["c=1"], ["c=2"]]) == [["c=1"], ["c=2"]]
    assert combined(runs, [["a=9"]]) == [["b=1", "a=9"], ["b=2", "a=9"]]
    assert combined(runs[:1], [["c=1"], ["c=2"]]) == [["a=1", "b=1", "c=1"], ["a=1", "b=1", "c=2"]]
