"""What does a server do with five times the requests it can answer?

    python benchmarks/bench_overload.py

`modelserve serve` runs pinned to one core, `modelserve bench` on another. First M2 (a sentence
encoder, some 5 ms a row) is asked in a closed loop: that is its capacity. Then requests with a
deadline of 100 ms arrive at five times that rate, at random moments, whatever becomes of those
before. Goodput counts right answers within 100 ms of the moment a request was due, so the
generator's lateness counts against the server; it is printed beside. The server's memory is read
meanwhile. Last, M1 (64-128-64-10) is asked in a closed loop with and without a deadline that
cannot be kept: CPU time of the server for a refusal and for an answer, in rounds by turns.

Exit status 1 if a bar is missed. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parent))

import models

GOODPUT = 0.9
GROWTH = 0.02
REFUSAL = 0.6
IMPOSSIBLE = "0.000001"
START = 60.0


class Server:
    """`modelserve serve` with one model, on one core."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def cpu(self) -> float:
        """Return the seconds of CPU time it has used, kernel included."""
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def resident(self) -> float:
        """Return its resident memory in MB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1e3
        raise RuntimeError("no VmRSS line")


@contextmanager
def serving(model: models.Model, core: int) -> Iterator[Server]:
    """Serve a model on a free port; the process does not outlive the block."""
    model.write()
    command = [sys.executable, "-m", "modelserve.cli", "serve", str(models.REPOSITORY)]
    command += ["--model", model.served, "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        os.sched_setaffinity(process.pid, {core})
        give_up = threading.Timer(START, process.kill)
        give_up.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("serving on "):
                    give_up.cancel()
                    yield Server(process, line.removeprefix("serving on ").strip())
                    return
            raise RuntimeError("the server did not start")
        finally:
            give_up.cancel()
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


class Generator:
    """`modelserve bench` for one model, on one core."""

    def __init__(self, model: models.Model, directory: Path, core: int) -> None:
        self._model = model.served
        self._core = core
        self._inputs = directory / f"{model.served}.npz"
        samples = model.samples
        arrays = {name: np.concatenate([s[name] for s in samples]) for name in samples[0]}
        np.savez(self._inputs, **arrays)

    def __call__(self, url: str, duration: float, *options: str) -> dict:
        """Load a server and return what was measured."""
        command = [sys.executable, "-m", "modelserve.cli", "bench", url, self._model, "--binary"]
        command += ["--input", str(self._inputs), "--rows", "1", "--duration", str(duration)]
        command += ["--allow-failures", "--json", "-", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        os.sched_setaffinity(process.pid, {self._core})
        printed, _ = process.communicate(timeout=duration + 60)
        if not printed:
            raise RuntimeError("the generator measured nothing")
        return json.loads(printed)


@contextmanager
def memory(server: Server) -> Iterator[list[float]]:
    """Read the server's memory ten times a second."""
    seen: list[float] = []
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(0.1):
            seen.append(server.resident())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield seen
    finally:
        ended.set()
        reader.join()


def growth(seen: list[float]) -> float:
    """Return by how much the last third is above the second one, which is warm, as a share."""
    third = len(seen) // 3
    if not third:
        return float("nan")
    return statistics.median(seen[-third:]) / statistics.median(seen[third : 2 * third]) - 1


def refusals(found: dict) -> str:
    """Name what was not answered."""
    kinds = (f"{kind}: {count:,}" for kind, count in found["failures"].items())
    return ", ".join(kinds) or "none"


def overload(arguments: argparse.Namespace, directory: Path) -> list[tuple[str, float, bool]]:
    """Print how M2 fares at several times its capacity; return its bars."""
    model = models.MODELS[arguments.model]
    generate = Generator(model, directory, arguments.generator_core)
    with serving(model, arguments.server_core) as server:
        rates = {}
        for connections in (1, 8, 32):
            found = generate(server.url, arguments.seconds / 2, "--connections", str(connections))
            rates[connections] = found["answers_per_second"]
        best = max(rates, key=lambda connections: rates[connections])
        capacity = rates[best]
        print(f"capacity: {capacity:,.1f} requests/s, in a closed loop of {best} connections")
        print(
            "| load | asked /s | sent /s | in time /s | share of capacity | p50 ms | p99 ms "
            "| refused | sent late p50, p99, max ms | memory MB, growth |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        shares, growths = [], []
        for times in arguments.times:
            options = ("--rate", str(times * capacity), "--timeout", str(arguments.deadline))
            with memory(server) as seen:
                found = generate(server.url, arguments.seconds, *options, "--connections", "512")
            share = found["goodput"] / capacity
            late = found["lateness"]
            shares.append(share)
            growths.append(growth(seen))
            print(
                f"| {times:g} x | {found['rate_asked']:,.0f} | {found['rate_sent']:,.0f} "
                f"| {found['goodput']:,.1f} | {share:.3f} | {found['latency']['p50'] * 1e3:.1f} "
                f"| {found['latency']['p99'] * 1e3:.1f} | {refusals(found)} "
                f"| {late['p50'] * 1e3:.3f}, {late['p99'] * 1e3:.3f}, {late['max'] * 1e3:.3f} "
                f"| {max(seen):.0f}, {growths[-1]:+.1%} |"
            )
    return [
        (f"goodput >= {GOODPUT} of capacity", shares[-1], shares[-1] >= GOODPUT),
        (f"growth of memory < {GROWTH:.0%}", growths[-1], growths[-1] < GROWTH),
    ]


def cost(arguments: argparse.Namespace, directory: Path) -> list[tuple[str, float, bool]]:
    """Print the server's CPU time for an answer and for a refusal; return the bar."""
    model = models.MODELS["M1"]
    generate = Generator(model, directory, arguments.generator_core)
    spent: dict[str, list[float]] = {"answer": [], "refusal": []}
    kinds: dict[str, str] = {}
    with serving(model, arguments.server_core) as server:
        generate(server.url, 0.5)  # warm
        for _ in range(arguments.rounds):
            for name in spent:
                options = () if name == "answer" else ("--timeout", IMPOSSIBLE)
                before = server.cpu()
                found = generate(server.url, 1.0, "--warm-up", "0", *options)
                spent[name].append((server.cpu() - before) / found["requests"] * 1e6)
                kinds[name] = refusals(found)
    print("| M1 | us of CPU a request: least, median | answers that refuse |")
    print("|---|---|---|")
    for name, times in spent.items():
        print(f"| {name} | {min(times):.1f}, {statistics.median(times):.1f} | {kinds[name]} |")
    ratio = min(spent["refusal"]) / min(spent["answer"])
    return [(f"a refusal costs <= {REFUSAL} of an answer", ratio, ratio <= REFUSAL)]


def main() -> int:
    """Print goodput, memory and the cost of a refusal, and which bars are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=models.MODELS, default="M2")
    parser.add_argument("--times", type=float, nargs="+", default=[0.8, 1.5, 5.0])
    parser.add_argument("--deadline", type=float, default=0.1, help="seconds")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=7, help="of refusals and answers by turns")
    parser.add_argument("--server-core", type=int, default=1)
    parser.add_argument("--generator-core", type=int, default=0)
    arguments = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}; "
        f"{arguments.model}, deadline {arguments.deadline * 1e3:g} ms\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        bars = overload(arguments, Path(directory))
        print(flush=True)
        bars += cost(arguments, Path(directory))
    print()
    for text, value, met in bars:
        print(f"{'met    ' if met else 'NOT MET'}  {text}: {value:.3f}")
    return 0 if all(met for _, _, met in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
