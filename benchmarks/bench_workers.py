"""Several workers: time until all see a change, exact totals, a worker killed and one reloaded.

    python benchmarks/bench_workers.py [--workers 4] [--connections 16] [--seconds 3]

Clients and server share the machine. Every client keeps its connection, asks without a pause, and
opens another connection when the server closes the one it has. The times of the record of a
request are minima over many short rounds.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import perf_counter, sleep

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from modelserve import workers
from modelserve.messages import BatchRecord, Exchange
from modelserve.observe.metrics import Metrics
from modelserve.observe.pool import Pool
from modelserve.observe.recorder import Recorder

SERVER = """
import sys
from modelserve.workers import serve_workers
serve_workers(sys.argv[1], workers=int(sys.argv[2]), http="127.0.0.1:0", runtime=sys.argv[3],
              on_ready=lambda url: print(url, flush=True))
"""
BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[0,0,0,0]}]}'
REQUEST = (
    b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
)


def adds(number: float) -> bytes:
    """Return a model that computes y = x + number."""
    shape = ["batch", 4]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        "adds",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.array([number], np.float32), "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return bytes(model.SerializeToString())


class Clients:
    """Connections that ask without a pause.

    Attributes:
        answered: Requests answered well.
        lost: Requests that were sent and not answered well.
        seen: For each version, when it answered last.
    """

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self._stop = Event()
        self._threads = [Thread(target=self._run, args=(n,), daemon=True) for n in range(count)]
        self._answered = [0] * count
        self.lost = 0
        self.seen: dict[bytes, float] = {}
        for thread in self._threads:
            thread.start()

    @property
    def answered(self) -> int:
        return sum(self._answered)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, mine: int) -> None:
        while not self._stop.is_set():
            with socket.create_connection(("127.0.0.1", self._port)) as connection:
                try:
                    kept = True
                    while kept and not self._stop.is_set():
                        kept = self._ask(connection)
                        self._answered[mine] += 1
                except OSError:
                    self.lost += 1

    def _ask(self, connection: socket.socket) -> bool:
        """Ask once; whether the connection may be used again."""
        connection.sendall(REQUEST)
        answer = b""
        while b"\r\n\r\n" not in answer or not answer.endswith(b"}"):
            more = connection.recv(65536)
            if not more:
                raise ConnectionResetError
            answer += more
        if not answer.startswith(b"HTTP/1.1 200"):
            raise ConnectionResetError
        self.seen[answer.partition(b'"model_version":"')[2][:1]] = perf_counter()
        return b"connection: close" not in answer.lower()


def until(condition: Callable[[], bool], timeout: float = 60.0) -> float:
    """Return the seconds until the condition holds."""
    start = perf_counter()
    while not condition():
        if perf_counter() - start > timeout:
            raise SystemExit("it did not come true in time")
        sleep(0.002)
    return perf_counter() - start


def counted(port: int) -> int:
    """Return the requests answered well, as the metrics of one worker have it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    wanted = [x for x in lines if x.startswith("modelserve_requests_total{") and 'code="OK"' in x]
    return int(sum(float(line.rpartition(" ")[2]) for line in wanted))


def serving(runtime: str, phase: str = "serving") -> set[int]:
    """Return the processes in a phase."""
    return {w["pid"] for w in workers.status(runtime)["workers"] if w["phase"] == phase}


@contextmanager
def served(count: int) -> Iterator[tuple[int, str, float]]:
    """Run a server; yield its port, its runtime directory, and the seconds until it was ready."""
    root = Path(tempfile.mkdtemp(prefix="ms-"))
    for version in (1, 2):
        directory = root / "models" / "m" / str(version)
        directory.mkdir(parents=True)
        (directory / "model.onnx").write_bytes(adds(float(version)))
    (root / "models" / "m" / "config.pbtxt").write_text("version_policy: { all { } }\n")
    runtime = str(root / "run")
    arguments = [sys.executable, "-c", SERVER, str(root / "models"), str(count), runtime]
    start = perf_counter()
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            yield int(url.rpartition(":")[2]), runtime, perf_counter() - start
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            shutil.rmtree(root, ignore_errors=True)


def row(what: str, value: str) -> None:
    print(f"{what:<62} {value:>14}", flush=True)


def settled(port: int, expected: int) -> str:
    """Return what the metrics say too much or too little, when they have settled."""
    end = perf_counter() + 1.0
    while (found := counted(port)) != expected and perf_counter() < end:
        sleep(0.01)
    return f"{found - expected:+d}" if found != expected else "0"


def measure(port: int, runtime: str, count: int, connections: int, seconds: float) -> None:
    until(lambda: len(serving(runtime)) == count and bool(serving(runtime, "loaded")))
    clients = Clients(port, connections)
    start = perf_counter()
    sleep(seconds)
    row("requests a second", f"{clients.answered / (perf_counter() - start):.0f}")

    workers.route(runtime, "m", "2")
    sleep(0.2)
    changed = perf_counter()
    workers.route(runtime, "m", "1")
    row("route change: answered after", f"{(perf_counter() - changed) * 1e3:.0f} ms")
    sleep(0.5)
    row("route change: last answer of the old version", f"{after(clients, changed):.0f} ms")

    start = perf_counter()
    old = serving(runtime)
    workers.reload(runtime)
    until(lambda: not old & serving(runtime) and len(serving(runtime)) == count)
    row(f"reload of {count} workers under load", f"{perf_counter() - start:.1f} s")
    until(lambda: not serving(runtime, "stopping"))
    row("requests lost by it", str(clients.lost))
    clients.stop()
    row("metrics minus the clients' count", settled(port, clients.answered))

    until(lambda: bool(serving(runtime, "loaded")))
    before, clients = clients.answered, Clients(port, connections)
    sleep(0.5)
    victim = min(serving(runtime))
    os.kill(victim, signal.SIGKILL)
    took = until(lambda: len(serving(runtime) - {victim}) == count)
    row("worker killed: its place is taken after", f"{took * 1e3:.0f} ms")
    sleep(1.0)
    clients.stop()
    row(f"requests lost by it ({connections} connections)", str(clients.lost))
    row("metrics minus the clients' count", settled(port, before + clients.answered))


def after(clients: Clients, changed: float) -> float:
    return max(0.0, (clients.seen.get(b"2", changed) - changed) * 1e3)


def record_cost(batch: int, *, shared: bool) -> float:
    """Return microseconds to record and fold one request."""
    metrics = Metrics()
    if shared:
        metrics.share(Pool(bytearray(Pool.size(1)), 1), 0)
    recorder = Recorder([metrics])
    exchanges: list[Exchange] = []
    while len(exchanges) < 6400:
        record = BatchRecord(batch, batch, "idle", 1.0, 2e-5)
        for _ in range(batch):
            exchange = Exchange("http", "m")
            exchange.version, exchange.rows = "1", 1
            exchange.enqueued, exchange.batch = 0.9999, record
            exchanges.append(exchange)
    best = nothing = 1.0
    for _ in range(50):
        start = perf_counter()
        for exchange in exchanges:
            recorder.record(exchange)
        recorder.flush()
        best = min(best, perf_counter() - start)
        start = perf_counter()
        for _exchange in exchanges:
            pass
        nothing = min(nothing, perf_counter() - start)
    return (best - nothing) / len(exchanges) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}\n")
    for batch in (1, 32):
        for shared in (False, True):
            where = "memory shared by processes" if shared else "one process"
            cost = record_cost(batch, shared=shared)
            row(f"record of a request, batches of {batch}, {where}", f"{cost:.2f} us")
    with served(arguments.workers) as (port, runtime, ready):
        row(f"{arguments.workers} workers ready after", f"{ready:.1f} s")
        measure(port, runtime, arguments.workers, arguments.connections, arguments.seconds)


if __name__ == "__main__":
    main()
