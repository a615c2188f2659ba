"""What does it cost to read a request and to write an answer?

    python benchmarks/bench_codecs.py

The plain way (`cached=False`) against the way that remembers what stands around the data, for 64
float32 and for an image of 3x224x224, in JSON and as binary tensors; and what a bare parse or
write of the same data costs, which neither can go below. "New id" and "new timeout" are bodies of
which no two in a row of 2048 are alike. Calls are timed in many short rounds, interleaved; the
table has the least of each in microseconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import orjson

from modelserve import InferRequest, InferResponse
from modelserve.codecs import oip

Case = tuple[str, list[tuple[str, Callable[[], Any]]]]

SMALL = (1, 64)
IMAGE = (1, 3, 224, 224)
BINARY = InferRequest("m", {}, output_parameters={"": {"binary_data": True}})
TEXT = InferRequest("m", {})


def timed(call: Callable[[], Any], seconds: float) -> float:
    """Return us a call, over as many as take about `seconds`."""
    started = time.perf_counter()
    call()
    calls = max(1, int(seconds / (time.perf_counter() - started)))
    turns = itertools.repeat(None, calls)
    started = time.perf_counter()
    for _ in turns:
        call()
    return (time.perf_counter() - started) / calls * 1e6


def sent(x: np.ndarray, *, binary: bool, nested: bool = False, **around: Any) -> tuple[bytes, Any]:
    """Return the body most clients would send, and the length of its head."""
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": x.shape}
    if binary:
        tensor["parameters"] = {"binary_data_size": x.nbytes}
    else:
        tensor["data"] = x if nested else x.ravel()
    head = orjson.dumps({**around, "inputs": [tensor]}, option=orjson.OPT_SERIALIZE_NUMPY)
    return (head + x.tobytes(), str(len(head))) if binary else (head, None)


def both(name: str, bodies: list[tuple[bytes, Any]]) -> Case:
    """Decode bodies one after the other, both ways."""

    def ways() -> Iterator[tuple[str, Callable[[], Any]]]:
        for way, cached in (("plain", False), ("remembering", True)):
            around = itertools.cycle(bodies)

            def call(around: Any = around, cached: bool = cached) -> None:
                body, head = next(around)
                oip.decode_request(body, model="m", header_length=head, cached=cached)

            yield way, call

    return name, list(ways())


def written(name: str, response: InferResponse, request: InferRequest) -> Case:
    """Encode a response both ways."""
    encode = partial(oip.encode_response, response, request)
    return name, [("plain", partial(encode, cached=False)), ("remembering", encode)]


def bare(case: Case, call: Callable[[], Any]) -> Case:
    """Add what the data alone costs."""
    return case[0], [*case[1], ("bare", call)]


def small_cases() -> Iterator[Case]:
    """64 float32."""
    x = np.random.default_rng(0).standard_normal(SMALL, np.float32)
    body, _ = sent(x, binary=False)

    def parse() -> None:
        np.array(orjson.loads(body)["inputs"][0]["data"], np.float32)

    # More than are remembered as seen once, and few enough to stay in the processor's cache.
    ids = [f"{number:08x}" for number in range(2048)]
    yield bare(both("decode JSON", [(body, None)]), parse)
    yield both("decode JSON in rows", [sent(x, binary=False, nested=True)])
    yield both("decode JSON, new id", [sent(x, binary=False, id=id) for id in ids])
    several = {"outputs": [{"name": "y"}], "parameters": {"a": 1}}
    yield both("decode JSON, outputs and parameters", [sent(x, binary=False, **several)])
    yield both("decode binary", [sent(x, binary=True)])
    yield both("decode binary, new id", [sent(x, binary=True, id=id) for id in ids])
    own = []
    for number in range(2048):
        request = InferRequest("m", {"x": x}, timeout=30 + number / 100)
        parts, head = oip.encode_request(request)
        own.append((b"".join(parts), str(head)))
    yield both("decode binary, new timeout", own)
    flat = x.ravel()
    write = partial(orjson.dumps, flat, None, orjson.OPT_SERIALIZE_NUMPY)
    for title, id in (("", ""), (" with an id", "0123456789abcdef")):
        response = InferResponse("m", "1", {"y": x}, id=id)
        yield bare(written(f"encode JSON{title}", response, TEXT), write)
        yield written(f"encode binary{title}", response, BINARY)
    two = InferResponse("m", "1", {"label": np.array([3]), "scores": x[:, :10]}, id="a")
    yield written("encode JSON, two outputs", two, TEXT)


def image_cases() -> Iterator[Case]:
    """3x224x224 float32."""
    x = np.random.default_rng(0).standard_normal(IMAGE, np.float32)
    body, _ = sent(x, binary=False)
    response = InferResponse("m", "1", {"y": x}, id="a")
    write = partial(orjson.dumps, x.ravel(), None, orjson.OPT_SERIALIZE_NUMPY)
    yield bare(both("decode JSON, image", [(body, None)]), partial(orjson.loads, body))
    yield both("decode JSON in rows, image", [sent(x, binary=False, nested=True)])
    yield both("decode binary, image", [sent(x, binary=True)])
    yield bare(written("encode JSON, image", response, TEXT), write)
    yield written("encode binary, image", response, BINARY)


def processor() -> str:
    """Return the processor's name as far as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Print the least us of every case and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.002, help="of one round of one case")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    cases = [*small_cases(), *image_cases()]
    least: dict[tuple[str, str], float] = {}
    for _ in range(arguments.rounds):
        for name, ways in cases:
            for way, call in ways:
                found = timed(call, arguments.seconds)
                least[name, way] = min(found, least.get((name, way), found))
    machine = (
        f"{processor()}, {platform.system()}, Python {platform.python_version()}, "
        f"numpy {np.__version__}, orjson {orjson.__version__}"
    )
    if arguments.json:
        rows = {name: {way: least[name, way] for way, _ in ways} for name, ways in cases}
        print(json.dumps({"machine": machine, "microseconds": rows}, indent=1))
        return
    print(machine)
    print(f"{'us a call':<37}{'plain':>12}{'remembering':>13}{'bare':>12}")
    for name, ways in cases:
        figures = {way: f"{least[name, way]:.2f}" for way, _ in ways}
        row = [figures.get(way, "") for way in ("plain", "remembering", "bare")]
        print(f"{name:<37}{row[0]:>12}{row[1]:>13}{row[2]:>12}")


if __name__ == "__main__":
    main()
