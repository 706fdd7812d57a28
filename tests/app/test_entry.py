"""The three silent failures are errors with a suggestion; errors have the exit code and the form they should."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from varscale.app.entry import user_message
from varscale.records import RecordError

Verb = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def _keep_logging() -> object:
    """Hydra configures the root logger; give it back as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_run_has_the_folder_of_its_overrides(verb: Verb, study: Path) -> None:
    code, text = verb("train", "seed=1", "model.width=8", "train.lr=1")
    assert code == 0, text
    assert (study / "outputs/runs/model.width=8,seed=1,train.lr=1/done").exists()


def test_it_works_from_any_directory(verb: Verb, study: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    os.chdir(elsewhere)
    code, text = verb("train", "sweeps=widths", "model.width=8", "seed=0")
    assert code == 0, text
    assert "20 8 0" in (elsewhere / "outputs/runs/model.width=8,seed=0/started").read_text()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sweeps=wdiths", ["sweeps=wdiths", "Did you mean widths?", "bad_key, widths"]),
        ("data=cifr10", ["data=cifr10", "Did you mean cifar10?", "cifar10, leaves"]),
        ("model.wdith=3", ["no key model.wdith", "Did you mean model.width?"]),
        ("wdith=3", ["no key wdith", "Did you mean model.width?"]),
        ("dta=cifar10", ["no key dta", "Did you mean data?"]),
        ("+typo=1", ["no key typo", "There are: "]),
        ("+sed=1", ["no key sed", "Did you mean seed?"]),
        ("+model.wdith=3", ["no key model.wdith", "Did you mean model.width?"]),
        ("++data.sise=3", ["no key data.sise", "Did you mean data.size?"]),
        ("+train.stepz=3", ["no key train.stepz", "Did you mean train.steps?"]),
        ("sweeps=bad_key", ["no key model.wdith", "Did you mean model.width?"]),
        ("seed=abc", ["seed", "'abc'", "Integer"]),
        ("train.lr=fast", ["train.lr", "'fast'", "Float"]),
        ("train.steps=1.5", ["train.steps", "1.5", "Integer"]),
        ("model.width=wide", ["model.width", "'wide'", "must be a number, like 32"]),
        ("model.bias=3", ["model.bias", "3", "must be true or false"]),
        ("model.sides=3", ["model.sides", "must be a list, like [1, 2]"]),
        ("model.schedule=[1]", ["model.schedule", "must be text, like 1-2-4"]),
        ("seed=???", ["seed has no value"]),
        ("seed=${nothing}", ["seed", "nothing"]),
        ("model.width=[", ["no viable alternative"]),
        ("data=null", ["group override must be a string"]),
        ("sweeps=widths", ["plans several runs", "train -m", "model.width and seed"]),
    ],
)
def test_a_wrong_override_is_one_message_and_exit_code_2(
    verb: Verb, study: Path, override: str, expected: list[str]
) -> None:
    code, text = verb("train", override)
    assert code == 2, text
    assert all(part in text for part in expected), text
    assert "Traceback" not in text
    assert not list(study.glob("outputs/runs/*/started"))


@pytest.mark.parametrize("override", ["+data.options.any=3", "model.schedule=16", "data.size=64.5", "train.lr=1"])
def test_what_is_allowed(verb: Verb, override: str) -> None:
    code, text = verb("train", override)
    assert code == 0, text


def test_the_sweep_beats_the_root_and_the_command_line_beats_the_sweep(verb: Verb, study: Path) -> None:
    assert verb("train", "sweeps=widths", "seed=5", "model.width=1")[0] == 0
    assert verb("train", "sweeps=widths", "seed=6", "model.width=1", "train.steps=3")[0] == 0
    rows = [path.read_text().split()[2:] for path in sorted(study.glob("outputs/runs/*/started"))]
    assert rows == [["20", "1", "5"], ["3", "1", "6"]]


def test_config_dir_adds_the_users_own_sweeps(verb: Verb, study: Path) -> None:
    own = study / "own/sweeps/mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\ntrain: {steps: 77}\n")
    assert verb("train", "sweeps=mine")[0] == 2
    code, text = verb("train", "sweeps=mine", "-cd", "own")
    assert code == 0, text
    assert " 77 " in (study / "outputs/runs/single/started").read_text()
    assert verb("train", "-cd", "nowhere")[0] == 2


def test_cfg_prints_the_configuration_and_runs_nothing(verb: Verb, study: Path) -> None:
    code, text = verb("train", "--cfg", "job", "model.width=9")
    assert code == 0 and "width: 9" in text
    assert not (study / "outputs").exists()


def test_a_user_error_of_the_verb(verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = verb("train", "act=user_error")
    assert code == 2 and "Traceback" not in text
    assert text.strip().endswith("varscale train: the value 3 is above the limit 2; choose 1")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    code, text = verb("train", "act=user_error")
    assert code == 2 and "Traceback" in text


def test_a_fault_of_the_program_keeps_its_traceback(verb: Verb) -> None:
    code, text = verb("train", "act=fail")
    assert code == 1 and "Traceback" in text and "RuntimeError: this run fails" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_130_and_says_how_to_continue(verb: Verb, study: Path, number: signal.Signals) -> None:
    def interrupt() -> None:
        started = study / "outputs/runs/act=sleep/started"
        while not started.exists():
            waiting.wait(0.02)
        waiting.wait(0.1)
        os.kill(os.getpid(), number)

    waiting = threading.Event()
    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    code, text = verb("train", "act=sleep")
    thread.join()
    assert code == 130 and "type the same command again to continue" in text
    assert (study / "outputs/runs/act=sleep/checkpoint").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_which_errors_are_the_users() -> None:
    assert user_message(RecordError("cut off")) == "cut off"
    assert user_message(KeyError("x")) is None
    try:
        int("x")
    except ValueError as error:  # raised in this test, not in varscale
        assert user_message(error) is None
