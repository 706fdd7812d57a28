"""The processes that a verb starts for its devices: what they refuse, and how they are stopped."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from varscale.app import ranks
from varscale.app.cli import main
from varscale.app.processes import GRACE_S, stop

# The first process is interrupted at once; the second one leaves by itself, or says that it was not let.
RANKS = """
import os, sys, time
from pathlib import Path
from varscale.app.processes import follow_parent
follow_parent()
if os.environ["LOCAL_RANK"] == "1":
    try:
        time.sleep(0.5)
        Path(sys.argv[1], "saved").touch()
    except KeyboardInterrupt:
        sys.exit(1)
sys.exit(130)
"""


@pytest.mark.parametrize("verb", ["train", "tokenizer", "cache"])
def test_a_gpu_that_is_not_there(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([verb, "trainer=gpu", "debug=two_steps", f"paths.outputs={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert "torch sees no CUDA device; use trainer=cpu" in told and "Traceback" not in told


def test_an_interrupted_process_lets_the_others_write_their_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graces: list[float] = []

    def watched(processes: Iterable[Any], *, grace_s: float) -> None:
        graces.append(grace_s)
        stop(processes, grace_s=grace_s)

    monkeypatch.setattr(ranks, "stop", watched)
    monkeypatch.setattr(ranks, "command_line", lambda *given, **how: [sys.executable, "-c", RANKS, str(tmp_path)])
    hydra = SimpleNamespace(job=SimpleNamespace(config_name="train"), overrides=SimpleNamespace(task=[]))
    monkeypatch.setattr(ranks, "HydraConfig", SimpleNamespace(get=lambda: hydra))
    with pytest.raises(KeyboardInterrupt):
        ranks._run_ranks(2, tmp_path)
    assert (tmp_path / "saved").exists()
    assert graces == [GRACE_S] and GRACE_S >= 60  # a large checkpoint on a slow disk
