"""What the protocol demands of the JSON in requests: members, shapes, elements, parameters."""

# ruff: noqa: E501 - in a table a row is a line.

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from wire.conformance_rows import NOT_JSON, Row, answered, holding, refused, wrong_input
from wire.golden_asks import Ask, given, infer, said

# fmt: off

def documents() -> Iterator[Row]:
    """The JSON as a whole."""
    for name, body, place, then in (
        ("no body", b"", NOT_JSON, ""),
        ("space", b"  \n", NOT_JSON, ""),
        ("null", b"null", "expected a JSON object", "got null"),
        ("true", b"true", "expected a JSON object", "got true"),
        ("number", b"7", "expected a JSON object", "got 7"),
        ("text", b'"x"', "expected a JSON object", 'got "x"'),
        ("list", b"[1]", "expected a JSON object", "got a list"),
        ("empty object", b"{}", "inputs: expected a list", ""),
        ("cut", said()[:-1], NOT_JSON, ""),
        ("followed by another", said() + said(), NOT_JSON, ""),
        ("followed by a NUL", said() + b"\0", NOT_JSON, ""),
        ("NUL inside", said(id="?").replace(b"?", b"\0"), NOT_JSON, ""),
        ("comma at the end", b'{"inputs": [],}', NOT_JSON, ""),
        ("comment", said() + b"// x", NOT_JSON, ""),
        ("single quotes", b"{'inputs': []}", NOT_JSON, ""),
        ("names without quotes", b"{inputs: []}", NOT_JSON, ""),
        ("byte order mark", b"\xef\xbb\xbf" + said(), NOT_JSON, ""),
        ("UTF-16", said().decode().encode("utf-16"), NOT_JSON, ""),
        ("UTF-32", said().decode().encode("utf-32"), NOT_JSON, ""),
        ("Latin-1", said(id="?").replace(b"?", b"\xe9"), NOT_JSON, ""),
        ("overlong UTF-8", said(id="?").replace(b"?", b"\xc0\xaf"), NOT_JSON, ""),
        ("surrogate in UTF-8", said(id="?").replace(b"?", b"\xed\xa0\x80"), NOT_JSON, ""),
        ("lone surrogate", said(id="?").replace(b"?", b"\\ud83d"), NOT_JSON, ""),
        ("surrogates turned", said(id="?").replace(b"?", b"\\ude00\\ud83d"), NOT_JSON, ""),
        ("tab in text", said(id="?").replace(b"?", b"\t"), NOT_JSON, ""),
        ("unknown escape", said(id="?").replace(b"?", b"\\x41"), NOT_JSON, ""),
        ("NaN", said().replace(b"1.0", b"NaN"), NOT_JSON, ""),
        ("Infinity", said().replace(b"1.0", b"Infinity"), NOT_JSON, ""),
        ("-Infinity", said().replace(b"1.0", b"-Infinity"), NOT_JSON, ""),
        ("nan", said().replace(b"1.0", b"nan"), NOT_JSON, ""),
        ("1e400", said().replace(b"1.0", b"1e400"), NOT_JSON, ""),
        ("hexadecimal", said().replace(b"1.0", b"0x10"), NOT_JSON, ""),
        ("underscore", said().replace(b"1.0", b"1_0"), NOT_JSON, ""),
        ("point without digits", said().replace(b"1.0", b"1."), NOT_JSON, ""),
        ("point first", said().replace(b"1.0", b".5"), NOT_JSON, ""),
        ("zero in front", said().replace(b"1.0", b"01"), NOT_JSON, ""),
        ("100,000 brackets", b"[" * 100_000, NOT_JSON, ""),
        ("100,000 braces", b'{"a":' * 100_000, NOT_JSON, ""),
        ("2,000 lists in data", said(given(data=0)).replace(
            b'"data": 0', b'"data": ' + b"[" * 2000 + b"]" * 2000), NOT_JSON, ""),
        ("200 lists in data", said(given(data=0)).replace(
            b'"data": 0', b'"data": ' + b"[" * 200 + b"]" * 200), "inputs[0].data", "4 elements"),
    ):
        yield refused(infer(f"document: {name}", body), place, then)
    yield answered(infer("unknown members", said(nope=[{"a": None}])), holding(2, 3, 4, 5))
    yield answered(
        infer("members twice", b'{"inputs": 7, "inputs": [%b]}' % json.dumps(given()).encode()),
        holding(2, 3, 4, 5),
    )
    yield answered(
        infer("escaped names", said().replace(b'"inputs"', b'"\\u0069nputs"')), holding(2, 3, 4, 5)
    )
    yield answered(infer("1e-400 is 0", said().replace(b"1.0", b"1e-400")), holding(1, 3, 4, 5))
    digits = b"1" + b"0" * 300 + b".0e-300"
    yield answered(infer("300 digits", said().replace(b"1.0", digits)), holding(2, 3, 4, 5))


def inputs() -> Iterator[Row]:
    """The list of inputs, and each one's members."""
    kinds = (
        ("null", None, "null"), ("object", {}, "an object"), ("text", "x", '"x"'),
        ("number", 1, "1"), ("true", True, "true"), ("list", [], "a list"),
    )
    for name, value, found in kinds:
        got = f"got {found}"
        if value != []:
            body = json.dumps({"inputs": value}).encode()
            yield refused(infer(f"inputs: {name}", body), "inputs: expected a list", got)
            place = "inputs[0].shape: expected a list of sizes"
            yield refused(infer(f"shape: {name}", said(given(shape=value))), place, got)
            document = given() | {"data": value}
            yield refused(infer(f"data: {name}", said(document)), "inputs[0].data: expected a list", got)
        if value != {}:
            body = json.dumps({"inputs": [value]}).encode()
            yield refused(infer(f"inputs[0]: {name}", body), "inputs[0]: expected an object", got)
        if value != {} and value is not None:
            document = given() | {"parameters": value}
            place = "inputs[0].parameters: expected an object"
            yield refused(infer(f"parameters: {name}", said(document)), place, got)
        if value != "x":
            document = given() | {"name": value}
            yield refused(infer(f"name: {name}", said(document)), "inputs[0].name: expected a name", got)
        yield wrong_input(f"datatype: {name}", ".datatype: expected one of BOOL", got, datatype=value)
    for name, members in (("null", None), ("none", {}), ("any", {"a": 1, "b": "c", "d": True})):
        document = given() | {"parameters": members}
        yield answered(infer(f"parameters of an input: {name}", said(document)), holding(2, 3, 4, 5))
    for name in ("fp32", "TYPE_FP32", "FLOAT", "FP31", "FP32 ", "", "int64", "STRING", "OBJECT"):
        yield wrong_input(f"datatype {name!r}", ".datatype: expected one of BOOL", f'got "{name}"', datatype=name)
    for member, then in (("name", "name"), ("datatype", "datatype"), ("shape", "shape")):
        document = given()
        del document[member]
        place = f"inputs[0].{then}: expected"
        yield refused(infer(f"without {member}", said(document)), place)
    document = given()
    del document["data"]
    place = "inputs[0]: expected data, or binary_data_size"
    yield refused(infer("without data", said(document)), place)
    yield refused(infer("name empty", said(given(name=""))), "inputs[0].name: expected a name")
    ask = infer("none", json.dumps({"inputs": []}).encode())
    yield refused(ask, "inputs", '"x"')
    yield refused(infer("unknown", said(given("z"))), "inputs", '"z"')
    yield refused(infer("unknown beside known", said(given(), given("z"))), "inputs", '"z"')
    yield refused(infer("case of a name", said(given("X"))), "inputs", '"X"')
    yield refused(infer("twice", said(given(), given())), "inputs[1].name: ", "twice")
    half = given("a", shape=(1, 2), data=[1, 2])
    yield refused(infer("one of two", said(half), model="arithmetic"), "inputs", '"b"')
    rows = given("b", "INT64", (2, 2), [1, 2, 3, 4])
    yield refused(infer("rows differ", said(half, rows), model="arithmetic"), "inputs", "rows")
    many = [given(f"x{number}", shape=[1], data=[1]) for number in range(1025)]
    yield refused(infer("1025 inputs", said(*many)), "inputs: expected at most 1024", "got 1025")
    long = given("n" * 50_000)
    yield refused(infer("name of 50,000 characters", said(long)), "inputs")
    yield refused(infer("name with quotes", said(given('a"b\n'))), "inputs")
    yield wrong_input("datatype of another model", ' "x": expected FP32', "got FP64",
                      datatype="FP64")
    integers = given("x", "INT32", (1, 4), [1, 2, 3, 4])
    yield refused(
        infer("integers for FP32", said(integers)), 'inputs[0] "x": expected FP32, got INT32'
    )
    words = given("x", "BYTES", (1, 4), ["1", "2", "3", "4"])
    yield refused(infer("text for FP32", said(words)), 'inputs[0] "x": expected FP32')


def shapes() -> Iterator[Row]:
    """Shapes, and data that does not fill them."""
    for name, shape, place, then in (
        ("negative", [-1, 4], ".shape[0]: expected a size of 0 or more", "got -1"),
        ("negative later", [1, -4], ".shape[1]: expected a size of 0 or more", "got -4"),
        ("fraction", [1, 4.5], ".shape[1]: expected a size", "got 4.5"),
        ("whole fraction", [1, 4.0], ".shape[1]: expected a size", "got 4.0"),
        ("text", ["1", 4], ".shape[0]: expected a size", 'got "1"'),
        ("true", [True, 4], ".shape[0]: expected a size", "got true"),
        ("null", [1, None], ".shape[1]: expected a size", "got null"),
        ("list", [[1, 4]], ".shape[0]: expected a size", "got a list"),
        ("object", [{}, 4], ".shape[0]: expected a size", "got an object"),
        ("2**64", [2**64, 4], ".shape[0]: expected a size", "got"),
        ("2**63", [2**63, 4], ".shape: expected at most 32 axes", ""),
        ("product of 2**64", [2**32, 2**32], ".shape: expected at most 32 axes", ""),
        ("product of 0 over 2**64", [0, 2**32, 2**32], ".shape: expected at most 32 axes", ""),
        ("product just too large", [2**24 + 1, 2**24], ".shape: expected at most 32 axes", ""),
        ("33 axes", [1] * 33, ".shape: expected at most 32 axes", ""),
        ("10,000 axes", [1] * 10_000, ".shape: expected at most 32 axes", ""),
        ("too few elements", [2, 4], ".data: expected 8 elements", "got 4"),
        ("too many elements", [1, 3], ".data: expected 3 elements", "got 4"),
        ("of none", [0, 4], ".data: expected 0 elements", "got 4"),
        ("no axes", [], ".data: expected 1 elements", "got 4"),
        ("2**40 elements", [2**20, 2**20], ".data: expected 1099511627776 elements", "got 4"),
    ):
        yield wrong_input(f"shape: {name}", place, then, shape=shape)
    for name, shape, data, then in (
        ("another width", [1, 5], [1, 2, 3, 4, 5], "expected shape"),
        ("no rows' axis", [4], [1, 2, 3, 4], "expected shape"),
        ("an axis too many", [1, 1, 4], [1, 2, 3, 4], "expected shape"),
        ("turned", [4, 1], [1, 2, 3, 4], "expected shape"),
        ("no axes", [], [1], "expected shape"),
        ("no columns", [1, 0], [], "expected shape"),
    ):
        ask = infer(f"signature: {name}", said(given(shape=shape, data=data)))
        yield refused(ask, f'inputs[0] "x": {then}')
    yield refused(infer("rows: 9 of 8", said(given(shape=(9, 4), data=[0] * 36))), "", "8")
    yield answered(
        infer("rows: 8 of 8", said(given(shape=(8, 4), data=[0] * 32))), holding(*[1] * 32)
    )
    for name, data, place, then in (
        ("cut row", [[1, 2, 3]], "inputs[0].data[0]: expected a list of 4", "got 3"),
        ("row too long", [[1, 2, 3, 4, 5]], "inputs[0].data[0]: expected a list of 4", "got 5"),
        ("rows too many", [[1, 2, 3, 4]] * 2, "inputs[0].data: expected a list of 1", "got 2"),
        ("ragged", [[1, 2], [3, 4]], "inputs[0].data: expected a list of 1", "got 2"),
        ("too deep", [[[1, 2, 3, 4]]], "inputs[0].data[0]: expected a list of 4", "got 1"),
        ("list among numbers", [1, 2, 3, [4]], "inputs[0].data[3]: expected a number", "a list"),
        ("number among lists", [[1, 2, 3, 4], 5], "inputs[0].data: expected a list of 1", "got 2"),
        ("number for a row", [7], "inputs[0].data: expected 4 elements", "got 1"),
        ("object for a row", [{}], "inputs[0].data: expected 4 elements", "got 1"),
        ("text for a row", ["abcd"], "inputs[0].data: expected 4 elements", "got 1"),
    ):
        yield refused(infer(f"nested: {name}", said(given(data=data))), place, then)
    nested = given(shape=(2, 4), data=[[1, 2, 3, 4], [5, 6, 7]])
    yield refused(infer("nested: second row", said(nested)), "inputs[0].data[1]: expected a list")
    wrong = given(shape=(2, 4), data=[[1, 2, 3, 4], [5, 6, "7", 8]])
    yield refused(infer("nested: third of second", said(wrong)), "inputs[0].data[1][2]: expected")
    x: dict[str, Any] = {"model": "echo_fp32"}
    for shape in ([0, 0], [0, 3], [3, 0]):
        ask = infer(f"empty {shape}", said(given(shape=shape, data=[])), **x)
        yield answered(ask, holding(shape=shape))
    ask = infer("empty, nested", said(given(shape=[2, 0], data=[[], []])), **x)
    yield answered(ask, holding(shape=[2, 0]))
    ask = infer("empty, wrongly nested", said(given(shape=[2, 0], data=[[], [], []])), **x)
    yield refused(ask, "inputs[0].data: expected")
    scalar: dict[str, Any] = {"model": "scalar"}
    yield answered(infer("scalar", said(given(shape=[], data=[7])), **scalar), holding(7, shape=[]))
    yield refused(infer("scalar bare", said(given(shape=[], data=7)), **scalar),
                  "inputs[0].data: expected a list", "got 7")
    yield refused(infer("scalar of none", said(given(shape=[], data=[])), **scalar),
                  "inputs[0].data: expected 1 elements")
    yield refused(infer("scalar in a list", said(given(shape=[1], data=[7])), **scalar),
                  'inputs[0] "x": expected shape')


def numbers() -> Iterator[Row]:
    """Elements and what datatypes hold."""
    for bits in (8, 16, 32, 64):
        for kind, low, high in (
            ("INT", -(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
            ("UINT", 0, 2**bits - 1),
        ):
            datatype = f"{kind}{bits}"
            model = f"echo_{datatype.lower()}"

            def one(slug: str, value: Any, datatype: str = datatype, model: str = model) -> Ask:
                body = said(given("x", datatype, [1, 2], [0, value]))
                return infer(f"{datatype}: {slug}", body, model=model)

            place = "inputs[0].data[1]: expected "
            yield answered(one("least", low), holding(0, low))
            yield answered(one("most", high), holding(0, high))
            beyond = f"{place}{'a number' if bits < 64 else 'an integer'}"
            below = f"{place}{'an integer' if low - 1 < -(2**63) else 'a number'}"
            yield refused(one("below", low - 1), below)
            yield refused(one("above", high + 1), beyond if high + 1 >= 2**64 else
                          f"{place}a number in the range")
            for slug, value in (
                ("fraction", 0.5), ("whole fraction", 1.0), ("text", "1"), ("null", None),
                ("true", True), ("false", False), ("list", [1]), ("object", {}), ("1e30", 1e30),
            ):
                yield refused(one(slug, value), f"{place}an integer for {datatype}")
    for datatype in ("FP32", "FP64"):
        for slug, value in (
            ("text", "1"), ("NaN as text", "NaN"), ("null", None), ("true", True), ("list", [1]),
            ("object", {}),
        ):
            body = said(given("x", datatype, [1, 2], [0, value]))
            ask = infer(f"{datatype}: {slug}", body, model=f"echo_{datatype.lower()}")
            yield refused(ask, f"inputs[0].data[1]: expected a number for {datatype}")
    for slug, value in (("1e39", 1e39), ("-1e39", -1e39), ("2**200", 2**200)):
        body = said(given("x", "FP32", [1, 2], [0, value]))
        ask = infer(f"FP32: {slug}", body, model="echo_fp32")
        yield refused(ask, "inputs[0].data[1]: expected a number in the range of FP32")
    body = said(given("x", "FP16", [1, 2], [0, 70000]))
    ask = infer("FP16: 70000", body, model="echo_fp16")
    yield refused(ask, "inputs[0].data[1]: expected a number in the range of FP16")
    body = said(given("x", "FP64", [1, 2], [2**64, -(2**70)]))
    ask = infer("FP64: long integers", body, model="echo_fp64")
    yield answered(ask, holding(2.0**64, -(2.0**70)))
    body = said(given("x", "FP64", [1, 2], [5e-324, 1.7976931348623157e308]))
    yield answered(infer("FP64: edges", body, model="echo_fp64"), holding(5e-324, 1.7976931348623157e308))
    for slug, value in (("0", 0), ("1", 1), ("text", "true"), ("null", None), ("list", [True])):
        body = said(given("x", "BOOL", [1, 2], [True, value]))
        ask = infer(f"BOOL: {slug}", body, model="echo_bool")
        yield refused(ask, "inputs[0].data[1]: expected true or false")
    for slug, value in (("number", 1), ("null", None), ("true", True), ("list", ["a"]), ("object", {})):
        body = said(given("x", "BYTES", [1, 2], ["a", value]))
        ask = infer(f"BYTES: {slug}", body, model="echo_bytes")
        yield refused(ask, "inputs[0].data[1]: expected a string")
    text = ["", "\x00", "\U0001f600", "é" * 1000]
    body = said(given("x", "BYTES", [2, 2], text))
    yield answered(infer("BYTES: any text", body, model="echo_bytes"), holding(*text))
    body = said(given("x", "BF16", [1, 4], [1, 2, 3, 4]))
    yield refused(infer("BF16 in JSON", body), "inputs[0].data: BF16 has no JSON form")


def outputs() -> Iterator[Row]:
    """The outputs that are asked for."""
    for name, value, place, then in (
        ("object", {}, "outputs: expected a list", "got an object"),
        ("text", "y", "outputs: expected a list", 'got "y"'),
        ("number", 1, "outputs: expected a list", "got 1"),
        ("names", ["y"], "outputs[0]: expected an object", 'got "y"'),
        ("null inside", [{"name": "y"}, None], "outputs[1]: expected an object", "got null"),
        ("without name", [{}], "outputs[0].name: expected a name", "got null"),
        ("name empty", [{"name": ""}], "outputs[0].name: expected a name", 'got ""'),
        ("name number", [{"name": 1}], "outputs[0].name: expected a name", "got 1"),
        ("unknown", [{"name": "z"}], "outputs", '"z"'),
        ("unknown beside known", [{"name": "y"}, {"name": "z"}], "outputs", '"z"'),
        ("an input", [{"name": "x"}], "outputs", '"x"'),
        ("twice", [{"name": "y"}, {"name": "y"}], "outputs[1].name: ", "twice"),
        ("parameters list", [{"name": "y", "parameters": []}],
         "outputs[0].parameters: expected an object", "got a list"),
        ("parameter null", [{"name": "y", "parameters": {"a": None}}],
         "outputs[0].parameters.a: expected a boolean, number or string", "got null"),
        ("binary_data number", [{"name": "y", "parameters": {"binary_data": 1}}],
         "outputs[0].parameters.binary_data: expected true or false", "got 1"),
        ("binary_data text", [{"name": "y", "parameters": {"binary_data": "true"}}],
         "outputs[0].parameters.binary_data: expected true or false", 'got "true"'),
        ("1025", [{"name": f"y{i}"} for i in range(1025)], "outputs: expected at most 1024",
         "got 1025"),
    ):
        yield refused(infer(f"outputs: {name}", said(outputs=value)), place, then)
    for name, value in (("null", None), ("none", []), ("one", [{"name": "y"}])):
        yield answered(infer(f"outputs: {name}", said(outputs=value)), holding(2, 3, 4, 5))


def parameters() -> Iterator[Row]:
    """Parameters, ids, times, priorities and sequences."""
    for name, value, place, then in (
        ("list", [], "parameters: expected an object", "got a list"),
        ("text", "a", "parameters: expected an object", 'got "a"'),
        ("number", 1, "parameters: expected an object", "got 1"),
        ("null inside", {"a": None}, "parameters.a: expected a boolean, number or string", "null"),
        ("list inside", {"a": []}, "parameters.a: expected a boolean, number", "got a list"),
        ("object inside", {"a": {}}, "parameters.a: expected a boolean, number", "got an object"),
        ("1025", {f"p{i}": 1 for i in range(1025)}, "parameters: expected at most 1024", "1025"),
        *(
            (f"{parameter} {slug}", {parameter: wrong}, f"parameters.{parameter}: expected an int",
             "from 0 to 18446744073709551615")
            for parameter in ("timeout", "priority")
            for slug, wrong in (("negative", -1), ("text", "1"), ("fraction", 0.5),
                                ("whole fraction", 1.0), ("true", True), ("2**64", 2**64))
        ),
        *(
            (f"sequence_id {slug}", {"sequence_id": wrong},
             "parameters.sequence_id: expected a string or an integer", "got")
            for slug, wrong in (("negative", -1), ("fraction", 1.5), ("true", True))
        ),
        *(
            (f"{flag} {slug}", {flag: wrong}, f"parameters.{flag}: expected true or false", "got")
            for flag in ("sequence_start", "sequence_end", "binary_data_output", "explain")
            for slug, wrong in (("number", 1), ("text", "true"), ("fraction", 0.5))
        ),
    ):
        yield refused(infer(f"parameters: {name}", said(parameters=value)), place, then)
    for name, value in (
        ("null", None), ("none", {}), ("any", {"a": 1, "b": "c", "d": True, "e": 0.5}),
        ("timeout 0", {"timeout": 0}), ("timeout a minute", {"timeout": 60_000_000}),
        ("timeout 2**63 - 1", {"timeout": 2**63 - 1}), ("timeout 2**64 - 1", {"timeout": 2**64 - 1}),
        ("priority 0", {"priority": 0}), ("priority 1", {"priority": 1}),
        ("priority 2**64 - 1", {"priority": 2**64 - 1}), ("sequence_id 0", {"sequence_id": 0}),
        ("sequence_id text", {"sequence_id": "s", "sequence_start": True, "sequence_end": False}),
        ("sequence_id 2**64 - 1", {"sequence_id": 2**64 - 1}),
        ("explain", {"explain": True}),
    ):
        yield answered(infer(f"parameters: {name}", said(parameters=value)), holding(2, 3, 4, 5))
    ask = infer("a microsecond", said(parameters={"timeout": 1}))
    yield refused(ask, "", "", status=504)
    for name, value, got in (
        ("number", 1, "1"), ("true", True, "true"), ("list", [], "a list"), ("object", {}, "an obj"),
        ("fraction", 1.5, "1.5"),
    ):
        yield refused(infer(f"id: {name}", said(id=value)), "id: expected a string", f"got {got}")
    for name, value in (("text", "7"), ("any text", 'é\n"\\ \U0001f600'), ("long", "i" * 5000)):
        yield answered(infer(f"id: {name}", said(id=value)), {"id": value})
    ask = infer("id: null", said(id=None))
    yield answered(ask, {"model_name": "add_one", "model_version": "1"})
    ask = infer("id: from the header", said(), ("X-Request-Id", "abc-1"))
    yield answered(ask, {"id": "abc-1"})
    ask = infer("id: both", said(id="mine"), ("X-Request-Id", "abc-1"))
    yield answered(ask, {"id": "mine"})
    for value in ("0", "-1", "x", "nan", "inf", "1e300", ""):
        ask = infer(f"X-Request-Timeout: {value}", said(), ("X-Request-Timeout", value))
        yield refused(ask, "header X-Request-Timeout: expected seconds above 0")
    yield answered(infer("X-Request-Timeout: 60", said(), ("X-Request-Timeout", "60")))
