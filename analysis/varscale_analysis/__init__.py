"""Scaling laws of visual autoregressive models from a run table, with numpy, scipy, pandas and matplotlib: no torch."""

from varscale_analysis.curves import Curves, CurvesError
from varscale_analysis.fit import FitError
from varscale_analysis.frontier import Frontier, Vertex
from varscale_analysis.holdout import HoldoutScore, Prediction, PredictionError, leave_largest_out, predict_holdout
from varscale_analysis.laws import Law, LawFit, Parameter, PowerLaw, SaturatingPowerLaw
from varscale_analysis.offset import ExponentAtOffset, exponent_against_offset
from varscale_analysis.report import ReportError, ReportImage, write_report
from varscale_analysis.study import StudyAnalysis, analyse
from varscale_analysis.table import RunTable, RunTableError

__version__ = "0.1.0"

__all__ = [
    "Curves",
    "CurvesError",
    "ExponentAtOffset",
    "FitError",
    "Frontier",
    "HoldoutScore",
    "Law",
    "LawFit",
    "Parameter",
    "PowerLaw",
    "Prediction",
    "PredictionError",
    "ReportError",
    "ReportImage",
    "RunTable",
    "RunTableError",
    "SaturatingPowerLaw",
    "StudyAnalysis",
    "Vertex",
    "analyse",
    "exponent_against_offset",
    "leave_largest_out",
    "predict_holdout",
    "write_report",
]
