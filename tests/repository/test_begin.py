"""`begin` of a repository, of a decorated model, and from within a model's own code."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

import onnx_models
from gated import DEADLOCK, GatedBackend, rows
from modelserve.errors import InvalidInput, ModelNotFound, ServeError, Unsupported
from modelserve.messages import Exchange, InferRequest, InferResponse
from modelserve.repository.decorator import model
from modelserve.repository.repository import ModelRepository
from modelserve.tensors import TensorSpec

ROW = np.ones((1, 4), np.float32)


def opened(name: str, inputs: Any, **options: Any) -> InferRequest:
    request = InferRequest(name, inputs, **options)
    request.exchange = Exchange("http", name)
    return request


async def answered(servable: Any, request: InferRequest) -> InferResponse:
    """Begin a request and wait for what it is answered."""
    future = asyncio.get_running_loop().create_future()

    def done(response: InferResponse | None, error: BaseException | None) -> None:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(response)

    servable.begin(request, done)
    assert not future.done()
    response: InferResponse = await asyncio.wait_for(future, DEADLOCK)
    return response


def with_repository(use: Callable[[ModelRepository], Awaitable[Any]]) -> Any:
    with ModelRepository() as repository:
        repository.add("add", onnx_models.add_one(), max_batch_size=8)
        return asyncio.run(use(repository))  # type: ignore[arg-type]  # a coroutine


def test_the_exchange_tells_who_answered_and_with_whom_it_ran() -> None:
    async def use(repository: ModelRepository) -> None:
        requests = [opened("add", {"x": ROW}, id=str(number)) for number in range(3)]
        responses = await asyncio.gather(*(answered(repository, one) for one in requests))
        for number, (request, response) in enumerate(zip(requests, responses, strict=True)):
            assert (response.model, response.version, response.id) == ("add", "1", str(number))
            assert response.outputs["y"].tolist() == [[2.0] * 4]
            exchange = request.exchange
            assert exchange is not None
            assert (exchange.model, exchange.version, exchange.code) == ("add", "1", "OK")
            assert (exchange.rows, exchange.batch_rows, exchange.batch_requests) == (1, 3, 3)
            assert exchange.batch is not None
            assert exchange.queue >= 0

    with_repository(use)


def test_without_an_exchange_the_answer_is_the_same() -> None:
    async def use(repository: ModelRepository) -> None:
        request = InferRequest("add", {"x": ROW})
        assert (await answered(repository, request)).outputs["y"].tolist() == [[2.0] * 4]
        assert request.exchange is None

    with_repository(use)


@pytest.mark.parametrize(
    ("name", "inputs", "code", "refusal"),
    [
        ("other", {"x": ROW}, "NOT_FOUND", ModelNotFound),
        ("add", {"x": ROW[:, :3]}, "INVALID_ARGUMENT", InvalidInput),
        ("add", {"z": ROW}, "INVALID_ARGUMENT", InvalidInput),
        ("add", {"x": np.ones((9, 4), np.float32)}, "INVALID_ARGUMENT", InvalidInput),
        ("add", {"x": np.ones((0, 4), np.float32)}, "INVALID_ARGUMENT", InvalidInput),
    ],
)
def test_what_is_refused_is_raised_with_its_code(
    name: str, inputs: Any, code: str, refusal: type[ServeError]
) -> None:
    async def use(repository: ModelRepository) -> None:
        request = opened(name, inputs)
        called: list[Any] = []
        with pytest.raises(refusal):
            repository.begin(request, lambda *answer: called.append(answer))
        assert request.exchange is not None
        assert request.exchange.code == code
        assert called == []

    with_repository(use)


def test_requested_outputs_are_checked_and_chosen() -> None:
    async def use(repository: ModelRepository) -> None:
        response = await answered(repository, opened("add", {"x": ROW}, outputs=["y"]))
        assert list(response.outputs) == ["y"]
        with pytest.raises(InvalidInput, match="unknown output"):
            await answered(repository, opened("add", {"x": ROW}, outputs=["z"]))

    with_repository(use)


def test_a_request_for_a_version_that_is_being_unloaded_goes_to_its_successor() -> None:
    with ModelRepository() as repository:
        first, second = GatedBackend(), GatedBackend(lambda inputs: {"y": inputs["x"] * 3})
        repository.add("m", first, max_batch_size=8)

        class Swapping(dict[str, Any]):
            """Inputs that, looked at between the choice of a version and its use, replace it."""

            def get(self, *arguments: Any) -> Any:
                if len(repository._entries["m"].versions) and not second.runs and not self.swapped:
                    self.swapped = True
                    repository.add("m", second, max_batch_size=8)
                return super().get(*arguments)

            swapped = False

        async def main() -> tuple[InferResponse, InferResponse]:
            request = opened("m", Swapping(rows(1)))
            response = await answered(repository, request)
            assert request.exchange is not None
            assert request.exchange.version == "2"
            return response, await repository.infer(InferRequest("m", rows(1)))

        begun, inferred = asyncio.run(main())
        assert (begun.version, begun.outputs["y"].tolist()) == ("2", [[3.0]])
        assert inferred.version == "2"
    assert first.runs == []


def test_a_models_own_code_may_begin_a_request_to_its_own_model() -> None:
    with ModelRepository() as repository:

        @model(inputs=[TensorSpec("x", "FP32", (-1, 1))], max_batch_size=4)
        async def countdown(x: Any) -> Any:
            if x[0, 0] <= 0:
                return {"y": x}
            response = await answered(repository, opened("countdown", {"x": x - 1}))
            return {"y": response.outputs["y"] + 1}

        repository.add(countdown)
        outputs = repository.predict("countdown", {"x": np.full((1, 1), 3, np.float32)})
        assert outputs["y"].tolist() == [[3.0]]


def test_a_model_that_streams_refuses() -> None:
    @model
    def numbers(n: int) -> Any:
        yield from range(n)

    with ModelRepository() as repository:
        repository.add(numbers)

        async def main() -> None:
            with pytest.raises(Unsupported):
                await answered(repository, opened("numbers", {"n": 3}))

        asyncio.run(main())


def test_a_decorated_model_is_loaded_by_the_first_request_begun() -> None:
    @model(inputs=[TensorSpec("x", "FP32", (-1, 1))], max_batch_size=4)
    def double(x: Any) -> Any:
        return {"y": x * 2}

    async def main() -> None:
        with pytest.raises(ModelNotFound):
            await answered(double, opened("other", rows(1)))
        for _ in range(2):
            request = opened("double", rows(2))
            assert (await answered(double, request)).outputs["y"].tolist() == [[4.0]]
            assert request.exchange is not None
            assert (request.exchange.version, request.exchange.rows) == ("1", 1)

    try:
        asyncio.run(main())
    finally:
        double.close()
