"""Modules, only where there is state to hold."""

from fenchel.nn.fenchel_young import FenchelYoungLoss

__all__ = ["FenchelYoungLoss"]
