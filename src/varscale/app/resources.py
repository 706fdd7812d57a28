"""Where the configuration lives: ``conf/`` and ``sweeps/`` beside the checkout, or inside the installed package.

An editable install reads the checkout; the wheel carries both folders as ``varscale/_resources`` (hatch_build.py).
"""

from __future__ import annotations

from pathlib import Path


def resources_root() -> Path:
    """The absolute folder that with ``conf/`` and ``sweeps/``. Raises ``ValueError`` when neither place has them."""
    package = Path(__file__).resolve().parents[1]
    for root in (package / "_resources", package.parents[1]):
        if (root / "conf").is_dir() and (root / "sweeps").is_dir():
            return root
    raise ValueError(
        f"conf/ and sweeps/ are neither in {package / '_resources'} nor in {package.parents[1]}; "
        "install varscale from its wheel, or with pip install -e from a whole checkout"
    )


def group_choices(root: Path) -> dict[str, tuple[str, ...]]:
    """The groups under ``conf/``, and ``sweeps``, each with the names of its YAML files, sorted."""
    folders = [*sorted(path for path in (root / "conf").iterdir() if path.is_dir()), root / "sweeps"]
    return {folder.name: tuple(sorted(file.stem for file in folder.glob("*.yaml"))) for folder in folders}
