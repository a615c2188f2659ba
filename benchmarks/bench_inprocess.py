"""What does a request cost inside one process, step by step?

    python benchmarks/bench_inprocess.py

onnxruntime's own `run`, `InferenceSession.run` over it, `repo.predict` over that, and with 1, 8 and
64 callers at once `await repo.infer` and `repo.begin` (the way of transports, which open and close
the exchange themselves), on the model 64-128-64-10 with one row. Metrics are on, and making the
request is counted. Rounds are interleaved; differences are of medians.

    --loop uvloop   takes that loop instead of asyncio's
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
from modelserve.messages import Exchange

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


async def begun(repository: ModelRepository, x: np.ndarray, callers: int, calls: int) -> float:
    """Return us of CPU a request of `callers` connections that ask again when answered."""
    finished = asyncio.get_running_loop().create_future()
    left = [calls // callers] * callers
    open_callers = callers

    def ask(caller: int) -> None:
        request = InferRequest("mlp", {"x": x})
        exchange = request.exchange = Exchange("benchmark", "mlp")

        def done(response: object, error: BaseException | None) -> None:
            nonlocal open_callers
            repository.record(exchange)
            left[caller] -= 1
            if left[caller]:
                ask(caller)
                return
            open_callers -= 1
            if not open_callers:
                finished.set_result(None)

        repository.begin(request, done)

    started = time.process_time()
    for caller in range(callers):
        ask(caller)
    await finished
    return (time.process_time() - started) / (calls // callers * callers) * 1e6


def runner(loop: str) -> asyncio.Runner:
    """Return what runs coroutines on the loop of that name."""
    if loop == "asyncio":
        return asyncio.Runner()
    import uvloop

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def main() -> None:
    """Print us of CPU a request for every step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--calls", type=int, default=1024)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
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

        async def all_callers() -> None:
            for callers in CALLERS:
                found = await awaited(repository, x, callers, calls)
                columns.setdefault(f"await repo.infer, {callers} callers", []).append(found)
            for callers in CALLERS:
                found = await begun(repository, x, callers, calls)
                columns.setdefault(f"repo.begin, {callers} callers", []).append(found)

        for _ in range(arguments.rounds):
            for name, call in (
                ("onnxruntime run", lambda: plain.run(["y"], {"x": x})),
                ("InferenceSession.run", lambda: session.run({"x": x})),
                ("repo.predict", lambda: repository.predict("mlp", {"x": x})),
            ):
                columns.setdefault(name, []).append(timed(call, calls))
            with runner(arguments.loop) as run:
                run.run(all_callers())
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}, "
        f"numpy {np.__version__}, {arguments.loop}; us of CPU a request, {arguments.rounds} rounds"
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
