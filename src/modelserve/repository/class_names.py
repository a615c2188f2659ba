"""What a classifier's classes are called: from a file beside the model, or from the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelserve.errors import LoadError

__all__ = ["LABELS", "names_in_files", "names_in_metadata", "read_class_names"]

_log = logging.getLogger("modelserve.repository")

LABELS: Final = "labels.txt"
"""Name of the file: a class a line, in the order of the scores."""

_KEYS: Final = ("class_names", "classes", "labels")
"""Properties of a model that hold them: a JSON list, or names between commas or in lines."""

_MOST_BYTES: Final = 2**22


def read_class_names(directory: Path) -> tuple[str, ...]:
    """Return the names in the file of a version, or else of its model; empty without one.

    A file that cannot be read as text is passed over: it keeps no model from serving.

    Args:
        directory: The version's directory, in the model's.
    """
    for place in (directory, directory.parent):
        try:
            with open(place / LABELS, "rb") as file:
                content = file.read(_MOST_BYTES + 1)
        except OSError:
            continue
        try:
            return _listed(content)
        except ValueError as error:
            _log.warning("the file %s of model %s is no list: %s", LABELS, directory.name, error)
    return ()


def names_in_files(files: Mapping[str, Path]) -> dict[str, tuple[str, ...]]:
    """Return the names in files that a configuration asks for, by output.

    Raises:
        LoadError: One cannot be read as text. Unlike a file that is just there, it was asked for.
    """
    found = {}
    for output, path in files.items():
        try:
            with open(path, "rb") as file:
                found[output] = _listed(file.read(_MOST_BYTES + 1))
        except OSError as error:
            raise LoadError(
                f'output "{output}": its label_filename "{path.name}" cannot be read: '
                f"{error.strerror}"
            ) from error
        except ValueError as error:
            raise LoadError(
                f'output "{output}": its label_filename "{path.name}" is no list: {error}'
            ) from error
    return found


def _listed(content: bytes) -> tuple[str, ...]:
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES} bytes")
    return tuple(line.strip() for line in content.decode("utf-8-sig").splitlines())


def names_in_metadata(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names that a model's own properties hold; empty without any.

    Example:
        >>> names_in_metadata({"classes": "cat, dog"})
        ('cat', 'dog')
        >>> names_in_metadata({"class_names": '["cat", "dog"]'})
        ('cat', 'dog')
    """
    text = next((metadata[key] for key in _KEYS if metadata.get(key)), "")
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        listed = None
    if isinstance(listed, list):
        return tuple(str(name) for name in listed)
    if isinstance(listed, dict) or not text:
        return ()
    separator = "\n" if "\n" in text.strip() else ","
    return tuple(name.strip() for name in text.strip().split(separator))
