"""TensorFlow Serving's REST interface, version 1: classify and regress.

Both take examples: objects of features, each one value or a list of values. A feature is here an
input of the model, whose list is one row of it. What of the outputs is a class, a score or a
regression is told by their names and shapes; see `encode_classes` and `encode_values`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from modelserve.errors import InvalidInput
from modelserve.tensors import Signature, Tensor, TensorSpec

from ._nested import Place, from_nested, is_binary, to_array, to_nested
from ._tensors import short
from .tfserving import FLOATS, check_signature_name, write_document

__all__ = ["decode_examples", "encode_classes", "encode_values"]

# What TensorFlow calls the outputs of signatures to classify and to regress.
_CLASSES: Final = "classes"
_SCORES: Final = "scores"
_VALUES: Final = "outputs"

# What a body of many short examples and one long context would become.
_MOST_SHARED: Final = 2**24


def decode_examples(
    document: Mapping[str, Any], signature: Signature
) -> tuple[dict[str, Tensor], int]:
    """Return the inputs of a request to classify or regress, and the number of its examples.

    `context` holds features that all examples share. `signature_name` may be any: a model has one
    signature here, and what it gives decides.

    Args:
        document: The request, as `tfserving.read_document` returns it.
        signature: What the model takes.

    Raises:
        InvalidInput: The request is malformed, or does not fit the signature; the text says where.

    Example:
        >>> signature = Signature([TensorSpec("x", "FP32", (-1, 1))])
        >>> decode_examples({"examples": [{"x": 1.0}, {"x": [2.0]}]}, signature)[1]
        2
    """
    check_signature_name(document, known=False)
    examples = document.get("examples")
    if type(examples) is not list:
        raise InvalidInput(f"expected a list, got {short(examples)}", path="examples")
    if not examples:
        raise InvalidInput("expected at least one example, got none", path="examples")
    context = document.get("context")
    if context is None:
        context = {}
    _check_features(context, signature.inputs, "context")
    for index, example in enumerate(examples):
        _check_features(example, signature.inputs, f"examples[{index}]")
        shared = next((name for name in example if name in context), None)
        if shared is not None:
            raise InvalidInput("stands in context, too", path=f"examples[{index}].{shared}")
    inputs = {}
    for spec in signature.inputs:
        if spec.name in context:
            place = Place("context", f".{spec.name}", rows=True, shared=True)
            row = _tensor([context[spec.name]], spec, place)
            if row.size * len(examples) > _MOST_SHARED:
                raise InvalidInput(
                    f"expected at most {_MOST_SHARED} values, repeated for each example",
                    path=f"context.{spec.name}",
                )
            inputs[spec.name] = np.broadcast_to(row, (len(examples), *row.shape[1:]))
            continue
        features = _column(examples, spec)
        if features:
            place = Place("examples", f".{spec.name}", rows=True)
            inputs[spec.name] = _tensor(features, spec, place)
    return inputs, len(examples)


def _check_features(features: Any, specs: Sequence[TensorSpec], place: str) -> None:
    if type(features) is not dict:
        raise InvalidInput(f"expected an object of features, got {short(features)}", path=place)
    known = {spec.name for spec in specs}
    unknown = next((name for name in features if name not in known), None)
    if unknown is not None:
        raise InvalidInput(
            f"unknown feature; the model takes {', '.join(sorted(known)) or 'none'}",
            path=f"{place}.{unknown[:80]}",
        )


def _column(examples: list[dict[str, Any]], spec: TensorSpec) -> list[Any]:
    """Return a feature of all examples; an empty list where none has it and none needs it."""
    missing = [index for index, example in enumerate(examples) if spec.name not in example]
    if not missing:
        return [example[spec.name] for example in examples]
    if spec.optional and len(missing) == len(examples):
        return []
    raise InvalidInput(f'"{spec.name}" is missing', path=f"examples[{missing[0]}]")


def _tensor(features: list[Any], spec: TensorSpec, place: Place) -> Tensor:
    """Return a tensor with a row for each example."""
    lists = [_values(value, place.at((index,))) for index, value in enumerate(features)]
    if spec.datatype.startswith(("INT", "UINT")):
        lists = [[int(v) if type(v) is bool else v for v in values] for values in lists]
    flat = TensorSpec(spec.name, spec.datatype, (-1, -1))
    tensor = from_nested(lists, flat, place)
    row = spec.shape[1:] if spec.shape else ()
    if spec.shape is None:
        # A single value is one as well as a list of one.
        row = () if type(features[0]) is not list else (tensor.shape[1],)
    elif not spec.shape:
        raise InvalidInput(f'"{spec.name}" is one value without rows; use predict', path=place.head)
    count = tensor.shape[1]
    unknown = row.count(-1)
    known = prod(size for size in row if size >= 0)
    fits = count == known if not unknown else unknown == 1 and known and not count % known
    if not fits:
        raise InvalidInput(
            f"expected the values of shape {list(row)}, got {count}", path=place.at((0,))
        )
    return tensor.reshape((len(features), *row))


def _values(value: Any, place: str) -> list[Any]:
    values = value if type(value) is list else [value]
    for index, element in enumerate(values):
        if (
            element is None
            or type(element) is list
            or (type(element) is dict and not is_binary(element))
        ):
            raise InvalidInput(
                f"expected a value or a list of values, got {short(element)}",
                path=f"{place}[{index}]" if values is value else place,
            )
    return values


def encode_classes(outputs: Mapping[str, Tensor], rows: int, *, names: Sequence[str] = ()) -> bytes:
    """Return the body of the answer to a request to classify: pairs of label and score.

    Scores are the output called ``scores``, or else the only one of floats with a row of them for
    each example. Labels are the output called ``classes``, or else the only one of strings as many
    as the scores; without either, the names of the classes, and where these are not known their
    indices. The pairs have the order in which the model gives them.

    Args:
        outputs: Arrays by name.
        rows: How many examples there were.
        names: Names of the model's classes.

    Raises:
        InvalidInput: The model gives nothing that can be taken for classes or scores.
        BackendError: An output is not a tensor of the protocol.

    Example:
        >>> encode_classes({"p": np.array([[0.25, 0.75]])}, 1, names=("cat", "dog"))
        b'{"results":[[["cat",0.25],["dog",0.75]]]}'
    """
    arrays = {name: to_array(tensor, name) for name, tensor in outputs.items()}
    fitting = {
        name: (array, datatype)
        for name, (array, datatype) in arrays.items()
        if array.ndim == 2 and len(array) == rows
    }
    found = _chosen(fitting, _SCORES, FLOATS)
    classes = _chosen(fitting, _CLASSES, ("BYTES",))
    if found is not None:
        scores, datatype = found
    elif classes is not None and _CLASSES in fitting:
        scores, datatype = np.zeros(classes[0].shape, np.float32), "FP32"
    else:
        raise InvalidInput(
            f"the model cannot classify: {_found(arrays)}; expected one output of floats with a "
            f'row of scores for each example, or one called "{_SCORES}"'
        )
    if classes is not None and classes[0].shape == scores.shape:
        labels = to_nested(*classes, binary=False)
    else:
        labels = [_labels(names, scores.shape[1])] * rows
    values = to_nested(scores, datatype, binary=False)
    results = [
        [[label, score] for label, score in zip(row, values[index], strict=True)]
        for index, row in enumerate(labels)
    ]
    return write_document({"results": results}, finite=bool(np.isfinite(scores).all()))


def encode_values(outputs: Mapping[str, Tensor], rows: int) -> bytes:
    """Return the body of the answer to a request to regress: one number for each example.

    It is the output called ``outputs``, or else the only one of floats with one for each example,
    as shape [examples] or [examples, 1].

    Args:
        outputs: Arrays by name.
        rows: How many examples there were.

    Raises:
        InvalidInput: The model gives nothing of that kind, or more than one.
        BackendError: An output is not a tensor of the protocol.

    Example:
        >>> encode_values({"y": np.array([[3.5], [4.0]], np.float32)}, 2)
        b'{"results":[3.5,4.0]}'
    """
    arrays = {name: to_array(tensor, name) for name, tensor in outputs.items()}
    fitting = {
        name: (array.reshape(-1), datatype)
        for name, (array, datatype) in arrays.items()
        if array.shape in ((rows,), (rows, 1))
    }
    found = _chosen(fitting, _VALUES, FLOATS)
    if found is None:
        raise InvalidInput(
            f"the model cannot regress: {_found(arrays)}; expected one output of floats with one "
            f'for each example, or one called "{_VALUES}"'
        )
    values = to_nested(*found, binary=False)
    return write_document({"results": values}, finite=bool(np.isfinite(values).all()))


def _chosen(
    arrays: Mapping[str, tuple[NDArray[Any], str]], name: str, datatypes: Sequence[str]
) -> tuple[NDArray[Any], str] | None:
    """Return the array of that name, or else the only one of the datatypes; None for neither."""
    found = {key: known for key, known in arrays.items() if known[1] in datatypes}
    if name in found:
        return found[name]
    return next(iter(found.values())) if len(found) == 1 else None


def _labels(names: Sequence[str], count: int) -> list[str]:
    return [names[index] if index < len(names) else str(index) for index in range(count)]


def _found(arrays: Mapping[str, tuple[NDArray[Any], str]]) -> str:
    listed = ", ".join(
        f'"{name}" {datatype} {list(array.shape)}' for name, (array, datatype) in arrays.items()
    )
    return f"it gives {listed or 'nothing'}"
