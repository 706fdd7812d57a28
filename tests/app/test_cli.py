"""The command line explains itself, quickly, and knows its verbs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from varscale import __version__
from varscale.app.cli import VERBS, main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_overview_names_every_verb(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text and verb.summary in text for name, verb in VERBS.items())


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert VERBS[name].text in text and all(example in text for example in VERBS[name].examples)
    assert ("dead_leaves" in text) == (VERBS[name].schema == "StudyConfig")  # the choices of the group data


def test_unknown_verb_is_a_user_error_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "Did you mean train?" in capsys.readouterr().err


def test_several_runs_are_for_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-m", "sweeps=quickstart"]) == 2
    assert "varscale plan takes sweeps=NAME without" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["varscale", __version__]


@pytest.mark.parametrize("arguments", ["", "--help", "train --help", "nothing"])
def test_explanations_import_neither_torch_nor_hydra(arguments: str) -> None:
    script = (
        "import sys\nfrom varscale.app.cli import main\n"
        f"main({arguments.split()!r})\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'numpy', 'pandas', 'lightning'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_closes_the_pipe_sees_no_traceback() -> None:
    script = "import sys, time\ntime.sleep(0.3)\nfrom varscale.app.cli import main\nsys.exit(main(['--help']))"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0 and error == b""
