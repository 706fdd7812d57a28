"""Figures of results, as a paper prints them: functions that take a result and return a matplotlib ``Figure``.

``figure.savefig("law.pdf")`` writes one. matplotlib is imported with this room, not with the package.
"""

from varscale_analysis.figures.comparisons import conventions_figure, families_figure, sensitivity_figure
from varscale_analysis.figures.frontiers import curves_figure, flatness_figure, isoflop_figure, routes_figure
from varscale_analysis.figures.holdouts import holdout_figure, rolling_figure
from varscale_analysis.figures.identification import exponent_figure, profile_figure, ridge_figure
from varscale_analysis.figures.laws import chinchilla_figure, law_figure, per_scale_figure, residual_figure
from varscale_analysis.figures.rates import rates_figure
from varscale_analysis.figures.style import png

__all__ = [
    "chinchilla_figure",
    "conventions_figure",
    "curves_figure",
    "exponent_figure",
    "families_figure",
    "flatness_figure",
    "holdout_figure",
    "isoflop_figure",
    "law_figure",
    "per_scale_figure",
    "png",
    "profile_figure",
    "rates_figure",
    "residual_figure",
    "ridge_figure",
    "rolling_figure",
    "routes_figure",
    "sensitivity_figure",
]
