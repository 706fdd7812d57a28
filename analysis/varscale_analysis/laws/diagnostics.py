"""Diagnostics: what is left of the data after a fit, and how its draws went."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Diagnostics:
    """What is left of the data after the fit, and how its draws went.

    Attributes:
        objective: the minimum, summed over the points.
        rms: root mean square residual, on the scale of the objective (log: a fraction of y).
        degrees_of_freedom: points minus free parameters.
        log_likelihood: of y under the error density that belongs to the objective, its scale fitted; see
            ``selection.log_likelihood``.
        draws_asked, draws: refits asked for, and those that are certified and kept.
        draws_checked, draws_agreeing: draws fitted again from many starts, and those that end where they were.
        seed_sd, size_sd, lack_of_fit_p: see ``NoiseModel``; None without a degree of freedom.
        pearson_r: correlation of log x and log y. Printed, not evidence: it stays above .99 for wrong offsets. None
            for laws of several columns.
        pearson_r_offset: the same after the offset is taken off; None for a law without one.
    """

    objective: float
    rms: float
    degrees_of_freedom: int
    log_likelihood: float
    draws_asked: int
    draws: int
    draws_checked: int
    draws_agreeing: int
    seed_sd: float | None
    size_sd: float | None
    lack_of_fit_p: float | None
    pearson_r: float | None
    pearson_r_offset: float | None
