"""The requests whose answers by Triton are recorded: one corpus, sent to Triton and to us alike."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Final

import numpy as np

from wire.golden_asks import (
    BINARY_ONE,
    ONE,
    TWO,
    Ask,
    get,
    given,
    infer,
    listed,
    mixed,
    post,
    raw,
    said,
    sized,
    values,
)
from wire.golden_faults import compression, malformed, wrong_binary, wrong_values
from wire.golden_models import DATATYPES

REGION: Final = "golden-tensors"
"""Name of shared memory on the machine."""


def server() -> Iterable[Ask]:
    """Health, the server's description, paths and methods."""
    for which in ("live", "ready"):
        path = f"/v2/health/{which}"
        yield get(which, path)
        yield get(f"{which}_head", path, method="HEAD")
        yield get(f"{which}_slash", f"{path}/")
        yield get(f"{which}_query", f"{path}?a=1&b=2")
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            yield get(f"{which}_{method.lower()}", path, method=method)
    yield get("health", "/v2/health")
    yield get("health_unknown", "/v2/health/nope")
    yield get("server", "/v2")
    yield get("server_slash", "/v2/")
    yield get("server_head", "/v2", method="HEAD")
    yield get("server_post", "/v2", method="POST")
    yield get("root", "/")
    yield get("unknown", "/nope")
    yield get("unknown_v2", "/v2/nope")
    yield get("unknown_v3", "/v3")
    yield get("capitals", "/V2/health/live")
    yield get("doubled_slash", "//v2/health/live")
    yield get("models", "/v2/models")
    yield get("server_with_body", "/v2", ("Content-Type", "application/json"))
    yield get("unknown_method", "/v2", method="BREW")


def metadata() -> Iterable[Ask]:
    """What models take and give, and whether they are ready."""
    for model in ("add_one", "arithmetic", "echo_bytes", "echo_fp16", "versions", "words", "line"):
        yield get(model, f"/v2/models/{model}")
    for tail in ("", "/ready"):
        kind = "ready" if tail else "described"
        yield get(f"{kind}_one", f"/v2/models/add_one{tail}")
        yield get(f"{kind}_slash", f"/v2/models/add_one{tail}/")
        yield get(f"{kind}_escaped", f"/v2/models/add%5Fone{tail}")
        yield get(f"{kind}_unknown", f"/v2/models/nope{tail}")
        yield get(f"{kind}_unknown_version_of_unknown", f"/v2/models/nope/versions/1{tail}")
        for version in ("1", "3", "2", "0", "-1", "01", "1.0", "abc", "99999999999999999999"):
            yield get(f"{kind}_version_{version}", f"/v2/models/versions/versions/{version}{tail}")
        yield get(f"{kind}_head", f"/v2/models/add_one{tail}", method="HEAD")
        yield get(f"{kind}_head_unknown", f"/v2/models/nope{tail}", method="HEAD")
        yield get(f"{kind}_post", f"/v2/models/add_one{tail}", method="POST")
        yield get(f"{kind}_delete", f"/v2/models/add_one{tail}", method="DELETE")
    yield get("no_version", "/v2/models/add_one/versions")
    yield get("no_version_slash", "/v2/models/add_one/versions/")
    yield get("no_model", "/v2/models/")
    yield get("unknown_verb", "/v2/models/add_one/nope")
    yield get("infer_get", "/v2/models/add_one/infer")
    yield get("infer_head", "/v2/models/add_one/infer", method="HEAD")
    yield get("infer_put", "/v2/models/add_one/infer", method="PUT")


def infer_json() -> Iterable[Ask]:
    """Requests in JSON that are right."""
    for datatype in DATATYPES:
        x, model = values(datatype), f"echo_{datatype.lower()}"
        nested = listed(x)
        if datatype == "FP16":
            yield infer(f"{model}", said(given("x", datatype, x.shape, nested)), model=model)
            continue
        flat = list(chain.from_iterable(nested))
        yield infer(f"{model}_flat", said(given("x", datatype, x.shape, flat)), model=model)
        yield infer(f"{model}_nested", said(given("x", datatype, x.shape, nested)), model=model)
        empty = given("x", datatype, (0, 2), [])
        yield infer(f"{model}_empty", said(empty), model=model)
    yield infer("plain", said())
    yield infer("rows", said(given(shape=(2, 4), data=TWO.tolist())))
    yield infer("most_rows", said(given(shape=(8, 4), data=[0.5] * 32)))
    yield infer("integers_for_floats", said(given(data=[1, 2, 3, -4])))
    yield infer("digits", said(given(data=[0.1, 1e-8, 16777217, 3.4e38])))
    yield infer(
        "exponents",
        b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1e0,1E+1,1.5e-3,-0.0]}]}',
    )
    yield infer(
        "members_in_another_order",
        b'{"outputs":[{"name":"y"}],"inputs":[{"data":'
        b'[1,2,3,4],"datatype":"FP32","shape":[1,4],"name":"x"}],"id":"7"}',
    )
    yield infer(
        "spaces",
        b' \n\t{ "inputs" : [ {"name":"x", "shape":[1, 4],"datatype":"FP32", '
        b'"data":[ 1 , 2 , 3 , 4 ] } ] }\r\n ',
    )
    yield infer(
        "escapes",
        b'{"\\u0069nputs":[{"name":"\\u0078","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}',
    )
    yield infer("id", said(id="a b/é"))
    yield infer("id_empty", said(id=""))
    yield infer("id_long", said(id="i" * 1000))
    yield infer("unknown_members", said(given() | {"extra": [1]}, extra={"a": None}))
    yield infer("outputs_named", said(outputs=[{"name": "y"}]))
    yield infer("outputs_empty", said(outputs=[]))
    yield infer("output_json", said(outputs=[{"name": "y", "parameters": {"binary_data": False}}]))
    yield infer("parameters_empty", said(parameters={}))
    yield infer("input_parameters", said(given(mine=1)))
    yield infer("output_parameters", said(outputs=[{"name": "y", "parameters": {"mine": "a"}}]))
    a, b = given("a", shape=(1, 2), data=[1, 2]), given("b", "INT64", (1, 2), [2**62, -3])
    pair: dict[str, Any] = {"model": "arithmetic"}
    yield infer("two_inputs", said(a, b), **pair)
    yield infer("two_inputs_turned", said(b, a), **pair)
    yield infer("one_of_two_outputs", said(a, b, outputs=[{"name": "doubled"}]), **pair)
    named = [{"name": "doubled"}, {"name": "total"}]
    yield infer("outputs_turned", said(a, b, outputs=named), **pair)
    yield infer("line", said(given(shape=[5], data=[1, 2, 3, 4, 5])), model="line")
    yield infer("line_empty", said(given(shape=[0], data=[])), model="line")
    yield infer("text", said(given("x", "BYTES", [1], ["日本\u0000!"])), model="text")
    for version in ("1", "3", "2", "abc", "0", "-1"):
        body = said(given("x", "INT32", [1], [1]))
        yield post(f"version_{version}", f"/v2/models/versions/versions/{version}/infer", body)
    yield infer("latest_version", said(given("x", "INT32", [1], [1])), model="versions")
    yield post("trailing_slash", "/v2/models/add_one/infer/", said())
    yield post("query", "/v2/models/add_one/infer?timeout=1", said())
    yield infer("unknown_model", said(), model="nope")
    yield infer("unknown_model_and_no_json", b"{", model="nope")
    yield infer("model_fails", said(given(shape=[1], data=[1])), model="raises")
    yield infer("streams_once", said(given("text_input", "BYTES", [1], ["one"])), model="words")
    yield infer("streams_twice", said(given("text_input", "BYTES", [1], ["a b"])), model="words")
    for kind in (
        "application/json",
        "application/octet-stream",
        "text/plain",
        "nonsense",
        "application/json; charset=utf-8",
        "application/x-www-form-urlencoded",
    ):
        slug = kind.replace("/", "_").replace("; ", "_").replace("=", "_")
        yield infer(f"content_type_{slug}", said(), ("Content-Type", kind))
    yield infer("accept_nothing_known", said(), ("Accept", "image/png"))
    yield infer("chunked", said(), chunks=(1, 20, 50))


def parameters() -> Iterable[Ask]:
    """Parameters of requests, and what of them a model gets."""
    x = given(shape=[1], data=[1])

    def tells(name: str, **found: Any) -> Ask:
        return infer(name, said(x, parameters=found), model="tells")

    yield infer("none", said(x), model="tells")
    yield tells("kinds", text="a", number=7, flag=True, negative=-1)
    yield tells("fraction", number=0.5)
    yield tells("large", number=2**53 + 1)
    yield tells("largest", number=2**63 - 1)
    yield tells("unsigned", number=2**64 - 1)
    yield tells("text_empty", text="")
    yield tells("null", text=None)
    yield tells("list", text=[1])
    yield tells("object", text={"a": 1})
    yield tells("priority", priority=1)
    yield tells("priority_0", priority=0)
    yield tells("priority_negative", priority=-1)
    yield tells("priority_text", priority="1")
    yield tells("priority_fraction", priority=1.5)
    yield tells("priority_huge", priority=2**64 - 1)
    yield tells("timeout", timeout=10_000_000)
    yield tells("timeout_0", timeout=0)
    yield tells("timeout_negative", timeout=-1)
    yield tells("timeout_text", timeout="10000000")
    yield tells("timeout_fraction", timeout=10000000.5)
    yield tells("timeout_huge", timeout=2**63 - 1)
    yield tells("timeout_beyond", timeout=2**64 - 1)
    yield tells("sequence", sequence_id=7, sequence_start=True, sequence_end=True)
    yield tells("sequence_text", sequence_id="seven", sequence_start=True, sequence_end=False)
    yield tells("sequence_id_0", sequence_id=0)
    yield tells("sequence_id_huge", sequence_id=2**64 - 1)
    yield tells("sequence_id_negative", sequence_id=-1)
    yield tells("sequence_id_fraction", sequence_id=1.5)
    yield tells("sequence_id_flag", sequence_id=True)
    yield tells("sequence_start_text", sequence_id=1, sequence_start="true")
    yield tells("sequence_start_number", sequence_id=1, sequence_start=1)
    yield tells("binary_data_output_false", binary_data_output=False)
    yield tells("binary_data_output_text", binary_data_output="true")
    yield tells("binary_data_output_number", binary_data_output=1)
    yield tells("reserved_prefix", triton_mine=1)
    yield tells("reserved_empty_final", triton_enable_empty_final_response=True)
    yield tells("headers_parameter", headers="x")
    yield infer("parameters_null", said(x, parameters=None), model="tells")
    yield infer("parameters_list", said(x, parameters=[]), model="tells")
    yield infer("parameters_text", said(x, parameters="a"), model="tells")


def infer_binary() -> Iterable[Ask]:
    """Binary tensors in every form."""
    everything = {"binary_data_output": True}
    for datatype in DATATYPES:
        x, model = values(datatype), f"echo_{datatype.lower()}"
        tensor = sized("x", x, datatype)
        whole = said(tensor, parameters=everything)
        yield mixed(f"{model}_both", whole, raw(x), model=model)
        yield mixed(f"{model}_in", said(tensor), raw(x), model=model)
        empty = given("x", datatype, (0, 2), None, binary_data_size=0)
        yield mixed(f"{model}_empty", said(empty, parameters=everything), model=model)
        if datatype != "FP16":
            nested = given("x", datatype, x.shape, listed(x))
            yield infer(f"{model}_out", said(nested, parameters=everything), model=model)
    for name, default, own in (
        ("output_own", None, True),
        ("output_own_false", True, False),
        ("output_own_true", False, True),
        ("output_default", True, None),
        ("output_no_default", False, None),
    ):
        output = {"name": "y"} | ({} if own is None else {"parameters": {"binary_data": own}})
        members: dict[str, Any] = {"outputs": [output]}
        if default is not None:
            members["parameters"] = {"binary_data_output": default}
        yield infer(name, said(**members))
    a = np.array([[1, 2]], np.float32)
    b = np.array([[2**62, -3]], np.int64)
    inputs = sized("a", a, "FP32"), sized("b", b, "INT64")
    pair: dict[str, Any] = {"model": "arithmetic"}
    yield mixed("two", said(*inputs, parameters=everything), raw(a), raw(b), **pair)
    yield mixed("two_turned", said(*inputs[::-1], parameters=everything), raw(b), raw(a), **pair)
    one_json = given("a", shape=[1, 2], data=[1, 2])
    yield mixed("one_json_one_binary", said(one_json, inputs[1]), raw(b), **pair)
    some = [{"name": "total", "parameters": {"binary_data": True}}, {"name": "doubled"}]
    yield mixed("outputs_of_both_forms", said(*inputs, outputs=some), raw(a), raw(b), **pair)
    others = [some[1], some[0]]
    yield mixed("outputs_of_both_turned", said(*inputs, outputs=others), raw(a), raw(b), **pair)
    yield mixed("length_of_pure_json", said())
    for kind in ("application/octet-stream", "application/json"):
        slug = kind.partition("/")[2]
        header = ("Content-Type", kind)
        yield mixed(f"content_type_{slug}", said(BINARY_ONE), raw(ONE), headers=[header])
    special = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
    yield mixed("specials", said(BINARY_ONE, parameters=everything), raw(special))
    yield mixed("specials_as_json", said(BINARY_ONE), raw(special))
    wide = special.astype(np.float64)
    double = sized("x", wide, "FP64")
    yield mixed("specials_of_doubles_as_json", said(double), raw(wide), model="echo_fp64")
    half = special.astype(np.float16)
    yield mixed(
        "specials_of_halves",
        said(sized("x", half, "FP16"), parameters=everything),
        raw(half),
        model="echo_fp16",
    )
    odd = np.array([[b"\xff\xfe", b"\x00"]], np.object_)
    text = sized("x", odd, "BYTES")
    yield mixed(
        "bytes_that_are_not_text", said(text, parameters=everything), raw(odd), model="echo_bytes"
    )
    yield mixed("bytes_that_are_not_text_as_json", said(text), raw(odd), model="echo_bytes")
    yield mixed(
        "bool_of_2",
        said(given("x", "BOOL", [1, 2], None, binary_data_size=2), parameters=everything),
        b"\x02\x00",
        model="echo_bool",
    )


def infer_raw() -> Iterable[Ask]:
    """Bodies of one tensor, without JSON."""
    yield mixed("row", b"", raw(ONE), length=0)
    yield mixed("rows", b"", raw(TWO), length=0)
    yield mixed("row_and_a_half", b"", raw(ONE) + b"\0" * 8, length=0)
    yield mixed("empty", b"", length=0)
    yield mixed("line", b"", raw(ONE), length=0, model="line")
    yield mixed("line_uneven", b"", raw(ONE) + b"\0", length=0, model="line")
    yield mixed("text", b"", "héllo".encode(), length=0, model="text")
    yield mixed("text_empty", b"", length=0, model="text")
    yield mixed("two_open_axes", b"", raw(ONE), length=0, model="echo_fp32")
    yield mixed("two_inputs", b"", raw(ONE), length=0, model="arithmetic")
    yield mixed("unknown_model", b"", raw(ONE), length=0, model="nope")
    yield mixed("fixed", b"", b"\0\0\0\0", length=0, model="tells")
    yield mixed("fixed_too_long", b"", b"\0\0\0\0\0\0\0\0", length=0, model="tells")


def generate() -> Iterable[Ask]:
    """The generate extension."""

    def asks(name: str, model: str, verb: str, **document: Any) -> Ask:
        body = json.dumps(document).encode()
        return post(name, f"/v2/models/{model}/{verb}", body)

    for verb in ("generate", "generate_stream"):
        yield asks(f"{verb}_exclaims", "exclaims", verb, text_input="hello")
        yield asks(f"{verb}_id", "exclaims", verb, text_input="hello", id="7")
        yield asks(f"{verb}_list", "exclaims", verb, text_input=["hello"])
        yield asks(f"{verb}_one_word", "words", verb, text_input="one")
        yield asks(f"{verb}_words", "words", verb, text_input="one two three")
        yield asks(f"{verb}_most", "words", verb, text_input="one two three", most=1)
        nested = {"most": 2}
        yield asks(
            f"{verb}_nested_parameters", "words", verb, text_input="a b c", parameters=nested
        )
        yield asks(f"{verb}_no_words", "words", verb, text_input="")
        yield asks(f"{verb}_fails", "words", verb, text_input="! two")
        yield asks(f"{verb}_fails_later", "words", verb, text_input="one ! two")
        yield asks(f"{verb}_number", "words", verb, text_input=1)
        yield asks(f"{verb}_null", "words", verb, text_input=None)
        yield asks(f"{verb}_object", "words", verb, text_input={"a": 1})
        yield asks(f"{verb}_missing", "words", verb, other="a")
        yield asks(f"{verb}_nothing", "words", verb)
        yield asks(f"{verb}_list_parameter", "words", verb, text_input="a", mine=[1])
        yield asks(f"{verb}_unknown_model", "nope", verb, text_input="a")
        yield post(f"{verb}_empty", f"/v2/models/words/{verb}")
        yield post(f"{verb}_no_json", f"/v2/models/words/{verb}", b"{")
        yield post(f"{verb}_list_document", f"/v2/models/words/{verb}", b"[]")
        versions = f"/v2/models/words/versions/1/{verb}"
        yield post(f"{verb}_version", versions, b'{"text_input": "one"}')
        unknown = f"/v2/models/words/versions/9/{verb}"
        yield post(f"{verb}_unknown_version", unknown, b'{"text_input": "one"}')
        yield get(f"{verb}_get", f"/v2/models/words/{verb}")
    yield asks("numbers", "line", "generate", x=[1.5, 2.5])
    yield asks("number", "line", "generate", x=1.5)
    yield asks("rows", "add_one", "generate", x=[[1, 2, 3, 4]])
    yield asks("row", "add_one", "generate", x=[1, 2, 3, 4])
    yield asks("tells", "tells", "generate", x=1.0, a=1, b="c", d=True)


def control() -> Iterable[Ask]:
    """The index of the repository, loading and unloading. In this order."""
    yield post("index", "/v2/repository/index")
    yield post("index_object", "/v2/repository/index", b"{}")
    yield post("index_ready", "/v2/repository/index", b'{"ready": true}')
    yield post("index_not_ready", "/v2/repository/index", b'{"ready": false}')
    yield post("index_wrong", "/v2/repository/index", b'{"ready": 1}')
    yield post("index_no_json", "/v2/repository/index", b"{")
    yield get("index_get", "/v2/repository/index")
    yield post("index_unknown_repository", "/v2/repository/nope/index")
    models = "/v2/repository/models"
    yield post("unload", f"{models}/line/unload")
    yield post("unloaded_infer", "/v2/models/line/infer", said(given(shape=[1], data=[1])))
    yield get("unloaded_metadata", "/v2/models/line")
    yield get("unloaded_ready", "/v2/models/line/ready")
    yield get("unloaded_version", "/v2/models/line/versions/1")
    yield get("unloaded_server_ready", "/v2/health/ready")
    yield post("unloaded_index", "/v2/repository/index")
    yield post("unload_again", f"{models}/line/unload")
    yield post("load", f"{models}/line/load")
    yield post("loaded_infer", "/v2/models/line/infer", said(given(shape=[1], data=[1])))
    yield post("load_again", f"{models}/line/load", b"{}")
    yield post("load_parameters", f"{models}/line/load", b'{"parameters": {}}')
    yield post("load_unknown", f"{models}/nope/load")
    yield post("unload_unknown", f"{models}/nope/unload")
    yield post(
        "unload_dependents", f"{models}/line/unload", b'{"parameters": {"unload_dependents": true}}'
    )
    yield post("load_no_json", f"{models}/line/load", b"{")
    yield post("load_list", f"{models}/line/load", b"[]")
    yield post("load_parameters_list", f"{models}/line/load", b'{"parameters": []}')
    yield get("load_get", f"{models}/line/load")
    yield post("load_at_last", f"{models}/line/load")
    yield get("loaded_ready", "/v2/models/line/ready")


def classification() -> Iterable[Ask]:
    """Outputs as classes."""
    x = given(shape=(2, 3), data=[1, 2, 3, 9, 1, 1])

    def asks(name: str, count: Any, **rest: Any) -> Ask:
        output = {"name": "scores", "parameters": {"classification": count, **rest}}
        return infer(name, said(x, outputs=[output]), model="classifier")

    for count in (1, 2, 3):
        yield asks(f"best_{count}", count)
    yield asks("more_than_there_are", 9)
    yield asks("zero", 0)
    yield asks("negative", -1)
    yield asks("text", "2")
    yield asks("fraction", 1.5)
    yield asks("null", None)
    yield asks("binary", 2, binary_data=True)
    yield asks("json", 2, binary_data=False)
    one = given(shape=(1, 3), data=[3, 1, 1])
    output = {"name": "scores", "parameters": {"classification": 3}}
    yield infer("ties", said(one, outputs=[output]), model="classifier")
    members: dict[str, Any] = {"outputs": [output], "parameters": {"binary_data_output": True}}
    yield infer("binary_by_default", said(one, **members), model="classifier")
    plain = [{"name": "y", "parameters": {"classification": 2}}]
    yield infer("without_labels", said(outputs=plain))
    integers = given("x", "INT32", (1, 3), [5, -1, 9])
    yield infer("of_integers", said(integers, outputs=plain), model="echo_int32")
    text = given("x", "BYTES", (1, 2), ["a", "b"])
    yield infer("of_text", said(text, outputs=plain), model="echo_bytes")
    flags = given("x", "BOOL", (1, 2), [True, False])
    yield infer("of_flags", said(flags, outputs=plain), model="echo_bool")
    line = given(shape=[3], data=[1, 3, 2])
    yield infer("without_rows", said(line, outputs=plain), model="line")


def config() -> Iterable[Ask]:
    """Models' configurations."""
    for model in ("add_one", "arithmetic", "classifier", "words", "versions", "echo_bytes"):
        yield get(model, f"/v2/models/{model}/config")
    yield get("version", "/v2/models/versions/versions/1/config")
    yield get("unknown", "/v2/models/nope/config")
    yield get("unknown_version", "/v2/models/versions/versions/9/config")
    yield get("head", "/v2/models/add_one/config", method="HEAD")
    yield get("post", "/v2/models/add_one/config", method="POST")


def statistics() -> Iterable[Ask]:
    """Statistics: their form and counts; times are measured anew every time."""
    one, two = given(shape=(1, 1), data=[1]), given(shape=(2, 1), data=[1, 2])
    yield get("before", "/v2/models/counted/stats")
    yield infer("one_row", said(one), model="counted")
    yield infer("another_row", said(one), model="counted")
    yield infer("two_rows", said(two), model="counted")
    yield infer("wrong_shape", said(given(shape=(1, 3), data=[1, 2, 3])), model="counted")
    yield infer("no_json", b"{", model="counted")
    yield post("first_version", "/v2/models/counted/versions/1/infer", said(one))
    yield get("after", "/v2/models/counted/stats")
    yield get("version", "/v2/models/counted/versions/1/stats")
    yield get("all", "/v2/models/stats")
    yield get("unknown", "/v2/models/nope/stats")
    yield get("unknown_version", "/v2/models/versions/versions/9/stats")
    yield get("post", "/v2/models/add_one/stats", method="POST")


def shared_memory() -> Iterable[Ask]:
    """Shared memory regions."""
    for kind in ("system", "cuda"):
        path = f"/v2/{kind}sharedmemory"
        yield get(f"{kind}_status", f"{path}/status")
        yield get(f"{kind}_status_unknown", f"{path}/region/nope/status")
        yield post(f"{kind}_status_post", f"{path}/status")
        yield post(f"{kind}_unregister_all", f"{path}/unregister")
        yield post(f"{kind}_unregister_unknown", f"{path}/region/nope/unregister")
        yield post(f"{kind}_register_empty", f"{path}/region/r/register")
        yield post(f"{kind}_register_no_json", f"{path}/region/r/register", b"{")
        yield post(f"{kind}_register_object", f"{path}/region/r/register", b"{}")
    region = "/v2/systemsharedmemory/region/r/register"
    for slug, document in (
        ("no_such", {"key": "/golden-nope", "byte_size": 16}),
        ("no_key", {"byte_size": 16}),
        ("no_size", {"key": "/golden-nope"}),
        ("size_0", {"key": "/golden-nope", "byte_size": 0}),
        ("size_negative", {"key": "/golden-nope", "byte_size": -1}),
        ("size_text", {"key": "/golden-nope", "byte_size": "16"}),
        ("offset_negative", {"key": "/golden-nope", "byte_size": 16, "offset": -1}),
        ("key_number", {"key": 1, "byte_size": 16}),
    ):
        yield post(f"register_{slug}", region, json.dumps(document).encode())
    known = {"shared_memory_region": "nope", "shared_memory_byte_size": 16}
    yield infer("infer_unknown_region", said(given(data=None, **known)))
    output = [{"name": "y", "parameters": known}]
    yield infer("infer_output_unknown_region", said(outputs=output))


def shared_memory_used() -> Iterable[Ask]:
    """A region that is there: see `region`. In this order."""
    status = "/v2/systemsharedmemory/status"
    register = "/v2/systemsharedmemory/region/t/register"
    whole = json.dumps({"key": f"/{REGION}", "offset": 0, "byte_size": 64}).encode()

    def part(offset: int, size: int = 16, name: str = "t") -> dict[str, Any]:
        found = {"shared_memory_region": name, "shared_memory_byte_size": size}
        return found | ({"shared_memory_offset": offset} if offset else {})

    def into(offset: int, size: int = 16, **more: Any) -> list[Any]:
        return [{"name": "y", "parameters": {**part(offset, size), **more}}]

    yield post("register", register, whole)
    yield get("status", status)
    yield get("status_of_region", "/v2/systemsharedmemory/region/t/status")
    yield post("register_again", register, whole)
    yield infer("in", said(given(data=None, **part(0))))
    yield infer("in_at_offset", said(given(data=None, **part(16))))
    yield infer("in_as_binary", said(given(data=None, **part(0)), outputs=into(32, 16)))
    yield infer("back", said(given(data=None, **part(32))))
    yield infer("out", said(outputs=into(48)))
    yield infer("back_again", said(given(data=None, **part(48))))
    yield infer("out_and_binary", said(outputs=into(48, binary_data=True)))
    yield infer("out_larger_than_needed", said(outputs=into(16, 48)))
    yield infer("in_too_small", said(given(data=None, **part(0, 12))))
    yield infer("in_too_large", said(given(data=None, **part(0, 20))))
    yield infer("in_beyond", said(given(data=None, **part(56))))
    yield infer("out_too_small", said(outputs=into(0, 8)))
    yield infer("out_beyond", said(outputs=into(56)))
    yield infer("in_unknown", said(given(data=None, **part(0, name="nope"))))
    yield infer("in_and_data", said(given(**part(0))))
    offset_text = part(0) | {"shared_memory_offset": "0"}
    yield infer("in_offset_text", said(given(data=None, **offset_text)))
    without_size = {"shared_memory_region": "t"}
    yield infer("in_without_size", said(given(data=None, **without_size)))
    beyond = json.dumps({"key": f"/{REGION}", "offset": 0, "byte_size": 1 << 30}).encode()
    yield post("register_beyond", "/v2/systemsharedmemory/region/u/register", beyond)
    yield post("unregister", "/v2/systemsharedmemory/region/t/unregister")
    yield get("status_after", status)
    yield infer("in_after", said(given(data=None, **part(0))))
    yield post("unregister_all", "/v2/systemsharedmemory/unregister")


def settings() -> Iterable[Ask]:
    """Logging and trace settings."""
    for kind, path in (("logging", "/v2/logging"), ("trace", "/v2/trace/setting")):
        yield get(kind, path)
        yield post(f"{kind}_empty", path)
        yield post(f"{kind}_object", path, b"{}")
        yield post(f"{kind}_no_json", path, b"{")
        yield post(f"{kind}_unknown_setting", path, b'{"nope": 1}')
        yield get(f"{kind}_put", path, method="PUT")
    yield get("trace_model", "/v2/models/add_one/trace/setting")
    yield get("trace_unknown_model", "/v2/models/nope/trace/setting")
    yield post("logging_verbose", "/v2/logging", b'{"log_verbose_level": 0}')
    yield post("logging_wrong", "/v2/logging", b'{"log_info": 7}')
    yield post("trace_rate", "/v2/trace/setting", b'{"trace_rate": "100"}')
    yield post("trace_wrong", "/v2/trace/setting", b'{"trace_rate": "a"}')


GROUPS: Final = (
    server,
    metadata,
    infer_json,
    parameters,
    infer_binary,
    infer_raw,
    malformed,
    wrong_values,
    wrong_binary,
    compression,
    generate,
    classification,
    config,
    statistics,
    shared_memory,
    shared_memory_used,
    settings,
    # Last: it changes what the others ask.
    control,
)


@contextmanager
def region() -> Iterator[None]:
    """Have the shared memory that requests name: 16 floats, 0 to 15."""
    memory = SharedMemory(REGION, create=True, size=64)
    try:
        memory.buf[:64] = np.arange(16, dtype=np.float32).tobytes()
        yield
    finally:
        memory.close()
        memory.unlink()


def corpus() -> dict[str, list[Ask]]:
    """Return all requests by group, in the order in which they are to be sent."""
    return {group.__name__: list(group()) for group in GROUPS}
