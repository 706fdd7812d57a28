"""SaturatingPowerLaw: L = E + (beta N)^alpha, a power law above an offset that no size gets below.

Source: Henighan et al., arXiv:2010.14701, eq. 1.1; in the sign convention of VAR (alpha < 0). E and alpha belong to the
number of training tokens at which the runs were made: both move when D grows, so every fit carries its D.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from varscale_analysis.fit import Floats
from varscale_analysis.laws.law import Law


@dataclass(frozen=True)
class SaturatingPowerLaw(Law):
    """L = E + (beta N)^alpha: E >= 0 in nats per token, beta in 1/parameter (or per ``per``), alpha < 0."""

    name = "saturating"
    formula = "L = E + (beta N)^alpha"
    has_offset = True

    def parameters(self, theta_B3: Floats, centre: float) -> dict[str, Floats]:
        """E, beta and alpha of each parameter vector."""
        log_beta = np.clip(self._log_beta(theta_B3, centre), -700.0, 700.0)
        return {"E": theta_B3[:, 0], "beta": np.exp(log_beta), "alpha": theta_B3[:, 2]}
