"""How many requests a second can `modelserve bench` send, beside wrk?

    python benchmarks/bench_generator.py

A server on one core answers whatever comes with the same bytes, so that the generator on the other
core is what is measured: by turns `modelserve bench` and, if it is installed, wrk with one thread,
both with 64 connections and the same request. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from modelserve.codecs import oip, oip_catalog
from modelserve.messages import InferRequest, InferResponse
from modelserve.protocols import VersionInfo
from modelserve.tensors import Signature, TensorSpec

CONNECTIONS = 64
ROW = np.random.default_rng(0).standard_normal((1, 64), np.float32)
SIGNATURE = Signature([TensorSpec("x", "FP32", (-1, 64))], [TensorSpec("y", "FP32", (-1, 10))])


def answer(body: bytes) -> bytes:
    """Return a whole HTTP answer."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


METADATA = answer(
    oip_catalog.encode_metadata(
        VersionInfo("m", "1", "READY", signature=SIGNATURE, max_batch_size=64)
    )
)
ANSWER = answer(
    b"".join(oip.encode_response(InferResponse("m", "1", {"y": ROW[:, :10]}, id="bench"))[0])
)


class Blind(asyncio.Protocol):
    """Takes every packet for a request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer with what is always answered."""
        self._transport.write(METADATA if data.startswith(b"GET") else ANSWER)


def serve(core: int, ready: Connection) -> None:
    """Answer until the other end of the pipe is closed."""
    import uvloop

    os.sched_setaffinity(0, {core})

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Blind, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(ready.fileno(), ended.set)
        await ended.wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def by_bench(port: int, core: int, seconds: float) -> float:
    """Return what `modelserve bench` reaches."""
    command = [sys.executable, "-m", "modelserve.cli", "bench", f"http://127.0.0.1:{port}", "m"]
    command += ["--connections", str(CONNECTIONS), "--duration", str(seconds), "--json", "-"]
    return json.loads(pinned(command, core, seconds))["answers_per_second"]


def by_wrk(port: int, core: int, seconds: float, script: Path) -> float:
    """Return what wrk reaches."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}", "-s", str(script)]
    printed = pinned([*command, f"http://127.0.0.1:{port}/v2/models/m/infer"], core, seconds)
    found = re.search(r"Requests/sec: +([\d.]+)", printed)
    assert found is not None, printed
    return float(found[1])


def pinned(command: list[str], core: int, seconds: float) -> str:
    """Run a command on a core; return what it printed."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        os.sched_setaffinity(process.pid, {core})
        printed, _ = process.communicate(timeout=seconds + 60)
        if process.returncode:
            raise RuntimeError(f"{command[0]} ended with {process.returncode}")
        return printed


def main() -> None:
    """Print requests/s of both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--server-core", type=int, default=1)
    parser.add_argument("--generator-core", type=int, default=0)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory, "request.lua")
        parts, _ = oip.encode_request(InferRequest("m", {"x": ROW}, id="bench"), binary=False)
        body = b"".join(parts).decode()
        script.write_text(f'wrk.method = "POST"\nwrk.body = [==[{body}]==]\n')
        context = get_context("spawn")
        here, there = context.Pipe()
        server = context.Process(target=serve, args=(arguments.server_core, there), daemon=True)
        server.start()
        port = here.recv()
        found: dict[str, list[float]] = {"modelserve bench": []}
        if shutil.which("wrk"):
            found["wrk"] = []
        for _ in range(arguments.rounds):
            for name, rates in found.items():
                core, seconds = arguments.generator_core, arguments.seconds
                rates.append(
                    by_wrk(port, core, seconds, script)
                    if name == "wrk"
                    else by_bench(port, core, seconds)
                )
        here.close()
        server.terminate()
        server.join()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}; request of {len(body)} bytes, {CONNECTIONS} "
        f"connections, {arguments.rounds} rounds"
    )
    print("| generator | requests/s: most | median |")
    print("|---|---|---|")
    for name, rates in found.items():
        print(f"| {name} | {max(rates):,.0f} | {statistics.median(rates):,.0f} |")


if __name__ == "__main__":
    main()
