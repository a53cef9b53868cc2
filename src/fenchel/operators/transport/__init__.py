"""Optimal transport between two measures, with an entropy, a quadratic term or a bound on the nonzeros."""

from fenchel.operators.transport.entropic import entropic_transport
from fenchel.operators.transport.problem import Transport

__all__ = ["Transport", "entropic_transport"]
