"""A verb's configuration within a program, checked as the command line checks it.

with composing():
    cfg, _ = compose("train", ["sweeps=quickstart", "model.width=8"])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from varscale.app.config import checked, reference
from varscale.app.entry import SweepsSearchPath
from varscale.app.launcher import register
from varscale.app.resources import resources_root


@contextmanager
def composing() -> Iterator[None]:
    """Hydra as the verbs of a study have it; afterwards ``HydraConfig`` is what it was."""
    Plugins.instance().register(SweepsSearchPath)
    register()
    before = HydraConfig.instance().cfg
    try:
        with initialize_config_dir(config_dir=str(resources_root() / "conf"), version_base="1.3"):
            yield
    finally:
        HydraConfig.instance().cfg = before


def compose(verb: str, overrides: Sequence[str], output_dir: str = "outputs") -> tuple[DictConfig, DictConfig]:
    """The checked configuration of a run in ``output_dir``, and Hydra's node; to be called within `composing`.

    Until then ``HydraConfig`` is that of this run, so that a verb's ``main(cfg)`` can be called. Raises ``ConfigError``
    and what Hydra raises.
    """
    composed = GlobalHydra.instance().config_loader().load_configuration(verb, list(overrides), run_mode=RunMode.RUN)
    OmegaConf.set_struct(composed, False)
    composed.hydra.runtime.output_dir = output_dir
    HydraConfig.instance().set_config(composed)
    node = composed.pop("hydra")
    return checked(composed, reference(node)), node
