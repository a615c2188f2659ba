"""What is refused before anything of a request but its deadline is known."""

from collections.abc import Mapping
from threading import Event, Thread
from time import monotonic
from typing import Any

import numpy as np
import pytest

from modelserve.backends.python import PythonBackend
from modelserve.errors import DeadlineExceeded, Overloaded
from modelserve.execution.batcher import AdaptiveBatcher
from modelserve.messages import InferRequest
from modelserve.tensors import TensorSpec

X = {"x": np.ones((1, 4), np.float32)}


def batcher_of(function: Any, **options: Any) -> AdaptiveBatcher:
    backend = PythonBackend(function, inputs=[TensorSpec("x", "FP32", (-1, 4))])
    return AdaptiveBatcher([backend], max_batch_size=4, model="m", **options)


def test_deadline_that_is_past_is_refused() -> None:
    batcher = batcher_of(lambda x: x)
    with pytest.raises(DeadlineExceeded, match="passed before the request came"):
        batcher.check(monotonic() - 1.0)
    batcher.close()


def test_idle_model_is_tried_whatever_it_took_before() -> None:
    batcher = batcher_of(lambda x: x)
    for _ in range(20):
        batcher.pacing.learn(1, 5.0)
    batcher.check(monotonic() + 0.5)
    batcher.close()


@pytest.mark.parametrize(("batcher", "refused"), [("adaptive", True), ("simple", False)])
def test_busy_model_that_takes_longer_refuses(batcher: Any, refused: bool) -> None:
    entered, gate = Event(), Event()

    def wait(x: Any) -> Mapping[str, Any]:
        entered.set()
        assert gate.wait(10)
        return {"y": x}

    made = batcher_of(wait, batcher=batcher)
    for _ in range(20):
        made.pacing.learn(1, 5.0)
    thread = Thread(target=made.submit_blocking, args=(InferRequest("m", X), X, 1))
    thread.start()
    assert entered.wait(10)
    try:
        made.check(monotonic() + 60.0)
        if refused:
            with pytest.raises(Overloaded, match=r'model "m": the answer would take') as caught:
                made.check(monotonic() + 0.5)
            assert caught.value.retry_after is not None
        else:
            made.check(monotonic() + 0.5)
    finally:
        gate.set()
        thread.join(10)
        made.close()
