"""Decoding: logits to logits."""

from fenchel.decoding.matching import matching_logits

__all__ = ["matching_logits"]
