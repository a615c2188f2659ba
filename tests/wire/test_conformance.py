"""What the Open Inference Protocol and Triton's extensions demand, a row at a time.

Asked of the stand-alone server and of the application under uvicorn.
"""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

import onnx_models
import serving
from modelserve.transports.asgi import ASGIApp
from modelserve.transports.serving import HTTPServer
from wire import conformance_http as over_http
from wire import conformance_json as in_json
from wire import golden_repository
from wire.conformance_rows import MAX_BODY, Row
from wire.golden_asks import get, infer, said
from wire.golden_client import Answer, send

GROUPS = (
    *(in_json.documents, in_json.inputs, in_json.shapes, in_json.numbers, in_json.outputs),
    *(in_json.parameters, over_http.paths, over_http.binary, over_http.http, over_http.models),
)
NAMED = [(f"{group.__name__}/{row.ask.name}", row) for group in GROUPS for row in group()]
ROWS = dict(NAMED)
LONGEST_ERROR = 700


@pytest.fixture(scope="module", params=["http1", "asgi"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("models")
    golden_repository.write(directory)
    # Models fail here, and say so.
    logging.getLogger("modelserve").setLevel(logging.CRITICAL)
    with golden_repository.repository(directory) as repo:
        repo.add("scalar", onnx_models.scalar())
        if request.param == "asgi":
            running = serving.on_uvicorn(ASGIApp(repo, admin=True, max_body_size=MAX_BODY))
        else:
            server = HTTPServer(repo, http="127.0.0.1:0", admin=True, max_body_size=MAX_BODY)
            running = serving.on_http1(server)
        with running as url:
            yield url
    logging.getLogger("modelserve").setLevel(logging.NOTSET)


def strictly(body: bytes) -> Any:
    """Parse JSON as RFC 8259 has it."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(body.decode(), parse_constant=refuse)


def holds(part: Any, whole: Any) -> bool:
    """Tell whether all that stands in a part stands in the whole, too."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            name in whole and holds(value, whole[name]) for name, value in part.items()
        )
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) == len(whole) and all(map(holds, part, whole))
    return bool(part == whole)


def check_error(row: Row, answer: Answer) -> None:
    assert answer.content_type == "application/json"
    assert "content-encoding" not in answer.headers
    document = strictly(answer.body)
    assert document.keys() == {"error"}
    text = document["error"]
    assert text.startswith(row.told)
    assert row.then in text
    assert 0 < len(text) < LONGEST_ERROR
    for secret in ("Traceback", ".py", "/tmp", "/work", "/home", "/usr", "object at 0x", "secret"):
        assert secret not in text


def test_every_row_has_a_name_of_its_own() -> None:
    assert len(ROWS) == len(NAMED) >= 250


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str, url: str) -> None:
    row = ROWS[name]
    answer = send(url, row.ask)
    assert answer.status == row.status, answer.plain[:1000]
    assert answer.headers["x-request-id"]
    if row.ask.method == "HEAD":
        assert not answer.body
    elif row.status >= 400:
        check_error(row, answer)
    else:
        document = strictly(answer.plain)
        assert row.told is None or holds(row.told, document), document
    if answer.status == 405:
        assert answer.headers["allow"]


def test_server_is_as_it_was(url: str) -> None:
    """After all rows: nothing that came has left a trace."""
    assert send(url, get("ready", "/v2/health/ready")).status == 200
    answer = send(url, infer("plain", said()))
    assert strictly(answer.body)["outputs"][0]["data"] == [2, 3, 4, 5]
