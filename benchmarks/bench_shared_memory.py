"""When does shared memory pay, beside the same tensor as binary data over HTTP?

    python benchmarks/bench_shared_memory.py
    python benchmarks/bench_shared_memory.py --rounds 9 --seconds 1

A client on one core asks a server of this library on another one, over one connection on the
loopback address, with an array of float32 that it has: one way sends it in the body, the other
copies it into a registered region and sends where it is. "To the model" gets one number back,
"there and back" the whole array, in the body or in the region, from which the client copies it. The
model is a function that returns a view of its input. Every way's answer is compared with what it
should be before it is timed. Rounds visit all ways in turn. Of a round it takes the median time of
a request, and the time that the server's threads were on a core, by request; the table has the
least of the rounds, since other programs can only add to it.

The last lines are the price of not mapping the memory into the server: a read of a region by its
descriptor, which cannot fault, beside a copy out of a mapping, which can. Linux only.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from bench_codecs import processor, timed

SIZES = {"0.6 MB": (1, 3, 224, 224), "10 MB": (1, 10, 512, 512)}
SMALL = {"4 KB": (1, 1024), "64 KB": (1, 16384)}

SERVER = """
import os, sys
from typing import Any
import modelserve as ms

os.sched_setaffinity(0, {int(sys.argv[1])})

def give_first(x: Any) -> Any:
    return {"y": x.reshape(-1)[:1]}

def give_all(x: Any) -> Any:
    return {"y": x}

x = [ms.TensorSpec("x", "FP32", None)]
with ms.ModelRepository() as repository:
    repository.add(ms.model(inputs=x, name="first")(give_first))
    repository.add(ms.model(inputs=x, name="all")(give_all))
    ms.serve(repository, http="127.0.0.1:0", on_ready=lambda url: print(url, flush=True))
"""


class Server:
    """A server in a process of its own, and one connection to it."""

    def __init__(self, core: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(core)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        host, _, port = self._process.stdout.readline().strip().rpartition(":")
        self._socket = socket.create_connection((host.removeprefix("http://"), int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(64 << 10)

    def post(self, path: str, head: bytes, blob: Any = b"", binary: bool = False) -> memoryview:
        """Send a body of one or two parts; returns the answer's."""
        length = b"inference-header-content-length: %d\r\n" % len(head) if binary else b""
        start = b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n%s\r\n" % (
            path.encode(),
            len(head) + len(blob),
            length,
        )
        self._socket.sendall(start + head)
        if len(blob):
            self._socket.sendall(blob)
        return self._answer()

    def _answer(self) -> memoryview:
        got, end = 0, -1
        while end < 0:
            got += self._received(got)
            end = self._buffer.find(b"\r\n\r\n", 0, got)
        headers = bytes(self._buffer[:end]).lower()
        if b" 200 " not in headers.partition(b"\r\n")[0]:
            raise RuntimeError(bytes(self._buffer[:got]).decode(errors="replace"))
        size = int(headers.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if b"inference-header-content-length: " in headers:
            # Both headers end alike; the one of the body stands for itself.
            lines = dict(line.split(b": ", 1) for line in headers.split(b"\r\n")[1:])
            size = int(lines[b"content-length"])
        whole = end + 4 + size
        if whole > len(self._buffer):
            self._buffer += bytes(whole - len(self._buffer))
        while got < whole:
            got += self._received(got)
        return memoryview(self._buffer)[end + 4 : whole].toreadonly()

    def _received(self, at: int) -> int:
        with memoryview(self._buffer) as view, view[at:] as room:
            count = self._socket.recv_into(room)
        if not count:
            raise ConnectionError("the server closed the connection")
        return count

    def cpu(self) -> float:
        """Return the seconds its threads were on a core."""
        with open(f"/proc/{self._process.pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """Stop it."""
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Region:
    """A registered region with room for an array there, and one back."""

    def __init__(self, server: Server, name: str, size: int) -> None:
        self.path = f"/dev/shm/modelserve-benchmark-{os.getpid()}-{name}"
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, 2 * size)
            self.view = memoryview(mmap.mmap(descriptor, 2 * size))
        finally:
            os.close(descriptor)
        body = {"key": os.path.basename(self.path), "byte_size": 2 * size}
        path = f"/v2/systemsharedmemory/region/{name}/register"
        server.post(path, json.dumps(body).encode())

    def remove(self) -> None:
        """Take its name away."""
        os.unlink(self.path)


def over_http(server: Server, x: np.ndarray, model: str) -> Callable[[], np.ndarray]:
    """Return a call that sends an array in the body and returns the answer's."""
    tensor = {"name": "x", "datatype": "FP32", "shape": x.shape}
    tensor["parameters"] = {"binary_data_size": x.nbytes}
    document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    head = json.dumps(document).encode()
    blob = memoryview(x).cast("B")
    path = f"/v2/models/{model}/infer"
    back = x.nbytes if model == "all" else 4

    def call() -> np.ndarray:
        return np.frombuffer(server.post(path, head, blob, binary=True)[-back:], np.float32)

    return call


def over_memory(
    server: Server, x: np.ndarray, model: str, name: str, region: Region
) -> Callable[[], np.ndarray]:
    """Return a call that copies an array into a region and returns the answer's."""
    size = x.nbytes
    parameters = {"shared_memory_region": name, "shared_memory_byte_size": size}
    tensor = {"name": "x", "datatype": "FP32", "shape": x.shape, "parameters": parameters}
    wanted: dict[str, Any] = {"name": "y"}
    if model == "all":
        wanted["parameters"] = {**parameters, "shared_memory_offset": size}
    head = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
    path = f"/v2/models/{model}/infer"
    there = np.frombuffer(region.view, np.float32, x.size).reshape(x.shape)
    back = np.frombuffer(region.view, np.float32, x.size, size)

    def call() -> np.ndarray:
        there[:] = x
        answer = server.post(path, head)
        if model == "all":
            return back.copy()
        return np.array(json.loads(bytes(answer))["outputs"][0]["data"], np.float32)

    return call


def round_of(server: Server, call: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Return the median us of a request, and the server's us on a core by request."""
    times: list[float] = []
    cpu, end = server.cpu(), time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6, (server.cpu() - cpu) / len(times) * 1e6


def requests(server: Server, arguments: argparse.Namespace) -> None:
    """Print the table of requests."""
    cases: dict[tuple[str, str], dict[str, Callable[[], np.ndarray]]] = {}
    regions = []
    try:
        for title, shape in (SMALL | SIZES).items():
            x = np.random.default_rng(0).standard_normal(shape, np.float32)
            name = title.replace(" ", "")
            regions.append(Region(server, name, x.nbytes))
            for model, what in (("first", "to the model"), ("all", "there and back")):
                ways = cases[title, what] = {
                    "HTTP": over_http(server, x, model),
                    "memory": over_memory(server, x, model, name, regions[-1]),
                }
                wanted = x.ravel() if model == "all" else x.ravel()[:1]
                for way, call in ways.items():
                    if not np.array_equal(call(), wanted):
                        raise RuntimeError(f"{way} answers wrongly: {title}, {what}")
        found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
        for number in range(arguments.rounds + 1):
            for (title, what), ways in cases.items():
                for way, call in ways.items():
                    cell = round_of(server, call, arguments.seconds)
                    if number:  # the first round does not count
                        found.setdefault((title, what, way), []).append(cell)
    finally:
        for region in regions:
            region.remove()
    print("| array | way of it | us, HTTP | us, memory | | server us, HTTP | memory | |")
    print("|---|---|---|---|---|---|---|---|")
    for title, what in cases:
        columns = []
        for index in (0, 1):
            http, memory = (
                min(cell[index] for cell in found[title, what, way]) for way in ("HTTP", "memory")
            )
            columns.append(f"{http:.0f} | {memory:.0f} | {http / max(memory, 1e-9):.1f} x")
        print(f"| {title} | {what} | {' | '.join(columns)} |")


def reads() -> None:
    """Print what a read of a region costs in the server, and what a mapping would save."""
    print("| bytes read | by descriptor, us | out of a mapping, us |")
    print("|---|---|---|")
    path = f"/dev/shm/modelserve-benchmark-{os.getpid()}"
    for title, shape in (SMALL | SIZES).items():
        size = int(np.prod(shape)) * 4
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, size)
            mapped = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
            mapped[:] = 1  # type: ignore[index]  # the mapping can be written

            def read(descriptor: int = descriptor, size: int = size) -> None:
                os.preadv(descriptor, [np.empty(size, np.uint8)], 0)

            figures = [min(timed(call, 0.02) for _ in range(15)) for call in (read, mapped.copy)]
        finally:
            os.close(descriptor)
            os.unlink(path)
        print(f"| {title} | {figures[0]:.1f} | {figures[1]:.1f} |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one round of one way")
    arguments = parser.parse_args()
    ours, core = sorted(os.sched_getaffinity(0))[-2:]
    os.sched_setaffinity(0, {ours})
    print(
        f"{processor()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, numpy {np.__version__}"
    )
    server = Server(core)
    try:
        requests(server, arguments)
    finally:
        server.end()
    reads()


if __name__ == "__main__":
    main()
