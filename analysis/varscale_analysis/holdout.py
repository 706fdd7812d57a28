"""Hold-out with pre-registration: a prediction for a size, written down before the size is measured, and its score.

A prediction carries the hash of the rows it was made from and whether rows of its size were already in the table, so a
reader can tell a registered prediction from leave-the-largest-out after the fact. Its file carries a hash of its own
content, date included: a number changed by hand is noticed, and who publishes the hash (in a log, a commit, a message)
can prove later what was predicted, and that it was before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from varscale_analysis.atomic import write_json
from varscale_analysis.fit import Floats
from varscale_analysis.laws.law import Law
from varscale_analysis.table import LEVEL, TOKENS_TOLERANCE, RunTable, RunTableError


class PredictionError(ValueError):
    """A prediction that cannot be made, read, replaced or compared: says which and the remedy."""


@dataclass(frozen=True)
class HoldoutScore:
    """What was measured at the predicted size, beside the prediction.

    Attributes:
        measured: mean over ``runs`` seeds, in the unit of the loss.
        error_percent: 100 (predicted / measured - 1).
        inside: whether the measured mean lies in the prediction interval.
        naive_error_percent: the same error for the rule "the loss of the previous size again".
        begun_before: how many of the runs had begun when the prediction was made, by ``created_utc``; runs without a
            date are not counted.
    """

    measured: float
    runs: int
    error_percent: float
    inside: bool
    naive_error_percent: float
    begun_before: int = 0

    @property
    def better_than_naive(self) -> bool:
        """Whether the law comes closer than repeating the previous size's loss."""
        return abs(self.error_percent) < abs(self.naive_error_percent)


@dataclass(frozen=True)
class Prediction:
    """A prediction of loss ``y`` at ``n_target``, with everything needed to check that it came first.

    Attributes:
        n, n_target: convention of N and the size. ``y``, ``y_unit``: the loss.
        value, low, high: prediction and its interval at ``level`` for the mean of ``seeds`` runs.
        law: its name. ``runs``, ``sizes``: what it was fitted to.
        params: the law's parameters at the time: E (in ``y_unit``, if it has one), beta (1/parameter), alpha.
        tokens: training tokens at which it holds.
        previous_n, previous_loss: the largest size used and its mean loss, the naive rule.
        rows_sha256: hash of the rows used; ``created_utc``: when.
        tokenizer_id, dataset_id: what the loss is measured with and on.
        measured_before: rows of the target or larger with a loss, finished and usable or not, already stood in the
            table: not a registered prediction.
        replaces: hash of the rows of a prediction this one was allowed to replace.
    """

    n: str
    n_target: float
    y: str
    y_unit: str
    value: float
    low: float
    high: float
    level: float
    seeds: int
    law: str
    params: Mapping[str, float]
    runs: int
    sizes: int
    tokens: float
    previous_n: float
    previous_loss: float
    rows_sha256: str
    tokenizer_id: str
    dataset_id: str
    created_utc: str
    measured_before: bool
    replaces: str | None = None

    @property
    def sha256(self) -> str:
        """Hash of everything above, as JSON with sorted keys."""
        content = {**vars(self), "params": dict(self.params)}
        return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with their hash."""
        return {**vars(self), "params": dict(self.params), "sha256": self.sha256}

    def write(self, path: Path | str, *, replace_other: bool = False) -> Prediction:
        """Write it as JSON and return what stands in the file.

        A prediction from the same rows, law and target that is already there is kept as it is (its date counts).
        Raises ``PredictionError`` if the file holds another one and ``replace_other`` is not set.
        """
        path, written = Path(path), self
        if path.exists():
            old = Prediction.read(path)
            if old.same_question(self) and old.rows_sha256 == self.rows_sha256:
                return old
            if not replace_other:
                raise PredictionError(
                    f"{path} already holds a prediction for N = {old.n_target:.6g} from other rows or another law "
                    f"({old.law}, rows {old.rows_sha256[:12]}, {old.created_utc}); keep it, or delete the "
                    "file to register anew"
                )
            written = replace(self, replaces=old.rows_sha256)
        write_json(path, written.to_dict())
        return written

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a prediction.

        Raises ``PredictionError`` for a missing file, one that holds something else, or one that was changed since.
        """
        try:
            values = json.loads(Path(path).read_text())
            written = values.pop("sha256", None)
            prediction = cls(**values)
        except FileNotFoundError:
            raise PredictionError(f"{path} does not exist; make a prediction with predict_holdout") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise PredictionError(f"{path} is not a prediction ({error}); delete it and predict again") from None
        if written != prediction.sha256:
            state = "carries no hash" if written is None else f"does not match its hash {written[:12]}"
            raise PredictionError(
                f"{path} {state} (its content has {prediction.sha256[:12]}), so it is not what was registered; restore "
                "the file, or delete it and predict again"
            )
        return prediction

    def law_at(self, n: ArrayLike) -> Floats:
        """The loss that the law behind the prediction gives at N."""
        log_n = np.log(np.asarray(n, dtype=np.float64))
        power = np.exp(self.params["alpha"] * (np.log(self.params["beta"]) + log_n))
        return np.asarray(self.params.get("E", 0.0) + power)

    def same_question(self, other: Prediction) -> bool:
        """Whether both predict the same loss of the same size by the same law."""
        return (self.n, self.n_target, self.y, self.law) == (other.n, other.n_target, other.y, other.law)

    def compare(self, measured: RunTable) -> HoldoutScore:
        """Score against the runs of the target size (their seed mean).

        Raises ``PredictionError`` when there is none, or when they were trained on other data, tokens or tokenizer.
        """
        table = RunTable(measured.usable)
        table = table.where(np.isclose(table.values(self.n), self.n_target, rtol=1e-6)) if len(table) else table
        if len(table) == 0:
            raise PredictionError(f"no finished run has {self.n} = {self.n_target:.6g}; train it, then collect")
        for name, wanted in (("tokenizer_id", self.tokenizer_id), ("dataset_id", self.dataset_id)):
            found = sorted(set(map(str, table.rows[name])))
            if found != [wanted]:
                raise PredictionError(f"predicted for {name} {wanted}, measured with {', '.join(found)}; measure alike")
        tokens = table.values("tokens_seen")
        if np.abs(tokens / self.tokens - 1).max() > TOKENS_TOLERANCE:
            raise PredictionError(
                f"predicted at D = {self.tokens:.6g} tokens, measured at {tokens.mean():.6g}; train to the same D"
            )
        value = float(table.values(self.y).mean())
        return HoldoutScore(
            measured=value,
            runs=len(table),
            error_percent=100 * (self.value / value - 1),
            inside=self.low <= value <= self.high,
            naive_error_percent=100 * (self.previous_loss / value - 1),
            begun_before=sum(_is_before(str(date), self.created_utc) for date in table.rows["created_utc"]),
        )

    def summary(self, score: HoldoutScore | None = None) -> str:
        """One or two lines: the prediction, and what was measured."""
        kind = "after the fact" if self.measured_before else f"registered {self.created_utc}"
        text = (
            f"hold-out ({kind}): {self.law} law of {self.sizes} sizes, {self.runs} runs predicts {self.y} = "
            f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}] {self.y_unit} at {self.n} = {self.n_target:,.0f}"
        )
        if score is None:
            return text
        text += (
            f"\n  measured {score.measured:.4f} ({score.runs} runs): error {score.error_percent:+.3f} %, "
            f"{'inside' if score.inside else 'OUTSIDE'} the {self.level:.0%} interval; repeating the previous size's "
            f"loss errs by {score.naive_error_percent:+.3f} %"
        )
        return text + (f"; {score.begun_before} had begun before the prediction" if score.begun_before else "")


def predict_holdout(
    table: RunTable,
    law: Law,
    n_target: float,
    *,
    y: str = "val_nats_per_token_avg",
    seeds: int = 1,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Prediction:
    """Predict the loss ``y`` at ``n_target`` from the smaller sizes only; larger rows in ``table`` are not looked at.

    ``law``, ``bootstrap`` and ``seed`` are of the fit. The interval is for the mean of ``seeds`` runs. Raises
    ``PredictionError`` when no size is smaller, otherwise what ``Law.fit`` and ``predict_interval`` raise.
    """
    law = replace(law, per=1.0)
    name = law.roles["n"]
    usable = RunTable(table.usable).comparable(fixed_tokens=False)
    size_n = usable.values(name)
    below = size_n < n_target * (1 - 1e-6)
    if not below.any():
        raise PredictionError(f"no finished run is smaller than {name} = {n_target:.6g}; train smaller sizes first")
    used = usable.where(below).comparable(fixed_tokens=True)
    fit = law.fit(used, y, bootstrap=bootstrap, seed=seed)
    low, high = fit.predict_interval(n_target, LEVEL, seeds)
    seen = (table.rows[name].to_numpy(np.float64) >= n_target * (1 - 1e-6)) & table.rows[y].notna().to_numpy()
    previous = float(used.values(name).max())
    last = used.values(name) == previous
    return Prediction(
        n=name,
        n_target=float(n_target),
        y=y,
        y_unit=fit.y_unit,
        value=float(fit.predict(n_target)),
        low=float(low),
        high=float(high),
        level=LEVEL,
        seeds=seeds,
        law=fit.law,
        params={name: parameter.value for name, parameter in fit.params.items()},
        runs=fit.rows,
        sizes=fit.sizes,
        tokens=float(used.values("tokens_seen").mean()),
        previous_n=previous,
        previous_loss=float(used.values(y)[last].mean()),
        rows_sha256=used.sha256(name, y),
        tokenizer_id=str(used.rows["tokenizer_id"].iloc[0]),
        dataset_id=str(used.rows["dataset_id"].iloc[0]),
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        measured_before=bool(seen.any()),
    )


def leave_largest_out(
    table: RunTable, law: Law, *, y: str = "val_nats_per_token_avg", bootstrap: int = 1000, seed: int = 0
) -> tuple[Prediction, HoldoutScore]:
    """Predict ``y`` at the largest size of ``table`` from the others, after the fact.

    ``law``, ``bootstrap`` and ``seed`` are of the fit. Raises as ``predict_holdout`` does, and ``RunTableError`` for a
    table without a finished run.
    """
    usable = RunTable(table.usable)
    if len(usable) == 0:
        raise RunTableError(["no finished run to hold out; run or resume the sweep"])
    size_n = usable.values(law.roles["n"])
    seeds = int((size_n == size_n.max()).sum())
    prediction = predict_holdout(usable, law, float(size_n.max()), y=y, seeds=seeds, bootstrap=bootstrap, seed=seed)
    return prediction, prediction.compare(usable)


def _is_before(date: str, other: str) -> bool:
    """Whether one ISO date lies before another; not where it is none, or has no time zone to compare by."""
    try:
        return datetime.fromisoformat(date) < datetime.fromisoformat(other)
    except (TypeError, ValueError):
        return False
