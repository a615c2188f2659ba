"""Calls of Triton's own client, made of Triton and of us alike, and what comes out of them."""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import numpy as np

from wire.golden_asks import values
from wire.golden_models import DATATYPES

with warnings.catch_warnings():
    # gevent, which the client brings, warns of its own imports.
    warnings.simplefilter("ignore")
    import tritonclient.http as triton
    import tritonclient.http.aio as triton_aio
    from tritonclient.utils import InferenceServerException

Call = Callable[[Any], Any]


def given(
    array: np.ndarray[Any, Any], datatype: str = "FP32", name: str = "x", binary: bool = True
) -> Any:
    """Return an input of the client."""
    found = triton.InferInput(name, array.shape, datatype)
    return found.set_data_from_numpy(array, binary_data=binary)


def wanted(name: str = "y", **options: Any) -> Any:
    """Return an output that is asked for."""
    return triton.InferRequestedOutput(name, **options)


def told(result: Any, *names: str) -> Any:
    """Return what an answer holds: its outputs as arrays, and the rest of its JSON."""
    response = result.get_response()
    found: dict[str, Any] = {
        k: v for k, v in response.items() if k not in ("outputs", "parameters")
    }
    for name in names:
        array = result.as_numpy(name)
        flat = [
            item.decode() if isinstance(item, bytes) else item for item in array.ravel().tolist()
        ]
        found[name] = {"shape": list(array.shape), "datatype": result.get_output(name)["datatype"]}
        found[name]["data"] = [repr(item) if item != item else item for item in flat]
    return found


ONE = np.array([[1, 2, 3, 4]], np.float32)


def _echo(client: Any, *, datatype: str, binary_in: bool, binary_out: bool) -> Any:
    inputs = [given(values(datatype), datatype, binary=binary_in)]
    outputs = [wanted(binary_data=binary_out)]
    return told(client.infer(f"echo_{datatype.lower()}", inputs, outputs=outputs), "y")


def _plain(client: Any, **options: Any) -> Any:
    return told(client.infer("add_one", [given(ONE)], **options), "y")


def _two(client: Any, **options: Any) -> Any:
    a = given(np.array([[1, 2]], np.float32), name="a")
    b = given(np.array([[3, 2**40]], np.int64), "INT64", "b", binary=False)
    return told(client.infer("arithmetic", [a, b], **options), "total", "doubled")


def _tells(client: Any, **options: Any) -> Any:
    result = client.infer("tells", [given(np.ones(1, np.float32))], **options)
    return told(result, "parameters")


def _empty(client: Any) -> Any:
    return told(client.infer("echo_fp32", [given(np.empty((0, 2), np.float32))]), "y")


def _special(client: Any) -> Any:
    special = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
    return told(client.infer("add_one", [given(special)]), "y")


def _wrong_shape(client: Any) -> Any:
    return client.infer("add_one", [given(np.ones((1, 5), np.float32))])


def _wrong_datatype(client: Any) -> Any:
    return client.infer("add_one", [given(np.ones((1, 4), np.int32), "INT32")])


def _lying_shape(client: Any) -> Any:
    return client.infer("add_one", [given(ONE).set_shape([2, 4])])


def _classes(client: Any, count: int, binary: bool) -> Any:
    x = np.array([[1, 2, 3], [9, 1, 1]], np.float32)
    outputs = [wanted("scores", class_count=count, binary_data=binary)]
    return told(client.infer("classifier", [given(x)], outputs=outputs), "scores")


def _statistics(client: Any) -> Any:
    text = np.array([b"a"], np.object_)
    client.infer("exclaims", [given(text, "BYTES", "text_input")])
    (found,) = client.get_inference_statistics("exclaims")["model_stats"]
    return {
        "name": found["name"],
        "version": found["version"],
        "inference_stats": sorted(found["inference_stats"]),
        "batch_stats": sorted(found["batch_stats"][0]),
    }


CALLS: Final[dict[str, Call]] = {
    "live": lambda c: c.is_server_live(),
    "ready": lambda c: c.is_server_ready(),
    "model_ready": lambda c: c.is_model_ready("add_one"),
    "version_ready": lambda c: c.is_model_ready("versions", "3"),
    "unknown_model_ready": lambda c: c.is_model_ready("nope"),
    "unknown_version_ready": lambda c: c.is_model_ready("versions", "2"),
    "metadata": lambda c: c.get_model_metadata("arithmetic"),
    "metadata_of_version": lambda c: c.get_model_metadata("add_one", "1"),
    "metadata_of_unknown": lambda c: c.get_model_metadata("nope"),
    "index": lambda c: sorted(m["name"] for m in c.get_model_repository_index()),
    **{
        f"{datatype.lower()}_{'binary' if i else 'json'}_{'binary' if o else 'json'}": partial(
            _echo, datatype=datatype, binary_in=i, binary_out=o
        )
        for datatype in DATATYPES
        for i in (False, True)
        for o in (False, True)
        if datatype != "FP16" or (i and o)
    },
    "plain": _plain,
    "id": partial(_plain, request_id="a b"),
    "version": partial(_plain, model_version="1"),
    "unknown_version": partial(_plain, model_version="9"),
    "headers": partial(_plain, headers={"X-Mine": "1"}),
    "query": partial(_plain, query_params={"a": 1, "b": ["c", "d"]}),
    "named_output": partial(_plain, outputs=[wanted()]),
    "unknown_output": partial(_plain, outputs=[wanted("nope")]),
    "gzip": partial(_plain, request_compression_algorithm="gzip"),
    "deflate": partial(_plain, request_compression_algorithm="deflate"),
    "gzip_both": partial(
        _plain, request_compression_algorithm="gzip", response_compression_algorithm="gzip"
    ),
    "deflate_answer": partial(_plain, response_compression_algorithm="deflate"),
    "two": _two,
    "two_of_both_forms": partial(
        _two, outputs=[wanted("total", binary_data=False), wanted("doubled", binary_data=True)]
    ),
    "parameters": partial(_tells, parameters={"a": "b", "c": 7, "d": True}),
    "priority_and_timeout": partial(_tells, priority=1, timeout=10_000_000),
    "empty": _empty,
    "special": _special,
    "unknown_model": lambda c: c.infer("nope", [given(ONE)]),
    "no_inputs": lambda c: c.infer("add_one", []),
    "wrong_name": lambda c: c.infer("add_one", [given(ONE, name="z")]),
    "wrong_shape": _wrong_shape,
    "wrong_datatype": _wrong_datatype,
    "lying_shape": _lying_shape,
    "model_fails": lambda c: c.infer("raises", [given(np.ones(1, np.float32))]),
    "classes": partial(_classes, count=2, binary=False),
    "classes_binary": partial(_classes, count=2, binary=True),
    "config": lambda c: c.get_model_config("add_one"),
    "statistics": _statistics,
    "statistics_of_unknown": lambda c: c.get_inference_statistics("nope"),
    "shared_memory": lambda c: c.get_system_shared_memory_status(),
    "shared_memory_unregister": lambda c: c.unregister_system_shared_memory("nope"),
    "log_settings": lambda c: sorted(c.get_log_settings()),
    "trace_settings": lambda c: sorted(c.get_trace_settings()),
    "load_unknown": lambda c: c.load_model("nope"),
    "unload": lambda c: c.unload_model("line"),
    "unloaded": lambda c: c.is_model_ready("line"),
    "load": lambda c: c.load_model("line"),
    "loaded": lambda c: c.is_model_ready("line"),
}


class _Awaiting:
    """The client for asyncio, each call of it awaited at once."""

    def __init__(self, client: Any, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *args, **options: self._runner.run(method(*args, **options))


@contextmanager
def clients(url: str) -> Iterator[dict[str, Any]]:
    """Give both clients of a server, as objects whose methods return."""
    address = url.removeprefix("http://")
    with asyncio.Runner() as runner:

        async def make() -> Any:
            return triton_aio.InferenceServerClient(address)

        plain, aio = triton.InferenceServerClient(address), runner.run(make())
        try:
            yield {"http": plain, "http.aio": _Awaiting(aio, runner)}
        finally:
            plain.close()
            runner.run(aio.close())


def outcome(call: Call, client: Any) -> dict[str, Any]:
    """Return what a call returned, or the status and text of the error it raised."""
    try:
        return {"value": call(client)}
    except InferenceServerException as error:
        # The id in an answer is another one every time.
        text = re.sub(r"request id \S+", "request id ...", error.message())
        return {"error": text, "status": error.status()}


def outcomes(url: str) -> dict[str, dict[str, Any]]:
    """Return the outcomes of all calls by name; both clients must agree."""
    found = {}
    with clients(url) as both:
        for name, call in CALLS.items():
            plain, aio = (outcome(call, client) for client in both.values())
            found[name] = plain if plain == aio else {**plain, "aio": aio}
    return found
