"""The stub model: what users test against."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from modelserve.errors import (
    BackendError,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    QueueFull,
    Unsupported,
)
from modelserve.messages import InferRequest
from modelserve.protocols import Admin, Catalog, Servable
from modelserve.repository.repository import ModelRepository
from modelserve.tensors import TensorSpec
from modelserve.testing import StubModel

X = np.ones(3, np.float32)


def ask(stub: StubModel, **more: Any) -> Any:
    request = InferRequest(more.pop("model", "stub"), more.pop("inputs", {"x": X}), **more)
    return asyncio.run(stub.infer(request)).outputs


def test_it_is_servable_catalog_and_admin() -> None:
    stub = StubModel()
    roles: tuple[Servable, Catalog, Admin] = (stub, stub, stub)
    assert roles[0] is stub


def test_without_a_function_it_echoes() -> None:
    assert ask(StubModel())["x"] is X


def test_unknown_model_is_refused_in_the_repositorys_words() -> None:
    async def said(servable: Servable) -> str:
        with pytest.raises(ModelNotFound) as caught:
            await servable.infer(InferRequest("nope", {"x": X}))
        return str(caught.value)

    with ModelRepository() as repo:
        expected = asyncio.run(said(repo))
    assert asyncio.run(said(StubModel())) == expected == 'there is no model "nope"'


def test_function_may_be_a_coroutine_function() -> None:
    async def double(inputs: Any) -> Any:
        await asyncio.sleep(0)
        return {"y": inputs["x"] * 2}

    assert ask(StubModel(double))["y"].tolist() == [2, 2, 2]


def test_only_requested_outputs_are_given() -> None:
    assert list(ask(StubModel(), inputs={"x": X, "y": X}, outputs=["y"])) == ["y"]


def test_latency_passes_before_the_answer() -> None:
    async def main() -> bool:
        stub = StubModel(latency=60)
        task = asyncio.create_task(stub.infer(InferRequest("stub", {})))
        done, _ = await asyncio.wait([task], timeout=0.01)
        task.cancel()
        return bool(done)

    assert not asyncio.run(main())


def test_every_nth_request_fails_with_the_error() -> None:
    stub = StubModel(fail_every=3, error=QueueFull("full"))
    failed = []
    for number in range(1, 7):
        try:
            ask(stub)
        except QueueFull:
            failed.append(number)
    assert failed == [3, 6]
    assert stub.count == 6


def test_failing_function_is_a_backend_error_with_its_cause() -> None:
    def broken(inputs: Any) -> Any:
        raise KeyError("a")

    with pytest.raises(BackendError) as caught:
        ask(StubModel(broken))
    assert isinstance(caught.value.__cause__, KeyError)


def test_serve_errors_of_the_function_pass() -> None:
    def picky(inputs: Any) -> Any:
        raise InvalidInput("no")

    with pytest.raises(InvalidInput):
        ask(StubModel(picky))


def test_inputs_are_checked_against_the_signature() -> None:
    with pytest.raises(InvalidInput, match="expected shape"):
        ask(StubModel(inputs=[TensorSpec("x", "FP32", (4,))]))


def test_only_its_name_version_and_labels_are_known() -> None:
    stub = StubModel(version="2", labels=["stable"])
    for version in ("", "2", "stable"):
        assert ask(stub, version=version)["x"] is X
    for more in ({"model": "other"}, {"version": "1"}):
        with pytest.raises(ModelNotFound):
            ask(stub, **more)


def test_unloaded_it_is_not_ready_until_loaded() -> None:
    async def main() -> None:
        stub = StubModel()
        await stub.aunload("stub")
        assert not await stub.ready()
        assert (await stub.index())[0].state == "UNAVAILABLE"
        with pytest.raises(ModelNotReady):
            await stub.infer(InferRequest("stub", {}))
        with pytest.raises(ModelNotReady):
            await stub.describe("stub")
        assert await stub.aload("stub") == "1"
        assert await stub.ready("stub", "1")
        assert (await stub.describe("stub")).versions == ("1",)

    asyncio.run(main())


def test_routes_go_to_its_one_version() -> None:
    async def main() -> None:
        stub = StubModel(labels=["stable"])
        for policy in (None, "1", "stable"):
            await stub.aroute("stub", policy)
        with pytest.raises(ModelNotFound):
            await stub.aroute("stub", "9")

    asyncio.run(main())


def test_stream_answers_one_or_many() -> None:
    async def many() -> AsyncIterator[InferRequest]:
        for number in range(3):
            yield InferRequest("stub", {}, id=str(number))

    async def main() -> list[str]:
        stub = StubModel()
        one = [r.id async for r in stub.stream(InferRequest("stub", {}, id="a"))]
        return one + [r.id async for r in stub.stream(many())]

    assert asyncio.run(main()) == ["a", "0", "1", "2"]


def test_requests_can_be_looked_at() -> None:
    stub = StubModel()
    ask(stub, id="mine")
    assert [request.id for request in stub.requests] == ["mine"]


def test_a_request_begun_is_answered_or_refused() -> None:
    stub = StubModel(lambda inputs: {"y": inputs["x"] * 2}, fail_every=2)

    async def main() -> None:
        answers: asyncio.Queue[Any] = asyncio.Queue()
        for _ in range(2):
            stub.begin(InferRequest("stub", {"x": np.ones(1)}), lambda *a: answers.put_nowait(a))
            assert answers.empty()
        response, error = await answers.get()
        assert (response.outputs["y"].tolist(), error) == ([2.0], None)
        response, error = await answers.get()
        assert response is None
        assert isinstance(error, BackendError)
        with pytest.raises(ModelNotFound):
            stub.begin(InferRequest("other", {}), lambda *a: answers.put_nowait(a))
        await stub.aunload("stub")
        with pytest.raises(ModelNotReady):
            stub.begin(InferRequest("stub", {}), lambda *a: answers.put_nowait(a))
        assert answers.empty()

    asyncio.run(main())


@pytest.mark.parametrize("given", [{"config": {}}, {"files": {"1/model.onnx": b""}}])
def test_a_stub_takes_no_configuration_and_no_files(given: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match="takes no configuration and no files"):
        asyncio.run(StubModel().aload("stub", **given))
