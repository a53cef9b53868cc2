"""Whole experiments, each one file: what is run, what is measured, what is claimed."""
