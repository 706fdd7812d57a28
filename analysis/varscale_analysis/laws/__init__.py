"""Laws of the loss, one file each."""

from varscale_analysis.laws.broken import BrokenPowerLaw
from varscale_analysis.laws.chinchilla import ChinchillaLaw
from varscale_analysis.laws.diagnostics import Diagnostics
from varscale_analysis.laws.error_rate import ErrorOfLossLaw, ErrorPowerLaw, ErrorSaturatingLaw
from varscale_analysis.laws.joint import JointLaw
from varscale_analysis.laws.law import Law
from varscale_analysis.laws.parameter import Parameter
from varscale_analysis.laws.power import PowerLaw, PrefactorLaw
from varscale_analysis.laws.repeated import RepeatedDataLaw, base_parameters
from varscale_analysis.laws.result import LawFit
from varscale_analysis.laws.saturating import SaturatingPowerLaw

__all__ = [
    "BrokenPowerLaw",
    "ChinchillaLaw",
    "Diagnostics",
    "ErrorOfLossLaw",
    "ErrorPowerLaw",
    "ErrorSaturatingLaw",
    "JointLaw",
    "Law",
    "LawFit",
    "Parameter",
    "PowerLaw",
    "PrefactorLaw",
    "RepeatedDataLaw",
    "SaturatingPowerLaw",
    "base_parameters",
]
