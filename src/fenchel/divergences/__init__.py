"""An f-divergence is data, and one record of it reaches every operator and loss."""

from fenchel.divergences.record import FDivergence
from fenchel.divergences.table import TABLE, alpha, divergence

__all__ = ["TABLE", "FDivergence", "alpha", "divergence"]
