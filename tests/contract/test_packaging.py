"""The package: the wheel carries conf/ and sweeps/, an editable install reads the checkout, pins fit the ranges."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from varscale import __version__
from varscale.app.resources import group_choices, resources_root


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the backend in this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    script = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", script], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("varscale-*.whl")
    return path


def test_the_wheel_holds_both_packages_and_the_configuration(wheel: Path, repository: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"varscale/app/cli.py", "varscale/py.typed", "varscale_analysis/__init__.py"} <= names
    for folder in ("conf", "sweeps"):
        files = [path.relative_to(repository).as_posix() for path in (repository / folder).rglob("*.yaml")]
        assert files and {f"varscale/_resources/{file}" for file in files} <= names
    assert not [name for name in names if name.startswith(("tests/", "conf/", "hatch_build"))]


def test_the_wheel_finds_its_configuration_from_any_directory(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "varscale", "train", "--cfg", "job"]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "model:" in done.stdout, done.stderr
    script = "from varscale.app.resources import resources_root; print(resources_root())"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert Path(done.stdout.strip()) == site / "varscale/_resources"


def test_the_checkout_is_read_in_place(repository: Path) -> None:
    assert resources_root() == repository
    assert "dead_leaves" in group_choices(repository)["data"]


def test_every_dependency_is_pinned_within_its_range(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    pins = dict(
        re.fullmatch(r"([\w.-]+)==(\S+)", line).groups()  # type: ignore[union-attr]
        for line in (repository / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    extras = project["project"]["optional-dependencies"]
    texts = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    texts += [text for extra in extras.values() for text in extra]
    for requirement in map(Requirement, texts):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} against {version}"


def test_the_version_has_one_source(wheel: Path) -> None:
    assert wheel.name.startswith(f"varscale-{__version__}-")
