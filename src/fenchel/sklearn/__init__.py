"""Estimators with scikit-learn's interface; they need the extra `sklearn`."""
