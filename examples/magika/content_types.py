"""What magika's model needs around it: bytes to its input before, its scores to a name after.

The model, its settings and its labels are the files of the package `magika` (Apache-2.0).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import modelserve as ms


def package() -> Path:
    """Return the directory of the installed package, without importing it."""
    spec = find_spec("magika")
    if spec is None or spec.origin is None:
        raise ImportError("the model comes with a package: pip install magika")
    return Path(spec.origin).parent


def model_file() -> Path:
    """Return the package's ONNX file; its settings lie beside it."""
    (found,) = package().glob("models/*/model.onnx")
    return found


def features(head: bytes, tail: bytes, settings: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """Make the model's input from the first and the last block of a file.

    Without the white space around the content; where it is short, padding fills the middle.
    """
    first, last, padding = (settings[key] for key in ("beg_size", "end_size", "padding_token"))
    row = np.full(first + last, padding, np.int32)
    begin, end = head.lstrip()[:first], tail.rstrip()[-last:]
    row[: len(begin)] = np.frombuffer(begin, np.uint8)
    row[len(row) - len(end) :] = np.frombuffer(end, np.uint8)
    return row


def without_model(head: bytes, settings: Mapping[str, Any]) -> str | None:
    """Return the answer for files too short for the model; None for all others."""
    if not head:
        return "empty"
    if len(head.lstrip()) >= settings["min_file_size_for_dl"]:
        return None
    try:
        head.decode()
    except UnicodeDecodeError:
        return "unknown"
    return "txt"


def name_of(
    scores: np.ndarray[Any, Any], settings: Mapping[str, Any], kinds: Mapping[str, Any]
) -> tuple[str, float]:
    """Return the label of the best score, or only "txt" or "unknown" if that score is low."""
    best = int(scores.argmax())
    label, score = settings["target_labels_space"][best], float(scores[best])
    needed = settings["thresholds"].get(label, settings["medium_confidence_threshold"])
    label = settings["overwrite_map"].get(label, label)
    if score < needed:
        label = "txt" if kinds[label]["is_text"] else "unknown"
    return label, score


def content_type(repository: ms.ModelRepository) -> ms.Model[..., Any]:
    """Return the model that clients ask: the first and last 4096 bytes of a file to its type.

    It asks the repository's model "magika" in turn, for one file at a time, as the package does:
    ONNX Runtime's scores of this network differ slightly between one row and several.
    """
    settings = json.loads(model_file().with_name("config.min.json").read_text("utf-8"))
    kinds = json.loads((package() / "config" / "content_types_kb.min.json").read_text("utf-8"))

    @ms.model(
        inputs=[ms.TensorSpec("head", "BYTES", (-1,)), ms.TensorSpec("tail", "BYTES", (-1,))],
        outputs=[ms.TensorSpec("label", "BYTES", (-1,)), ms.TensorSpec("score", "FP32", (-1,))],
        per_row=True,
    )
    def content_type(head: bytes, tail: bytes) -> dict[str, Any]:
        label = without_model(head, settings)
        if label is not None:
            return {"label": label, "score": 1.0}
        row = features(head, tail, settings)
        answer = repository.predict("magika", {"bytes": row[np.newaxis]})
        label, score = name_of(answer["target_label"][0], settings, kinds)
        return {"label": label, "score": score}

    return content_type
