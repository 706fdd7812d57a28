"""Runs Hydra for a verb: composes, checks, calls the verb's ``main(cfg)``, and turns errors into exit codes.

Exit codes: 0 done; 1 failed (with a traceback, or a sweep with a failed run); 2 an error of the user's, told in one
message without a traceback (HYDRA_FULL_ERROR=1 shows it); 130 interrupted or at its time limit (the same command
continues it).
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from varscale.app import resources
from varscale.app.cli import VERBS
from varscale.app.config import ConfigError, checked, compact, did_you_mean, keys, reference
from varscale.app.jobs import SweepError
from varscale.app.launcher import register
from varscale.app.sweeps import open_keys

_OURS = ("varscale", "varscale_analysis")
_MAKE_FOLDERS = ("hydra.core.utils", "hydra._internal.core_plugins.basic_sweeper")  # of a run, of a sweep
__all__ = ["ConfigError", "run_verb"]


class SweepsSearchPath(SearchPathPlugin):
    """Adds the folder that contains ``sweeps/``, and a folder of the user's (--config-dir), as absolute paths.

    A relative path would depend on the current directory: a sweep that is not found could become one ad-hoc run.
    """

    user_folder: Path | None = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("varscale", f"file://{resources.resources_root()}")
        if self.user_folder is not None:
            search_path.append("command-line", f"file://{self.user_folder}")


def run_verb(verb: str, argv: Sequence[str]) -> int:
    """Run a verb with Hydra's overrides and flags (-m, --cfg, --resolve, --package, --config-dir, --info).

    Returns the exit code; see the file's header. An exception that is not the user's is printed with its traceback.
    """
    with _termination_as_interrupt():
        try:
            return _run(verb, argv)
        except KeyboardInterrupt:
            return _interrupted(verb)
        except SystemExit as leaving:
            # Lightning answers Ctrl-C with exit(1), once its callbacks have written their checkpoints.
            if isinstance(leaving.__context__, KeyboardInterrupt):
                return _interrupted(verb)
            raise
        except SweepError as failure:
            print(f"varscale {verb}: {failure}", file=sys.stderr)
            return 1
        except Exception as error:
            message = user_message(error)
            if message is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
                traceback.print_exception(error)
            if message is None:
                return 1
            print(f"varscale {verb}: {message}", file=sys.stderr)
            return 2


def user_message(error: BaseException) -> str | None:
    """The message of an error that a user can put right, or None when it is a fault of the program.

    User errors are Hydra's (composition, overrides), the ``ValueError`` classes that varscale defines, a plain
    ``ValueError`` raised in the code of varscale or Hydra, and a folder that Hydra cannot make. An error below
    ``hydra.utils.instantiate`` counts as itself.
    """
    where = ""
    while isinstance(error, InstantiationException):
        where = match[0] + ": " if (match := re.search(r"(?<=full_key: )\S+", str(error))) else where
        if error.__cause__ is None:
            return str(error)
        error = error.__cause__
    if isinstance(error, HydraException):
        cause = error.__cause__
        detail = f"\n{cause}" if isinstance(cause, OmegaConfBaseException) and str(cause) not in str(error) else ""
        return f"{error}{detail}"
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    makers = [name for name in modules if name != "pathlib"][-1:]
    if isinstance(error, OSError) and makers and makers[0] in _MAKE_FOLDERS:
        return f"{error.filename} cannot be written ({error.strerror}); choose another folder: paths.outputs=FOLDER"
    if isinstance(error, ValueError):
        origin = modules[-1] if modules else ""
        if type(error).__module__.split(".")[0] in _OURS or (
            type(error) is ValueError and origin.split(".")[0] in (*_OURS, "hydra")
        ):
            return f"{where}{error}"
    return None


def _run(verb: str, argv: Sequence[str]) -> int:
    flags = get_args_parser().parse_args(list(argv))
    if flags.multirun and verb != "train":
        raise ConfigError(
            f"-m starts every run of a sweep, for varscale train; varscale {verb} takes sweeps=NAME without"
        )
    if flags.config_dir is not None:
        folder = Path(flags.config_dir).absolute()
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {folder} is not a folder")
        SweepsSearchPath.user_folder = folder
    else:
        SweepsSearchPath.user_folder = None
    Plugins.instance().register(SweepsSearchPath)
    register()
    with initialize_config_dir(config_dir=str(resources.conf_folder(verb)), job_name=verb, version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            if flags.cfg is not None:
                hydra.show_cfg(verb, flags.overrides, flags.cfg, flags.package, flags.resolve)
                return 0
            if flags.info is not None:
                hydra.show_info(flags.info, config_name=verb, overrides=flags.overrides)
                return 0
            if flags.multirun:
                batches = hydra.multirun(verb, _call, [*flags.overrides, "hydra.mode=MULTIRUN"])
                jobs = [job for batch in batches for job in batch]
            else:
                jobs = [hydra.run(verb, _call, [*flags.overrides, "hydra.mode=RUN"])]
        except HydraException as error:
            raise ConfigError(_explain(error, verb)) from error
        except OmegaConfBaseException as error:  # in hydra's own node; the rest is checked in _call
            raise ConfigError(compact(error)) from error
    for job in jobs:
        if isinstance(job.return_value, Exception):
            raise job.return_value
    return 0


def _call(cfg: DictConfig) -> Exception | None:
    """Hydra's task: returns an exception of the verb instead of raising, since Hydra would print a line of its own."""
    try:
        hydra = HydraConfig.instance().cfg.hydra  # type: ignore[union-attr]
        config = checked(cfg, reference(hydra))
        if hydra.mode == RunMode.RUN:
            _refuse_half_a_sweep(hydra)
        verb = hydra.job.config_name
        importlib.import_module(f"varscale.app.{VERBS[verb].module or verb}").main(config)
    except Exception as error:
        return error
    return None


def _refuse_half_a_sweep(hydra: DictConfig) -> None:
    """``varscale train sweeps=NAME`` without -m would quietly be one run with the root's values."""
    if hydra.job.config_name != "train":
        return
    if missing := open_keys(hydra):
        raise ConfigError(
            f"sweeps={hydra.runtime.choices.get('sweeps')} plans several runs; start them all with "
            f"varscale train -m sweeps=..., or one of them by giving {' and '.join(missing)}"
        )


def _explain(error: HydraException, verb: str) -> str:
    """Hydra's error with the nearest name that exists; must be called while Hydra is initialised."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None and error.options is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = [option for option in error.options if option]
        group = group.lstrip("/")
        return (
            f"{group}={name}: there is no {group}/{name}.yaml.{did_you_mean(name, options)}\n"
            f"The choices of {group} are: {', '.join(options) or 'none'}"
        )
    if match := re.search(r"Could not override '([^']+)'", str(error)):
        loader = GlobalHydra.instance().config_loader()
        composed = loader.load_configuration(verb, [], run_mode=RunMode.RUN)
        plain: Any = OmegaConf.to_container(composed, resolve=False)
        groups = [group for group in composed.hydra.runtime.choices if not group.startswith("hydra/")]
        known = [*groups, *(key for key in keys(plain) if match[1].startswith("hydra") or not key.startswith("hydra"))]
        return f"the configuration has no key {match[1]}.{did_you_mean(match[1], known)}"
    return user_message(error) or str(error)


def _interrupted(verb: str) -> int:
    print(f"\nvarscale {verb}: interrupted; type the same command again to continue.", file=sys.stderr)
    return 130


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM (from Slurm, a shell, a supervisor) takes the way of Ctrl-C: checkpoint, stop the children."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
