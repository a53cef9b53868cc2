"""Decoding: logits to logits, and energies to configurations."""

from fenchel.decoding.configurations import best_configuration, gibbs_marginals, local_search
from fenchel.decoding.matching import matching_logits

__all__ = ["best_configuration", "gibbs_marginals", "local_search", "matching_logits"]
