"""Estimators with scikit-learn's interface; they need the extra `sklearn`."""

from fenchel.sklearn.classifier import FenchelYoungClassifier
from fenchel.sklearn.multilabel import MultilabelEnergyClassifier
from fenchel.sklearn.proportions import ProportionRegressor
from fenchel.sklearn.ranker import LabelRanker
from fenchel.sklearn.selector import SoftTopKSelector

__all__ = [
    "FenchelYoungClassifier",
    "LabelRanker",
    "MultilabelEnergyClassifier",
    "ProportionRegressor",
    "SoftTopKSelector",
]
