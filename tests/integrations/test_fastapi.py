"""Models in routes of FastAPI: what users write, over the real framework and real servers."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Annotated, Any

import httpx
import numpy as np
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware

import gated
import onnx_models
import serving
from modelserve import errors
from modelserve.backends.python import PythonBackend
from modelserve.integrations.fastapi import ERRORS, Predictor, add_model_route, install_errors
from modelserve.integrations.pydantic import request_model, response_model
from modelserve.messages import InferRequest
from modelserve.repository.decorator import model
from modelserve.repository.repository import ModelRepository
from modelserve.tensors import Signature, TensorSpec
from modelserve.testing import StubModel
from modelserve.transports.asgi import ASGIApp

X = TensorSpec("x", "FP32", (-1, 2))
SUM = TensorSpec("sum", "FP32", (-1,))
TWICE = TensorSpec("twice", "FP32", (-1, 2))
JSON = {"content-type": "application/json"}


def adding(inputs: Any) -> dict[str, Any]:
    return {"sum": inputs["x"].sum(axis=1), "twice": inputs["x"] * 2}


def stub(function: Any = adding, **options: Any) -> StubModel:
    return StubModel(function, **{"inputs": [X], "outputs": [SUM, TWICE], "name": "m", **options})


def app_of(servable: Any, path: str = "/m", **options: Any) -> FastAPI:
    app = FastAPI()
    add_model_route(app, path, Predictor(servable, "m"), **options)
    return app


def ask(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    """Ask an application without a server; what it raises is raised here."""

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(asked())


def post(app: Any, document: Any, path: str = "/m", **options: Any) -> httpx.Response:
    return ask(app, "POST", path, json=document, **options)


def batcher_of(repository: ModelRepository) -> Any:
    version = repository.row_runner("m", "")
    assert version is not None
    return version.batcher


# A route for a model


def test_route_answers_with_the_outputs() -> None:
    answer = post(app_of(stub()), {"x": [[1, 2], [3, 4]]})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"sum": [3, 7], "twice": [[2, 4], [6, 8]]}


def test_route_of_an_onnx_file_in_a_repository() -> None:
    with ModelRepository() as repository:
        repository.add("m", onnx_models.mlp(4, 8, 3))
        expected = repository.predict("m", {"x": np.ones((2, 4), np.float32)})["y"]
        answer = post(app_of(repository), {"x": [[1, 1, 1, 1]] * 2})
    assert np.allclose(answer.json()["y"], expected)


def test_route_of_a_function() -> None:
    @model(inputs=[X], outputs=[SUM], max_batch_size=8, name="m")
    def total(x: Any) -> Any:
        return x.sum(axis=1)

    assert post(app_of(total), {"x": [[1, 2]]}).json() == {"sum": [3]}
    total.close()


def test_route_for_one_row() -> None:
    answer = post(app_of(stub(), per_row=True), {"x": [1, 2]})
    assert answer.json() == {"sum": 3, "twice": [2, 4]}


def test_requests_of_one_row_share_a_batch() -> None:
    backend = gated.GatedBackend(shape=(-1, 1))
    with ModelRepository() as repository:
        repository.add("m", backend, max_batch_size=16)
        signature = Signature(
            [TensorSpec("x", "FP32", (-1, 1))], [TensorSpec("y", "FP32", (-1, 1))]
        )
        app = app_of(repository, signature=signature, per_row=True)

        async def many() -> list[Any]:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
                backend.hold()
                first = asyncio.ensure_future(client.post("/m", json={"x": [0]}))
                await asyncio.to_thread(backend.wait_inside)
                rest = [
                    asyncio.ensure_future(client.post("/m", json={"x": [n]})) for n in range(1, 9)
                ]
                waiting = batcher_of(repository)
                await asyncio.to_thread(gated.wait_until, lambda: waiting.queue_depth == 8)
                backend.release()
                return [answer.json()["y"] for answer in await asyncio.gather(first, *rest)]

        assert asyncio.run(many()) == [[2.0 * n] for n in range(9)]
        assert backend.sizes == [1, 8]


def test_bytes_go_through_as_text_or_base64() -> None:
    text = TensorSpec("t", "BYTES", (-1,))
    servable = stub(dict, inputs=[text], outputs=[text])
    assert post(app_of(servable), {"t": ["é"]}).json() == {"t": ["é"]}
    app = app_of(servable, json_bytes="base64")
    assert post(app, {"t": ["/w=="]}).json() == {"t": ["/w=="]}
    assert servable.requests[-1].inputs["t"].tolist() == [b"\xff"]


def test_nan_is_null() -> None:
    servable = stub(lambda inputs: {"sum": np.array([np.nan, np.inf, 1])})
    app = app_of(servable, allow_nan=True)
    assert post(app, {"x": [[None, 1]]}).json() == {"sum": [None, None, 1]}
    assert np.isnan(servable.requests[-1].inputs["x"][0, 0])


def test_signature_may_choose_outputs() -> None:
    servable = stub()
    app = app_of(servable, signature=Signature([X], [SUM]))
    assert post(app, {"x": [[1, 2]]}).json() == {"sum": [3]}
    assert servable.requests[-1].outputs == ["sum"]


def test_all_outputs_are_not_named_so_that_batches_are_shared() -> None:
    servable = stub()
    post(app_of(servable), {"x": [[1, 2]]})
    post(app_of(servable, signature=Signature([X], [TWICE, SUM])), {"x": [[1, 2]]})
    assert [request.outputs for request in servable.requests] == [None, None]


def test_outputs_that_are_not_declared_are_written_all_the_same() -> None:
    servable = stub(outputs=[])
    assert set(post(app_of(servable), {"x": [[1, 2]]}).json()) == {"sum", "twice"}


def test_optional_input_may_be_left_out() -> None:
    servable = stub(
        lambda inputs: {"sum": np.array([len(inputs)])},
        inputs=[X, TensorSpec("mask", "BOOL", (-1,), optional=True)],
    )
    app = app_of(servable)
    assert post(app, {"x": [[1, 2]]}).json() == {"sum": [1]}
    assert post(app, {"x": [[1, 2]], "mask": None}).json() == {"sum": [1]}
    assert post(app, {"x": [[1, 2]], "mask": [True]}).json() == {"sum": [2]}


def test_router_takes_routes_with_a_prefix_and_options() -> None:
    router = APIRouter(prefix="/v1")
    add_model_route(router, "/m", Predictor(stub(), "m"), tags=["models"], deprecated=True)
    app = FastAPI()
    app.include_router(router)
    assert post(app, {"x": [[1, 2]]}, "/v1/m").status_code == 200
    operation = app.openapi()["paths"]["/v1/m"]["post"]
    assert operation["tags"] == ["models"]
    assert operation["deprecated"] is True


def test_dependencies_of_the_route_come_first() -> None:
    async def key(x_key: Annotated[str, Header()] = "") -> None:
        if x_key != "secret":
            raise HTTPException(401)

    servable = stub()
    app = app_of(servable, dependencies=[Depends(key)])
    assert post(app, {"x": [[1, 2]]}).status_code == 401
    assert servable.count == 0
    assert post(app, {"x": [[1, 2]]}, headers={"x-key": "secret"}).status_code == 200


def test_dependency_may_find_the_model() -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.models = stub()
        yield

    async def found(request: Request) -> Predictor:
        return await Predictor(request.app.state.models, "m")(request)

    app = FastAPI(lifespan=lifespan)
    add_model_route(app, "/m", found, signature=Signature([X], [SUM, TWICE]), name="adder")

    async def asked() -> httpx.Response:
        async with lifespan(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
                return await client.post("/m", json={"x": [[1, 2]]})

    assert asyncio.run(asked()).json()["sum"] == [3]


def test_dependency_without_a_signature_is_refused() -> None:
    async def found() -> Predictor:
        return Predictor(stub(), "m")

    with pytest.raises(TypeError, match="give signature="):
        add_model_route(FastAPI(), "/m", found)


# What is wrong


@pytest.mark.parametrize(
    ("document", "loc", "text"),
    [
        ({"x": [[1, "2"]]}, ["body", "x", 0, 1], 'expected a number for FP32, got "2"'),
        ({"x": [[1, 2], [3]]}, ["body", "x", 1], "expected a list of 2 elements"),
        ({"x": [1, 2]}, ["body", "x"], "expected shape [-1, 2], got shape [2]"),
        ({"x": [[1, None]]}, ["body", "x", 0, 1], "got null"),
        ({"x": [[1, 1e39]]}, ["body", "x", 0, 1], "range of FP32"),
        ({"x": [[True, 1]]}, ["body", "x", 0, 0], "got true"),
        ({}, ["body", "x"], "Field required"),
        ({"x": [[1, 2]], "y": 1}, ["body", "y"], "not permitted"),
        ([[1, 2]], ["body"], "dictionary"),
        ("text", ["body"], "dictionary"),
    ],
)
def test_body_that_does_not_fit_is_answered_as_by_fastapi(
    document: Any, loc: Any, text: str
) -> None:
    answer = post(app_of(stub()), document)
    assert answer.status_code == 422
    [error] = answer.json()["detail"]
    assert error["loc"] == loc
    assert text in error["msg"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"x":[[NaN,1]]}', b'{"x":[[1e999,1]]}', b"\xff\xfe", b"[" * 10**5]
)
def test_body_that_is_no_json_is_answered_as_by_fastapi(body: bytes) -> None:
    answer = ask(app_of(stub()), "POST", "/m", content=body, headers=JSON)
    assert answer.status_code == 422
    [error] = answer.json()["detail"]
    assert error["type"] == "json_invalid"
    assert error["loc"][0] == "body"


@pytest.mark.parametrize("kind", ["", "text/plain", "application/jsonx", "multipart/form-data"])
def test_body_that_is_not_said_to_be_json_is_not_read(kind: str) -> None:
    headers = {"content-type": kind} if kind else {}
    answer = ask(app_of(stub()), "POST", "/m", content=b'{"x":[[1,2]]}', headers=headers)
    assert answer.status_code == 415


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"]
)
def test_every_name_of_json_is_taken(kind: str) -> None:
    headers = {"content-type": kind}
    answer = ask(app_of(stub()), "POST", "/m", content=b'{"x":[[1,2]]}', headers=headers)
    assert answer.status_code == 200


async def in_pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.mark.parametrize("known", [True, False])
def test_body_is_bounded_whether_its_length_is_known_or_not(known: bool) -> None:
    body = json.dumps({"x": [[1, 2]] * 40}).encode()
    for limit, status in ((len(body), 200), (len(body) - 1, 413)):
        app = app_of(stub(), max_body_size=limit)
        content = body if known else in_pieces(body[:50], body[50:])
        answer = ask(app, "POST", "/m", content=content, headers=JSON)
        assert answer.status_code == status
    assert "allowed" in answer.json()["detail"]


STATUSES = [
    (errors.InvalidInput("no", path="inputs"), 400),
    (errors.ModelNotFound("none"), 404),
    (errors.ModelNotReady("not yet"), 503),
    (errors.QueueFull("full", retry_after=2.5), 503),
    (errors.Overloaded("late"), 503),
    (errors.DeadlineExceeded("late"), 504),
    (errors.RateLimited("slow", retry_after=1.0), 429),
    (errors.Unsupported("never"), 501),
]


@pytest.mark.parametrize(("error", "status"), STATUSES, ids=lambda one: type(one).__name__)
def test_error_of_the_model_has_its_status(error: Any, status: int) -> None:
    answer = post(app_of(stub(fail_every=1, error=error)), {"x": [[1, 2]]})
    assert answer.status_code == status
    assert answer.json() == {"detail": str(error)}
    retry_after = getattr(error, "retry_after", None)
    assert answer.headers.get("retry-after") == (retry_after and str(int(-(-retry_after // 1))))


def test_why_a_model_failed_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    def fail(inputs: Any) -> Any:
        raise ValueError("secret of the house")

    with caplog.at_level(logging.ERROR, "modelserve"):
        answer = post(app_of(stub(fail)), {"x": [[1, 2]]}, headers={"x-request-id": "mine"})
    assert answer.status_code == 500
    assert answer.json() == {"detail": "the model failed; request id mine"}
    assert answer.headers["x-request-id"] == "mine"
    [record] = caplog.records
    assert "mine" in record.getMessage()
    assert "secret of the house" in caplog.text


@pytest.mark.parametrize("output", [np.zeros((2, 1), np.float32), np.zeros(1, np.complex64)])
def test_output_that_cannot_be_told_is_the_servers_fault(output: Any) -> None:
    servable = stub(lambda inputs: {"sum": output, "twice": np.zeros((1, 2))})
    answer = post(app_of(servable, per_row=True), {"x": [1, 2]})
    assert answer.status_code == 500


def test_bytes_that_are_no_text_are_the_servers_fault() -> None:
    servable = stub(lambda inputs: {"sum": np.array([b"\xff"], np.object_)})
    assert post(app_of(servable), {"x": [[1, 2]]}).status_code == 500


def test_handler_of_the_application_gets_the_errors() -> None:
    app = app_of(stub(fail_every=1, error=errors.QueueFull("full")))

    @app.exception_handler(errors.UnavailableError)
    async def tell(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"problem": str(error)}, 529)

    answer = post(app, {"x": [[1, 2]]})
    assert (answer.status_code, answer.json()) == (529, {"problem": "full"})


def test_model_that_changed_is_answered_400() -> None:
    servable = stub()
    app = app_of(servable)
    servable.signature = Signature([TensorSpec("x", "FP32", (-1, 3))])
    answer = post(app, {"x": [[1, 2]]})
    assert answer.status_code == 400
    assert "expected shape (-1, 3)" in answer.json()["detail"]


# Headers


def test_headers_go_with_the_request() -> None:
    servable = stub()
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    headers = {"x-request-id": "42", "traceparent": trace, "idempotency-key": "k"}
    answer = post(app_of(servable), {"x": [[1, 2]]}, headers=headers)
    request = servable.requests[-1]
    assert (request.id, request.trace, request.idempotency_key) == ("42", trace, "k")
    assert answer.headers["x-request-id"] == "42"


def test_id_that_is_none_is_not_passed_on() -> None:
    servable = stub()
    answer = post(app_of(servable), {"x": [[1, 2]]}, headers={"x-request-id": "a b"})
    assert servable.requests[-1].id == ""
    assert "x-request-id" not in answer.headers


@pytest.mark.parametrize(
    ("said", "given", "asked", "least", "most"),
    [
        (None, None, None, None, None),
        ("5", None, None, 4, 5),
        (None, 7.0, None, 6, 7),
        ("5", 7.0, 9.0, 4, 5),
        ("9", 7.0, 5.0, 4, 5),
        ("9", 5.0, 7.0, 4, 5),
    ],
)
def test_earliest_deadline_counts(said: Any, given: Any, asked: Any, least: Any, most: Any) -> None:
    servable = stub()
    app = FastAPI()
    m = Predictor(servable, "m", timeout=given)

    @app.post("/m")
    async def route(m: Annotated[Predictor, Depends(m)]) -> None:
        await m.predict({"x": [[1, 2]]}, timeout=asked)

    headers = {} if said is None else {"x-request-timeout": said}
    assert post(app, {}, headers=headers).status_code == 200
    deadline = servable.requests[-1].deadline
    if least is None:
        assert deadline is None
    else:
        assert deadline is not None
        assert least < deadline - monotonic() <= most


def test_time_the_route_took_before_counts() -> None:
    servable = stub()
    app = FastAPI()
    m = Predictor(servable, "m", timeout=60.0)

    @app.post("/m")
    async def route(m: Annotated[Predictor, Depends(m)]) -> float:
        begun = monotonic()
        await asyncio.sleep(0.02)
        await m.predict({"x": [[1, 2]]})
        return begun

    begun = post(app, {}).json()
    assert servable.requests[-1].deadline == pytest.approx(begun + 60, abs=0.015)


def test_timeout_that_cannot_be_read_is_answered_400() -> None:
    answer = post(app_of(stub()), {"x": [[1, 2]]}, headers={"x-request-timeout": "soon"})
    assert answer.status_code == 400
    assert "X-Request-Timeout" in answer.json()["detail"]


def test_deadline_that_passed_is_answered_504() -> None:
    with ModelRepository() as repository:
        backend = gated.GatedBackend(shape=(-1, 2))
        repository.add("m", backend)
        app = app_of(repository, signature=Signature([X]))
        backend.hold()
        try:
            answer = post(app, {"x": [[1, 2]]}, headers={"x-request-timeout": "0.01"})
        finally:
            backend.release()
    assert answer.status_code == 504


# Routes of one's own


def test_predictor_is_a_dependency() -> None:
    servable = stub()
    m = Predictor(servable, "m", version="1")
    app = FastAPI()

    class Order(BaseModel):
        left: float
        right: float

    @app.post("/total")
    async def total(order: Order, m: Annotated[Predictor, Depends(m)]) -> float:
        outputs = await m.predict({"x": np.array([[order.left, order.right]], np.float32)})
        return float(outputs["sum"][0])

    assert post(app, {"left": 1, "right": 2}, "/total").json() == 3
    assert servable.requests[-1].version == "1"


def test_models_of_pydantic_make_a_typed_route() -> None:
    m = Predictor(stub(), "m")
    Question = request_model(m.signature, "Question", per_row=True)
    Answer = response_model(m.signature, "Answer", per_row=True)
    app = FastAPI()

    @app.post("/m", responses=ERRORS)
    async def route(question: Question, m: Annotated[Predictor, Depends(m)]) -> Answer:  # type: ignore[valid-type]
        return Answer.from_outputs(await m.predict(question))  # type: ignore[return-value]

    assert post(app, {"x": [1, 2]}).json() == {"sum": 3, "twice": [2, 4]}
    assert post(app, {"x": [1, "2"]}).status_code == 422
    schemas = app.openapi()["components"]["schemas"]
    assert {"Question", "Answer"} <= set(schemas)


def test_errors_in_own_routes_are_answered_where_installed() -> None:
    app = FastAPI()
    install_errors(app)
    m = Predictor(stub(fail_every=1, error=errors.QueueFull("full", retry_after=3)), "m")

    @app.get("/m")
    async def route(m: Annotated[Predictor, Depends(m)]) -> None:
        await m.predict({"x": [[1, 2]]})

    answer = ask(app, "GET", "/m")
    assert (answer.status_code, answer.json()) == (503, {"detail": "full"})
    assert answer.headers["retry-after"] == "3"


def test_errors_are_installed_before_the_first_request() -> None:
    app = app_of(stub(fail_every=1, error=errors.QueueFull("full")))
    assert post(app, {"x": [[1, 2]]}).status_code == 503
    with pytest.raises(RuntimeError, match="before"):
        install_errors(app)
    app.add_exception_handler(errors.ServeError, lambda request, error: JSONResponse({}, 599))
    assert post(app, {"x": [[1, 2]]}).status_code == 503


def test_parameters_priority_and_outputs_go_with_the_request() -> None:
    servable = stub()
    m = Predictor(servable, "m")
    found = asyncio.run(m.infer({"x": [[1, 2]]}, outputs=["sum"], parameters={"a": 1}, priority=2))
    assert list(found.outputs) == ["sum"]
    request = servable.requests[-1]
    assert (request.parameters, request.priority) == ({"a": 1}, 2)


def test_stream_is_passed_on() -> None:
    @model(inputs=[TensorSpec("n", "INT64", (1,))], name="count")
    def count(n: Any) -> Iterator[Any]:
        for number in range(int(n[0])):
            yield {"number": np.array([number])}

    app = FastAPI()
    counter = Predictor(count, "count")

    @app.get("/count")
    async def route(counter: Annotated[Predictor, Depends(counter)]) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            async for response in counter.stream({"n": np.array([3])}):
                yield f"{response.outputs['number'][0]}\n"

        return StreamingResponse(lines())

    assert ask(app, "GET", "/count").text == "0\n1\n2\n"
    count.close()


# Tests of users


def test_predictor_is_overridden_by_a_predictor() -> None:
    m = Predictor(stub(), "m")
    app = FastAPI()
    add_model_route(app, "/m", m)

    @app.get("/own")
    async def own(m: Annotated[Predictor, Depends(m)]) -> list[float]:
        found: list[float] = (await m.predict({"x": [[1, 2]]}))["sum"].tolist()
        return found

    fake = stub(lambda inputs: {"sum": np.array([-1.0]), "twice": inputs["x"]})

    async def later() -> Predictor:
        return Predictor(fake, "m")

    overrides: list[Callable[..., Any]] = [
        Predictor(fake, "m"), lambda: Predictor(fake, "m"), later
    ]  # fmt: skip
    for override in overrides:
        app.dependency_overrides[m] = override
        assert post(app, {"x": [[1, 2]]}).json()["sum"] == [-1]
        assert ask(app, "GET", "/own").json() == [-1]
    app.dependency_overrides.clear()
    assert post(app, {"x": [[1, 2]]}).json()["sum"] == [3]


def test_overriding_by_something_else_says_so() -> None:
    m = Predictor(stub(), "m")
    app = FastAPI()
    add_model_route(app, "/m", m)
    app.dependency_overrides[m] = lambda: stub()
    with pytest.raises(TypeError, match="overridden by a predictor"):
        post(app, {"x": [[1, 2]]})


def test_predictor_without_a_request_asks_the_model() -> None:
    servable = stub()
    outputs = asyncio.run(Predictor(servable, "m", timeout=5.0).predict({"x": [[1, 2]]}))
    assert outputs["sum"].tolist() == [3]
    deadline = servable.requests[-1].deadline
    assert deadline is not None
    assert 4 < deadline - monotonic() <= 5


# Making one


def test_signature_is_the_loaded_versions() -> None:
    with ModelRepository() as repository:
        repository.add("m", onnx_models.mlp(4, 8, 3))
        assert [spec.name for spec in Predictor(repository, "m").signature.inputs] == ["x"]
        with pytest.raises(errors.ModelNotFound):
            Predictor(repository, "other").signature  # noqa: B018  # the property raises


def test_signature_is_known_on_a_running_loop_too() -> None:
    async def made() -> Signature:
        async with ModelRepository() as repository:
            await repository.aadd("m", onnx_models.mlp(4, 8, 3))
            return Predictor(repository, "m").signature

    assert [spec.name for spec in asyncio.run(made()).outputs] == ["y"]


def test_signature_that_takes_waiting_has_to_be_given() -> None:
    class Remote:
        async def infer(self, request: InferRequest) -> Any: ...

        async def describe(self, name: str, version: str = "") -> Any:
            await asyncio.sleep(0)

    for servable in (Remote(), type("Bare", (), {"infer": Remote.infer})()):
        with pytest.raises(TypeError, match="give signature="):
            add_model_route(FastAPI(), "/m", Predictor(servable, "m"))
        add_model_route(FastAPI(), "/m", Predictor(servable, "m"), signature=Signature([X]))


@pytest.mark.parametrize("servable", [None, StubModel, lambda inputs: inputs, "models"])
def test_what_cannot_answer_is_refused(servable: Any) -> None:
    with pytest.raises(TypeError, match="infer"):
        Predictor(servable, "m")


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_timeout_is_above_0(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Predictor(stub(), "m", timeout=timeout)


# The document


def test_route_is_documented() -> None:
    app = app_of(stub(), examples={"x": [[5.1, 3.5]]})
    document = app.openapi()
    operation = document["paths"]["/m"]["post"]
    body = operation["requestBody"]
    assert body["required"] is True
    schema = body["content"]["application/json"]["schema"]
    assert schema["title"] == "MRequest"
    assert schema["properties"]["x"]["items"]["maxItems"] == 2
    assert schema["examples"] == [{"x": [[5.1, 3.5]]}]
    good = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert good == {"$ref": "#/components/schemas/MResponse"}
    assert set(document["components"]["schemas"]["MResponse"]["properties"]) == {"sum", "twice"}
    assert {"400", "404", "413", "415", "422", "500", "503", "504"} < set(operation["responses"])
    assert ask(app, "GET", "/docs").status_code == 200


def test_names_of_schemas_come_from_the_name_of_the_route() -> None:
    app = app_of(stub(), name="house-price.v2")
    operation = app.openapi()["paths"]["/m"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["title"] == "HousePriceV2Request"
    assert app.url_path_for("house-price.v2") == "/m"


# Clients that go away, over real sockets


def own_get(app: FastAPI, m: Predictor) -> bytes:
    @app.get("/m")
    async def route(m: Annotated[Predictor, Depends(m)]) -> None:
        await m.predict({"x": [[1.0]]})

    return b"GET /m HTTP/1.1\r\nHost: t\r\n\r\n"


def own_post(app: FastAPI, m: Predictor) -> bytes:
    class Body(BaseModel):
        x: list[list[float]]

    @app.post("/m")
    async def route(body: Body, m: Annotated[Predictor, Depends(m)]) -> None:
        await m.predict({"x": np.array(body.x, np.float32)})

    return _post(b'{"x":[[1.0]]}')


def made_route(app: FastAPI, m: Predictor) -> bytes:
    add_model_route(app, "/m", m, signature=Signature([TensorSpec("x", "FP32", (-1, 1))]))
    return _post(b'{"x":[[1.0]]}')


def _post(body: bytes) -> bytes:
    head = "POST /m HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: "
    return f"{head}{len(body)}\r\n\r\n".encode() + body


async def passing(request: Request, call_next: Callable[[Request], Awaitable[Any]]) -> Any:
    return await call_next(request)


@pytest.mark.parametrize("between", [False, True], ids=["bare", "middleware"])
@pytest.mark.parametrize("route", [own_get, own_post, made_route])
@pytest.mark.parametrize("on", [serving.on_uvicorn, serving.on_hypercorn])
def test_client_that_goes_away_takes_its_request_back(on: Any, route: Any, between: bool) -> None:
    ended = asyncio.Event()
    begun: list[Any] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def slow(x: Any) -> Any:
        begun.append(x)
        try:
            await asyncio.sleep(gated.DEADLOCK)
        except asyncio.CancelledError:
            loops.append(asyncio.get_running_loop())
            ended.set()
            raise
        return {"y": x}

    class Slow:
        async def infer(self, request: InferRequest) -> Any:
            return await slow(request.inputs["x"])

    app = FastAPI()
    install_errors(app)
    if between:
        app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    request = route(app, Predictor(Slow(), "m"))
    with on(app) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(request)
            gated.wait_until(lambda: begun, "the model")
        gated.wait_until(ended.is_set, "the end of the request")


def test_request_that_came_back_costs_no_compute() -> None:
    backend = gated.GatedBackend(shape=(-1, 1))
    with ModelRepository() as repository:
        repository.add("m", backend, max_batch_size=1)
        app = FastAPI()
        request = made_route(app, Predictor(repository, "m"))
        with serving.on_uvicorn(app) as url:
            port = int(url.rpartition(":")[2])
            backend.hold()
            with socket.create_connection(("127.0.0.1", port)) as first:
                first.sendall(request)
                backend.wait_inside()
                batcher = batcher_of(repository)
                with socket.create_connection(("127.0.0.1", port)) as second:
                    second.sendall(request)
                    gated.wait_until(lambda: batcher.queue_depth == 1, "the second request")
                gated.wait_until(lambda: batcher.queue_depth == 0, "its end")
                backend.release()
                assert b" 200 " in first.recv(1000)
        assert len(backend.runs) == 1


def test_body_that_was_not_read_is_left_to_the_route() -> None:
    """The client is not looked for then: looking takes the body away."""
    app = FastAPI()
    m = Predictor(stub(latency=0.12), "m")

    @app.post("/m")
    async def route(request: Request, m: Annotated[Predictor, Depends(m)]) -> str:
        await m.predict({"x": [[1, 2]]})
        return (await request.body()).decode()

    with serving.on_uvicorn(app) as url:
        assert httpx.post(f"{url}/m", content=b"kept", trust_env=False).json() == "kept"


def test_body_without_end_that_nobody_asked_for_holds_nothing_up() -> None:
    """HTTP/2 says a body's length in no header."""
    app = FastAPI()
    m = Predictor(stub(), "m")

    @app.get("/m")
    async def route(m: Annotated[Predictor, Depends(m)]) -> list[float]:
        found: list[float] = (await m.predict({"x": [[1, 2]]}))["sum"].tolist()
        return found

    sent: list[Any] = []

    async def endless() -> Any:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "http_version": "2", "method": "GET", "path": "/m", "headers": []}
    scope |= {"query_string": b"", "root_path": "", "scheme": "https", "server": ("t", 443)}
    asyncio.run(app(scope, endless, send))
    assert sent[1]["body"] == b"[3.0]"


# Beside the mounted application


def test_routes_and_the_mounted_application_ask_one_repository() -> None:
    with ModelRepository() as repository:
        backend = PythonBackend(lambda x: adding({"x": x}), inputs=[X], outputs=[SUM, TWICE])
        repository.add("m", backend)
        app = app_of(repository)
        app.mount("/ml", ASGIApp(repository))
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
        answer = post(app, {"inputs": [tensor]}, "/ml/v2/models/m/infer")
        assert answer.json()["outputs"][0]["data"] == [3]
        assert post(app, {"x": [[1, 2]]}).json()["sum"] == [3]
        assert b'model="m"' in ask(app, "GET", "/ml/metrics").content
