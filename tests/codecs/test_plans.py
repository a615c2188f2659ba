"""Bodies whose head or frame came before are read as if it had not."""

import json
import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from modelserve.codecs import _plans, oip
from modelserve.errors import InvalidInput, Unsupported
from modelserve.messages import InferRequest

NOW = 1000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock set by hand, and memories that are empty before and after."""
    now = [NOW]
    for module in (oip, _plans):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    for memory in (_plans.HEADS, _plans.FRAMES):
        memory.clear()
    yield now
    for memory in (_plans.HEADS, _plans.FRAMES):
        memory.clear()


def decode(body: Any, head: Any = None, cached: bool = True) -> InferRequest:
    return oip.decode_request(body, model="m", version="3", header_length=head, cached=cached)


def seen(request: InferRequest) -> Any:
    """Everything of a request, comparable."""
    members = {
        name: getattr(request, name)
        for name in InferRequest.__slots__
        if name not in ("inputs", "exchange")
    }
    inputs = [
        (name, x.dtype, x.shape, x.ravel().tolist() if x.dtype == object else x.tobytes())
        for name, x in request.inputs.items()
    ]
    kinds = [(name, type(value)) for name, value in members.items()]
    return members, kinds, inputs, [x.flags.writeable for x in request.inputs.values()]


def outcome(body: Any, head: Any, cached: bool) -> Any:
    try:
        return seen(decode(body, head, cached))
    except (InvalidInput, Unsupported) as error:
        return type(error), str(error)


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often the plain decoding is asked."""
    count = [0]
    plain = oip.decode_plain

    def counted(*arguments: Any) -> InferRequest:
        count[0] += 1
        return plain(*arguments)

    monkeypatch.setattr(oip, "decode_plain", counted)
    return count


def x(**more: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 3], **more}


def binary(size: int = 12, **more: Any) -> dict[str, Any]:
    return x(parameters={"binary_data_size": size}, **more)


FLOATS = np.array([0.5, -1.25, 3], "<f4").tobytes()
AROUND = [
    {},
    {"id": "a"},
    {"id": ""},
    {"id": None},
    {"id": 'é\n"\\'},
    {"parameters": {"timeout": 2_000_000}},
    {"parameters": {"timeout": 0}},
    {"parameters": None},
    {"parameters": {"timeout": 1, "a": 1.5, "b": "c", "d": True}},
    {"parameters": {"a": 2, "timeout": 3_000_000, "priority": 4}},
    {"parameters": {"binary_data_output": True}},
    {"parameters": {"binary_data_output": False, "sequence_id": "s"}},
    {"parameters": {"sequence_id": 7}},
    {"id": "b", "parameters": {"timeout": 9_999_999_999_999_999}},
    {"id": "b", "parameters": {"timeout": 10_000_000_000_000_000}},
    {"outputs": [{"name": "y"}, {"name": "z", "parameters": {"binary_data": True}}]},
    {"outputs": []},
    {"outputs": [{"name": "y", "parameters": {"classification": 1}}]},
    {"parameters": {"binary_data_output": True}, "outputs": [{"name": "y"}]},
    {"parameters": {"data": 5}},
    {"more": {"data": [1]}},
]
LISTS = [
    x(data=[0.5, -1.25, 3]),
    x(data=[[0.5, -1.25, 3]]),
    x(data=[[1.0, 2.0], [0.5, 4.0]], shape=[2, 2]),
    x(data=[[[1], [2]], [[3], [4]]], shape=[2, 2, 1]),
    x(data=[1, 2, 300], datatype="INT16"),
    x(data=[2**64 - 1], datatype="UINT64", shape=[1]),
    x(data=[True, False, True], datatype="BOOL"),
    x(data=["a", "]]", '"data":[1]'], datatype="BYTES"),
    x(data=[], shape=[0]),
    x(data=[0.5], shape=[], parameters={"a": 1}),
    x(data=[0.5], shape=[], name='"data":['),
    x(data=[0.5], shape=[], name="é"),
]
BLOBS = [
    (binary(), FLOATS),
    (binary(3, datatype="BOOL"), b"\1\0\1"),
    (binary(3, datatype="BOOL"), b"\1\0\2"),
    (binary(21, datatype="BYTES"), b"\2\0\0\0ab\0\0\0\0\7\0\0\0abcdefg"),
    (binary(6, datatype="BF16"), b"\x80\x3f\x00\xc0\0\0"),
    (binary(0, shape=[0, 3]), b""),
    (binary(8, datatype="INT64", shape=[]), b"\xff" * 8),
]


def written(around: dict[str, Any], inputs: list[Any], spaces: bool) -> Iterator[bytes]:
    """Write a document with its inputs first and with them last."""
    separators = None if spaces else (",", ":")
    for document in ({**around, "inputs": inputs}, {"inputs": inputs, **around}):
        yield json.dumps(document, separators=separators).encode()


def corpus() -> Iterator[tuple[bytes, int | None]]:
    for around in AROUND:
        for tensor in LISTS:
            for body in written(around, [tensor], spaces=len(around) % 2 == 0):
                yield body, None
        for tensor, blob in BLOBS:
            for head in written(around, [tensor], spaces=False):
                yield head + blob, len(head)
    two = [x(data=[1, 2, 3]), x(data=[4], shape=[1], name="z")]
    for body in written({}, two, spaces=False):
        yield body, None
    for head in written({}, [binary(), binary(name="z")], spaces=True):
        yield head + FLOATS + FLOATS[::-1], len(head)
    for head in written({}, [x(data=[1, 2, 3]), binary(name="z")], spaces=True):
        yield head + FLOATS, len(head)
    yield b'{"inputs":[]}', None
    yield b'{"inputs":[]}', 13


CORPUS = list(corpus())

# What no encoder would write: members that come twice, the last of which counts.
TWICE = [
    '{"id":"a","inputs":[%s],"id":"b"}',
    '{"id":"a","inputs":[%s],"id":null}',
    '{"id":"a","id":"b","inputs":[%s]}',
    '{"inputs":[%s],"inputs":[]}',
    '{"inputs":[],"inputs":[%s]}',
    '{"parameters":{"timeout":5},"inputs":[%s],"parameters":{}}',
    '{"parameters":{"timeout":5},"inputs":[%s],"parameters":null}',
    '{"parameters":{"timeout":5},"inputs":[%s],"parameters":{"timeout":7}}',
    '{"parameters":{"timeout":5,"timeout":7},"inputs":[%s]}',
    '{"id":"a","parameters":{"timeout":5,"a":1},"inputs":[%s],"id":"c"}',
    '{"parameters":{"timeout":5,"a":1},"inputs":[%s],"id":"c"}',
    '{"parameters":{"timeout":5,"timeout":1},"inputs":[%s]}',
    '{"parameters":{"timeout":5.0},"inputs":[%s]}',
    '{"parameters":{"timeout":05},"inputs":[%s]}',
    ' {"id":"a","inputs":[%s]}',
    '{ "id":"a","inputs":[%s]}',
    '{"id":"a" ,"inputs":[%s]}',
    '{"id":"a",  "inputs":[%s]}\n',
    '{"id":"a","inputs":[%s]}}',
    '{"id":"a"}',
    '{"id":"\x7f","inputs":[%s]}',
    '{"id":"\\u0041","inputs":[%s]}',
]
DATA_TWICE = [
    '{"name":"x","datatype":"INT8","shape":[1],"data":[1],"data":[2]}',
    '{"name":"x","datatype":"INT8","data":[1],"shape":[1],"datatype":"BOOL","data":[true]}',
    '{"name":"x","datatype":"INT8","shape":[1],"data":[1],"shape":[1,1]}',
    '{"name":"x","datatype":"INT8","shape":[1],"data": [ 1 ] }',
    '{"data":\t[1\n],"name":"x","datatype":"INT8","shape":[1]}',
]
for template in TWICE:
    CORPUS += [(template.replace("%s", tensor).encode(), None) for tensor in DATA_TWICE]
    head = template.replace("%s", json.dumps(binary())).encode()
    CORPUS.append((head + FLOATS, len(head)))


def test_both_ways_agree_on_every_body_of_the_corpus() -> None:
    plain = [outcome(body, head, cached=False) for body, head in CORPUS]
    for _ in range(4):
        assert [outcome(body, head, cached=True) for body, head in CORPUS] == plain
    assert len(_plans.HEADS) > 100
    assert len(_plans.FRAMES) > 100


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_both_ways_agree_on_every_kind_of_buffer(kind: Any) -> None:
    for body, head in CORPUS[::5]:
        plain = outcome(body, head, cached=False)
        for _ in range(3):
            assert outcome(kind(body), head, cached=True) == plain


PIECES = [
    *(b'"', b"]", b"[", b"{", b"}", b",", b"1", b"0", b"-", b".5", b"e9", b"true", b"null", b"\0"),
    *(b'"id":"z",', b'"data":[7]', b'"timeout":5', b"\xff", b" ", b'\\"', b'"parameters":{'),
]


def mutated(body: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(body) + 1)
    match chance.randrange(4):
        case 0:
            return body[:at] + body[at + chance.randint(1, 4) :]
        case 1:
            return body[:at] + chance.choice(PIECES) + body[at:]
        case 2:
            return body[:at] + bytes([chance.randrange(256)]) + body[at + 1 :]
    start = chance.randrange(len(body) + 1)
    return body[:at] + body[start : start + chance.randint(1, 20)] + body[at:]


@pytest.mark.parametrize("seed", range(4))
def test_both_ways_agree_on_spoilt_bodies(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(4000):
        body, head = chance.choice(CORPUS)
        for _ in range(2):
            outcome(body, head, cached=True)
        spoilt = mutated(body, chance)
        # The header tells as often what it did as what it should.
        length = head if head is None or chance.random() < 0.5 else head + len(spoilt) - len(body)
        plain = outcome(spoilt, length, cached=False)
        for _ in range(3):
            assert outcome(spoilt, length, cached=True) == plain, (spoilt, length)


@pytest.mark.parametrize(
    ("known", "other"),
    [
        ('"shape":[1],"data":[1],"data":[1]', '"shape":[1],"data":[5],"data":[1]'),
        ('"shape":[1],"data":[1],"data":[5]', '"shape":[1],"data":[5],"data":[5]'),
        ('"data":[1],"shape":[1],"data":[1]', '"data":[9],"shape":[1],"data":[1]'),
        ('"shape":[2,2],"data":[[1,2],[3,4]]', '"shape":[2,2],"data":[[1],[2,3,4]]'),
        ('"shape":[2,2],"data":[[1,2],[3,4]]', '"shape":[2,2],"data":[[1,2],[3,4],[]]'),
        ('"shape":[2,2],"data":[[1,2],[3,4]]', '"shape":[2,2],"data":[1,2,3,4]'),
        ('"shape":[2,2],"data":[1,2,3,4]', '"shape":[2,2],"data":[[1,2],[3,4]]'),
        ('"shape":[2,2],"data":[1,2,3,4]', '"shape":[2,2],"data":["12","34"]'),
        ('"shape":[2,2],"data":[1,2,3,4]', '"shape":[2,2],"data":[1,2,3,4],"data":[1,2,3,4]'),
    ],
    ids=range(9),
)
def test_a_frame_that_is_known_does_not_change_what_another_body_means(
    known: str, other: str
) -> None:
    before, after = '{"inputs":[{"name":"x","datatype":"INT8",', "}]}"
    for _ in range(3):
        decode(f"{before}{known}{after}".encode())
    body = f"{before}{other}{after}".encode()
    assert outcome(body, None, cached=True) == outcome(body, None, cached=False)


# What is saved


def repeated(make: Callable[[int], tuple[bytes, int | None]], count: list[int]) -> int:
    """Return how often the plain way was asked by the third and later requests of a kind."""
    # Of as many digits: padding makes another head of another length.
    for number in range(100, 102):
        decode(*make(number))
    before = count[0]
    for number in range(102, 120):
        decode(*make(number))
    return count[0] - before


def flat(number: int) -> tuple[bytes, int | None]:
    return json.dumps({"inputs": [x(data=[number, 1.5, 2])]}).encode(), None


def nested(number: int) -> tuple[bytes, int | None]:
    return json.dumps({"inputs": [x(data=[[number, 1.5, 2]])]}).encode(), None


def with_id(number: int) -> tuple[bytes, int | None]:
    return json.dumps({"id": f"a{number}", "inputs": [x(data=[1, 2, 3])]}).encode(), None


def with_outputs(number: int) -> tuple[bytes, int | None]:
    document = {"inputs": [x(data=[1, 2, number])], "outputs": [{"name": "y"}]}
    return json.dumps(document).encode(), None


def from_the_client(number: int) -> tuple[bytes, int | None]:
    request = InferRequest(
        "m",
        {"x": np.full((1, 3), number, np.float32), "z": np.arange(3)},
        id=f"{number}",
        deadline=NOW + 1 + number,
        parameters={"a": 1},
    )
    parts, head = oip.encode_request(request)
    return b"".join(parts), head


def from_the_client_in_json(number: int) -> tuple[bytes, int | None]:
    request = InferRequest(
        "m", {"x": np.full((1, 3), number, np.float32)}, deadline=NOW + 1 + number
    )
    parts, head = oip.encode_request(request, binary=False)
    return b"".join(parts), head


@pytest.mark.parametrize(
    "make", [flat, nested, with_id, with_outputs, from_the_client, from_the_client_in_json]
)
def test_a_head_that_came_before_is_not_decoded_again(
    make: Callable[[int], tuple[bytes, int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert repeated(make, count_calls(monkeypatch)) == 0


@pytest.mark.parametrize("make", [flat, from_the_client])
def test_the_switch_turns_the_memory_off(
    make: Callable[[int], tuple[bytes, int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = count_calls(monkeypatch)
    for number in range(5):
        decode(*make(number), cached=False)
    assert count == [5]
    assert (len(_plans.HEADS), len(_plans.FRAMES)) == (0, 0)


def test_the_view_of_a_known_head_shares_the_bodys_memory() -> None:
    head = json.dumps({"inputs": [binary()]}).encode()
    for _ in range(4):
        body = bytes(bytearray(head + FLOATS))
        tensor = decode(body, len(head)).inputs["x"]
        assert np.shares_memory(tensor, np.frombuffer(body, np.uint8))


# Nothing of one request is in another


def test_every_request_has_its_own_id_and_deadline(clock: list[float]) -> None:
    for number in range(5):
        clock[0] = NOW + 10 * number
        document = {
            "id": f"a{number}",
            "parameters": {"timeout": (number + 1) * 1_000_000},
            "inputs": [binary()],
        }
        head = json.dumps(document, separators=(",", ":")).encode()
        request = decode(head + FLOATS, len(head))
        assert (request.id, request.deadline) == (f"a{number}", NOW + 11 * number + 1)


def test_a_request_without_an_id_has_none_after_one_with_it() -> None:
    bare = json.dumps({"inputs": [binary()]}, separators=(",", ":")).encode()
    named = b'{"id":"a",' + bare[1:]
    for _ in range(4):
        assert decode(named + FLOATS, len(named)).id == "a"
        assert decode(bare + FLOATS, len(bare)).id == ""


def test_the_time_of_a_known_timeout_runs_from_each_request_on(clock: list[float]) -> None:
    head = json.dumps({"inputs": [binary()], "parameters": {"timeout": 5_000_000}}).encode()
    for number in range(5):
        clock[0] = NOW + number
        assert decode(head + FLOATS, len(head)).deadline == NOW + number + 5


def test_what_one_request_changes_is_not_in_the_next() -> None:
    document = {
        "parameters": {"a": 1, "binary_data_output": True},
        "inputs": [x(parameters={"binary_data_size": 12, "b": 2})],
        "outputs": [{"name": "y", "parameters": {"c": 3}}],
    }
    head = json.dumps(document).encode()
    plain = outcome(head + FLOATS, len(head), cached=False)
    for _ in range(4):
        request: Any = decode(head + FLOATS, len(head))
        assert seen(request) == plain
        request.parameters["a"] = 9
        request.input_parameters["x"]["b"] = 9
        request.input_parameters["w"] = {}
        request.output_parameters["y"]["c"] = 9
        request.output_parameters[""]["binary_data"] = False
        request.outputs.append("z")
        request.inputs.clear()


def test_the_model_and_version_are_those_of_the_path() -> None:
    body, _ = flat(1)
    for name in ("a", "b", "c", "d"):
        request = oip.decode_request(body, model=name, version=name + "1")
        assert (request.model, request.version) == (name, name + "1")


# Bounds


def test_long_heads_are_not_remembered() -> None:
    name = "x" * 1100
    head = json.dumps({"inputs": [binary(name=name)]}).encode()
    body = json.dumps({"inputs": [x(name=name, data=[1, 2, 3])]}).encode()
    after = json.dumps({"inputs": [x(data=[1, 2, 3])], "more": name}).encode()
    for _ in range(4):
        decode(head + FLOATS, len(head))
        decode(body)
        decode(after)
    assert len(_plans.HEADS) == 0
    assert all(frame is None for frames in _plans.FRAMES._values.values() for frame in frames)


def test_memory_stays_within_its_bounds_whatever_comes() -> None:
    for number in range(600):
        name = f"x{number}" + "y" * 600
        head = json.dumps({"inputs": [binary(name=name)]}).encode()
        body = json.dumps({"inputs": [x(name=name, data=[1, 2, 3])]}).encode()
        for _ in range(2):
            decode(head + FLOATS, len(head))
            decode(body)
    for memory in (_plans.HEADS, _plans.FRAMES):
        assert 0 < len(memory) <= 256
        assert memory.size <= 128 * 1024


def test_frames_that_begin_alike_are_tried_four_times_at_most() -> None:
    for number in range(50):
        decode(json.dumps({"inputs": [x(data=[1, 2, 3])], "more": number}).encode())
    ((frames),) = _plans.FRAMES._values.values()
    assert len(frames) == 4


def test_heads_that_never_come_again_are_not_held() -> None:
    for number in range(100):
        head = json.dumps({"inputs": [binary()], "more": number}).encode()
        decode(head + FLOATS, len(head))
    assert len(_plans.HEADS) == 0


def test_threads_read_what_each_of_them_sent() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    together = threading.Barrier(4)

    def work(thread: int) -> None:
        together.wait(10)
        for number in range(200):
            value = thread * 1000 + number
            head = json.dumps({"id": f"{value}", "inputs": [binary(name=f"x{number % 9}")]})
            data = np.full((1, 3), value, "<f4")
            request = decode(head.encode() + data.tobytes(), len(head))
            assert request.id == f"{value}"
            assert request.inputs[f"x{number % 9}"].tolist() == data.tolist()
            body = json.dumps({"inputs": [x(name=f"x{number % 9}", data=data.tolist())]})
            assert decode(body.encode()).inputs[f"x{number % 9}"].tolist() == data.tolist()

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)
