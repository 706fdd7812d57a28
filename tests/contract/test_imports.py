"""What may import what: the analysis package and the ground are free of torch, floors import downward."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("varscale_analysis", "torch lightning hydra omegaconf wandb varscale"),
        ("varscale.schedule, varscale.codes, varscale.records", "torch lightning hydra wandb numpy pandas"),
        ("varscale.app.collect", "torch lightning wandb"),
        ("varscale.app.entry", "torch lightning wandb"),
    ],
)
def test_an_import_leaves_out(module: str, forbidden: str) -> None:
    script = f"import sys, {module}\nsys.exit(' '.join({set(forbidden.split())!r} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stderr


def test_every_module_of_the_analysis_package_imports_without_torch(repository: Path) -> None:
    """A laptop with numpy, scipy, pandas and matplotlib can fit, plot and report."""
    root = repository / "analysis"
    names = sorted(
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for path in (root / "varscale_analysis").rglob("*.py")
        if path.stem != "__main__"
    )
    assert len(names) > 3
    script = (
        "import importlib, sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'lightning', 'hydra', 'omegaconf', 'wandb', 'varscale'):\n"
        "            raise ModuleNotFoundError(f'{name} is not installed')\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"for name in {names!r}:\n    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stderr


def test_floors_import_downward_only(repository: Path) -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache"], cwd=repository, capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
