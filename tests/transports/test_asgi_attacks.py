"""What odd clients and servers do to a mounted application that gathers."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import onnx_models
from modelserve.messages import Exchange
from modelserve.repository.repository import ModelRepository
from modelserve.security.authentication import APIKeys
from modelserve.transports.asgi import ASGIApp

TENSOR = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}
BODY = json.dumps({"inputs": [TENSOR]}).encode()
GONE = {"type": "http.disconnect"}


@pytest.fixture
def repository() -> Iterator[ModelRepository]:
    with ModelRepository() as made:
        made.add("add", onnx_models.add_one(), max_batch_size=16)
        yield made


def ask(app: ASGIApp, events: Sequence[dict[str, Any]], *headers: tuple[bytes, bytes]) -> list[int]:
    """Return the statuses of an answer to a request whose body comes as these events."""
    sent: list[int] = []
    left = list(events)

    async def receive() -> dict[str, Any]:
        return left.pop(0) if left else await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            sent.append(message["status"])

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v2/models/add/infer",
        "headers": [(b"content-length", b"%d" % len(BODY)), *headers],
    }
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    return sent


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize(
    ("events", "statuses", "code"), [([GONE], [], "CANCELLED"), ([], [408], "DEADLINE_EXCEEDED")]
)
def test_body_that_never_came_is_recorded(
    repository: ModelRepository,
    gather: bool,
    events: list[dict[str, Any]],
    statuses: list[int],
    code: str,
) -> None:
    seen: list[Exchange] = []
    app = ASGIApp(repository, record=seen.append, body_timeout=0.02, gather=gather)
    assert ask(app, events) == statuses
    assert [(exchange.model, exchange.code) for exchange in seen] == [("add", code)]


@pytest.mark.parametrize("gather", [True, False])
def test_caller_who_may_not_ask_is_told_that_and_not_of_the_body(
    repository: ModelRepository, gather: bool
) -> None:
    _, hashed = APIKeys.generate()
    keys = APIKeys({"ada": (hashed, {"infer"})})
    app = ASGIApp(repository, authenticator=keys, body_timeout=0.02, gather=gather)
    assert ask(app, []) == [401]


def test_body_of_a_kind_that_is_not_bytes_is_answered(
    repository: ModelRepository, caplog: pytest.LogCaptureFixture
) -> None:
    app = ASGIApp(repository)
    for _ in range(3):
        assert ask(app, [{"type": "http.request", "body": bytearray(BODY)}]) == [200]
    assert not caplog.records


@pytest.mark.parametrize("said", [b"-1", b"x", b"", b"0", b"99999999999"])
def test_size_of_the_json_that_is_none_disturbs_nobody(
    repository: ModelRepository, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    app = ASGIApp(repository)
    events = [{"type": "http.request", "body": BODY}]
    assert ask(app, events) == [200]
    (status,) = ask(app, events, (b"inference-header-content-length", said))
    assert 400 <= status < 500 or status == 501
    assert not caplog.records
