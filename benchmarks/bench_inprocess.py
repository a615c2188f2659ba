"""What does a request cost inside one process, step by step?

    python benchmarks/bench_inprocess.py

onnxruntime's own `run`, `InferenceSession.run` over it, `repo.predict` over that, and with 1, 8 and
64 callers at once `await repo.infer` and `repo.begin` (the way of transports, which open and close
the exchange themselves), on the model 64-128-64-10 with one row. Metrics are on, and making the
request is counted. Rounds are interleaved; differences are of medians.

    --loop uvloop   takes that loop instead of asyncio's
    --threads       instead: 1, 8 and 32 threads that call `repo.predict` as soon as they were
                    answered, on that model and on `wide`, whose runs read 67 MB of weights
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import sys
import threading
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
THREADS = (1, 8, 32)


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


def blocked(
    repository: ModelRepository, model: str, x: np.ndarray, callers: int, seconds: float
) -> tuple[float, float, float, float]:
    """Return requests a second, us of CPU each, and p50 and p99 in us, of threads in a loop."""
    took: list[list[float]] = [[] for _ in range(callers)]
    begin = threading.Barrier(callers + 1)

    def caller(mine: list[float]) -> None:
        begin.wait()
        now = time.perf_counter()
        end = now + seconds
        while now < end:
            repository.predict(model, {"x": x})
            before, now = now, time.perf_counter()
            mine.append(now - before)

    threads = [threading.Thread(target=caller, args=(mine,)) for mine in took]
    for thread in threads:
        thread.start()
    cpu, started = time.process_time(), time.perf_counter()
    begin.wait()
    for thread in threads:
        thread.join()
    cpu, elapsed = time.process_time() - cpu, time.perf_counter() - started
    every = np.concatenate(took) * 1e6
    p50, p99 = np.percentile(every, (50, 99))
    return len(every) / elapsed, cpu / len(every) * 1e6, float(p50), float(p99)


def print_threads(rounds: int, seconds: float) -> None:
    """Print what threads get that wait for their answers."""
    found: dict[tuple[str, int], list[tuple[float, float, float, float]]] = {}
    with ModelRepository() as repository:
        repository.add("mlp", onnx_models.mlp())
        repository.add("wide", onnx_models.wide())
        x = np.random.default_rng(0).standard_normal((1, 64), np.float32)
        for _ in range(rounds):
            for model in ("mlp", "wide"):
                for callers in THREADS:
                    cell = blocked(repository, model, x, callers, seconds)
                    found.setdefault((model, callers), []).append(cell)
    print("| model | threads | requests/s | us CPU | p50 us | p99 us |")
    print("|---|---|---|---|---|---|")
    for (model, callers), cells in found.items():
        rate, cpu, p50, p99 = (statistics.median(column) for column in zip(*cells, strict=True))
        print(f"| {model} | {callers} | {rate:.0f} | {cpu:.2f} | {p50:.1f} | {p99:.1f} |")


def runner(loop: str) -> asyncio.Runner:
    """Return what runs coroutines on the loop of that name."""
    if loop == "asyncio":
        return asyncio.Runner()
    import uvloop

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--calls", type=int, default=1024)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--threads", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.25, help="of a cell with --threads")
    arguments = parser.parse_args()
    if arguments.threads:
        print_threads(arguments.rounds, arguments.seconds)
    else:
        print_steps(arguments.rounds, arguments.calls, arguments.loop)


def print_steps(rounds: int, calls: int, loop: str) -> None:
    """Print us of CPU a request for every step."""
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

        for _ in range(rounds):
            for name, call in (
                ("onnxruntime run", lambda: plain.run(["y"], {"x": x})),
                ("InferenceSession.run", lambda: session.run({"x": x})),
                ("repo.predict", lambda: repository.predict("mlp", {"x": x})),
            ):
                columns.setdefault(name, []).append(timed(call, calls))
            with runner(loop) as run:
                run.run(all_callers())
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}, "
        f"numpy {np.__version__}, {loop}; us of CPU a request, {rounds} rounds"
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
