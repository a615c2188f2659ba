"""The data of both sides: chemical analyses of wines, some to learn from and some held out."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split


class Wine(NamedTuple):
    learn: NDArray[Any]
    learn_labels: NDArray[Any]
    test: NDArray[Any]
    test_labels: NDArray[Any]


def wine() -> Wine:
    """Load the analyses (178 wines, 13 values each) with the names of their three growers."""
    data = load_wine()
    labels = data.target_names[data.target]
    learn, test, learn_labels, test_labels = train_test_split(
        data.data, labels, test_size=0.3, random_state=0, stratify=labels
    )
    return Wine(learn, learn_labels, test, test_labels)
