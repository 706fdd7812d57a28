"""The command line: ``varscale VERB [overrides]``. Explains itself without importing torch or Hydra.

A verb is the module ``varscale.app.VERB`` with ``main(cfg)``; `varscale.app.entry` composes its configuration from
``conf/VERB.yaml`` and checks it against a class of `varscale.app.schema`.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from varscale import __version__


@dataclass(frozen=True)
class Verb:
    """What a verb does, in a line and in full, and how it is called.

    ``module`` is its module where that cannot bear the verb's name, ``schema`` the class of its configuration; only a
    verb of a study has the groups.
    """

    summary: str
    text: str
    examples: tuple[str, ...]
    module: str | None = None
    schema: str = "StudyConfig"


VERBS = {
    "quickstart": Verb(
        "from pixels to a scaling law: all verbs below in a row",
        "Trains a tokenizer, caches its tokens, trains the ladder of the sweep, collects the runs, fits the laws and\n"
        "writes the report. What is finished already is skipped, so typing the command again continues it.",
        ("varscale quickstart", "varscale quickstart data=cifar10 sweeps=cifar10"),
    ),
    "tokenizer": Verb(
        "train the tokenizer (stage 1)",
        "Trains the multi-scale autoencoder on images and stores it in the study's folder.",
        ("varscale tokenizer", "varscale tokenizer data=cifar10"),
    ),
    "cache": Verb(
        "encode images to tokens, once for all runs",
        "Writes the token maps of the data set, with checksums, so that training needs no tokenizer.\n"
        "An interrupted cache is continued. With trainer.devices=N, N processes divide the work, also as tasks of\n"
        "torchrun or Slurm; on several machines, which share the folder, with trainer.num_nodes as well.",
        ("varscale cache", "varscale cache data=cifar10", "varscale cache data=imagenet trainer=gpu trainer.devices=8"),
    ),
    "train": Verb(
        "train a transformer (stage 2); with -m sweeps=NAME, all runs of a sweep",
        "Trains one model and records run.json and curve.csv. With -m every run of the sweep is a process of its own,\n"
        "several side by side (launcher=slurm: a job of the cluster); finished runs are skipped, the others continued.",
        ("varscale train model.width=32 seed=1", "varscale train -m sweeps=quickstart"),
    ),
    "status": Verb(
        "how the runs of a study or a sweep stand",
        "Prints each run's state, step, loss, speed, time left and crashes, those included that have not begun.\n"
        "Keys: status.watch (seconds between two looks), status.json.",
        ("varscale status sweeps=depth", "varscale status sweeps=depth status.watch=5"),
    ),
    "plan": Verb(
        "what a sweep would cost, before anything is spent",
        "Prints parameters, FLOPs, tokens, and the memory and time expected, for every run of a sweep.",
        ("varscale plan sweeps=depth",),
    ),
    "sample": Verb(
        "draw images from a trained model",
        "Draws with guidance, top-k and top-p, and writes the images as one picture and the coarse-to-fine strip of\n"
        "the first; with sample.format=png or npz any number of images, which an interrupted command continues.",
        (
            "varscale sample",
            "varscale sample sample.run=models/var_d16 sample.format=npz sample.out=fid sample.per_class=50 "
            "sample.top_k=900 sample.top_p=0.96",
        ),
    ),
    "edit": Verb(
        "in-painting, out-painting and class-conditional editing of an image",
        "Keeps the tokens of one region of the image and draws the others anew, without training. Writes the image,\n"
        "the selection and the results side by side, and each result.",
        (
            "varscale edit edit.run=models/var_d16 edit.image=photo.jpg 'edit.box=[0.25,0.25,0.75,0.75]'",
            "varscale edit edit.run=models/var_d16 edit.image=photo.jpg edit.mask=m.png edit.mode=outpaint",
            "varscale edit edit.run=models/var_d16 edit.image=photo.jpg edit.mask=m.png edit.mode=class edit.label=7",
        ),
    ),
    "inspect": Verb(
        "what a model sees: coarse-to-fine animation, attention maps",
        "Decodes images after each scale, and shows what their tokens attend to, head by head and scale by scale: of\n"
        "images drawn from the model, held-out images, or an image file.",
        (
            "varscale inspect",
            "varscale inspect inspect.run=models/var_d16 inspect.image=photo.jpg 'inspect.queries=[[9,8,8],[5,2,3]]'",
            "varscale inspect inspect.held_out=0 inspect.block=1",
        ),
    ),
    "import": Verb(
        "read released VAR checkpoints into a model folder",
        "Reads transformer and tokenizer by their released names (.pth or .safetensors; nothing is executed), and\n"
        "writes a folder that sample, edit and export take, and cache and train as paths.tokenizer.\n"
        "Keys: tokenizer, model, out, schedule (256, 512, or 1-2-3-...; where the file does not tell it), hub and\n"
        "revision (a Hub repository that tokenizer and model are files of).",
        (
            "varscale import tokenizer=vae_ch160v4096z32.pth model=var_d16.pth out=models/var_d16",
            "varscale import hub=FoundationVision/var tokenizer=vae_ch160v4096z32.pth model=var_d16.pth out=models/d16",
        ),
        module="importing",
        schema="ImportConfig",
    ),
    "export": Verb(
        "write a trained model for others: released names, or a folder with a model card",
        "Takes a finished run, or a model folder, and writes var.pth and vae.pth (or .safetensors) by the released\n"
        "names, or a model folder, each with a model card.\n"
        "Keys: run, out, format (pth, safetensors, varscale), paths.tokenizer (where the run's own has moved).",
        (
            "varscale export 'run=\"outputs/depth/runs/model.depth=16,seed=0\"' out=var_d16 format=pth",
            "varscale export run=models/var_d16 out=shared/var_d16 format=safetensors",
        ),
        module="exporting",
        schema="ExportConfig",
    ),
    "collect": Verb(
        "merge the records of all runs into runs.csv and curves.csv",
        "Reads run.json and curve.csv of every run of the study. A run that cannot be read is named with the reason.\n"
        "With source=wandb it reads a W&B project instead; one that varscale did not write by a map of its columns.",
        (
            "varscale collect",
            "varscale collect source=wandb project=team/varscale study=depth",
            "varscale collect source=wandb project=team/lm study=lm "
            "'collect.columns={params_total: n_params, tokens_seen: tokens, val_nats_per_token_avg: eval.loss}'",
        ),
    ),
    "fit": Verb(
        "fit the laws and the compute frontier to runs.csv",
        "Fits with bootstrap intervals, and predicts the largest size from the others.",
        ("varscale fit",),
    ),
    "design": Verb(
        "propose the next sweep: sizes, tokens and seeds that narrow a number most for a budget",
        "Takes a law (design.law=fit.json) or a guess, a budget in FLOP, GPU-hours or money, and the noise of a run;\n"
        "says how narrow the exponent, E, the optimal size of a budget or a loss would become, checks that on\n"
        "simulated sweeps, and writes sweeps/NAME.yaml. How its runs are trained is said as for plan;\n"
        "conf/design.yaml lists the keys.",
        (
            "varscale design sweeps=quickstart design.law=outputs/quickstart/fit.json design.budget=2e13",
            "varscale design experiment=var_clean 'design.guess={E: 5.2, A: 480, B: 2100, alpha: 0.35, beta: 0.37}' "
            "design.noise=0.002 design.goal=n_opt design.at=1e22 design.gpu_hours=5000 design.device=h100",
        ),
        schema="DesignConfig",
    ),
    "dashboard": Verb(
        "create a W&B workspace with the panels of a scaling study",
        "Creates a workspace in the project logger.project: losses against tokens and FLOPs, loss of each scale,\n"
        "gradient norm, throughput, runs by size. Needs pip install 'varscale[dashboard]' and a W&B login.",
        ("varscale dashboard sweeps=depth",),
    ),
    "report": Verb(
        "figures and a self-contained report.html",
        "Writes the table, the laws, the figures and the images of the study as one file.",
        ("varscale report",),
    ),
}

OPTIONS = """\
options:
  KEY=VALUE            override a value of the configuration, e.g. seed=1
  GROUP=NAME           choose a file of a group, e.g. data=cifar10
  -m, --multirun       of train: start every run of a sweep (sweeps=NAME, or KEY=a,b,c)
  --cfg job            print the composed configuration and stop (--resolve fills interpolations in)
  -cd, --config-dir D  look for groups in folder D as well, e.g. your own D/sweeps/mine.yaml
  --help, --version"""


def overview() -> str:
    """The text of ``varscale --help``."""
    lines = [
        f"varscale {__version__}: scaling-law experiments with visual autoregressive image models",
        "",
        "usage: varscale VERB [overrides]",
        "",
        "verbs:",
        *(f"  {name:<11} {verb.summary}" for name, verb in VERBS.items()),
        "",
        OPTIONS,
        "",
        "examples:",
        "  varscale quickstart                     a measured scaling law on two CPU cores",
        "  varscale plan sweeps=depth              what the sweep over depth would cost",
        "  varscale train -m sweeps=quickstart     all runs of a sweep, side by side",
        "  varscale train --help                   about one verb, with the choices of every group",
    ]
    return "\n".join(lines)


def describe(name: str) -> str:
    """The text of ``varscale VERB --help``: the verb, its examples, the choices of every group."""
    from varscale.app.resources import group_choices, resources_root

    root = resources_root()
    verb = VERBS[name]
    groups: list[str] = []
    if verb.schema == "StudyConfig":
        groups = [f"groups (in {root}):"]
        groups += [f"  {group:<11} {', '.join(choices)}" for group, choices in group_choices(root).items()] + [""]
    lines = [
        f"usage: varscale {name} [overrides]",
        "",
        verb.text,
        "",
        "examples:",
        *(f"  {example}" for example in verb.examples),
        "",
        *groups,
        OPTIONS,
    ]
    return "\n".join(lines)


def suggestion(word: str, known: Sequence[str]) -> str:
    """`` Did you mean X?`` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (by default the process's own). Returns the exit code: 0, 1 failed, 2 user error, 130."""
    from varscale.app.processes import follow_parent

    follow_parent()
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(overview())
        return 0
    if arguments[0] in ("--version", "-V"):
        print(f"varscale {__version__}")
        return 0
    name, *overrides = arguments
    if name not in VERBS:
        print(f"varscale: there is no verb {name!r}.{suggestion(name, list(VERBS))}", file=sys.stderr)
        print(f"The verbs are {', '.join(VERBS)}; see varscale --help.", file=sys.stderr)
        return 2
    if {"--help", "-h"} & set(overrides):
        print(describe(name))
        return 0
    from varscale.app.entry import run_verb

    return run_verb(name, overrides)
