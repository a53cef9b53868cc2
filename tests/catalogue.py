"""The public list over which the contracts run."""

from __future__ import annotations

from fenchel import FDivergence
from fenchel.divergences import TABLE

ORDERS = ("-1", "0", "0.5", "0.9", "1", "1.1", "1.5", "2")
NAMES = [*TABLE, *(f"alpha:{a}" for a in ORDERS)]
STEEP = ["alpha:3"]  # unbounded derivative at the threshold
SPARSE = ["chi2", "alpha:1.1", "alpha:1.5", "alpha:2"]
OWN = FDivergence("own", lambda u: (u - 1) ** 2 * (1 + 0 * u) + 0.1 * (u * u.log() - u + 1))
