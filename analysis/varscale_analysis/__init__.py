"""Scaling laws of visual autoregressive models from a run table, with numpy, scipy, pandas and matplotlib: no torch."""

from varscale_analysis.analysis import analyse
from varscale_analysis.belief import Guess
from varscale_analysis.candidates import Budget, Candidates
from varscale_analysis.certificate import Certificate
from varscale_analysis.checks import StudyChecks
from varscale_analysis.compare import FamilyComparison, Multiplier, compare_families
from varscale_analysis.conventions import ConventionTable, analyse_conventions
from varscale_analysis.curve_set import CurveSet
from varscale_analysis.curves import Curves, CurvesError
from varscale_analysis.design import DesignedRun, SweepDesign, design_sweep
from varscale_analysis.envelope import Envelope, Vertex
from varscale_analysis.fit import FitError
from varscale_analysis.flatness import Flatness, MissCost, flatness_of, flatness_table
from varscale_analysis.frontier import Frontier
from varscale_analysis.goal import Goal
from varscale_analysis.holdout import HoldoutScore, Prediction, PredictionError, leave_largest_out, predict_holdout
from varscale_analysis.holdout_scores import Coverage, RollingComparison, RollingHoldout, RollingRow
from varscale_analysis.isoflop import IsoflopProfile
from varscale_analysis.lack_of_fit import LackOfFit, lack_of_fit
from varscale_analysis.laws import (
    BrokenPowerLaw,
    ChinchillaLaw,
    ErrorOfLossLaw,
    ErrorPowerLaw,
    ErrorSaturatingLaw,
    JointLaw,
    Law,
    LawFit,
    Parameter,
    PowerLaw,
    PrefactorLaw,
    RepeatedDataLaw,
    SaturatingPowerLaw,
    base_parameters,
)
from varscale_analysis.lr import LearningRateScan, RateProfile
from varscale_analysis.objective import Objective, huber, least_absolute_deviations, quantile, squares
from varscale_analysis.offset import ExponentAtOffset, exponent_against_offset
from varscale_analysis.optima import Allocation, Optimum
from varscale_analysis.parametric import ComputeCost
from varscale_analysis.profile import Profile, profile_of
from varscale_analysis.rehearsal import ExpectedInterval
from varscale_analysis.report import ReportError, ReportImage, write_report
from varscale_analysis.rolling import compare_rolling, rolling_holdout
from varscale_analysis.routes import RouteComparison, compare_frontiers
from varscale_analysis.selection import LawScore, LikelihoodRatio, compare_laws, likelihood_ratio
from varscale_analysis.sensitivity import Sensitivity, sensitivity_of
from varscale_analysis.study import StudyAnalysis
from varscale_analysis.table import RunTable, RunTableError
from varscale_analysis.trend import Estimate, Trend

__version__ = "0.1.0"

__all__ = [
    "Allocation",
    "BrokenPowerLaw",
    "Budget",
    "Candidates",
    "Certificate",
    "ChinchillaLaw",
    "ComputeCost",
    "ConventionTable",
    "Coverage",
    "CurveSet",
    "Curves",
    "CurvesError",
    "DesignedRun",
    "Envelope",
    "ErrorOfLossLaw",
    "ErrorPowerLaw",
    "ErrorSaturatingLaw",
    "Estimate",
    "ExpectedInterval",
    "ExponentAtOffset",
    "FamilyComparison",
    "FitError",
    "Flatness",
    "Frontier",
    "Goal",
    "Guess",
    "HoldoutScore",
    "IsoflopProfile",
    "JointLaw",
    "LackOfFit",
    "Law",
    "LawFit",
    "LawScore",
    "LearningRateScan",
    "LikelihoodRatio",
    "MissCost",
    "Multiplier",
    "Objective",
    "Optimum",
    "Parameter",
    "PowerLaw",
    "Prediction",
    "PredictionError",
    "PrefactorLaw",
    "Profile",
    "RateProfile",
    "RepeatedDataLaw",
    "ReportError",
    "ReportImage",
    "RollingComparison",
    "RollingHoldout",
    "RollingRow",
    "RouteComparison",
    "RunTable",
    "RunTableError",
    "SaturatingPowerLaw",
    "Sensitivity",
    "StudyAnalysis",
    "StudyChecks",
    "SweepDesign",
    "Trend",
    "Vertex",
    "analyse",
    "analyse_conventions",
    "base_parameters",
    "compare_families",
    "compare_frontiers",
    "compare_laws",
    "compare_rolling",
    "design_sweep",
    "exponent_against_offset",
    "flatness_of",
    "flatness_table",
    "huber",
    "lack_of_fit",
    "least_absolute_deviations",
    "leave_largest_out",
    "likelihood_ratio",
    "predict_holdout",
    "profile_of",
    "quantile",
    "rolling_holdout",
    "sensitivity_of",
    "squares",
    "write_report",
]
