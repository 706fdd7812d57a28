"""PowerLaw: L = (beta N)^alpha, a straight line in log-log.

Source: VAR, arXiv:2404.02905, sec. 4.2. Differs: L is the raw cross-entropy here; the paper plots it after taking off a
constant (5.0 nat for the average, 4.5 for the last scale), which decides the exponent. See ``offset.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from varscale_analysis.fit import Floats
from varscale_analysis.laws.law import Law


@dataclass(frozen=True)
class PowerLaw(Law):
    """L = (beta N)^alpha: beta > 0 in 1/parameter (or per ``per`` of them), alpha < 0 when the loss falls."""

    name = "power"
    formula = "L = (beta N)^alpha"
    has_offset = False

    def parameters(self, theta_B3: Floats, centre: float) -> dict[str, Floats]:
        """beta and alpha of each parameter vector."""
        log_beta = np.clip(self._log_beta(theta_B3, centre), -700.0, 700.0)
        return {"beta": np.exp(log_beta), "alpha": theta_B3[:, 2]}
