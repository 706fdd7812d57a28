"""Where the configuration lives: ``conf/`` and ``sweeps/`` beside the checkout, or inside the installed package.

An editable install reads the checkout; the wheel carries both folders as ``varscale/_resources`` (hatch_build.py).
"""

from __future__ import annotations

from pathlib import Path

STANDALONE = "standalone"  # the folder in conf/ of verbs that belong to no study


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


def conf_folder(verb: str) -> Path:
    """The folder of a verb's root config: ``conf/``, and for a verb of no study ``conf/standalone/``.

    There ``tokenizer=FILE`` is a key; beside the folder ``conf/tokenizer/`` Hydra would take it for the group.
    """
    conf = resources_root() / "conf"
    return conf / STANDALONE if (conf / STANDALONE / f"{verb}.yaml").exists() else conf


def group_choices(root: Path) -> dict[str, tuple[str, ...]]:
    """The groups under ``conf/``, and ``sweeps``, each with the names of its YAML files, sorted.

    ``sweeps/wandb_*.yaml`` are for W&B's own sweeper and no choices.
    """
    groups = sorted(path for path in (root / "conf").iterdir() if path.is_dir() and path.name != STANDALONE)
    folders = [*groups, root / "sweeps"]
    return {
        folder.name: tuple(sorted(file.stem for file in folder.glob("*.yaml") if not file.stem.startswith("wandb_")))
        for folder in folders
    }
