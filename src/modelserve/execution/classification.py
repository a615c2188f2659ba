"""The best classes of an output in place of its numbers: Triton's classification extension.

A requested output's parameter `classification: N` asks for it. Nothing here knows a protocol: the
request says it in `output_parameters`, whatever brought it, and it is done after the run, so that
such a request shares a batch with those that want the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final

import numpy as np

from modelserve.errors import BackendError, InvalidInput
from modelserve.messages import InferRequest, InferResponse
from modelserve.tensors import Tensor, TensorSpec, datatype_of

__all__ = ["Classes", "best_classes", "classified_response", "classifies"]

_PARAMETER: Final = "classification"
_NO_NUMBERS: Final = ("BYTES", "BOOL")
# Of fewer classes sorting all takes no longer than finding the best first.
_FEW: Final = 64
_NO_LABELS: Final[Mapping[str, Sequence[str]]] = {}


def classifies(request: InferRequest) -> bool:
    """Tell whether a request asks for classes."""
    for parameters in request.output_parameters.values():  # noqa: SIM110  # `any` takes 3 times as long
        if _PARAMETER in parameters:
            return True
    return False


class Classes:
    """What is known of the classes that outputs hold.

    Args:
        outputs: The outputs, as far as they are declared.
        batched: Whether axis 0 is the batch.
        labels: Names of the classes, by output.

    Example:
        >>> classes = Classes([TensorSpec("y", "FP32", (-1, 3))], batched=True)
        >>> parameters = {"y": {"classification": 1}}
        >>> request = InferRequest("iris", {}, outputs=["y"], output_parameters=parameters)
        >>> y = np.array([[0.25, 0.5, 0.25]], np.float32)
        >>> classes.best({"y": y}, request, classes.wanted(request))["y"].tolist()
        [[b'0.500000:1']]
    """

    __slots__ = ("_batched", "_labels", "_specs")

    def __init__(
        self,
        outputs: Sequence[TensorSpec] = (),
        *,
        batched: bool = False,
        labels: Mapping[str, Sequence[str]] = _NO_LABELS,
    ) -> None:
        self._specs = {spec.name: spec for spec in outputs}
        self._batched = batched
        self._labels = labels

    def wanted(self, request: InferRequest) -> dict[str, int]:
        """Return how many classes a request wants, by output.

        Raises:
            InvalidInput: It is no number from 1 on, or the output has no numbers.
        """
        wanted: dict[str, int] = {}
        for index, name in enumerate(request.outputs or ()):
            parameters = request.output_parameters.get(name)
            if parameters is None or _PARAMETER not in parameters:
                continue
            count = parameters[_PARAMETER]
            if type(count) is not int or count < 1:
                raise InvalidInput(
                    f"expected a number of classes from 1 on, got {_shown(count)}",
                    path=_place(index),
                )
            if name in self._specs:
                _check_numbers(name, self._specs[name].datatype, index)
            wanted[name] = count
        return wanted

    def best(
        self,
        outputs: Mapping[str, Tensor],
        request: InferRequest,
        wanted: Mapping[str, int],
        names: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """Return a request's outputs, with the best classes in place of the numbers.

        Args:
            outputs: Arrays by name.
            request: The request.
            wanted: What `wanted` returned for it.
            names: Names of the classes of outputs without labels of their own that have just as
                many.

        Raises:
            InvalidInput: An output has no numbers.
            BackendError: It is not a tensor of the protocol.
        """
        found = dict(outputs)
        for index, name in enumerate(request.outputs or ()):
            if name not in wanted or name not in found:
                continue
            array = np.asarray(found[name])
            try:
                datatype = datatype_of(array.dtype)
            except InvalidInput as error:
                raise BackendError(f'output "{name}": {error}') from error
            _check_numbers(name, datatype, index)
            rows = self._has_rows(name, array)
            labels = self._labels.get(name)
            if labels is None:
                labels = names if len(names) == prod(array.shape[rows:]) else ()
            found[name] = best_classes(array, wanted[name], labels, rows=rows)
        return found

    def _has_rows(self, name: str, array: Any) -> bool:
        if self._batched:
            return True
        # Without a batch Triton takes all elements for the classes of one. Where the model says
        # that axis 0 may have any size that would mix rows up.
        spec = self._specs.get(name)
        open_axis = spec is None or spec.shape is None or spec.shape[:1] == (-1,)
        return bool(open_axis and array.ndim > 1)


def classified_response(response: InferResponse, request: InferRequest) -> InferResponse:
    """Return a response with classes where the request asks for them.

    For servables that know nothing of classes: theirs have no names.

    Raises:
        InvalidInput: A number of classes is wrong, or an output has no numbers.
    """
    classes = Classes()
    outputs = classes.best(response.outputs, request, classes.wanted(request))
    return InferResponse(
        response.model,
        response.version,
        outputs,
        id=response.id,
        parameters=response.parameters,
        output_parameters=response.output_parameters,
    )


def _place(index: int) -> str:
    return f"outputs[{index}].parameters.{_PARAMETER}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value[:40]}"' if isinstance(value, str) else str(value)[:40]


def _check_numbers(name: str, datatype: str, index: int) -> None:
    if datatype in _NO_NUMBERS:
        raise InvalidInput(
            f'expected an output of numbers; "{name[:80]}" is {datatype} and has no classes',
            path=_place(index),
        )


def best_classes(
    scores: Any, count: int, labels: Sequence[str] = (), rows: bool = True
) -> np.ndarray[Any, np.dtype[np.object_]]:
    """Return the best classes as Triton writes them, ``value:index`` or ``value:index:label``.

    The best comes first. Equal ones come in the order of their indices, and NaN comes last.

    Args:
        scores: Numbers: of each row all elements are scores of classes, or of the whole.
        count: How many at most.
        labels: Names of the classes; one beyond them, or with an empty name, has none.
        rows: Whether axis 0 is rows.

    Returns:
        `bytes` in an object array of shape ``(rows, min(count, classes))``, or without the rows.

    Example:
        >>> best_classes(np.array([[0.25, 0.5]]), 3, ("cat", "dog")).tolist()
        [[b'0.500000:1:dog', b'0.250000:0:cat']]
    """
    rows = rows and scores.ndim > 0
    if scores.dtype.kind not in "iuf":  # BF16
        scores = scores.astype(np.float32)
    classes = prod(scores.shape[rows:])
    table = scores.reshape(len(scores) if rows else 1, classes)
    most = min(count, classes)
    found = np.empty((len(table), most), np.object_)
    form = "%f:%d" if scores.dtype.kind == "f" else "%d:%d"
    for row, values in enumerate(table):
        best = _best(values, most)
        for place, (index, value) in enumerate(
            zip(best.tolist(), values[best].tolist(), strict=True)
        ):
            text = form % (value, index)
            label = labels[index] if index < len(labels) else ""
            found[row, place] = (f"{text}:{label}" if label else text).encode(errors="replace")
    return found if rows else found[0]


def _best(values: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return the indices of the largest values, in their order."""
    # What is smaller the larger a value is, and NaN for NaN: sorting puts those last.
    keys = -values if values.dtype.kind == "f" else ~values
    if len(keys) <= _FEW or count * 4 > len(keys):
        return np.argsort(keys, kind="stable")[:count]
    worst = np.partition(keys, count - 1)[count - 1]
    if worst != worst:
        return np.argsort(keys, kind="stable")[:count]
    among = np.flatnonzero(keys <= worst)
    return among[np.argsort(keys[among], kind="stable")[:count]]
