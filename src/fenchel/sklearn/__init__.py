"""Estimators with scikit-learn's interface; they need the extra `sklearn`."""

from fenchel.sklearn.classifier import FenchelYoungClassifier
from fenchel.sklearn.proportions import ProportionRegressor

__all__ = ["FenchelYoungClassifier", "ProportionRegressor"]
from fenchel.sklearn.multilabel import MultilabelEnergyClassifier
from fenchel.sklearn.ranker import LabelRanker

__all__ = ["LabelRanker", "MultilabelEnergyClassifier"]
