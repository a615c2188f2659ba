"""What type checkers make of the public names: checked by mypy, never run."""

from typing import Any, assert_type

import numpy as np

import modelserve as ms


def names_are_classes() -> None:
    assert_type(ms.TensorSpec("x", "FP32", (-1, 4)), ms.TensorSpec)
    assert_type(ms.Signature([]).inputs, tuple[ms.TensorSpec, ...])


def requests_and_responses(response: ms.InferResponse) -> None:
    request = ms.InferRequest("iris", {"x": np.zeros((1, 4), np.float32)}, timeout=1.0)
    assert_type(request, ms.InferRequest)
    assert_type(request.deadline, float | None)
    assert_type(response.outputs["label"], Any)


def errors_are_a_tree(error: ms.QueueFull) -> None:
    base: ms.ServeError = error
    assert_type(base.http, int)
    assert_type(error.retry_after, float | None)


class Stub:
    """Has the methods of a `Backend` and inherits from nothing."""

    @property
    def signature(self) -> ms.Signature:
        return ms.Signature([])

    def run(self, inputs: Any) -> dict[str, Any]:
        return dict(inputs)

    def close(self) -> None:
        return None


backend: ms.Backend = Stub()
