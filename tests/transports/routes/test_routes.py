"""The route table: paths, statuses, scopes, errors, and the record of an exchange."""

import asyncio
import gzip
import json
import logging
import re
import zlib
from collections.abc import Mapping
from time import monotonic
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelserve.errors import (
    BackendError,
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    LoadError,
    MethodNotAllowed,
    ModelNotFound,
    ModelNotReady,
    Overloaded,
    PayloadTooLarge,
    PermissionDenied,
    QueueFull,
    RateLimited,
    ServeError,
    Unauthenticated,
    Unsupported,
)
from modelserve.messages import Exchange, InferRequest, InferResponse
from modelserve.protocols import Servable, VersionInfo
from modelserve.security.authentication import APIKeys
from modelserve.tensors import TensorSpec
from modelserve.testing import StubModel
from modelserve.transports.routes import (
    NoSuchPath,
    Reply,
    Request,
    Routes,
    split_target,
)

INFER = "/v2/models/stub/infer"
X = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, 2.5]}
BODY = json.dumps({"inputs": [X]}).encode()


class Bare:
    """A servable that is nothing else."""

    async def infer(self, request: InferRequest) -> InferResponse:
        return InferResponse("bare", "1", request.inputs, id=request.id)

    async def stream(self, request: Any) -> Any:
        yield await self.infer(request)


def ask(
    routes: Routes,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Do what a transport does."""
    request = Request(method, path, (headers or {}).get)
    try:
        route = routes.open(request)
        request.body = body
        reply = asyncio.run(routes.answer(request, route))
    except ServeError as error:
        reply = routes.refuse(request, error)
    routes.close(request, reply.size)
    return reply


def content(reply: Reply) -> Any:
    return json.loads(b"".join(reply.body))


def header(reply: Reply, name: str) -> str | None:
    found = [value for key, value in reply.headers if key == name.encode()]
    assert len(found) <= 1
    return found[0].decode() if found else None


# Paths


@pytest.mark.parametrize(
    ("method", "path", "model", "version", "scope"),
    [
        ("GET", "/v2", "", "", "read"),
        ("GET", "/v2/", "", "", "read"),
        ("HEAD", "/v2", "", "", "read"),
        ("GET", "/v2/health/live", "", "", ""),
        ("GET", "/v2/health/ready", "", "", ""),
        ("GET", "/v2/models/a", "a", "", "read"),
        ("GET", "/v2/models/a/versions/3", "a", "3", "read"),
        ("GET", "/v2/models/a/ready", "a", "", "read"),
        ("GET", "/v2/models/a/versions/3/ready", "a", "3", "read"),
        ("POST", "/v2/models/a/infer", "a", "", "infer"),
        ("POST", "/v2/models/a/infer/", "a", "", "infer"),
        ("GET", "/v2/models/a/", "a", "", "read"),
        ("POST", "/v2/models/a/versions/stable/infer", "a", "stable", "infer"),
        ("POST", "/v2/models/versions/infer", "versions", "", "infer"),
        ("POST", "/v2/models/a b:c?%é/infer", "a b:c?%é", "", "infer"),
        ("GET", "/v2/models/infer", "infer", "", "read"),
        ("POST", "/v2/repository/index", "", "", "read"),
        ("POST", "/v2/repository/models/a/load", "a", "", "admin"),
        ("POST", "/v2/repository/models/a/unload", "a", "", "admin"),
        ("GET", "/metrics", "", "", "read"),
    ],
)
def test_path_has_a_route(method: str, path: str, model: str, version: str, scope: str) -> None:
    route = Routes(StubModel()).find(method, path)
    assert (route.model, route.version, route.scope) == (model, version, scope)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/v1",
        "/v2/health",
        "/v2/health/live//",
        "/v2/models//infer",
        "/v2/models/a//",
        "/v2/models/a/other",
        "/v2/models/a/versions",
        "/v2/models/a/versions/",
        "/v2/models/a/versions//infer",
        "/v2/models/a/versions/3//",
        "/v2/models/a/versions/3/infer//",
        "/v2/models/a/infer/more",
        "/v2/repository/models//load",
        "/v2/repository/models/a/delete",
        "/v2/repository/models/a/load//",
        "x/v2/models/a/infer",
        "//v2/models/a/infer",
        "/V2/models/a/infer",
        "/metrics//",
    ],
)
def test_other_path_has_none(path: str) -> None:
    with pytest.raises(NoSuchPath):
        Routes(StubModel()).find("POST", path)


def test_paths_made_up_by_a_caller_are_not_all_remembered() -> None:
    routes = Routes(StubModel())
    for number in range(3000):
        assert routes.find("GET", f"/v2/models/{number}").model == str(number)
    assert routes.find("GET", "/v2/models/" + "x" * 5000).model == "x" * 5000
    assert len(routes.table.known) <= 1024
    assert max(len(path) for _, path in routes.table.known) < 300


@given(st.text("/v2modelsinfer:%.", max_size=40), st.sampled_from(["GET", "POST", "PUT", ""]))
def test_any_path_is_found_or_refused(path: str, method: str) -> None:
    reply = ask(Routes(StubModel()), method, "/v2/models/" + path)
    assert reply.status in (200, 400, 404, 405)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v2", "GET, HEAD"),
        ("GET", INFER, "POST"),
        ("HEAD", INFER, "POST"),
        ("PUT", "/v2/models/stub", "GET, HEAD"),
        ("OPTIONS", "/metrics", "GET, HEAD"),
        ("get", "/v2", "GET, HEAD"),
    ],
)
def test_wrong_method_is_told_the_right_ones(method: str, path: str, allow: str) -> None:
    reply = ask(Routes(StubModel()), method, path)
    assert reply.status == 405
    assert header(reply, "allow") == allow


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/v2", "/v2", ""),
        (b"/v2?a=%2F", "/v2", "a=%2F"),
        (b"/v2/models/a%20b%25c/infer", "/v2/models/a b%c/infer", ""),
        (b"/v2/models/%C3%A9", "/v2/models/é", ""),
        (b"/v2/models/\xc3\xa9", "/v2/models/é", ""),
    ],
)
def test_target_is_decoded_once(target: bytes, path: str, query: str) -> None:
    assert split_target(target) == (path, query)


@pytest.mark.parametrize(
    "target", [b"/a%2Fb", b"/a%2fb", b"/%", b"/%4", b"/%zz", b"/%+1", b"/% 1", b"/%ff", b"/\xff"]
)
def test_target_that_hides_something_has_no_route(target: bytes) -> None:
    with pytest.raises(NoSuchPath):
        split_target(target)


# Answers


def test_server_describes_itself() -> None:
    document = content(ask(Routes(StubModel()), "GET", "/v2"))
    assert document["name"] == "modelserve"
    assert document["extensions"] == [
        "binary_tensor_data",
        "classification",
        "parameters",
        "model_repository",
        "model_repository(unload_dependents)",
        "model_configuration",
        "statistics",
        "logging",
        "trace",
    ]


def test_live_and_ready_are_json() -> None:
    routes = Routes(StubModel())
    assert content(ask(routes, "GET", "/v2/health/live")) == {"live": True}
    assert content(ask(routes, "GET", "/v2/health/ready")) == {"ready": True}


def test_server_with_nothing_ready_is_unavailable() -> None:
    stub = StubModel()
    stub.state = "LOADING"
    reply = ask(Routes(stub), "GET", "/v2/health/ready")
    assert (reply.status, content(reply)) == (503, {"ready": False})


def test_model_is_ready_or_unavailable() -> None:
    stub = StubModel()
    ready = ask(Routes(stub), "GET", "/v2/models/stub/versions/1/ready")
    stub.state = "UNLOADING"
    gone = ask(Routes(stub), "GET", "/v2/models/stub/ready")
    assert (ready.status, content(ready)) == (200, {"name": "stub", "ready": True})
    assert (gone.status, content(gone)) == (503, {"name": "stub", "ready": False})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/nope"),
        ("GET", "/v2/models/stub/versions/9"),
        ("GET", "/v2/models/nope/ready"),
        ("POST", "/v2/models/nope/infer"),
        ("POST", "/v2/models/stub/versions/9/infer"),
    ],
)
def test_unknown_model_or_version_is_not_found(method: str, path: str) -> None:
    reply = ask(Routes(StubModel()), method, path, BODY)
    assert reply.status == 404
    assert set(content(reply)) == {"error"}


def test_model_describes_itself() -> None:
    stub = StubModel(inputs=[TensorSpec("x", "FP32", (-1, 4))])
    document = content(ask(Routes(stub), "GET", "/v2/models/stub"))
    assert document["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]


def test_head_has_the_headers_of_get_and_no_body() -> None:
    routes = Routes(StubModel())
    get = ask(routes, "GET", "/v2/models/stub")
    head = ask(routes, "HEAD", "/v2/models/stub")
    assert head.body == []
    assert header(head, "content-length") == header(get, "content-length")
    assert ask(routes, "HEAD", "/v2/models/nope").body == []


@pytest.mark.parametrize("body", [b"", b"{}", b'{"ready":true}'])
def test_index_lists_versions(body: bytes) -> None:
    reply = ask(Routes(StubModel()), "POST", "/v2/repository/index", body)
    assert content(reply) == [{"name": "stub", "version": "1", "state": "READY", "reason": ""}]


def test_index_of_ready_versions_leaves_the_others_out() -> None:
    stub = StubModel()
    stub.state = "UNAVAILABLE"
    assert content(ask(Routes(stub), "POST", "/v2/repository/index", b'{"ready":true}')) == []
    assert content(ask(Routes(stub), "POST", "/v2/repository/index"))[0]["reason"] == "unloaded"


def test_json_request_gets_json() -> None:
    reply = ask(Routes(StubModel()), "POST", INFER, BODY)
    assert reply.status == 200
    assert header(reply, "content-type") == "application/json"
    assert content(reply)["outputs"] == [X]
    assert (content(reply)["model_name"], content(reply)["model_version"]) == ("stub", "1")


def test_binary_outputs_come_with_the_length_of_the_head() -> None:
    body = json.dumps({"inputs": [X], "parameters": {"binary_data_output": True}}).encode()
    reply = ask(Routes(StubModel()), "POST", INFER, body)
    whole = b"".join(reply.body)
    head = int(header(reply, "inference-header-content-length") or "")
    assert header(reply, "content-type") == "application/octet-stream"
    assert header(reply, "content-length") == str(len(whole)) == str(reply.size)
    assert json.loads(whole[:head])["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert np.frombuffer(whole[head:], np.float32).tolist() == [1.5, 2.5]


def test_binary_inputs_are_told_by_their_header_alone() -> None:
    tensor = {**X, "parameters": {"binary_data_size": 8}}
    del tensor["data"]
    head = json.dumps({"inputs": [tensor]}).encode()
    reply = ask(
        Routes(StubModel()),
        "POST",
        INFER,
        head + np.array([1.5, 2.5], np.float32).tobytes(),
        {"inference-header-content-length": str(len(head)), "content-type": "application/json"},
    )
    assert content(reply)["outputs"] == [X]


def test_version_may_be_a_label() -> None:
    stub = StubModel(version="4", labels=["stable"])
    reply = ask(Routes(stub), "POST", "/v2/models/stub/versions/stable/infer", BODY)
    assert content(reply)["model_version"] == "4"


def test_load_and_unload_change_the_state() -> None:
    stub = StubModel()
    routes = Routes(stub, admin=True)
    unloaded = ask(routes, "POST", "/v2/repository/models/stub/unload", b"{}")
    assert (unloaded.status, b"".join(unloaded.body), stub.state) == (200, b"", "UNAVAILABLE")
    assert ask(routes, "POST", INFER, BODY).status == 503
    assert ask(routes, "POST", "/v2/repository/models/stub/load").status == 200
    assert ask(routes, "POST", INFER, BODY).status == 200


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_control_routes_are_off_and_say_how_to_turn_them_on(verb: str) -> None:
    stub = StubModel()
    reply = ask(Routes(stub), "POST", f"/v2/repository/models/stub/{verb}")
    assert reply.status == 403
    assert "admin=True" in content(reply)["error"]
    assert stub.state == "READY"


@pytest.mark.parametrize("name", ["forwarded", "x-forwarded-for", "x-real-ip", "via", "origin"])
def test_direct_control_routes_are_not_for_proxies_and_web_pages(name: str) -> None:
    stub = StubModel()
    path = "/v2/repository/models/stub/unload"
    refused = ask(Routes(stub, admin="direct"), "POST", path, headers={name: "somebody"})
    assert refused.status == 403
    assert "through a proxy" in content(refused)["error"]
    assert stub.state == "READY"
    assert ask(Routes(stub, admin=True), "POST", path, headers={name: "somebody"}).status == 200


def test_direct_control_routes_are_for_callers_on_this_machine() -> None:
    stub = StubModel()
    reply = ask(Routes(stub, admin="direct"), "POST", "/v2/repository/models/stub/unload")
    assert (reply.status, stub.state) == (200, "UNAVAILABLE")


def test_metrics_without_their_package_name_the_command_that_installs_it() -> None:
    class Missing:
        def render(self, accept: str = "") -> tuple[bytes, str]:
            raise ImportError("pip install x")

    reply = ask(Routes(StubModel(), metrics=Missing()), "GET", "/metrics")
    assert (reply.status, content(reply)) == (501, {"error": "pip install x"})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/bare"),
        ("GET", "/v2/models/bare/ready"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/bare/load"),
        ("POST", "/v2/repository/models/bare/unload"),
        ("GET", "/metrics"),
    ],
)
def test_route_whose_protocol_is_missing_is_not_implemented(method: str, path: str) -> None:
    assert ask(Routes(Bare(), admin=True), method, path).status == 501


def test_bare_servable_is_live_and_ready() -> None:
    routes = Routes(Bare())
    assert ask(routes, "GET", "/v2/health/ready").status == 200
    assert content(ask(routes, "GET", "/v2"))["extensions"] == [
        "binary_tensor_data",
        "classification",
        "parameters",
        "logging",
        "trace",
    ]
    assert ask(routes, "POST", "/v2/models/bare/infer", BODY).status == 200


@pytest.mark.parametrize("path", ["bare/config", "stats", "bare/stats", "bare/versions/1/stats"])
def test_what_a_servable_does_not_tell_is_not_offered(path: str) -> None:
    reply = ask(Routes(Bare()), "GET", f"/v2/models/{path}")
    assert reply.status == 501
    assert re.search("configurations|statistics", content(reply)["error"])


def test_configuration_and_statistics_are_for_readers() -> None:
    key, hashed = APIKeys.generate()
    for scopes, statuses in (
        ({"infer"}, (200, 403)),
        ({"read"}, (200, 200)),
        ({"admin"}, (403, 403)),
    ):
        routes = Routes(StubModel(), authenticator=APIKeys({"a": (hashed, scopes)}))
        bearer = {"authorization": f"Bearer {key}"}
        found = (
            ask(routes, "GET", f"/v2/models/stub/{what}", headers=bearer).status
            for what in ("config", "stats")
        )
        assert tuple(found) == statuses


class Text:
    def render(self, accept: str = "") -> tuple[bytes, str]:
        return b"a 1\n", f"text/plain; seen={accept}"


def test_metrics_are_rendered_for_what_is_accepted() -> None:
    reply = ask(Routes(Bare(), metrics=Text()), "GET", "/metrics", headers={"accept": "b"})
    assert b"".join(reply.body) == b"a 1\n"
    assert header(reply, "content-type") == "text/plain; seen=b"


# Compression of requests

DEFLATED = zlib.compress(BODY)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(BODY)),
        ("deflate", DEFLATED),
        ("identity", BODY),
        (" GZIP ", gzip.compress(BODY)),
    ],
    ids=range(4),
)
def test_compressed_request_is_taken(encoding: str, body: bytes) -> None:
    reply = ask(Routes(StubModel()), "POST", INFER, body, {"content-encoding": encoding})
    assert content(reply)["outputs"] == [X]


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", BODY, 400),
        ("deflate", BODY, 400),
        ("deflate", DEFLATED[:-1], 400),
        ("deflate", DEFLATED + b"x", 400),
        ("gzip", gzip.compress(bytes(10**6)), 413),
        ("br", BODY, 501),
        ("gzip, gzip", BODY, 501),
    ],
    ids=range(7),
)
def test_other_compressed_request_is_refused(encoding: str, body: bytes, status: int) -> None:
    routes = Routes(StubModel(), max_body_size=10**5)
    reply = ask(routes, "POST", INFER, body, {"content-encoding": encoding})
    assert reply.status == status
    assert set(content(reply)) == {"error"}


# Malformed requests


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"{", {}),
        (b"\xff\xfe", {}),
        (b"[]", {}),
        (b"{}", {}),
        (BODY.replace(b"FP32", b"FP33"), {}),
        (BODY.replace(b"1.5", b"null"), {}),
        (BODY.replace(b"[2]", b"[3]"), {}),
        (BODY.replace(b"[2]", b"[-1]"), {}),
        (BODY, {"inference-header-content-length": "x"}),
        (BODY, {"inference-header-content-length": "-1"}),
        (BODY, {"inference-header-content-length": "9999"}),
        (BODY + b"abc", {"inference-header-content-length": str(len(BODY))}),
    ],
    ids=range(13),
)
def test_malformed_request_is_the_clients_error(body: bytes, headers: dict[str, str]) -> None:
    stub = StubModel()
    reply = ask(Routes(stub), "POST", INFER, body, headers)
    assert reply.status == 400
    assert set(content(reply)) == {"error"}
    assert header(reply, "content-type") == "application/json"
    assert stub.count == 0


def test_input_that_does_not_fit_the_signature_is_told_where() -> None:
    stub = StubModel(inputs=[TensorSpec("x", "FP32", (4,))])
    reply = ask(Routes(stub), "POST", INFER, BODY)
    assert content(reply)["error"] == 'inputs[0] "x": expected shape (4,), got (2,)'


# Errors


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidInput("a"), 400, "INVALID_ARGUMENT"),
        (Unauthenticated("a"), 401, "UNAUTHENTICATED"),
        (PermissionDenied("a"), 403, "PERMISSION_DENIED"),
        (ModelNotFound("a"), 404, "NOT_FOUND"),
        (Conflict("a"), 409, "ALREADY_EXISTS"),
        (PayloadTooLarge("a"), 413, "RESOURCE_EXHAUSTED"),
        (RateLimited("a", retry_after=0.2), 429, "RESOURCE_EXHAUSTED"),
        (Unsupported("a"), 501, "UNIMPLEMENTED"),
        (ModelNotReady("a"), 503, "UNAVAILABLE"),
        (QueueFull("a"), 503, "RESOURCE_EXHAUSTED"),
        (Overloaded("a"), 503, "RESOURCE_EXHAUSTED"),
        (DeadlineExceeded("a"), 504, "DEADLINE_EXCEEDED"),
        (LoadError("a"), 500, "FAILED_PRECONDITION"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_error_has_its_status_and_text(error: ServeError, status: int, code: str) -> None:
    seen: list[Exchange] = []
    routes = Routes(StubModel(fail_every=1, error=error), record=seen.append)
    reply = ask(routes, "POST", INFER, BODY)
    assert reply.status == status
    assert content(reply) == {"error": "a"}
    assert seen[0].code == code


@pytest.mark.parametrize(
    ("retry_after", "sent"), [(0.2, "1"), (0, "1"), (2.5, "3"), (60, "60"), (None, None)]
)
def test_retry_after_is_whole_seconds(retry_after: float | None, sent: str | None) -> None:
    error = QueueFull("a", retry_after=retry_after)
    reply = ask(Routes(StubModel(fail_every=1, error=error)), "POST", INFER, BODY)
    assert header(reply, "retry-after") == sent


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BackendError("secret"), "the model failed; request id r1"),
        (ServeError("secret"), "internal error; request id r1"),
    ],
)
def test_servers_fault_is_hidden_and_logged(
    error: ServeError, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    routes = Routes(StubModel(fail_every=1, error=error))
    with caplog.at_level(logging.ERROR, "modelserve"):
        reply = ask(routes, "POST", INFER, BODY, {"x-request-id": "r1"})
    assert (reply.status, content(reply)) == (500, {"error": text})
    assert "r1" in caplog.text
    assert "secret" in caplog.text


def test_failure_the_model_logged_is_logged_without_its_traceback_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = BackendError("secret")
    error.logged = True
    routes = Routes(StubModel(fail_every=1, error=error))
    with caplog.at_level(logging.ERROR, "modelserve"):
        ask(routes, "POST", INFER, BODY, {"x-request-id": "r1"})
    (line,) = caplog.records
    assert line.getMessage().endswith("failed, request id r1")
    assert not line.exc_info


def test_unknown_exception_is_an_internal_error(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Bare):
        async def infer(self, request: InferRequest) -> InferResponse:
            raise KeyError("secret")

    reply = ask(Routes(Broken()), "POST", "/v2/models/a/infer", BODY)
    assert reply.status == 500
    assert content(reply)["error"].startswith("internal error; request id ")
    assert "secret" in caplog.text


def test_path_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    stub = StubModel(name="a\nERROR forged", fail_every=1)
    assert ask(Routes(stub), "POST", f"/v2/models/{stub.name}/infer", BODY).status == 500
    assert "ERROR forged" in caplog.records[0].getMessage()
    assert "\n" not in caplog.records[0].getMessage()


def test_output_that_is_no_tensor_is_an_internal_error() -> None:
    stub = StubModel(lambda inputs: {"y": np.ones(1, np.complex64)})
    assert ask(Routes(stub), "POST", INFER, BODY).status == 500


def test_error_text_has_a_longest_length() -> None:
    model = "é" * 100_000
    reply = ask(Routes(StubModel()), "GET", f"/v2/models/{model}")
    assert (reply.status, len(content(reply)["error"])) == (404, 2003)


def test_error_text_is_utf8_whatever_the_path() -> None:
    reply = ask(Routes(StubModel()), "GET", "/v2/\ud800")
    assert reply.status == 404
    assert "?" in content(reply)["error"]


# Request ids


def test_given_request_id_comes_back() -> None:
    stub = StubModel()
    reply = ask(Routes(stub), "POST", INFER, BODY, {"x-request-id": "abc-1"})
    assert header(reply, "x-request-id") == "abc-1"
    assert stub.requests[0].id == "abc-1"


def test_body_id_names_the_request_and_comes_back() -> None:
    stub = StubModel()
    body = json.dumps({"id": "mine", "inputs": [X]}).encode()
    reply = ask(Routes(stub), "POST", INFER, body, {"x-request-id": "abc-1"})
    assert content(reply)["id"] == "mine"
    assert header(reply, "x-request-id") == "abc-1"
    assert stub.requests[0].id == "mine"


@pytest.mark.parametrize("given", [None, "", "a b", "a\r\nb", "é", "x" * 129, "\x7f", "a\tb"])
def test_request_id_is_made_where_none_can_be_taken(given: str | None) -> None:
    routes = Routes(StubModel())
    headers = {} if given is None else {"x-request-id": given}
    ids = {header(ask(routes, "POST", INFER, BODY, headers), "x-request-id") for _ in range(3)}
    assert len(ids) == 3
    assert given not in ids


def test_error_has_a_request_id_too() -> None:
    reply = ask(Routes(StubModel()), "GET", "/nope", headers={"x-request-id": "abc"})
    assert header(reply, "x-request-id") == "abc"


# Who may what

ADA, ADA_HASH = APIKeys.generate()
KEYS = {scope: APIKeys({"ada": (ADA_HASH, [scope])}) for scope in ("infer", "read", "admin")} | {
    "": APIKeys({"ada": (ADA_HASH, [])})
}
SCOPED = [
    ("POST", INFER, "infer"),
    ("GET", "/v2", "read"),
    ("GET", "/v2/models/stub", "read"),
    ("GET", "/v2/models/stub/ready", "read"),
    ("POST", "/v2/repository/index", "read"),
    ("GET", "/metrics", "read"),
    ("POST", "/v2/repository/models/stub/load", "admin"),
    ("POST", "/v2/repository/models/stub/unload", "admin"),
]


@pytest.mark.parametrize(("method", "path", "scope"), SCOPED)
def test_each_scope_opens_its_own_routes(method: str, path: str, scope: str) -> None:
    for held, keys in KEYS.items():
        routes = Routes(StubModel(), admin=True, authenticator=keys, metrics=Text())
        body = BODY if path == INFER else b""
        reply = ask(routes, method, path, body, {"x-api-key": ADA})
        # Whoever may ask a model may know what it takes.
        implied = held == "infer" and path.startswith("/v2/models/stub")
        assert reply.status == (200 if held == scope or implied else 403), held


@pytest.mark.parametrize(("method", "path", "scope"), SCOPED)
def test_nobody_gets_in_without_a_key(method: str, path: str, scope: str) -> None:
    routes = Routes(StubModel(), admin=True, authenticator=KEYS[scope])
    reply = ask(routes, method, path, BODY)
    assert reply.status == 401
    assert header(reply, "www-authenticate") == 'Bearer realm="modelserve"'


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_health_is_open(path: str) -> None:
    assert ask(Routes(StubModel(), authenticator=KEYS[""]), "GET", path).status == 200


def test_control_routes_need_to_be_on_for_an_admin_too() -> None:
    routes = Routes(StubModel(), authenticator=KEYS["admin"])
    reply = ask(routes, "POST", "/v2/repository/models/stub/unload", b"", {"x-api-key": ADA})
    assert reply.status == 403


def test_servable_learns_who_asks() -> None:
    stub = StubModel()
    seen: list[Exchange] = []
    routes = Routes(stub, authenticator=KEYS["infer"], record=seen.append)
    ask(routes, "POST", INFER, BODY, {"authorization": f"Bearer {ADA}"})
    principal = stub.requests[0].principal
    assert principal is not None
    assert (principal.name, seen[0].principal) == ("ada", "ada")


# The exchange


def test_exchange_tells_of_a_success() -> None:
    seen: list[Exchange] = []
    stub = StubModel()
    reply = ask(Routes(stub, record=seen.append), "POST", INFER, BODY, {"x-request-id": "r"})
    (exchange,) = seen
    assert exchange is stub.requests[0].exchange
    assert (exchange.protocol, exchange.model, exchange.version) == ("http", "stub", "1")
    assert (exchange.code, exchange.id) == ("OK", "r")
    assert (exchange.bytes_in, exchange.bytes_out) == (len(BODY), reply.size)
    assert exchange.decode > 0
    assert exchange.encode > 0


@pytest.mark.parametrize(
    ("method", "body", "headers", "code"),
    [
        ("POST", b"", {"x-api-key": ADA}, "INVALID_ARGUMENT"),
        ("POST", BODY, {}, "UNAUTHENTICATED"),
        ("POST", BODY, {"x-api-key": ADA}, "OK"),
    ],
    ids=["malformed", "no key", "good"],
)
def test_every_inference_is_recorded_once(
    method: str, body: bytes, headers: dict[str, str], code: str
) -> None:
    seen: list[Exchange] = []
    routes = Routes(StubModel(), authenticator=KEYS["infer"], record=seen.append)
    ask(routes, method, INFER, body, headers)
    assert [exchange.code for exchange in seen] == [code]


def test_only_inference_is_recorded() -> None:
    seen: list[Exchange] = []
    routes = Routes(StubModel(), admin=True, record=seen.append)
    for method, path, _ in SCOPED[1:]:
        ask(routes, method, path)
    ask(routes, "GET", "/v2/health/live")
    ask(routes, "GET", "/nope")
    assert seen == []


def test_servables_own_record_is_used() -> None:
    class Recording(Bare):
        def __init__(self) -> None:
            self.seen: list[Exchange] = []

        def record(self, exchange: Exchange) -> None:
            self.seen.append(exchange)

    servable = Recording()
    ask(Routes(servable), "POST", "/v2/models/bare/infer", BODY)
    assert [exchange.model for exchange in servable.seen] == ["bare"]


def test_headers_become_part_of_the_request() -> None:
    stub = StubModel()
    ask(Routes(stub), "POST", INFER, BODY, {"traceparent": "00-1-2-01", "idempotency-key": "k"})
    request = stub.requests[0]
    assert (request.trace, request.idempotency_key) == ("00-1-2-01", "k")


def test_nothing_but_the_servable_is_awaited() -> None:
    """A transport may step the answer itself."""
    routes = Routes(StubModel())
    request = Request("POST", INFER, {}.get, BODY)
    route = routes.open(request)
    request.body = BODY
    with pytest.raises(StopIteration) as done:
        routes.answer(request, route).send(None)
    assert done.value.value.status == 200


def test_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="max_body_size"):
        Routes(StubModel(), max_body_size=-1)


def test_method_not_allowed_is_raised_before_a_body_is_read() -> None:
    with pytest.raises(MethodNotAllowed):
        Routes(StubModel()).open(Request("GET", INFER, {}.get))


def test_index_may_list_many() -> None:
    class Many(Bare):
        async def describe(self, model: str, version: str = "") -> VersionInfo:
            raise ModelNotFound(model)

        async def index(self) -> list[VersionInfo]:
            return [VersionInfo(f"m{i}", "1", "READY") for i in range(1000)]

    many: Servable = Many()
    assert len(content(ask(Routes(many), "POST", "/v2/repository/index"))) == 1000


# Deadlines


def deadline_of(headers: Mapping[str, str], **parameters: int) -> float | None:
    """Return the seconds a request has left when it reaches the servable."""
    left: list[float | None] = []

    class Watch(Bare):
        async def infer(self, request: InferRequest) -> InferResponse:
            end = request.deadline
            left.append(None if end is None else end - monotonic())
            return await super().infer(request)

    body = json.dumps({"inputs": [X], "parameters": parameters}).encode()
    assert ask(Routes(Watch()), "POST", INFER, body, headers).status == 200
    return left[0]


def test_header_sets_the_deadline() -> None:
    left = deadline_of({"x-request-timeout": "60.5"})
    assert left is not None
    assert 0 < left <= 60.5


@pytest.mark.parametrize(("header_says", "parameter_says"), [("60", 3600), ("3600", 60)])
def test_earlier_of_header_and_parameter_counts(header_says: str, parameter_says: int) -> None:
    left = deadline_of({"x-request-timeout": header_says}, timeout=parameter_says * 1_000_000)
    assert left is not None
    assert 0 < left <= 60


@pytest.mark.parametrize("value", ["", "soon", "0", "-1", "nan", "inf", "1e11"])
def test_timeout_that_is_none_is_refused(value: str) -> None:
    reply = ask(Routes(Bare()), "POST", INFER, BODY, {"x-request-timeout": value})
    assert reply.status == 400
    told = f'header X-Request-Timeout: expected seconds above 0, got "{value}"'
    assert content(reply) == {"error": told}


class Busy(Bare):
    """Has time for nobody who has less than a minute."""

    def check_deadline(self, model: str, version: str, deadline: float) -> None:
        if deadline < monotonic() + 60:
            raise Overloaded(f"no time for {model}", retry_after=2.0)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"what this is, nobody looks at", {"x-request-timeout": "0.5"}),
        (b'{"parameters":{"timeout":500000},"inputs": nothing', {}),
        (b'{"id":"mine","parameters":{"timeout":500000},"inputs": nothing', {}),
    ],
    ids=["header", "parameter", "behind an id"],
)
def test_what_would_be_too_late_is_refused_unread(body: bytes, headers: dict[str, str]) -> None:
    reply = ask(Routes(Busy()), "POST", INFER, body, headers)
    assert (reply.status, content(reply)["error"]) == (503, "no time for stub")
    assert header(reply, "retry-after") == "2"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (BODY, {"x-request-timeout": "3600"}),
        (b'{"parameters":{"timeout":3600000000},' + BODY[1:], {}),
        (BODY, {}),
    ],
)
def test_what_has_time_is_read(body: bytes, headers: dict[str, str]) -> None:
    assert ask(Routes(Busy()), "POST", INFER, body, headers).status == 200


def test_the_list_of_models_names_those_that_can_answer() -> None:
    stub = StubModel(name="one")
    routes = Routes(stub)

    assert content(ask(routes, "GET", "/v2/models")) == {"models": ["one"]}
    stub.state = "UNAVAILABLE"
    assert content(ask(routes, "GET", "/v2/models")) == {"models": []}


@pytest.mark.parametrize("protocols", [["oip", "other"], "oip"])
def test_an_unknown_protocol_is_refused(protocols: Any) -> None:
    with pytest.raises(ValueError, match="protocols are any of oip, tfserving, kserve"):
        Routes(StubModel(), protocols=protocols)


def test_only_the_protocols_asked_for_have_routes() -> None:
    routes = Routes(StubModel(), protocols=[])

    with pytest.raises(NoSuchPath):
        routes.find("GET", "/v2")
    assert routes.find("GET", "/metrics").scope == "read"
