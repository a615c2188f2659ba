"""Arguments that several commands take: numbers within bounds, and where a model is."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from math import isfinite
from pathlib import Path

__all__ = ["at_least", "existing_model", "seconds"]


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads a whole number that is not below another."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise ArgumentTypeError(f'expected a whole number from {least} on, got "{text}"')
        return number

    return read


def seconds(text: str) -> float:
    """Read a time."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not isfinite(number) or number < 0:
        raise ArgumentTypeError(f'expected seconds such as 30 or 0.5, got "{text}"')
    return number


def existing_model(path: Path) -> Path:
    """Return the ONNX file of a path, which may be the directory that holds it.

    Raises:
        ValueError: It is not there.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or directory")
    if not path.is_dir():
        return path
    inside = path / "model.onnx"
    if not inside.is_file():
        raise ValueError(f"{path}: expected an ONNX file, or a directory that holds model.onnx")
    return inside
