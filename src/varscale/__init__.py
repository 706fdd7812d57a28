"""varscale: a scaling-law experiment suite for visual autoregressive (VAR) image models."""

__version__ = "0.1.0"
