"""The routes that load models, and show and change settings: who may, and what is refused."""

import asyncio
import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from modelserve.errors import ServeError
from modelserve.messages import Exchange, InferRequest, InferResponse
from modelserve.repository.repository import ModelRepository
from modelserve.security.authentication import APIKeys
from modelserve.testing import StubModel
from modelserve.transports.routes import Reply, Request, Routes
from versioned_models import adds, answer, tree

LOAD = "/v2/repository/models/m/load"
UNLOAD = "/v2/repository/models/m/unload"
TRACE = "/v2/trace/setting"
X = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}
INFER = json.dumps({"inputs": [X]}).encode()


def ask(
    routes: Routes,
    method: str,
    path: str,
    body: Any = b"",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Any]:
    """Do what a transport does; returns status and content."""
    request = Request(method, path, (headers or {}).get)
    try:
        route = routes.open(request)
        request.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        assert len(request.body) <= route.max_body or not route.max_body
        reply: Reply = asyncio.run(routes.answer(request, route))
    except ServeError as error:
        reply = routes.refuse(request, error)
    routes.close(request, reply.size)
    content = b"".join(reply.body)
    return reply.status, json.loads(content) if content else None


def brought(config: Any = "{}", **files: bytes) -> dict[str, Any]:
    encoded = {
        f"file:{name[1:]}/model.onnx": base64.b64encode(content).decode()
        for name, content in files.items()
    }
    return {"parameters": {"config": config, **encoded}}


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[ModelRepository]:
    with ModelRepository(tree(tmp_path / "models", {"m": {"1": 1}})) as made:
        yield made
        made.log_settings.update({"log_verbose_level": 0})


@pytest.fixture
def routes(repository: ModelRepository) -> Routes:
    return Routes(repository, admin=True, uploads=True)


def test_a_request_brings_a_model(routes: Routes, repository: ModelRepository) -> None:
    assert ask(routes, "POST", LOAD, brought(v5=adds(5))) == (200, None)
    assert answer(repository) == 5
    assert ask(routes, "POST", LOAD) == (200, None)
    assert answer(repository) == 1


def test_a_large_one_is_read_off_the_loop(routes: Routes, repository: ModelRepository) -> None:
    body = brought(v5=adds(5))
    body["parameters"]["file:5/padding"] = base64.b64encode(bytes(3 << 20)).decode()
    assert ask(routes, "POST", LOAD, body) == (200, None)
    assert answer(repository) == 5


@pytest.mark.parametrize("body", [brought(), brought(v5=b"x")], ids=["config", "files"])
def test_uploads_that_are_off_say_how_to_turn_them_on(
    repository: ModelRepository, body: Any
) -> None:
    status, content = ask(Routes(repository, admin=True), "POST", LOAD, body)
    assert status == 403
    assert "uploads=True (modelserve serve --uploads)" in content["error"]
    assert ask(Routes(repository, admin=True), "POST", LOAD)[0] == 200


def test_uploads_do_not_open_control_routes(repository: ModelRepository) -> None:
    status, content = ask(Routes(repository, uploads=True), "POST", LOAD, brought())
    assert status == 403
    assert "control routes are off" in content["error"]
    direct = Routes(repository, admin="direct", uploads=True)
    assert ask(direct, "POST", LOAD, brought(), {"origin": "http://evil"})[0] == 403


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (brought("{"), 400, "config: not valid JSON"),
        (brought(1), 400, "parameters.config: expected a model configuration"),
        ({"parameters": {"file:1/model.onnx": ""}}, 400, "files need the model's configuration"),
        (brought(v1=b"no model"), 400, "files['1/model.onnx']: not an ONNX model"),
        (brought(v1=adds(1).replace(b"Add", b"Odd")), 400, "version 1 cannot be loaded"),
        ({"parameters": {"config": "{}", "file:1/model.onnx": "?"}}, 400, "not base64"),
        ({"parameters": {"config": "{}", "file:../x/model.onnx": ""}}, 400, "begins with a dot"),
        ({"parameters": {"config": "{}", "version": "9"}}, 404, 'no model "m" version "9"'),
        ({"parameters": {"config": '{"name": "z"}'}}, 400, 'a model named "z"'),
    ],
    ids=range(9),
)
def test_what_cannot_be_loaded_is_the_senders_error(
    routes: Routes, repository: ModelRepository, body: Any, status: int, said: str
) -> None:
    found, content = ask(routes, "POST", LOAD, body)
    assert (found, said in content["error"]) == (status, True), content
    assert answer(repository) == 1


def test_unknown_model_is_404(routes: Routes) -> None:
    path = "/v2/repository/models/nope/load"
    status, content = ask(routes, "POST", path, brought())
    assert (status, content["error"]) == (404, 'the store has no model "nope"')


def test_what_takes_no_configuration_says_so() -> None:
    routes = Routes(StubModel(name="m"), admin=True, uploads=True)
    status, content = ask(routes, "POST", LOAD, brought())
    assert (status, "takes no configuration" in content["error"]) == (501, True)


def test_dependents_are_accepted_and_their_kind_is_checked(routes: Routes) -> None:
    assert ask(routes, "POST", UNLOAD, {"parameters": {"unload_dependents": True}}) == (200, None)
    status, content = ask(routes, "POST", UNLOAD, {"parameters": {"unload_dependents": 1}})
    assert (status, "parameters.unload_dependents" in content["error"]) == (400, True)


# ---------------------------------------------------------------------- who may

READER, READER_HASH = APIKeys.generate()
OWNER, OWNER_HASH = APIKeys.generate()
KEYS = APIKeys({"reader": (READER_HASH, {"read"}), "owner": (OWNER_HASH, {"admin"})})
SETTINGS = ["/v2/logging", TRACE, "/v2/models/m/trace/setting"]


@pytest.mark.parametrize("path", SETTINGS)
def test_reading_takes_the_scope_read_and_writing_admin(
    repository: ModelRepository, path: str
) -> None:
    routes = Routes(repository, admin=True, authenticator=KEYS)
    reader, owner = {"x-api-key": READER}, {"x-api-key": OWNER}
    assert ask(routes, "GET", path, headers=reader)[0] == 200
    assert ask(routes, "HEAD", path, headers=reader) == (200, None)
    assert ask(routes, "POST", path, {}, reader)[0] == 403
    assert ask(routes, "GET", path, headers=owner)[0] == 403
    assert ask(routes, "POST", path, {}, owner)[0] == 200
    assert ask(routes, "POST", path, {})[0] == 401


@pytest.mark.parametrize("path", SETTINGS)
def test_writing_is_a_control_route(repository: ModelRepository, path: str) -> None:
    routes = Routes(repository)
    assert ask(routes, "GET", path)[0] == 200
    status, content = ask(routes, "POST", path, {})
    assert (status, "control routes are off" in content["error"]) == (403, True)
    direct = Routes(repository, admin="direct")
    assert ask(direct, "POST", path, {}, {"via": "1.1 proxy"})[0] == 403
    assert ask(direct, "POST", path, {})[0] == 200


@pytest.mark.parametrize("path", SETTINGS)
@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff", b"1"])
def test_malformed_settings_are_refused(routes: Routes, path: str, body: bytes) -> None:
    status, content = ask(routes, "POST", path, body)
    assert (status, list(content)) == (400, ["error"])


@pytest.mark.parametrize("path", SETTINGS)
def test_an_empty_body_changes_nothing(routes: Routes, path: str) -> None:
    assert ask(routes, "POST", path) == ask(routes, "GET", path)


# ---------------------------------------------------------------------- settings


def test_refusals_have_their_status(routes: Routes) -> None:
    assert ask(routes, "POST", "/v2/logging", {"log_file": "x"})[0] == 400
    assert ask(routes, "POST", "/v2/logging", {"log_format": "ISO8601"})[0] == 501
    assert ask(routes, "POST", TRACE, {"trace_file": "x"})[0] == 400
    assert ask(routes, "POST", TRACE, {"trace_level": ["TENSORS"]})[0] == 501


def test_trace_settings_of_a_model_that_is_not_there_are_404(routes: Routes) -> None:
    for method in ("GET", "POST"):
        assert ask(routes, method, "/v2/models/nope/trace/setting", {})[0] == 404
    assert ask(routes, "GET", "/v2/models/m/versions/1/trace/setting")[0] == 404


def test_requests_are_traced_with_the_callers_id(routes: Routes, caplog: Any) -> None:
    assert ask(routes, "POST", TRACE, {"trace_rate": "1", "trace_level": ["TIMESTAMPS"]})[0] == 200
    body = json.dumps({"id": "mine", "inputs": [X]}).encode()
    assert ask(routes, "POST", "/v2/models/m/infer", body)[0] == 200
    ask(routes, "POST", TRACE, {"trace_level": ["OFF"]})
    ask(routes, "POST", "/v2/models/m/infer", body)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "modelserve.trace"]
    trace = json.loads(line)
    assert (trace["model_name"], trace["model_version"], trace["request_id"]) == ("m", 1, "mine")
    times = [point["ns"] for point in trace["timestamps"]]
    assert len(times) == 7
    assert times == sorted(times)
    assert times[-1] > times[0]


def test_settings_are_the_repositorys_whoever_serves_it(repository: ModelRepository) -> None:
    one, two = Routes(repository, admin=True), Routes(repository)
    ask(one, "POST", TRACE, {"trace_rate": "7"})
    assert ask(two, "GET", TRACE)[1]["trace_rate"] == "7"
    assert repository.trace_settings.current()["trace_rate"] == "7"
    with ModelRepository() as other:
        assert other.trace_settings.current()["trace_rate"] == "1000"


class Plain:
    """A servable that records nothing."""

    async def infer(self, request: InferRequest) -> InferResponse:
        return InferResponse("m", "1", request.inputs, id=request.id)

    async def stream(self, request: Any) -> Any:
        yield await self.infer(request)


def access(caplog: Any) -> int:
    return sum(record.name == "modelserve.access" for record in caplog.records)


def test_what_records_nothing_is_logged_by_its_server(caplog: Any) -> None:
    routes = Routes(Plain(), admin=True)
    assert routes.record is None
    ask(routes, "POST", "/v2/logging", {"log_verbose_level": 1})
    ask(routes, "POST", "/v2/models/m/infer", INFER)
    assert access(caplog) == 1
    ask(routes, "POST", TRACE, {"trace_rate": "1", "trace_level": ["TIMESTAMPS"]})
    ask(routes, "POST", "/v2/logging", {"log_verbose_level": 0})
    ask(routes, "POST", "/v2/models/m/infer", INFER)
    assert access(caplog) == 1
    assert sum(record.name == "modelserve.trace" for record in caplog.records) == 1
    ask(routes, "POST", TRACE, {"trace_level": ["OFF"]})
    assert routes.record is None
    assert ask(routes, "GET", "/v2/models/m/trace/setting")[0] == 501


def test_who_is_given_the_exchanges_still_is(repository: ModelRepository, caplog: Any) -> None:
    kept: list[Exchange] = []
    routes = Routes(repository, admin=True, record=kept.append)
    ask(routes, "POST", "/v2/logging", {"log_verbose_level": 1})
    ask(routes, "POST", "/v2/models/m/infer", INFER)
    assert (len(kept), access(caplog)) == (1, 1)
    ask(routes, "POST", "/v2/logging", {"log_verbose_level": 0})
    ask(routes, "POST", "/v2/models/m/infer", INFER)
    assert (len(kept), access(caplog)) == (2, 1)
    assert repository.log_settings.current()["log_verbose_level"] == 0
