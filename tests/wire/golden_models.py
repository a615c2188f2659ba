"""The models that Triton and modelserve both serve, so that their answers can be compared.

Only functions of arrays: Triton's Python backend imports this file with a numpy of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

Arrays = Mapping[str, Any]

NUMBERS = (
    *("INT8", "INT16", "INT32", "INT64"),
    *("UINT8", "UINT16", "UINT32", "UINT64"),
    *("FP16", "FP32", "FP64"),
)
DATATYPES = (*NUMBERS, "BOOL", "BYTES")


class Spec(NamedTuple):
    """A tensor; the shape is without the axis of the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Model(NamedTuple):
    """A model.

    Attributes:
        function: Takes inputs and the request's parameters; returns outputs, or yields them.
        max_batch_size: Most rows, with an axis for them in front of every shape; 0 for none.
        streams: Whether it yields any number of answers.
        labels: What the indices of the first output stand for.
        versions: Its versions, which all are served.
    """

    name: str
    function: Callable[[Arrays, Mapping[str, Any]], Any]
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    max_batch_size: int = 0
    streams: bool = False
    labels: tuple[str, ...] = ()
    versions: tuple[str, ...] = ("1",)


def _echo(inputs: Arrays, parameters: Mapping[str, Any]) -> Arrays:
    return {"y": inputs["x"]}


def _add_one(inputs: Arrays, parameters: Mapping[str, Any]) -> Arrays:
    return {"y": inputs["x"] + np.float32(1)}


def _arithmetic(inputs: Arrays, parameters: Mapping[str, Any]) -> Arrays:
    a, b = inputs["a"], inputs["b"]
    return {"total": (a + b).astype(np.float32), "doubled": b + b}


def _scores(inputs: Arrays, parameters: Mapping[str, Any]) -> Arrays:
    x = inputs["x"]
    return {"scores": np.stack([x[:, 0], x[:, 1] * 2, x[:, 2] * 3], 1).astype(np.float32)}


def _raises(inputs: Arrays, parameters: Mapping[str, Any]) -> Arrays:
    raise RuntimeError("a secret of the model")


def _sleeps(inputs: Arrays, parameters: Mapping[str, Any]) -> Arrays:
    time.sleep(float(inputs["seconds"].ravel()[0]))
    return {"y": inputs["seconds"]}


def _tells(inputs: Arrays, parameters: Mapping[str, Any]) -> Arrays:
    text = json.dumps(dict(parameters), sort_keys=True)
    return {"parameters": np.array([text.encode()], np.object_)}


def _words(inputs: Arrays, parameters: Mapping[str, Any]) -> Iterator[Arrays]:
    """Yield the words of a text; "!" fails, and at the parameter `most` it ends."""
    for number, word in enumerate(inputs["text_input"].ravel()[0].split()):
        if number == parameters.get("most", -1):
            return
        if word == b"!":
            raise RuntimeError("a secret of the model")
        yield {"text_output": np.array([word], np.object_)}


def _exclaims(inputs: Arrays, parameters: Mapping[str, Any]) -> Arrays:
    text = inputs["text_input"].ravel()[0]
    return {"text_output": np.array([text + b"!"], np.object_)}


MODELS = (
    # Any number of axes of any size would be open; two tell flat from nested data.
    *(
        Model(f"echo_{t.lower()}", _echo, (Spec("x", t, (-1, -1)),), (Spec("y", t, (-1, -1)),))
        for t in DATATYPES
    ),
    Model("line", _echo, (Spec("x", "FP32", (-1,)),), (Spec("y", "FP32", (-1,)),)),
    Model("text", _echo, (Spec("x", "BYTES", (1,)),), (Spec("y", "BYTES", (1,)),)),
    Model("add_one", _add_one, (Spec("x", "FP32", (4,)),), (Spec("y", "FP32", (4,)),), 8),
    Model(
        "arithmetic",
        _arithmetic,
        (Spec("a", "FP32", (2,)), Spec("b", "INT64", (2,))),
        (Spec("total", "FP32", (2,)), Spec("doubled", "INT64", (2,))),
        8,
    ),
    Model(
        "classifier",
        _scores,
        (Spec("x", "FP32", (3,)),),
        (Spec("scores", "FP32", (3,)),),
        8,
        labels=("cat", "dog", "bird"),
    ),
    Model("raises", _raises, (Spec("x", "FP32", (1,)),), (Spec("y", "FP32", (1,)),)),
    Model("sleeps", _sleeps, (Spec("seconds", "FP32", (1,)),), (Spec("y", "FP32", (1,)),)),
    Model("tells", _tells, (Spec("x", "FP32", (1,)),), (Spec("parameters", "BYTES", (1,)),)),
    Model(
        "words",
        _words,
        (Spec("text_input", "BYTES", (1,)),),
        (Spec("text_output", "BYTES", (1,)),),
        streams=True,
    ),
    # Asked by nothing but what is then counted.
    Model(
        "counted",
        _echo,
        (Spec("x", "FP32", (1,)),),
        (Spec("y", "FP32", (1,)),),
        4,
        versions=("1", "2"),
    ),
    Model(
        "exclaims",
        _exclaims,
        (Spec("text_input", "BYTES", (1,)),),
        (Spec("text_output", "BYTES", (1,)),),
    ),
    Model(
        "versions",
        _echo,
        (Spec("x", "INT32", (1,)),),
        (Spec("y", "INT32", (1,)),),
        versions=("1", "3"),
    ),
)
