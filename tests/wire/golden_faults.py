"""Requests that are wrong in some way, and compressed ones, right and wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from wire.golden_asks import (
    BINARY_ONE,
    LENGTH,
    ONE,
    Ask,
    get,
    given,
    in_deflate,
    in_gzip,
    infer,
    mixed,
    raw,
    said,
)
from wire.golden_models import NUMBERS


def malformed() -> Iterable[Ask]:
    """What is wrong with the body, or in it."""
    for name, body in (
        ("empty", b""),
        ("space", b" "),
        ("null", b"null"),
        ("number", b"1"),
        ("list", b"[]"),
        ("text", b'"a"'),
        ("object", b"{}"),
        ("cut", said()[:-5]),
        ("trailing_comma", b'{"inputs":[],}'),
        ("trailing_garbage", said() + b"x"),
        ("trailing_document", said() + b"{}"),
        ("comment", b"/* a */" + said()),
        ("single_quotes", b"{'inputs':[]}"),
        ("bare_nan", said().replace(b"1.0", b"NaN")),
        ("bare_infinity", said().replace(b"1.0", b"Infinity")),
        ("number_beyond_doubles", said().replace(b"1.0", b"1e400")),
        ("leading_zero", said().replace(b"1.0", b"01")),
        ("plus", said().replace(b"1.0", b"+1")),
        ("byte_order_mark", b"\xef\xbb\xbf" + said()),
        ("utf16", said().decode().encode("utf-16")),
        ("invalid_utf8", said(id="?").replace(b"?", b"\xff")),
        ("lone_surrogate", said(id="?").replace(b"?", b"\\ud800")),
        ("control_character", said(id="?").replace(b"?", b"\n")),
        ("nested_200", b"[" * 200 + b"]" * 200),
        (
            "nested_in_data",
            said(given(data=0)).replace(b'"data": 0', b'"data": ' + b"[" * 50 + b"]" * 50),
        ),
        (
            "duplicate_inputs",
            b'{"inputs":[],"inputs":[{"name":"x","shape":[1,4],"datatype":'
            b'"FP32","data":[1,2,3,4]}]}',
        ),
        ("duplicate_data", said().replace(b'"data"', b'"data": [9, 9, 9, 9], "data"')),
    ):
        yield infer(name, body)
    for member, wrongs in {
        "inputs": (None, {}, "a", 1, [], [None], [1], ["x"], [[]], [{}]),
        "outputs": (
            None,
            {},
            "a",
            1,
            [None],
            [1],
            ["y"],
            [{}],
            [{"name": 1}],
            [{"name": "nope"}],
            [{"name": ""}],
            [{"name": "y"}, {"name": "y"}],
            [{"name": "y", "parameters": []}],
            [{"name": "y", "parameters": {"binary_data": 1}}],
            [{"name": "y", "parameters": {"binary_data": "true"}}],
        ),
        "id": (None, 1, 1.5, True, [], {}),
    }.items():
        for number, wrong in enumerate(wrongs):
            document = {"inputs": [given()]} | {member: wrong}
            yield infer(f"{member}_{number}", json.dumps(document).encode())
    for member, wrongs in {
        "name": (None, 1, "", "nope", "X", "y"),
        "datatype": (None, 1, "", "nope", "fp32", "FP64", "INT32", "BYTES", "TYPE_FP32", "BF16"),
        "shape": (
            None,
            4,
            "1,4",
            {},
            [],
            [4],
            [1, 5],
            [2, 4],
            [1, 4, 1],
            [4, 1],
            [-1, 4],
            [1, -4],
            [1.0, 4.0],
            [1.5, 4],
            ["1", "4"],
            [True, 4],
            [[1], [4]],
            [1, None],
            [0, 4],
            [9, 4],
            [2**31, 4],
            [2**62, 4],
            [2**63, 4],
            [2**64, 4],
            [2**32, 2**32],
            [1] * 40,
        ),
        "data": (
            None,
            1,
            "a",
            {},
            [],
            [1, 2, 3],
            [1, 2, 3, 4, 5],
            [[1, 2, 3], [4]],
            [[1, 2], [3, 4]],
            [[[1, 2, 3, 4]]],
            [1, [2, 3, 4]],
            [1, 2, 3, None],
            [1, 2, 3, "4"],
            [1, 2, 3, "a"],
            [1, 2, 3, True],
            [1, 2, 3, {}],
            [1, 2, 3, []],
            [1e39, 0, 0, 0],
            [2**70, 0, 0, 0],
        ),
        "parameters": (
            None,
            [],
            "a",
            1,
            {"a": None},
            {"a": []},
            {"a": {}},
            {"binary_data_size": 16},
            {"binary_data_size": "16"},
            {"binary_data": True},
        ),
    }.items():
        for number, wrong in enumerate(wrongs):
            yield infer(f"{member}_{number}", said(given() | {member: wrong}))
    for member in ("name", "datatype", "shape", "data"):
        document = given()
        del document[member]
        yield infer(f"{member}_missing", said(document))
    yield infer("input_twice", said(given(), given()))
    yield infer("input_too_many", said(given(), given("z")))
    half = given("a", shape=(1, 2), data=[1, 2])
    yield infer("input_missing", said(half), model="arithmetic")
    other = given("b", "INT64", (2, 2), [1, 2, 3, 4])
    yield infer("rows_of_inputs_differ", said(half, other), model="arithmetic")


def wrong_values() -> Iterable[Ask]:
    """Elements that do not fit their datatype."""
    for datatype in (*NUMBERS, "BOOL", "BYTES"):
        if datatype == "FP16":
            continue
        for slug, value in (
            ("fraction", 0.5),
            ("whole_fraction", 1.0),
            ("text", "1"),
            ("null", None),
            ("true", True),
            ("negative", -1),
            ("wide", 300),
            ("huge", 2**40),
            ("huger", 2**64),
            ("small", -(2**63) - 1),
            ("object", {"a": 1}),
        ):
            body = said(given("x", datatype, [1, 1], [value]))
            yield infer(f"{datatype.lower()}_{slug}", body, model=f"echo_{datatype.lower()}")


def wrong_binary() -> Iterable[Ask]:
    """Binary tensors that do not fit what is said of them."""
    head = said(BINARY_ONE)

    def claims(size: Any, **rest: Any) -> bytes:
        return said(given(data=None, binary_data_size=size), **rest)

    yield mixed("cut", head, raw(ONE)[:-1])
    yield mixed("missing", head)
    yield mixed("trailing", head, raw(ONE), b"\0")
    for slug, length in (
        ("negative", "-1"), ("text", "abc"), ("fraction", "1.5"), ("empty", ""),
        ("exponent", "1e2"), ("plus", f"+{len(head)}"), ("space", f" {len(head)} "),
        ("zero_in_front", f"0{len(head)}"), ("hexadecimal", hex(len(head))),
        ("beyond", str(len(head) + 17)), ("far_beyond", str(2**62)), ("huge", str(2**64)),
        ("short", str(len(head) - 1)), ("one", "1"), ("list", f"{len(head)},{len(head)}"),
        ("tensor_too", str(len(head) + 16)),
    ):  # fmt: skip
        yield mixed(f"length_{slug}", head, raw(ONE), length=length)
    yield infer("length_absent", head + raw(ONE))
    for slug, size in (
        ("small", 12), ("large", 20), ("zero", 0), ("negative", -1), ("text", "16"),
        ("fraction", 16.5), ("whole_fraction", 16.0), ("null", None), ("flag", True),
        ("huge", 2**63 - 1), ("huger", 2**64 - 1), ("list", [16]),
    ):  # fmt: skip
        yield mixed(f"size_{slug}", claims(size), raw(ONE))
    both = given(binary_data_size=16)
    yield mixed("data_and_size", said(both), raw(ONE))
    yield mixed("neither", said(given(data=None)), raw(ONE))
    strings = given("x", "BYTES", [1, 2], None, binary_data_size=10)
    for slug, blob in (
        ("right", b"\1\0\0\0a\1\0\0\0b"),
        ("one", b"\6\0\0\0abcdef"),
        ("too_many", b"\0\0\0\0\0\0\0\0\0\0"),
        ("beyond", b"\1\0\0\0a\2\0\0\0b"),
        ("huge", b"\xff\xff\xff\xffabcdef"),
        ("cut_length", b"\4\0\0\0abcd\0\0"),
    ):
        yield mixed(f"bytes_{slug}", said(strings), blob, model="echo_bytes")


def compression() -> Iterable[Ask]:
    """Compressed bodies, both ways."""
    plain = said()
    head = said(BINARY_ONE, parameters={"binary_data_output": True})
    for coding, press in (("gzip", in_gzip), ("deflate", in_deflate)):
        header = ("Content-Encoding", coding)
        yield infer(f"{coding}", press(plain), header)
        pressed = press(head + raw(ONE))
        length = (LENGTH, str(len(head)))
        yield infer(f"{coding}_binary", pressed, header, length)
        yield infer(f"{coding}_cut", press(plain)[:-6], header)
        yield infer(f"{coding}_garbage", b"garbage", header)
        yield infer(f"{coding}_not", plain, header)
        yield infer(f"{coding}_empty", b"", header)
        yield infer(f"{coding}_of_nothing", press(b""), header)
        yield infer(f"{coding}_trailing", press(plain) + b"x", header)
        yield infer(f"{coding}_twice", press(plain) + press(b"   "), header)
        yield infer(f"{coding}_chunked", press(plain), header, chunks=(10, 20))
    yield infer("deflate_raw", in_deflate(plain)[2:-4], ("Content-Encoding", "deflate"))
    for coding in ("identity", "br", "GZIP", "x-gzip", "gzip, deflate", "nonsense", ""):
        slug = coding.replace(", ", "_") or "nothing"
        body = in_gzip(plain) if coding in ("GZIP", "x-gzip") else plain
        yield infer(f"encoding_{slug}", body, ("Content-Encoding", coding))
    wide = given("x", "FP32", [1, 8000], [float(i % 7) for i in range(8000)])
    for accept in (
        "gzip", "deflate", "identity", "gzip, deflate", "br", "*", "gzip;q=0", "deflate, gzip;q=0.5"
    ):  # fmt: skip
        slug = accept.replace(", ", "_").replace(";q=", "_")
        header = ("Accept-Encoding", accept)
        yield infer(f"accept_{slug}", plain, header)
        yield infer(f"accept_{slug}_large", said(wide), header, model="echo_fp32")
        yield infer(f"accept_{slug}_error", b"{", header)
        yield infer(f"accept_{slug}_binary", said(parameters={"binary_data_output": True}), header)
    yield get("accept_gzip_metadata", "/v2/models/add_one", ("Accept-Encoding", "gzip"))
