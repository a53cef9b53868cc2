"""Diagnostics: what the loss curve alone does not say."""

from fenchel.diagnostics.calibration import expected_calibration_error

__all__ = ["expected_calibration_error"]
