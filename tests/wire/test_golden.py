"""What we answer, beside what Triton answered to the same requests; see `record_golden.py`.

Answers must be equal: in status, in the headers that say how to read them, in binary data byte by
byte, and in JSON up to the order of members and to members that only we have. Error texts are our
own. Every other difference is meant, and stands in `DIFFERENCES` with its reason.
"""

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pytest

import serving
from modelserve.tensors import numpy_dtype
from modelserve.transports.asgi import ASGIApp
from modelserve.transports.serving import HTTPServer
from wire import golden_calls, golden_repository
from wire.golden_client import Answer, send
from wire.golden_requests import corpus, region

GOLDEN: Final = Path(__file__).parent / "golden"
CORPUS: Final = corpus()
ROWS: Final = [(group, ask.name) for group, asks in CORPUS.items() for ask in asks]


class Difference(NamedTuple):
    """Answers that differ, and why they are meant to.

    Args:
        rows: Pattern of the rows' names.
        theirs: Triton's status.
        ours: Our status.
        why: The reason.
        told: What our JSON holds, or a part of our error's text.
    """

    rows: str
    theirs: int
    ours: int
    why: str
    told: Any = None


CLIENTS_FAULT = "what a client sent wrong is its fault, and no failure of the server"
PROBES = "KServe's client reads health as JSON; the protocol says so, too"
HEAD = "HEAD is answered wherever GET is, as HTTP wants it"
SLASH = "a slash too many at the end is let be"
NOT_READY = "an unknown model is 404 wherever it is asked for, one that is not loaded 503"
ESCAPED = "escapes in a path are read"
LENIENT = "null for an optional member counts as absent"
STRICT = "a value that does not fit is refused, and not changed without a word"
ONE_STREAM = "a compressed body is one whole stream, so that a cut one cannot pass for whole"
ORDER = "outputs come in the order in which they were asked for"
JSON_NUMBERS = "JSON has no NaN and no infinity: refused in requests, null in answers"
UNASKED = "an answer is compressed unasked only where it pays; one coding alone asks for it"
ROWS_APART = "rows of a model that does not batch, and says it takes any number, stay apart"
IN_BODY = "404 is for what a path names, and this is in the body"
NO_GPU = "handles of GPU memory are not taken"
SEVERAL = "an error has the status of an error"
SECRETS = "what a model's exception says stays on the server"

DIFFERENCES: Final = (
    # What is wrong with a request. Texts are checked row by row in test_conformance.
    Difference("malformed/*", 500, 400, CLIENTS_FAULT),
    Difference("parameters/*", 500, 400, CLIENTS_FAULT),
    Difference("wrong_values/*", 500, 400, CLIENTS_FAULT),
    Difference("wrong_binary/*", 500, 400, CLIENTS_FAULT),
    Difference("compression/*_error", 500, 400, CLIENTS_FAULT),
    Difference("compression/deflate_cut", 500, 400, CLIENTS_FAULT),
    Difference("generate/*", 500, 400, CLIENTS_FAULT),
    Difference("control/*", 500, 400, CLIENTS_FAULT),
    Difference("malformed/shape_20", 0, 400, "Triton ended: it took the memory for the shape"),
    # Health and paths.
    Difference("server/live*", 200, 200, PROBES, {"live": True}),
    Difference("server/ready*", 200, 200, PROBES, {"ready": True}),
    Difference("metadata/ready_*", 200, 200, PROBES, {"ready": True}),
    Difference("control/*_ready", 200, 200, PROBES, {"ready": True}),
    Difference("*_head", 405, 200, HEAD),
    Difference("metadata/*_head_unknown", 405, 404, HEAD),
    Difference("*_slash", 404, 200, SLASH),
    Difference("server/server*", 200, 200, "another server", {"name": "modelserve"}),
    Difference("server/root", 404, 200, "where KServe's clients of version 1 look for liveness"),
    Difference("server/models", 404, 200, "the list of models, as KServe's servers have it"),
    Difference("metadata/no_model", 404, 200, "the list of models, as KServe's servers have it"),
    Difference("server/unknown_method", 405, 400, "no method that HTTP knows", "method"),
    # Models and versions.
    Difference("metadata/ready_*", 400, 404, NOT_READY),
    Difference("metadata/*_escaped", 404, 200, ESCAPED),
    Difference("metadata/ready_escaped", 400, 200, ESCAPED),
    Difference("metadata/*_version_01", 200, 404, "a version is the number that it is shown as"),
    Difference("metadata/*_99999999999999999999", 400, 404, "there is no such version"),
    Difference(
        "metadata/described_version_?", 200, 200,
        "the versions that may be asked for, whichever is described", {"versions": ["1", "3"]},
    ),
    Difference("generate/rows", 400, 200, "nested lists have axes of their own"),
    # JSON.
    Difference("infer_json/echo_fp16", 400, 200, "FP16 is taken and given in JSON"),
    Difference("infer_binary/echo_fp16_in", 400, 200, "FP16 is taken and given in JSON"),
    Difference("infer_json/outputs_turned", 200, 200, ORDER),
    Difference("infer_binary/outputs_of_both_turned", 200, 200, ORDER),
    Difference("malformed/outputs_0", 500, 200, LENIENT),
    Difference("malformed/id_0", 500, 200, LENIENT),
    Difference("parameters/parameters_null", 500, 200, LENIENT),
    Difference("malformed/bare_*", 200, 400, JSON_NUMBERS, "not valid JSON"),
    Difference("infer_binary/specials*_as_json", 200, 200, JSON_NUMBERS),
    Difference("malformed/byte_order_mark", 200, 400, "JSON begins with no mark", "BOM"),
    Difference("malformed/invalid_utf8", 200, 400, "JSON is UTF-8", "UTF-8"),
    Difference("malformed/duplicate_inputs", 400, 200, "the last of two members counts"),
    Difference(
        "malformed/duplicate_data", 200, 200, "the last of two members counts",
        {"outputs": [{"data": [2, 3, 4, 5]}]},
    ),
    Difference("malformed/outputs_11", 200, 400, "an output is asked for once", "twice"),
    Difference("malformed/outputs_12", 200, 400, STRICT, "outputs[0].parameters"),
    Difference("malformed/parameters_[1-6]", 200, 400, STRICT, "inputs[0].parameters"),
    Difference("malformed/data_[789]", 200, 400, "nested data is nested as the shape is", "shape"),
    Difference("malformed/data_10", 200, 400, "nested data is nested as the shape is", "shape"),
    Difference("malformed/data_17", 200, 400, STRICT, "in the range of FP32"),
    Difference("wrong_values/*int*", 200, 400, STRICT, "in the range of"),
    Difference("infer_binary/bool_of_2", 200, 400, STRICT, "a byte of 0 or 1"),
    Difference(
        "infer_binary/bytes_that_are_not_text*", 200, 400,
        "the model is an ONNX file here, whose strings are text", "UTF-8",
    ),
    # Parameters.
    Difference(
        "parameters/unsigned", 200, 200, "integers stay exact",
        {"outputs": [{"data": ['{"number": 18446744073709551615}']}]},
    ),
    Difference("parameters/sequence*", 200, 200, "a model may know its sequence"),
    Difference("parameters/reserved_*", 400, 200, "no name of a parameter is reserved here"),
    # Binary data.
    Difference(
        "infer_binary/*_empty", 200, 200,
        "an answer with binary tensors has the header, empty or not", {},
    ),
    Difference(
        "infer_binary/output_default", 200, 200,
        "binary_data_output counts for outputs that do not say otherwise, as Triton's "
        "documentation has it", {"outputs": [{"parameters": {"binary_data_size": 16}}]},
    ),
    Difference("infer_raw/rows", 400, 200, "a body without JSON may hold several rows"),
    Difference("wrong_binary/length_plus", 200, 400, "a length is digits", "expected a number"),
    Difference("wrong_binary/length_list", 200, 400, "a length is digits", "expected a number"),
    # Compression.
    Difference("compression/*_cut", 200, 400, ONE_STREAM, "not one whole gzip"),
    Difference("compression/*_trailing", 200, 400, ONE_STREAM, "not one whole"),
    Difference("compression/*_twice", 200, 400, ONE_STREAM, "not one whole"),
    Difference("compression/encoding_GZIP", 501, 200, "names of codings have no case"),
    Difference("compression/encoding_nothing", 501, 200, "an empty header says nothing"),
    Difference("compression/accept_gzip_deflate*", 200, 200, UNASKED),
    Difference("compression/accept_deflate_gzip_0.5*", 200, 200, UNASKED),
    Difference("compression/accept_[*]_large", 200, 200, UNASKED),
    # Generate.
    Difference("generate/generate_*", 200, 400, SEVERAL, "generate_stream"),
    Difference("generate/generate_fails_later", 200, 500, SEVERAL, "the model failed"),
    Difference("generate/generate_*fails", 400, 500, SECRETS, "the model failed"),
    Difference("generate/generate_stream_fails_later", 200, 200, SECRETS),
    # The repository.
    Difference("control/index_unknown_repository", 200, 404, "there is one repository"),
    Difference("control/unloaded_*", 404, 503, NOT_READY),
    Difference("control/unloaded_ready", 400, 503, NOT_READY, {"ready": False}),
    Difference("control/*_unknown", 500, 404, NOT_READY),
    Difference("control/unload_unknown", 200, 404, NOT_READY),
    Difference("control/load_list", 200, 400, STRICT, "expected a JSON object"),
    # Shared memory.
    Difference("shared_memory*/*", 500, 400, CLIENTS_FAULT),
    Difference("shared_memory/cuda_register_*", 500, 501, NO_GPU, "GPU memory"),
    Difference("shared_memory/cuda_register_object", 400, 501, NO_GPU, "GPU memory"),
    Difference("shared_memory/infer_*unknown_region", 404, 400, IN_BODY, "there is no region"),
    Difference("shared_memory_used/in_*", 404, 400, IN_BODY, "there is no region"),
    Difference("shared_memory_used/out_and_binary", 400, 200, "shared memory comes first"),
    # Settings.
    Difference("settings/*", 500, 400, CLIENTS_FAULT),
    Difference("settings/*_empty", 500, 200, "an empty body changes nothing"),
    Difference("settings/*_unknown_setting", 200, 400, STRICT, "unknown setting 'nope'"),
    Difference(
        "settings/logging*", 200, 200, "the levels are those of the process's own loggers",
        {"log_file": "", "log_verbose_level": 0, "log_format": "default"},
    ),
    Difference("settings/trace_unknown_model", 400, 404, NOT_READY),
    # Classes, configurations and statistics.
    Difference("classification/*", 500, 400, CLIENTS_FAULT, "expected a number of classes"),
    Difference("classification/null", 500, 400, CLIENTS_FAULT, "expected a boolean, number or"),
    Difference("classification/zero", 200, 400, STRICT, "expected a number of classes from 1 on"),
    Difference("classification/of_text", 0, 400, "Triton ended", "has no classes"),
    Difference(
        "classification/of_integers", 200, 200, ROWS_APART,
        {"outputs": [{"name": "y", "datatype": "BYTES", "shape": [1, 2], "data": ["9:2", "5:0"]}]},
    ),
    Difference("config/head", 405, 200, HEAD),
    Difference("statistics/no_json", 500, 400, CLIENTS_FAULT),
    Difference("statistics/unknown*", 400, 404, NOT_READY),
    Difference(
        "statistics/after", 200, 200, "a request that is refused is one that failed",
        {
            "model_stats": [
                {"version": "1", "inference_count": 1, "execution_count": 1},
                {
                    "version": "2", "inference_count": 4, "execution_count": 3,
                    "inference_stats": {"success": {"count": 3}, "fail": {"count": 1}},
                },
            ]
        },
    ),
    Difference("statistics/all", 200, 200, "Triton had ended, and counted anew"),
)  # fmt: skip

# Of the same model in another runtime.
RUNTIME: Final = ("platform", "backend", "default_model_filename")
MISSING: Final = object()

# Calls of Triton's client whose outcome is another one here: status, value, reason.
CALLS_THAT_DIFFER: Final = {
    "load_unknown": ("404", None, NOT_READY),
    "statistics_of_unknown": ("404", None, NOT_READY),
}


# ------------------------------------------------------------------ answers


@pytest.fixture(scope="module", params=["http1", "asgi"])
def server(request: pytest.FixtureRequest) -> str:
    """Tell which server it is: our own, or the application under uvicorn."""
    return str(request.param)


@pytest.fixture(scope="module")
def url(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the models that Triton served."""
    directory = tmp_path_factory.mktemp("models")
    golden_repository.write(directory)
    # Models fail here, and say so.
    logging.getLogger("modelserve").setLevel(logging.CRITICAL)
    with golden_repository.repository(directory) as repo:
        if server == "asgi":
            running = serving.on_uvicorn(ASGIApp(repo, admin=True))
        else:
            running = serving.on_http1(HTTPServer(repo, http="127.0.0.1:0", admin=True))
        with running as url:
            yield url
    logging.getLogger("modelserve").setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def answers(url: str) -> Mapping[tuple[str, str], Answer]:
    """Ask everything once, in the order in which Triton was asked."""
    found = {}
    for group, asks in CORPUS.items():
        with region():
            found.update({(group, ask.name): send(url, ask) for ask in asks})
    return found


@pytest.fixture(scope="module")
def outcomes(url: str) -> Mapping[str, Mapping[str, Any]]:
    """Make all calls of Triton's clients once."""
    return golden_calls.outcomes(url)


@cache
def golden(group: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{group}.json").read_text())


def differences_of(row: str, theirs: int, ours: int) -> list[Difference]:
    return [
        difference
        for difference in DIFFERENCES
        if fnmatchcase(row, difference.rows)
        and (difference.theirs, difference.ours) == (theirs, ours)
    ]


# ------------------------------------------------------------------ comparing


def same_numbers(theirs: list[Any], ours: Any, datatype: str) -> bool:
    """Compare elements as what they are in the tensor: digits may be fewer."""
    if not isinstance(ours, list) or len(theirs) != len(ours):
        return False
    if not datatype.startswith("FP") or any(isinstance(item, str) for item in theirs):
        return theirs == ours
    dtype = numpy_dtype(datatype)
    return np.array_equal(np.array(theirs, dtype), np.array(ours, dtype), equal_nan=True)


def lacks(theirs: Any, ours: Any, at: str = "") -> str:
    """Return where our JSON lacks or changes what is in theirs; empty where nowhere."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        kept = [name for name in theirs if name not in RUNTIME]
        pairs = [(f"{at}.{name}", theirs[name], ours.get(name, MISSING)) for name in kept]
        if isinstance(theirs.get("data"), list):
            same = same_numbers(theirs["data"], ours.get("data"), theirs.get("datatype", ""))
            pairs = [pair for pair in pairs if pair[0] != f"{at}.data" or not same]
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        both = zip(theirs, ours, strict=True)
        pairs = [(f"{at}[{number}]", *pair) for number, pair in enumerate(both)]
    else:
        same = theirs == ours or (is_nan(theirs) and is_nan(ours))
        return "" if same else at or "all"
    return next((found for at, one, other in pairs if (found := lacks(one, other, at))), "")


def is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def events(text: str) -> list[Any]:
    """Return the data of Server-Sent Events."""
    return [json.loads(data) for data in re.findall(r"^data: (.*)$", text, re.MULTILINE)]


def unlike(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Return what differs in two answers, or nothing."""
    if theirs["status"] != ours["status"]:
        return f"status: {theirs['status']} there, {ours['status']} here"
    if theirs["status"] >= 400:
        return ""  # the texts are each one's own
    for member in ("content_type", "content_encoding", "binary"):
        if theirs.get(member) != ours.get(member) and (member != "content_type" or "json" in ours):
            return f"{member}: {theirs.get(member)} there, {ours.get(member)} here"
    if "text" in theirs:
        return lacks(events(theirs["text"]), events(ours.get("text", "")))
    if "json" not in theirs and "json" in ours:
        return "there is nothing in their body"
    return lacks(theirs.get("json"), ours.get("json"))


def check_error(answer: Answer) -> str:
    """Return an error's text, which tells nothing of the machine."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers.get("x-request-id")
    assert "content-encoding" not in answer.headers
    document = json.loads(answer.body)
    if document.keys() == {"name", "ready"}:
        return ""
    assert document.keys() == {"error"}
    text = document["error"]
    assert text
    assert "Traceback" not in text
    assert "/src/" not in text
    assert "/tmp" not in text
    return str(text)


# ------------------------------------------------------------------ tests


@pytest.mark.parametrize("group", CORPUS)
def test_what_was_recorded_is_what_is_asked(group: str) -> None:
    recorded = {name: found["request"] for name, found in golden(group).items() if name != "triton"}
    assert recorded == {ask.name: ask.shown() for ask in CORPUS[group]}, "record it again"


def test_all_was_recorded_of_one_triton() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == {*CORPUS, "tritonclient"}
    assert {golden(path.stem)["triton"] for path in GOLDEN.glob("*.json")} == {"2.51.0"}


@pytest.mark.parametrize(("group", "name"), ROWS, ids=lambda part: part)
def test_answer_is_triton_s(
    group: str, name: str, server: str, answers: Mapping[tuple[str, str], Answer]
) -> None:
    row = f"{group}/{name}"
    if server == "asgi" and row == "server/unknown_method":
        pytest.skip("uvicorn refuses that itself")
    answer, theirs = answers[group, name], golden(group)[name]
    ours = answer.shown()
    text = ""
    head = theirs["request"]["line"].startswith("HEAD")
    if answer.status >= 400 and not head:
        text = check_error(answer)
    found = unlike(theirs, ours)
    if not found:
        return
    differences = differences_of(row, theirs["status"], ours["status"])
    assert differences, f"{found}\ntheirs {theirs}\nours {ours}"
    (*_, difference) = differences
    if isinstance(difference.told, str):
        assert difference.told in text
    elif difference.told is not None and not head:
        assert not lacks(difference.told, ours["json"]), ours


def test_every_difference_is_there(answers: Mapping[tuple[str, str], Answer]) -> None:
    used = set()
    for (group, name), answer in answers.items():
        theirs = golden(group)[name]
        if unlike(theirs, answer.shown()):
            found = differences_of(f"{group}/{name}", theirs["status"], answer.status)
            used.update(map(DIFFERENCES.index, found[-1:]))
    assert [found for at, found in enumerate(DIFFERENCES) if at not in used] == []


@pytest.mark.parametrize("name", golden_calls.CALLS)
def test_client_s_call_gives_what_it_gives_at_triton(
    name: str, outcomes: Mapping[str, Mapping[str, Any]]
) -> None:
    ours, theirs = outcomes[name], golden("tritonclient")[name]
    assert "aio" not in ours, "the two clients do not agree"
    if name in CALLS_THAT_DIFFER:
        assert (ours.get("status"), ours.get("value")) == CALLS_THAT_DIFFER[name][:2]
    elif "value" in theirs:
        assert "value" in ours, ours
        assert not lacks(theirs["value"], ours["value"]), ours
    else:
        assert ours["status"] == theirs["status"]
        assert ours["error"]
