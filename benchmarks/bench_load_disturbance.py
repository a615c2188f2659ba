"""How long does a tiny model wait while a large one is loaded, and while it is unloaded?

    python benchmarks/bench_load_disturbance.py

One event loop calls the tiny model (64-128-64-10) inline, every millisecond. A thread hashes the
large file, loads it, runs it, and later closes it. Latency counts from the moment a call was due,
so waiting for the interpreter lock or a core is in it. Phases alternate with idle time.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import onnx_models
from modelserve.backends.onnxruntime import InferenceSession

Samples = list[tuple[float, float]]
X = np.ones((1, 64), np.float32)


class Phases:
    """Start and end of everything that was done, by name."""

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[float, float]]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Record the time spent inside."""
        started = time.perf_counter()
        yield
        self.seen.setdefault(name, []).append((started, time.perf_counter()))


def open_plainly(path: Path) -> Callable[[], None]:
    """Load with onnxruntime alone; returns what unloads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    held = [onnxruntime.InferenceSession(path, options)]
    held[0].run(None, {"x": X})
    return held.clear


def open_ours(path: Path) -> Callable[[], None]:
    """Load with modelserve; returns what unloads."""
    session = InferenceSession(path)
    session.run({"x": X})
    return session.close


def disturb(path: Path, rounds: int, phases: Phases) -> None:
    """Load and unload in both ways by turns, with idle time of the same order between."""
    for _ in range(rounds):
        for label, opener in (("onnxruntime", open_plainly), ("modelserve", open_ours)):
            with phases("idle"):
                time.sleep(0.5)
            with phases(f"{label}: load"):
                with path.open("rb") as file:
                    hashlib.file_digest(file, "sha256")
                close = opener(path)
            with phases("idle"):
                time.sleep(0.2)
            with phases(f"{label}: unload"):
                close()


async def call(tiny: InferenceSession, thread: threading.Thread, interval: float) -> Samples:
    """Call the tiny model on schedule while the thread lives; give (due, latency in ms) of each."""
    samples: Samples = []
    thread.start()
    due = time.perf_counter()
    while thread.is_alive():
        due = max(due + interval, time.perf_counter())
        await asyncio.sleep(due - time.perf_counter())
        tiny.run({"x": X})
        samples.append((due, (time.perf_counter() - due) * 1e3))
    return samples


def report(name: str, samples: Samples, spans: list[tuple[float, float]]) -> None:
    """Print one row over the calls that were under way within the spans."""
    found = [
        ms
        for due, ms in samples
        if any(due + ms / 1e3 >= start and due <= end for start, end in spans)
    ]
    spent = np.mean([end - start for start, end in spans]) * 1e3
    p50, p99, p999 = np.quantile(found, (0.5, 0.99, 0.999))
    print(
        f"| {name} | {spent:.0f} | {len(found)} | {p50:.2f} | {p99:.2f} | {p999:.2f} "
        f"| {max(found):.2f} |"
    )


def main() -> None:
    """Print latency of the tiny model by phase, for onnxruntime alone and for modelserve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=260)
    parser.add_argument("--layer", type=int, default=2048, help="4096: tensors of 67 MB")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--interval", type=float, default=0.001, help="seconds between calls")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "model.onnx")
        path.write_bytes(onnx_models.weights(arguments.megabytes, layer=arguments.layer))
        print(
            f"{os.cpu_count()} CPUs, Python {platform.python_version()}, onnxruntime "
            f"{onnxruntime.__version__}, {platform.platform()}; large model of "
            f"{path.stat().st_size / 1e6:.0f} MB; {arguments.rounds} rounds each; ms"
        )
        print("| phase | duration | calls | p50 | p99 | p99.9 | max |")
        print("|---|---|---|---|---|---|---|")
        tiny = InferenceSession(onnx_models.mlp())
        phases = Phases()
        thread = threading.Thread(target=disturb, args=(path, arguments.rounds, phases))
        samples = asyncio.run(call(tiny, thread, arguments.interval))
        for phase, spans in sorted(phases.seen.items()):
            report(phase, samples, spans)


if __name__ == "__main__":
    main()
