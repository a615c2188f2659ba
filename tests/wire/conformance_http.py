"""What the protocol demands beside the JSON: paths, binary tensors, compression, models."""

# ruff: noqa: E501 - in a table a row is a line.

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from wire.conformance_rows import MAX_BODY, NOT_JSON, Row, answered, holding, refused
from wire.golden_asks import (
    BINARY_ONE,
    LENGTH,
    ONE,
    get,
    given,
    in_deflate,
    in_gzip,
    infer,
    mixed,
    post,
    raw,
    said,
    sized,
)

# fmt: off

def paths() -> Iterator[Row]:
    """Paths, methods, models and versions."""
    for name, path, holds in (
        ("server", "/v2", {"name": "modelserve"}),
        ("server with slash", "/v2/", {"name": "modelserve"}),
        ("live", "/v2/health/live", {"live": True}),
        ("ready", "/v2/health/ready", {"ready": True}),
        ("model", "/v2/models/add_one", {"name": "add_one", "versions": ["1"]}),
        ("version", "/v2/models/versions/versions/3", {"name": "versions"}),
        ("model ready", "/v2/models/add_one/ready", {"name": "add_one", "ready": True}),
        ("version ready", "/v2/models/versions/versions/1/ready", {"ready": True}),
        ("escaped", "/v2/models/add%5fone", {"name": "add_one"}),
        ("query", "/v2/models/add_one?x=/..//", {"name": "add_one"}),
    ):
        yield answered(get(name, path), holds)
        yield answered(get(f"{name}: HEAD", path, method="HEAD"))
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            yield refused(
                get(f"{name}: {method}", path, method=method), f"expected GET or HEAD, got {method}",
                status=405,
            )
    for path in ("/v2/models/add_one/infer", "/v2/models/versions/versions/3/infer"):
        for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"):
            ask = get(f"{method} {path}", path, method=method)
            yield refused(ask, f"expected POST, got {method}", status=405)
    for name, path in (
        ("nothing known", "/nope"),
        ("another version of the protocol", "/v3"),
        ("capitals", "/V2/models/add_one"),
        ("no model", "/v2/models//infer"),
        ("no version", "/v2/models/add_one/versions/"),
        ("version without number", "/v2/models/add_one/versions//infer"),
        ("unknown verb", "/v2/models/add_one/explode"),
        ("verb twice", "/v2/models/add_one/infer/infer"),
        ("deep", "/v2" + "/models" * 50),
        ("dots", "/v2/models/../models/add_one"),
        ("slash in a name", "/v2/models/add%2fone"),
        ("broken escape", "/v2/models/add%zzone"),
        ("escape cut", "/v2/models/add%5"),
        ("no UTF-8", "/v2/models/%ff%fe"),
    ):
        ask = get(name, path)
        yield refused(ask, "", status=404)
    for name, path in (
        ("unknown model", "/v2/models/nope/infer"),
        ("unknown version", "/v2/models/add_one/versions/9/infer"),
        ("version 0", "/v2/models/add_one/versions/0/infer"),
        ("version -1", "/v2/models/add_one/versions/-1/infer"),
        ("version of 40 digits", f"/v2/models/add_one/versions/{'9' * 40}/infer"),
        ("unknown label", "/v2/models/add_one/versions/stable/infer"),
        ("name of 500 characters", f"/v2/models/{'n' * 500}/infer"),
        ("name in Unicode", "/v2/models/%E6%97%A5%E6%9C%AC/infer"),
        ("name with NUL", "/v2/models/a%00b/infer"),
        ("name with quotes", "/v2/models/%22%3Cb%3E/infer"),
    ):
        for what, body in (("right", said()), ("no JSON", b"{"), ("no body", b"")):
            yield refused(post(f"{name}, {what}", path, body), "", "model", status=404)


def binary() -> Iterator[Row]:
    """Binary tensors."""
    head = said(BINARY_ONE)
    blob = raw(ONE)
    yield answered(mixed("binary", head, blob), holding(2, 3, 4, 5))
    for name, length, then in (
        ("negative", "-1", 'got "-1"'), ("text", "x", 'got "x"'), ("fraction", "1.5", "got"),
        ("exponent", "1e3", "got"), ("empty", "", "got"), ("plus", "+5", "got"),
        ("hexadecimal", "0x5", "got"), ("two", "5, 5", "got"), ("2**64", str(2**64), "got"),
        ("30 digits", "1" * 30, "got"), ("beyond the body", str(len(head) + 17), "at most"),
        ("other digits", "\u0665".encode().decode("latin-1"), "got"),
    ):
        ask = mixed(f"length: {name}", head, blob, length=length)
        yield refused(ask, "inference-header-content-length: expected ", then)
    yield refused(mixed("length: short", head, blob, length=len(head) - 1), NOT_JSON)
    yield refused(mixed("length: into the tensor", head, blob, length=len(head) + 4), NOT_JSON)
    yield refused(infer("length: absent", head + blob), NOT_JSON)
    ask = infer("length: absent, and no tensor", head)
    yield refused(ask, "inputs[0].parameters.binary_data_size: binary data needs the header")
    yield refused(mixed("tensor cut", head, blob[:-1]),
                  "inputs[0].parameters.binary_data_size: expected 16 bytes", "got 15")
    yield refused(mixed("tensor missing", head),
                  "inputs[0].parameters.binary_data_size: expected 16 bytes", "got 0")
    yield refused(mixed("bytes behind", head, blob, b"xy"), "2 bytes follow the last binary tensor")
    yield refused(mixed("bytes behind JSON", said(), b"xy"), "2 bytes follow the last binary")
    for name, size, then in (
        ("negative", -1, "got -1"), ("text", "16", 'got "16"'), ("fraction", 16.0, "got 16.0"),
        ("true", True, "got true"), ("2**63", 2**63, "bytes of binary data"),
        ("2**70", 2**70, "got"),
    ):
        ask = mixed(f"size: {name}", said(given(data=None, binary_data_size=size)), blob)
        yield refused(ask, "inputs[0].parameters.binary_data_size: expected", then)
    for name, size in (("null", None), ("list", [16]), ("object", {})):
        ask = mixed(f"size: {name}", said(given(data=None, binary_data_size=size)), blob)
        yield refused(ask, "inputs[0].parameters.binary_data_size: expected", "got")
    ask = mixed("size: not the shape's", said(given(data=None, binary_data_size=12)), blob[:12])
    yield refused(ask, "inputs[0]: expected 16 bytes for FP32 of shape [1, 4]", "got 12")
    ask = mixed("data and size", said(given(binary_data_size=16)), blob)
    yield refused(ask, "inputs[0]: expected data or binary_data_size, got both")
    flags = given("x", "BOOL", [1, 3], None, binary_data_size=3)
    yield refused(mixed("BOOL of 2", said(flags), b"\0\1\2", model="echo_bool"),
                  "inputs[0][2]: expected a byte of 0 or 1", "got 2")
    words = given("x", "BYTES", [1, 2], None, binary_data_size=10)
    for name, data, place in (
        ("first beyond", b"\x07\0\0\0abcdef", "inputs[0][0]: expected 7 bytes, got 6"),
        ("second beyond", b"\x01\0\0\0a\x02\0\0\0b", "inputs[0][1]: expected 2 bytes, got 1"),
        ("2**32 - 1", b"\xff\xff\xff\xffabcdef", "inputs[0][0]: expected 4294967295 bytes"),
        ("one alone", b"\x06\0\0\0abcdef", "inputs[0][1]: the data ends before its length"),
        ("cut length", b"\x04\0\0\0abcd\0\0", "inputs[0][1]: the data ends before its length"),
        ("rest", b"\x00\0\0\0\0\0\0\0\0\0", "inputs[0]: 2 bytes follow the last element"),
    ):
        yield refused(mixed(f"BYTES: {name}", said(words), data, model="echo_bytes"), place)
    few = given("x", "BYTES", [1000, 1000], None, binary_data_size=10)
    yield refused(mixed("BYTES: a million in ten bytes", said(few), b"\0" * 10, model="echo_bytes"),
                  "inputs[0]: expected at least 4000000 bytes")
    pair = given("a", shape=[1, 2], data=[1, 2]), given("b", "INT64", [1, 2], None,
                                                        binary_data_size=16)
    integers = struct.pack("<qq", 2**62, -3)
    yield answered(mixed("JSON and binary", said(*pair), integers, model="arithmetic"),
                   {"outputs": [{"name": "total"}, {"data": [-(2**63), -6]}]})
    both = sized("a", np.array([[1, 2]], np.float32), "FP32"), pair[1]
    ask = mixed("second tensor missing", said(*both), b"\0" * 8, model="arithmetic")
    yield refused(ask, "inputs[1].parameters.binary_data_size: expected 16 bytes", "got 0")
    for name, body, place in (
        ("no bytes", b"", ""), ("three bytes", b"abc", 'inputs[0] "x": expected a multiple of 16'),
    ):
        if place:
            yield refused(mixed(f"raw: {name}", b"", body, length=0), place)
    yield refused(mixed("raw: two inputs", b"", blob, length=0, model="arithmetic"),
                  "the model has 2 inputs")
    yield refused(mixed("raw: two open axes", b"", blob, length=0, model="echo_fp32"),
                  'inputs[0] "x": 2 of its axes are open')
    ask = mixed("raw: unknown model", b"", blob, length=0, model="nope")
    yield refused(ask, "", "model", status=404)


def http() -> Iterator[Row]:
    """Content types, framing and compression."""
    for kind in (
        "application/json", "application/json; charset=utf-8", "application/json;charset=UTF-16",
        "text/plain", "application/octet-stream", "multipart/form-data; boundary=x", "/", "x" * 500,
    ):
        ask = infer(f"content type {kind[:40]}", said(), ("Content-Type", kind))
        yield answered(ask, holding(2, 3, 4, 5))
    yield answered(infer("chunks", said(), chunks=(1, 2, 3, 50)), holding(2, 3, 4, 5))
    ask = infer("Expect", said(), ("Expect", "100-continue"))
    yield answered(ask, holding(2, 3, 4, 5))
    head = said(BINARY_ONE)
    for coding, press, pressed in (("gzip", gzip.compress, in_gzip),
                                   ("deflate", zlib.compress, in_deflate)):
        header = ("Content-Encoding", coding)
        whole = press(said())
        yield answered(infer(f"{coding}", whole, header), holding(2, 3, 4, 5))
        yield answered(infer(f"{coding}, stored", pressed(said()), header), holding(2, 3, 4, 5))
        yield answered(infer(f"{coding}, chunks", whole, header, chunks=(3,)), holding(2, 3, 4, 5))
        ask = infer(f"{coding}, binary", press(head + raw(ONE)), header, (LENGTH, str(len(head))))
        yield answered(ask, holding(2, 3, 4, 5))
        yield refused(infer(f"{coding}: cut", whole[:-5], header), f"the body is not one whole {coding}")
        yield refused(infer(f"{coding}: begun", whole[:3], header), "the body is not ")
        yield refused(infer(f"{coding}: nothing", b"", header), "the body is not ")
        yield refused(infer(f"{coding}: rest", whole + b"x", header), f"the body is not one whole {coding}")
        yield refused(infer(f"{coding}: plain", said(), header), f"the body is not valid {coding}")
        yield refused(infer(f"{coding}: of no JSON", press(b"{"), header), NOT_JSON)
        yield refused(infer(f"{coding}: of nothing", press(b""), header), NOT_JSON)
        bomb = press(b" " * (MAX_BODY + 1))
        yield refused(infer(f"{coding}: bomb", bomb, header), "the decompressed body has more than",
                      status=413)
        yield refused(infer(f"{coding}: of an unknown model", b"x", header, model="nope"), "", "model",
                      status=404)
    wrong = bytearray(in_gzip(said()))
    wrong[-6] ^= 1
    header = ("Content-Encoding", "gzip")
    yield refused(infer("gzip: wrong sum", bytes(wrong), header), "the body is not valid gzip")
    ask = infer("deflate without frame", in_deflate(said())[2:-4], ("Content-Encoding", "deflate"))
    yield refused(ask, "the body is not valid deflate")
    ask = infer("gzip as deflate", in_gzip(said()), ("Content-Encoding", "deflate"))
    yield refused(ask, "the body is not valid deflate")
    for coding in ("br", "zstd", "compress", "gzip, gzip", "x"):
        ask = infer(f"coding {coding}", said(), ("Content-Encoding", coding))
        yield refused(ask, "content encoding", "expected gzip or deflate", status=501)
    yield answered(infer("coding identity", said(), ("Content-Encoding", "identity")))
    large = said(given(shape=(1, 4), data=[1, 2, 3, 4]), id="i" * MAX_BODY)
    yield refused(infer("body too large", large), "", "bytes", status=413)
    ask = infer("body too large, in chunks", large, chunks=(500_000, 1_000_000))
    yield refused(ask, "", "bytes", status=413)
    for path in ("/v2/repository/index", "/v2/repository/models/line/unload"):
        yield refused(post(f"too large for {path}", path, b" " * 70_000), "", "bytes", status=413)
    for coding in (
        "gzip",
        "deflate",
        "gzip, deflate",
        "*",
        "br",
        "identity;q=0",
        ";;;,,q=",
        "x" * 900,
    ):
        ask = infer(f"Accept-Encoding {coding[:30]}", said(), ("Accept-Encoding", coding))
        yield answered(ask, holding(2, 3, 4, 5))


def models() -> Iterator[Row]:
    """Models that fail, take long, or stream; and the repository."""
    one = said(given(shape=[1], data=[1]))
    yield refused(infer("fails", one, model="raises"), "the model failed; request id ", status=500)
    seconds = given("seconds", shape=[1], data=[0.4])
    late = said(seconds, parameters={"timeout": 50_000})
    yield refused(infer("sleeps past its time", late, model="sleeps"), "", status=504)
    ask = infer(
        "sleeps past the header", said(seconds), ("X-Request-Timeout", "0.05"), model="sleeps"
    )
    yield refused(ask, "", status=504)
    yield answered(infer("sleeps within its time", said(given("seconds", shape=[1], data=[0.01])),
                         model="sleeps"))
    word = given("text_input", "BYTES", [1], ["one"])
    yield refused(infer("streams", said(word), model="words"), "", "generate_stream", status=501)
    for verb in ("generate", "generate_stream"):
        path = f"/v2/models/words/{verb}"
        for name, body, place, then in (
            ("nothing", b"", NOT_JSON, ""),
            ("list", b"[]", "expected a JSON object", "got a list"),
            ("no JSON", b"{", NOT_JSON, ""),
            ("number", b'{"text_input": 1}', "text_input: expected a string", "got 1"),
            ("null", b'{"text_input": null}', "text_input: expected a string", "got null"),
            ("object", b'{"text_input": {}}', "text_input: expected a string", "got an object"),
            ("two", b'{"text_input": ["a", "b"]}', "inputs", ""),
            ("too deep", b'{"text_input": [["a"]]}', "text_input: expected at most 1 axes", ""),
            ("missing", b'{"x": 1}', "inputs", '"text_input"'),
            ("list for a parameter", b'{"text_input": "a", "b": []}', "b: expected a boolean", ""),
            ("parameters list", b'{"text_input": "a", "parameters": []}', "parameters: expected", ""),
            ("parameter twice", b'{"text_input": "a", "b": 1, "parameters": {"b": 2}}',
             "parameters.b: stands there twice", ""),
            ("timeout", b'{"text_input": "a", "timeout": -1}', "parameters.timeout: expected", ""),
            ("id", b'{"text_input": "a", "id": 1}', "id: expected a string", "got 1"),
        ):
            yield refused(post(f"{verb}: {name}", path, body), place, then)
        yield refused(post(f"{verb}: fails", path, b'{"text_input": "!"}'), "the model failed", status=500)
        yield refused(post(f"{verb}: unknown", f"/v2/models/nope/{verb}", b"{"), "", "model", 404)
        yield refused(get(f"{verb}: GET", path), "expected POST, got GET", status=405)
    yield answered(post("generate", "/v2/models/words/generate", b'{"text_input": "a"}'),
                   {"text_output": "a"})
    index = "/v2/repository/index"
    yield answered(post("index", index))
    yield answered(post("index: object", index, b"{}"))
    yield answered(post("index: ready", index, b'{"ready": true}'))
    for name, body, place in (
        ("text", b'{"ready": "true"}', "ready: expected true or false"),
        ("number", b'{"ready": 1}', "ready: expected true or false"),
        ("list", b"[]", "expected a JSON object"),
        ("no JSON", b"{", NOT_JSON),
        ("deep", b"[" * 50_000, NOT_JSON),
    ):
        yield refused(post(f"index: {name}", index, body), place)
    for verb in ("load", "unload"):
        path = f"/v2/repository/models/line/{verb}"
        for name, body, place in (
            ("list", b"[]", "expected a JSON object"),
            ("no JSON", b"{", NOT_JSON),
            ("parameters list", b'{"parameters": []}', "parameters: expected an object"),
            ("version number", b'{"parameters": {"version": 1}}', "parameters.version: expected a"),
        ):
            yield refused(post(f"{verb}: {name}", path, body), place)
        unknown = f"/v2/repository/models/nope/{verb}"
        yield refused(post(f"{verb}: unknown", unknown), "", "model", status=404)
        ask = post(f"{verb}: unknown version", path, b'{"parameters": {"version": "9"}}')
        yield refused(ask, "", "version", status=404)
