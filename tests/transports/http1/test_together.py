"""Requests answered together: the same bytes and verdicts as one by one, whoever comes along."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from time import monotonic
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onnx_models
from modelserve.codecs._plans import FRAMES, HEADS
from modelserve.errors import Overloaded, ServeError
from modelserve.messages import Exchange, InferRequest
from modelserve.protocols import Choice
from modelserve.repository.repository import ModelRepository
from modelserve.security.authentication import APIKeys
from modelserve.transports.http1.connection import Connection
from modelserve.transports.http1.server import HTTP1Server
from modelserve.transports.routes import routes_of

CROWD: Final = 5
LEARNING: Final = 4
"""Turns until heads and bodies have been seen often enough to be known."""


@pytest.fixture(autouse=True)
def room_for_new_forms() -> None:
    """Other tests may have filled the memory of forms, which then takes in few new ones."""
    for memo in (FRAMES, HEADS):
        memo.clear()


class Wire(asyncio.Transport):
    """The client's side of a connection, without sockets: so that many requests share one turn."""

    def __init__(self, server: HTTP1Server) -> None:
        super().__init__()
        self.written = b""
        self.closed = False
        self.connection = Connection(server)
        self.connection.connection_made(self)

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.connection.connection_lost(None)

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return False

    def answer(self) -> bytes:
        """Take what was written, without what no two answers have in common."""
        written, self.written = self.written, b""
        written = re.sub(rb"request id [0-9a-f-]+", b"request id", written)
        return re.sub(rb"(x-request-id|date): [^\r]*\r\n", b"", written)


def message(body: bytes, *headers: str, model: str = "add", binary: int | None = None) -> bytes:
    lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: here", *headers]
    if binary is not None:
        lines.append(f"Inference-Header-Content-Length: {binary}")
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def in_json(
    data: Any, *, shape: Sequence[int] = (1, 4), datatype: str = "FP32", **more: Any
) -> bytes:
    tensor = {"name": "x", "shape": list(shape), "datatype": datatype, "data": data}
    return json.dumps({"inputs": [tensor], **more}).encode()


def in_binary(array: np.ndarray[Any, Any], datatype: str, **parameters: Any) -> tuple[bytes, int]:
    tensor = {
        "name": "x",
        "shape": list(array.shape),
        "datatype": datatype,
        "parameters": {"binary_data_size": array.nbytes},
    }
    document: dict[str, Any] = {"inputs": [tensor]}
    if parameters:
        document["parameters"] = parameters
    head = json.dumps(document).encode()
    return head + array.tobytes(), len(head)


async def one_turn(wires: Sequence[Wire], messages: Sequence[bytes]) -> list[bytes]:
    """Let requests arrive in the same turn of the loop; returns the answers."""
    for wire, sent in zip(wires, messages, strict=True):
        wire.connection.data_received(sent)
    await until(lambda: all(wire.written or wire.closed for wire in wires))
    return [wire.answer() for wire in wires]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110  # what it waits for tells nobody
            await asyncio.sleep(0)


@pytest.fixture
def repository() -> Iterator[ModelRepository]:
    with ModelRepository() as made:
        made.add("add", onnx_models.add_one(), max_batch_size=16)
        yield made


def make_short(repository: ModelRepository) -> None:
    """Let every model be known as short: what it took here and now is not what is tested."""
    for entry in repository._entries.values():
        if entry.default is not None:
            for size in (1, 2, 4, 8, 16, 32, 64) * 40:
                entry.default.batcher.pacing.learn(size, 2e-6)


def serve(
    repository: ModelRepository,
    run: Callable[[HTTP1Server], Awaitable[Any]],
    *,
    gather: bool = True,
    **options: Any,
) -> Any:
    async def main() -> Any:
        server = HTTP1Server(routes_of(repository, **options), gather=gather)
        return await run(server)

    make_short(repository)
    return asyncio.run(main())


def answers(
    repository: ModelRepository,
    messages: Sequence[bytes],
    *,
    gather: bool = True,
    turns: int = LEARNING,
    **options: Any,
) -> tuple[list[bytes], int]:
    """Send requests in one turn, several times; returns the last answers, and how many requests of
    that turn were answered together."""

    async def run(server: HTTP1Server) -> tuple[list[bytes], int]:
        wires = [Wire(server) for _ in messages]
        for _ in range(turns - 1):
            await one_turn(wires, messages)
            wires = [wire if not wire.closed else Wire(server) for wire in wires]
        before = server.together.answered
        found = await one_turn(wires, messages)
        return found, server.together.answered - before

    found: tuple[list[bytes], int] = serve(repository, run, gather=gather, **options)
    return found


def check_alike(
    repository: ModelRepository, messages: Sequence[bytes], together: int, **options: Any
) -> list[bytes]:
    """See to it that the answers are those of requests one by one; returns them."""
    found, gathered = answers(repository, messages, **options)
    apart, none = answers(repository, messages, gather=False, **options)
    assert found == apart
    assert (gathered, none) == (together, 0)
    return found


def rows(count: int, width: int = 4) -> np.ndarray[Any, Any]:
    return np.arange(count * width, dtype=np.float32).reshape(count, 1, width) / 8


# The same bytes


def test_json_requests_get_the_bytes_they_get_one_by_one(repository: ModelRepository) -> None:
    messages = [message(in_json(row.ravel().tolist())) for row in rows(CROWD)]
    found = check_alike(repository, messages, CROWD)
    for row, answer in zip(rows(CROWD), found, strict=True):
        document = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert document["outputs"][0]["data"] == (row + 1).ravel().tolist()
        assert document["outputs"][0]["shape"] == [1, 4]


def test_nested_data_is_the_same_row(repository: ModelRepository) -> None:
    messages = [message(in_json(row.tolist())) for row in rows(CROWD)]
    check_alike(repository, messages, CROWD)


@pytest.mark.parametrize("parameters", [{}, {"binary_data_output": True}])
def test_binary_requests(repository: ModelRepository, parameters: dict[str, Any]) -> None:
    sent = [in_binary(row, "FP32", **parameters) for row in rows(CROWD)]
    check_alike(repository, [message(body, binary=head) for body, head in sent], CROWD)


@pytest.mark.parametrize("header", ["Accept: */*", "Accept-Encoding: gzip, deflate"])
def test_answers_that_may_be_compressed_go_their_own_ways(
    repository: ModelRepository, header: str
) -> None:
    repository.add("large", onnx_models.mlp(4, 4096), max_batch_size=16)
    bodies = [in_json(row.ravel().tolist()) for row in rows(CROWD)]
    messages = [message(body, header, model="large") for body in bodies]

    found = check_alike(repository, messages, 0)

    for answer in found:
        assert (b"content-encoding: gzip" in answer) is header.startswith("Accept-Encoding")


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_who_asks_for_compressed_answers_goes_an_own_way(
    repository: ModelRepository, name: str
) -> None:
    bodies = [in_json(row.ravel().tolist()) for row in rows(CROWD)]

    found = check_alike(
        repository, [message(body, f"Accept-Encoding: {name}") for body in bodies], 0
    )

    assert all(f"content-encoding: {name}".encode() in answer for answer in found)


def test_kinds_are_told_apart(repository: ModelRepository) -> None:
    messages = []
    for row in rows(4):
        body, head = in_binary(row, "FP32", binary_data_output=True)
        messages += [message(body, binary=head), message(in_json(row.ravel().tolist()))]
    check_alike(repository, messages, 8)


def test_several_outputs_of_a_real_classifier() -> None:
    digits = files("modelserve.cli") / "digits" / "digits-1.onnx"
    with ModelRepository() as repository:
        repository.add("digits", Path(str(digits)), max_batch_size=64)
        images = np.random.default_rng(0).integers(0, 17, (8, 1, 64)).astype(np.float32)
        tensors = [
            {"name": "image", "shape": [1, 64], "datatype": "FP32", "data": image.ravel().tolist()}
            for image in images
        ]
        bodies = [json.dumps({"inputs": [tensor]}).encode() for tensor in tensors]
        check_alike(repository, [message(body, model="digits") for body in bodies], 8)
        binary = []
        for image in images:
            body, head = in_binary(image, "FP32", binary_data_output=True)
            binary.append(
                message(body.replace(b'"x"', b'"image"'), model="digits", binary=head + 4)
            )
        check_alike(repository, binary, 8)


@pytest.mark.parametrize(
    ("datatype", "shape", "together"),
    [
        ("FP32", (1, 2), True),
        ("FP64", (1, 2), True),
        ("INT32", (1, 2), True),
        ("INT64", (1, 2), True),
        ("UINT64", (1, 2), True),
        ("FP32", (1, 2, 3), True),
        ("FP32", (1, 1), True),
        ("FP16", (1, 2), False),
        ("UINT8", (1, 2), False),
        ("BOOL", (1, 2), False),
    ],
)
def test_datatypes_and_shapes(datatype: str, shape: tuple[int, ...], together: bool) -> None:
    with ModelRepository() as repository:
        made = onnx_models.identity(datatype, ("batch", *shape[1:]))
        repository.add("same", made, max_batch_size=8)
        messages = []
        for number in range(CROWD):
            array = onnx_models.sample(datatype, shape, seed=number)
            body = in_json(array.ravel().tolist(), shape=shape, datatype=datatype)
            messages.append(message(body, model="same"))
        found = check_alike(repository, messages, CROWD if together else 0)
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in found)


def test_what_is_no_number_is_null(repository: ModelRepository) -> None:
    row = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
    body, head = in_binary(row, "FP32")
    found = check_alike(repository, [message(body, binary=head)] * 3, 3)
    assert b'"data":[null,null,null,1.0]' in found[0]


class Hurried(ModelRepository):
    """Takes every deadline for one that cannot be kept, but for those of minutes."""

    def late(self, model: str, version: str, deadline: float) -> ServeError | None:
        left = deadline - monotonic()
        return None if left > 60 else Overloaded(f"late for {model!r}", retry_after=2)


def test_what_is_late_is_refused_in_the_same_bytes() -> None:
    with ModelRepository() as plain, Hurried() as repository:
        for each in (plain, repository):
            each.add("add", onnx_models.add_one(), max_batch_size=16)
        rest = in_json([1.0, 2.0, 3.0, 4.0])[1:]
        late = message(b'{"parameters":{"timeout":9},' + rest)
        messages = [GOOD, late, message(b'{"parameters":{"timeout":100000000},' + rest), late]
        found = check_alike(repository, messages, 1)
        assert [answer[9:12] for answer in found] == [b"200", b"503", b"200", b"503"]
        assert found[1].endswith(b'{"error":"late for \'add\'"}')
        assert b"retry-after: 2\r\n" in found[1]
        assert answers(plain, messages[::2])[0] == found[0:3:2]


# Who is not as usual goes their own way, and nobody is touched by it


GOOD: Final = message(in_json([1.0, 2.0, 3.0, 4.0]))
HOSTILE: Final = [
    in_json([1.0, 2.0, 3.0, 4.0]).replace(b"4.0]", b"4.0], [1.0, 2.0]"),
    in_json([1.0, 2.0, 3.0, 4.0]).replace(b"4.0]", b"4.0"),
    in_json([1.0, 2.0, 3.0, 4.0]).replace(b"[1.0, ", b""),
    in_json([[1.0, 2.0], [3.0, 4.0]]),
    in_json([1.0, 2.0, 3.0]),
    in_json([]),
    in_json([1.0, 2.0, 3.0, None]),
    in_json([1.0, 2.0, 3.0, True]),
    in_json([1.0, 2.0, 3.0, "4"]),
    in_json([1.0, 2.0, 3.0, [4.0]]),
    in_json("1,2,3,4"),
    in_json({"a": 1}),
    in_json([1.0, 2.0, 3.0, 4.0]).replace(b"4.0", b"1e39"),
    in_json([1.0, 2.0, 3.0, 4.0]).replace(b"4.0", b"1e400"),
    in_json([1.0, 2.0, 3.0, 4.0]).replace(b"4.0", b"NaN"),
    in_json([1.0, 2.0, 3.0, 10**40]),
    in_json([1, 2, 3, 4]),
    in_json([1.0] * 8, shape=(2, 4)),
    in_json([1.0, 2.0, 3.0, 4.0], shape=(4,)),
    in_json([1.0, 2.0, 3.0, 4.0], datatype="FP64"),
    in_json([1.0, 2.0, 3.0, 4.0], id="mine"),
    in_json([1.0, 2.0, 3.0, 4.0], parameters={"timeout": 5_000_000}),
    in_json([1.0, 2.0, 3.0, 4.0], outputs=[{"name": "y"}]),
    in_json([1.0, 2.0, 3.0, 4.0], outputs=[{"name": "nope"}]),
    b"{}",
    b"",
    b"\xff\xfe",
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_neighbour_of_any_kind_gets_its_own_verdict(
    repository: ModelRepository, body: bytes
) -> None:
    messages = [GOOD, message(body), GOOD, message(body), GOOD]
    found, together = answers(repository, messages)
    apart, _ = answers(repository, messages, gather=False)
    assert found == apart
    assert together >= 3
    assert len({found[0], found[2], found[4]}) == 1


@settings(max_examples=60, deadline=None)
@given(picks=st.lists(st.integers(-4, len(HOSTILE) - 1), min_size=2, max_size=12))
def test_any_company_gets_the_answers_of_requests_one_by_one(picks: list[int]) -> None:
    messages = [
        message(HOSTILE[pick]) if pick >= 0 else message(in_json([float(pick), 2.0, 3.0, 4.0]))
        for pick in picks
    ]
    with ModelRepository() as repository:
        repository.add("add", onnx_models.add_one(), max_batch_size=4)
        together, _ = answers(repository, messages)
        apart, _ = answers(repository, messages, gather=False)
    assert together == apart


def test_more_than_a_batch_holds_run_in_several(repository: ModelRepository) -> None:
    seen: list[Exchange] = []
    messages = [message(in_json(row.ravel().tolist())) for row in rows(40)]
    answers(repository, messages, record=seen.append)
    assert [exchange.batch_requests for exchange in seen[-40:]] == [16] * 32 + [8] * 8


def test_one_alone_takes_the_same_way(repository: ModelRepository) -> None:
    check_alike(repository, [GOOD], 1)


def test_unknown_model_is_told_to_everyone(repository: ModelRepository) -> None:
    messages = [message(in_json([1.0, 2.0, 3.0, 4.0]), model="nope")] * 3
    found = check_alike(repository, messages, 0)
    assert all(answer.startswith(b"HTTP/1.1 404") for answer in found)


def test_failing_batch_is_told_to_the_guilty_only() -> None:
    with ModelRepository() as repository:
        made = onnx_models.fails_on_other_than_0_or_1()
        repository.add("picky", made, max_batch_size=8)
        (spec,) = asyncio.run(repository.describe("picky")).signature.inputs  # type: ignore[union-attr]
        kinds = [0, 1, 5, 1, 0]
        tensors = [
            {
                "name": spec.name,
                "shape": [1, *spec.shape[1:]],
                "datatype": spec.datatype,
                "data": [k],
            }  # type: ignore[index]
            for k in kinds
        ]
        messages = [
            message(json.dumps({"inputs": [tensor]}).encode(), model="picky") for tensor in tensors
        ]
        found = check_alike(repository, [m for m, k in zip(messages, kinds, strict=True)], 0)
        assert [answer[9:12] for answer in found] == [b"200", b"200", b"500", b"200", b"200"]


def test_function_is_not_run_on_the_loop() -> None:
    from modelserve.repository.decorator import model
    from modelserve.tensors import TensorSpec

    @model(inputs=[TensorSpec("x", "FP32", (-1, 4))], max_batch_size=8)
    def double(x: Any) -> Any:
        return {"y": x * 2}

    with ModelRepository() as repository:
        repository.add(double)
        messages = [message(in_json([1.0, 2.0, 3.0, 4.0]), model="double")] * 3
        check_alike(repository, messages, 0)


def test_policy_is_asked_for_every_request(repository: ModelRepository) -> None:
    asked: list[InferRequest] = []

    class Watching:
        def choose(self, request: InferRequest, versions: Sequence[str]) -> Choice:
            asked.append(request)
            return Choice()

    repository.route("add", Watching())
    assert answers(repository, [GOOD] * 4, turns=LEARNING)[1] == 0
    assert len(asked) == 4 * LEARNING


def test_unloaded_model_is_told_so(repository: ModelRepository) -> None:
    async def run(server: HTTP1Server) -> list[bytes]:
        wires = [Wire(server) for _ in range(3)]
        for _ in range(LEARNING):
            await one_turn(wires, [GOOD] * 3)
        assert server.together.answered
        await repository.aunload("add")
        return await one_turn(wires, [GOOD] * 3)

    found: list[bytes] = serve(repository, run)
    assert [answer[9:12] for answer in found] == [b"404"] * 3


# Who asks, and what is recorded


def test_caller_without_a_key_is_refused_beside_others(repository: ModelRepository) -> None:
    key, hashed = APIKeys.generate()
    other, other_hashed = APIKeys.generate()
    keys = APIKeys({"ada": (hashed, {"infer"}), "bob": (other_hashed, {"read"})})
    body = in_json([1.0, 2.0, 3.0, 4.0])
    seen: list[Exchange] = []
    messages = [
        message(body, f"X-API-Key: {key}"),
        message(body, "X-API-Key: wrong"),
        message(body, f"X-API-Key: {other}"),
        message(body, f"Authorization: Bearer {key}"),
        message(body),
    ]
    found = check_alike(repository, messages, 2, authenticator=keys, record=seen.append)
    assert [answer[9:12] for answer in found] == [b"200", b"401", b"403", b"200", b"401"]
    last = {(exchange.principal, exchange.code) for exchange in seen[-5:]}
    assert last == {("ada", "OK"), ("bob", "PERMISSION_DENIED"), ("", "UNAUTHENTICATED")}


def test_each_request_has_its_record_and_id(repository: ModelRepository) -> None:
    seen: list[Exchange] = []
    body = in_json([1.0, 2.0, 3.0, 4.0])
    found, together = answers(repository, [message(body)] * CROWD, record=seen.append)
    assert together == CROWD
    assert len(seen) == CROWD * LEARNING
    last = seen[-CROWD:]
    assert len({exchange.id for exchange in last}) == CROWD
    assert {exchange.batch_requests for exchange in last} == {CROWD}
    for exchange, answer in zip(last, found, strict=True):
        told = (exchange.protocol, exchange.model, exchange.version, exchange.code, exchange.rows)
        assert told == ("http", "add", "1", "OK", 1)
        assert exchange.bytes_in == len(body)
        assert exchange.bytes_out == len(answer.partition(b"\r\n\r\n")[2])
        assert exchange.decode > 0
        assert exchange.encode > 0
        assert exchange.run > 0
        assert exchange.queue >= 0
        assert exchange.reason == "idle"


def test_metrics_count_every_request_once(repository: ModelRepository) -> None:
    answers(repository, [GOOD] * CROWD)
    text, _ = repository.metrics.render()
    wanted = 'modelserve_requests_total{code="OK",model="add",protocol="http",version="1"}'
    assert f"{wanted} {float(CROWD * LEARNING)}" in text.decode()


# Connections


def test_client_that_left_in_the_same_turn_is_passed_over(repository: ModelRepository) -> None:
    async def run(server: HTTP1Server) -> tuple[list[bytes], bytes]:
        wires = [Wire(server) for _ in range(4)]
        for _ in range(LEARNING):
            await one_turn(wires, [GOOD] * 4)
        for wire in wires:
            wire.connection.data_received(GOOD)
        wires[1].close()
        await until(lambda: all(wire.written for wire in (wires[0], wires[2], wires[3])))
        return [wires[0].answer(), wires[2].answer(), wires[3].answer()], wires[1].written

    found, gone = serve(repository, run)
    assert gone == b""
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in found)


def test_what_was_sent_ahead_is_answered_after(repository: ModelRepository) -> None:
    async def run(server: HTTP1Server) -> list[bytes]:
        wires = [Wire(server) for _ in range(3)]
        for _ in range(LEARNING):
            await one_turn(wires, [GOOD] * 3)
        for wire in wires:
            wire.connection.data_received(GOOD)
            wire.connection.data_received(GOOD + b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: all(wire.written.count(b"HTTP/1.1 200") == 3 for wire in wires))
        return [wire.answer() for wire in wires]

    for answer in serve(repository, run):
        assert answer.endswith(b'{"live":true}')
        assert answer.count(b'"model_name"') == 2


def test_server_that_ends_says_so_with_the_answer(repository: ModelRepository) -> None:
    async def run(server: HTTP1Server) -> list[bytes]:
        wires = [Wire(server) for _ in range(3)]
        for _ in range(LEARNING):
            await one_turn(wires, [GOOD] * 3)
        for wire in wires:
            wire.connection.data_received(GOOD)
        stopping = asyncio.create_task(server.stop())
        await stopping
        return [wire.answer() for wire in wires]

    for answer in serve(repository, run):
        assert answer.startswith(b"HTTP/1.1 200")


def test_failure_in_between_leaves_nobody_without_an_answer(
    repository: ModelRepository, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(ModelRepository):
        def row_runner(self, model: str, version: str) -> Any:
            raise RuntimeError("out of order")

    with Failing() as failing:
        failing.add("add", onnx_models.add_one(), max_batch_size=16)
        found, together = answers(failing, [GOOD] * 3)
    assert together == 0
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in found)
    assert "go their own ways" in caplog.text
