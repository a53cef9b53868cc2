"""Optimal transport between two measures, with an entropy, a quadratic term or a bound on the nonzeros."""

from fenchel.operators.transport.entropic import entropic_transport
from fenchel.operators.transport.problem import Transport
from fenchel.operators.transport.quadratic import quadratic_transport
from fenchel.operators.transport.sparse import sparse_transport

__all__ = ["Transport", "entropic_transport", "quadratic_transport", "sparse_transport"]
