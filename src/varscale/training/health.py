"""The health of a training run: losses and gradients that are not finite, loss spikes, gradient norms.

A step hands over its loss and its gradient norm as they lie on the device; they are read together every ``READ_EVERY``
steps, so that an accelerator is not stalled. A divergence is therefore found at most that many steps late. What was
read is part of a checkpoint, and reading comes first when one is written, so a checkpoint is always of a healthy state.
A loss is a spike above median + SPIKE_SIGMAS * 1.4826 MAD of the WINDOW losses before its group of steps (1.4826 MAD is
the standard deviation of a normal distribution, and outliers do not move it).
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varscale.data.order import batch_indices
from varscale.records import write_json
from varscale.training.ranks import mean_of_all

READ_EVERY = 20  # steps
WINDOW = 100  # losses
LEAST_WINDOW = 20  # losses, before which nothing is called a spike
SPIKE_SIGMAS = 6.0
DIVERGED_FILE = "diverged.json"


class DivergedError(RuntimeError):
    """A loss or a gradient is not finite.

    Attributes:
        step: the first such step, from 0: the one whose batch ``batch_indices`` gives.
        loss: its loss; None where only the held-out loss is not finite.
        grad_norm: its global gradient norm before clipping; None where it was not reached.
    """

    def __init__(self, message: str, *, step: int, loss: float | None, grad_norm: float | None):
        super().__init__(message)
        self.step, self.loss, self.grad_norm = step, loss, grad_norm


class Health:
    """Watches one run. Its state, once read, is plain numbers.

    Args:
        rate: the key and the value of the learning rate, for the message: ``optim.lr (0.01)``.
        scaled: whether a gradient scaler skips the steps whose gradient overflows (fp16): such a gradient is no
            divergence then.
    """

    def __init__(self, rate: str, *, scaled: bool = False):
        self.rate, self.scaled = rate, scaled
        self.losses: list[tuple[int, Tensor, bool]] = []
        self.norms: list[tuple[int, Tensor]] = []
        self.window: list[float] = []  # the last losses that were compared
        self.group: list[float] = []  # those since, not compared yet
        self.start_row()

    def start_row(self) -> None:
        """Begin the sums of the next row of the curve."""
        self.loss_sum = self.norm_sum = self.norm_max = 0.0
        self.loss_count = self.norm_count = self.spikes = 0

    def loss(self, step: int, value: Tensor, *, counted: bool = True) -> None:
        """The loss of ``step`` (of a part of its batch); one that is not ``counted`` only has to be finite."""
        self.losses.append((step, value.detach(), counted))

    def gradient(self, step: int, norm: Tensor) -> None:
        """The global gradient norm of ``step`` before clipping."""
        self.norms.append((step, norm.detach()))

    def read(self) -> None:
        """Fetch what has gathered on the device, in one transfer, as means over processes and parts of a batch.

        All processes call it after the same step. Raises ``DivergedError``, in all of them, for the first bad step.
        """
        if not self.losses and not self.norms:
            return
        gathered = [value for _, value, _ in self.losses] + [value for _, value in self.norms]
        numbers = mean_of_all(torch.stack([value.float() for value in gathered])).tolist()
        parts: dict[int, list[float]] = {}
        for (step, _, _), number in zip(self.losses, numbers, strict=False):
            parts.setdefault(step, []).append(number)
        of_step = {step: counted for step, _, counted in self.losses}
        losses = [(step, sum(each) / len(each), of_step[step]) for step, each in parts.items()]
        norms = [(step, number) for (step, _), number in zip(self.norms, numbers[len(self.losses) :], strict=True)]
        self.losses, self.norms = [], []
        bad = [step for step, number, _ in losses if not math.isfinite(number)]
        if not self.scaled:
            bad += [step for step, number in norms if not math.isfinite(number)]
        if bad:
            raise self.diverged(min(bad), losses, norms)
        for _, number, counted in losses:
            if counted:
                self.loss_sum += number
                self.loss_count += 1
                self.group.append(number)
                if len(self.group) == READ_EVERY:
                    self.compare()
        for _, number in norms:
            if math.isfinite(number):
                self.norm_sum += number
                self.norm_count += 1
                self.norm_max = max(self.norm_max, number)

    def diverged(
        self, step: int, losses: list[tuple[int, float, bool]], norms: list[tuple[int, float]]
    ) -> DivergedError:
        """The error that tells what happened at ``step``."""
        of_step = [number for at, number, _ in losses if at == step]
        loss = next((number for number in of_step if not math.isfinite(number)), of_step[-1] if of_step else None)
        norm = next((number for at, number in norms if at == step), None)
        what = f"loss at step {step} is {loss}"
        if loss is not None and math.isfinite(loss):
            what = f"gradient norm at step {step} is {norm}"
        return DivergedError(f"the {what}; lower {self.rate}", step=step, loss=loss, grad_norm=norm)

    def compare(self) -> None:
        """Count the spikes among the losses since the last comparison; from then on they belong to the window."""
        if len(self.window) >= LEAST_WINDOW:
            median = statistics.median(self.window)
            deviation = statistics.median(abs(loss - median) for loss in self.window)
            limit = median + SPIKE_SIGMAS * 1.4826 * deviation
            self.spikes += sum(loss > limit for loss in self.group)
        self.window = (self.window + self.group)[-WINDOW:]
        self.group = []

    def row(self) -> tuple[float | None, list[tuple[str, None, float]]]:
        """The mean loss since the last row (None when none was counted), and the other numbers of a curve's row.

        Those are ``grad_norm_mean`` and ``grad_norm_max`` before clipping, and ``loss_spikes``, a count.
        """
        self.read()
        if self.group:
            self.compare()
        mean = self.loss_sum / self.loss_count if self.loss_count else None
        values: list[tuple[str, None, float]] = []
        if self.norm_count:
            values += [("grad_norm_mean", None, self.norm_sum / self.norm_count)]
            values += [("grad_norm_max", None, self.norm_max)]
        if self.loss_count:
            values += [("loss_spikes", None, float(self.spikes))]
        self.start_row()
        return mean, values

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to write the same rows. Raises ``DivergedError`` when what it reads first is bad."""
        self.read()
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken."""
        for name in _STATE:
            setattr(self, name, state[name])


_STATE = ("window", "group", "loss_sum", "loss_count", "norm_sum", "norm_count", "norm_max", "spikes")


def write_divergence(
    folder: Path, error: DivergedError, *, seed: int, batch: int, size: int | None, checkpoint_step: int | None
) -> None:
    """Write ``diverged.json``: what was not finite, on which images, and from where training could be repeated.

    ``step`` counts from 0; ``loss`` and ``grad_norm`` are text where they are no JSON numbers. ``images`` are the
    numbers of the batch's images in the training split and ``epochs`` the pass of each, both functions of (seed, step).
    ``checkpoint_step`` is the last checkpoint's, None without one; its losses and gradients were finite.
    """
    images, epochs = batch_indices(seed=seed, step=error.step, batch=batch, size=size)
    values = {
        "step": error.step,
        "loss": _number(error.loss),
        "grad_norm": _number(error.grad_norm),
        "images": images.tolist(),
        "epochs": epochs.tolist(),
        "checkpoint_step": checkpoint_step,
    }
    write_json(folder / DIVERGED_FILE, values)


def _number(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
