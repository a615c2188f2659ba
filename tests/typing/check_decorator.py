"""What type checkers make of functions that became models: checked by mypy, never run."""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import modelserve as ms


@ms.model
def bare(x: float, times: int = 1) -> float:
    return x * times


@ms.model(inputs=[ms.TensorSpec("x", "FP32", (-1, 4))], max_batch_size=64)
def declared(x: NDArray[np.float32], context: ms.Context) -> dict[str, NDArray[np.float32]]:
    return {"sum": x.sum(axis=1)}


@ms.model
async def later(x: float) -> float:
    return x


@ms.model
def words(prompt: str) -> Iterator[str]:
    yield prompt


@ms.model()
async def awords(prompt: str) -> AsyncIterator[str]:
    yield prompt


class Classifier:
    def predict(self, features: NDArray[np.float64]) -> NDArray[np.int64]:
        return features[:, 0].astype(np.int64)


def called_plainly_they_are_the_functions(context: ms.Context) -> None:
    assert_type(bare(1.0), float)
    assert_type(bare(1.0, times=2), float)
    assert_type(declared(np.zeros((1, 4), np.float32), context), dict[str, NDArray[np.float32]])
    assert_type(words("a"), Iterator[str])
    assert_type(awords("a"), AsyncIterator[str])
    function: Callable[[float], Coroutine[Any, Any, float]] = later
    assert_type(function, Callable[[float], Coroutine[Any, Any, float]])


async def coroutine_functions_are_awaited() -> None:
    assert_type(await later(1.0), float)


def arguments_are_checked() -> None:
    bare("1")  # type: ignore[arg-type]  # it is a float
    bare(1.0, 2, 3)  # type: ignore[call-arg]  # it takes two
    bare(y=1.0)  # type: ignore[call-arg]  # it is called x
    ms.model(bare, max_batch=3)  # type: ignore[call-overload]  # max_batch_size is meant


def made_without_a_decorator(features: NDArray[np.float64]) -> None:
    served = ms.model(Classifier().predict, name="iris", example=features, max_batch_size=64)
    assert_type(served(features), NDArray[np.int64])
    assert_type(served.name, str)
    assert_type(served.signature, ms.Signature)
    assert_type(served.predict(features), dict[str, Any])
    assert_type(served.metrics, ms.Metrics)


def models_go_where_servables_and_catalogs_go() -> None:
    servable: ms.Servable = bare
    catalog: ms.Catalog = declared
    function: Callable[[float], float] = bare
    assert_type((servable, catalog, function)[0], ms.Servable)


async def models_answer_requests(request: ms.InferRequest) -> None:
    assert_type(await bare.infer(request), ms.InferResponse)
    assert_type(bare.stream(request), AsyncIterator[ms.InferResponse])
