"""The scikit-learn classifier that Python functions are served with: 30 features, 2 classes."""

from __future__ import annotations

from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


def classifier() -> Pipeline:
    """Return a fitted pipeline; the same wherever it is fitted."""
    x, y = load_breast_cancer(return_X_y=True)
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(x, y)
