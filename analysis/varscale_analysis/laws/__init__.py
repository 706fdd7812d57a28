"""Laws of the loss, one file each."""

from varscale_analysis.laws.law import Law
from varscale_analysis.laws.power import PowerLaw
from varscale_analysis.laws.result import Diagnostics, LawFit, Parameter
from varscale_analysis.laws.saturating import SaturatingPowerLaw

__all__ = ["Diagnostics", "Law", "LawFit", "Parameter", "PowerLaw", "SaturatingPowerLaw"]
