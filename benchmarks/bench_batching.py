"""How much of onnxruntime's best throughput do concurrent `await repo.infer` callers get?

    python benchmarks/bench_batching.py

Each round runs onnxruntime itself at batch sizes 1, 2, 4, ... 64 in a bare loop, then closed loops
of 1, 8 and 64 coroutines that send one row each; "64 apart" lets half of them begin 4 ms later, so
that they meet only if a lane waits for those who come back. Rounds are interleaved and medians
compared, so that a slow spell of the machine hits both. "share" is rows/s over the best of
onnxruntime's; "CPU share" compares CPU time a row instead, which other work on the machine disturbs
less.
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
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import onnx_models
from modelserve import InferRequest, ModelRepository
from modelserve.messages import Exchange

SIZES = (1, 2, 4, 8, 16, 32, 64)
CALLERS = ("1", "8", "64", "64 apart")
APART = 0.004


def conv() -> bytes:
    """Two strided convolutions and a mean over 3x32x32: compute-bound, little gain of batching."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape, np.float32) * 0.1, name)
        for name, shape in (("w0", (16, 3, 3, 3)), ("w1", (32, 16, 3, 3)))
    ]
    axes = numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("ReduceMean", ["r1", "axes"], ["y"], keepdims=0),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 32, 32])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])
    return onnx_models.model(nodes, [given], [made], [*weights, axes])


MODELS: dict[str, tuple[Callable[[], bytes], tuple[int, ...]]] = {
    "mlp": (onnx_models.mlp, (64,)),
    "wide": (onnx_models.wide, (64,)),
    "conv": (conv, (3, 32, 32)),
}


def bare(
    session: onnxruntime.InferenceSession, x: np.ndarray, seconds: float
) -> tuple[float, float]:
    """Return rows/s and us of CPU a row of onnxruntime in a loop."""
    cpu = time.process_time()
    started = now = time.perf_counter()
    count = 0
    while now - started < seconds:
        session.run(["y"], {"x": x})
        count += len(x)
        now = time.perf_counter()
    return count / (now - started), (time.process_time() - cpu) / count * 1e6


async def closed_loop(
    repository: ModelRepository, name: str, x: np.ndarray, callers: str, seconds: float
) -> tuple[float, float, float]:
    """Return requests/s, us of CPU a request, and the mean batch of `callers` that never pause."""
    done = batches = 0
    end = time.perf_counter() + seconds

    count, _, apart = callers.partition(" ")

    async def caller(number: int) -> None:
        nonlocal done, batches
        if apart and number % 2:
            await asyncio.sleep(APART)
        while time.perf_counter() < end:
            request = InferRequest(name, {"x": x})
            exchange = request.exchange = Exchange("inprocess", name)
            await repository.infer(request)
            done += 1
            batches += 1 / exchange.batch_requests

    cpu, started = time.process_time(), time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(int(count))))
    took = time.perf_counter() - started
    return done / took, (time.process_time() - cpu) / done * 1e6, done / batches


def measure(name: str, rounds: int, seconds: float) -> None:
    """Print one model's lines."""
    make, shape = MODELS[name]
    content = make()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options)
    rng = np.random.default_rng(0)
    batches = {size: rng.standard_normal((size, *shape), np.float32) for size in SIZES}
    raw: dict[int, list[tuple[float, float]]] = {size: [] for size in SIZES}
    ours: dict[str, list[tuple[float, float, float]]] = {callers: [] for callers in CALLERS}
    with ModelRepository() as repository:
        repository.add(name, content)

        async def loops(kept: bool) -> None:
            for callers in CALLERS:
                found = await closed_loop(repository, name, batches[1], callers, seconds)
                if kept:
                    ours[callers].append(found)

        asyncio.run(loops(False))
        for _ in range(rounds):
            for size in SIZES:
                raw[size].append(bare(session, batches[size], seconds / 2))
            asyncio.run(loops(True))
    medians = {size: statistics.median(rate for rate, _ in found) for size, found in raw.items()}
    cheapest = min(statistics.median(cpu for _, cpu in found) for found in raw.values())
    best = max(medians, key=lambda size: medians[size])
    for callers in CALLERS:
        rate, cpu, batch = (statistics.median(c) for c in zip(*ours[callers], strict=True))
        print(
            f"| {name} | {medians[1]:,.0f} | {medians[best]:,.0f} at {best} | {callers} "
            f"| {rate:,.0f} | {batch:.1f} | {cpu:.1f} | {rate / medians[best]:.3f} "
            f"| {cheapest / cpu:.3f} |"
        )


def main() -> None:
    """Print rows/s and shares for every model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each closed loop")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}, "
        f"numpy {np.__version__}; medians of {arguments.rounds} rounds"
    )
    print(
        "| model | ort, 1 row | ort, best rows/s | callers | rows/s | batch | CPU us "
        "| share | CPU share |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in arguments.models:
        measure(name, arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
