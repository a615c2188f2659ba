"""What does a request cost inside one process, step by step?

    python benchmarks/bench_inprocess.py

onnxruntime's own `run`, `InferenceSession.run` over it, `repo.predict` over that, and
`await repo.infer` with 1, 8 and 64 callers at once, on the model 64-128-64-10 with one row.
Rounds are interleaved; differences are of medians.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import onnx_models
from modelserve import InferRequest, ModelRepository
from modelserve.backends.onnxruntime import InferenceSession

CALLERS = (1, 8, 64)


def timed(call: Callable[[], object], calls: int) -> float:
    """Return us of CPU a call."""
    started = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - started) / calls * 1e6


async def awaited(repository: ModelRepository, x: np.ndarray, callers: int, calls: int) -> float:
    """Return us of CPU a request of `callers` coroutines that never pause."""

    async def caller() -> None:
        for _ in range(calls // callers):
            await repository.infer(InferRequest("mlp", {"x": x}))

    started = time.process_time()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return (time.process_time() - started) / (calls // callers * callers) * 1e6


def main() -> None:
    """Print us of CPU a request for every step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--calls", type=int, default=1024)
    arguments = parser.parse_args()
    calls = arguments.calls
    content = onnx_models.mlp()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    plain = onnxruntime.InferenceSession(content, options)
    session = InferenceSession(content)
    x = np.random.default_rng(0).standard_normal((1, 64), np.float32)
    columns: dict[str, list[float]] = {}
    with ModelRepository() as repository:
        repository.add("mlp", content)

        async def all_awaited() -> None:
            for callers in CALLERS:
                found = await awaited(repository, x, callers, calls)
                columns.setdefault(f"await repo.infer, {callers} callers", []).append(found)

        for _ in range(arguments.rounds):
            for name, call in (
                ("onnxruntime run", lambda: plain.run(["y"], {"x": x})),
                ("InferenceSession.run", lambda: session.run({"x": x})),
                ("repo.predict", lambda: repository.predict("mlp", {"x": x})),
            ):
                columns.setdefault(name, []).append(timed(call, calls))
            asyncio.run(all_awaited())
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}, "
        f"numpy {np.__version__}; us of CPU a request, {arguments.rounds} rounds"
    )
    medians = {name: statistics.median(found) for name, found in columns.items()}
    below = {"InferenceSession.run": "onnxruntime run", "repo.predict": "InferenceSession.run"}
    print("| step | median | minimum | over the step before | over onnxruntime |")
    print("|---|---|---|---|---|")
    for name, found in columns.items():
        step = f"{medians[name] - medians[below[name]]:+.2f}" if name in below else ""
        over = f"{medians[name] - medians['onnxruntime run']:+.2f}"
        print(f"| {name} | {medians[name]:.2f} | {min(found):.2f} | {step} | {over} |")


if __name__ == "__main__":
    main()
