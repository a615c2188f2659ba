"""Options of batching on their way from `add`, `model` and a warm-up to the batcher."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import onnx_models
from modelserve.errors import InvalidInput
from modelserve.execution.batcher import AdaptiveBatcher
from modelserve.repository.decorator import model
from modelserve.repository.repository import ModelRepository
from modelserve.tensors import TensorSpec

X = [TensorSpec("x", "FP32", (-1, 4))]


@pytest.fixture
def repository() -> Iterator[ModelRepository]:
    with ModelRepository() as repository:
        yield repository


def batcher_of(repository: ModelRepository, name: str) -> AdaptiveBatcher:
    version = repository._control.entries[name].default
    assert version is not None
    return version.batcher


def ones(rows: int) -> dict[str, Any]:
    return {"x": np.ones((rows, 4), np.float32)}


def identity(x: Any) -> Any:
    return {"y": x}


def test_options_of_a_function_hold_where_it_is_added(repository):
    made = model(
        identity,
        inputs=X,
        max_batch_size=8,
        max_queue_delay=0.001,
        max_batch_cost=12,
        cost=lambda inputs: inputs["x"].size,
        batcher="simple",
    )
    repository.add(made)
    batcher = batcher_of(repository, "identity")
    assert (batcher.max_queue_delay, batcher.bounds.most, batcher.simple) == (0.001, 12, True)
    assert repository.predict("identity", ones(3))["y"].shape == (3, 4)
    with pytest.raises(InvalidInput, match="the request costs 16, more than max_batch_cost 12"):
        repository.predict("identity", ones(4))


def test_add_goes_before_what_was_declared(repository):
    made = model(identity, inputs=X, max_batch_size=8, max_queue_delay=0.5, batcher="simple")
    repository.add(made, max_queue_delay=0.0, batcher="adaptive")
    batcher = batcher_of(repository, "identity")
    assert (batcher.max_queue_delay, batcher.simple) == (0.0, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_queue_delay": -1.0}, "max_queue_delay must be at least 0 s, got -1.0"),
        ({"max_batch_cost": 8}, "max_batch_cost and cost go together"),
        ({"cost": len}, "max_batch_cost and cost go together"),
        ({"batcher": "clever"}, 'batcher must be "adaptive" or "simple", got'),
    ],
)
def test_wrong_options_fail_where_they_stand(repository, options, message):
    with pytest.raises(ValueError, match=message):
        model(identity, inputs=X, max_batch_size=8, **options)
    with pytest.raises(ValueError, match=message):
        repository.add("add", onnx_models.add_one(), **options)


def test_loading_measures_sizes_up_to_the_largest(repository):
    repository.add("add", onnx_models.add_one(), max_batch_size=12)
    pacing = batcher_of(repository, "add").pacing
    assert all(pacing.expected(size) for size in (1, 2, 4, 8, 12))
    assert pacing.tiny


def test_sizes_are_not_measured_without_warming_up(repository):
    repository.add("add", onnx_models.add_one(), max_batch_size=12, warm_up=False)
    assert batcher_of(repository, "add").pacing.expected(1) is None
