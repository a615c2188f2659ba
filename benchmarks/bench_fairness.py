"""What does a long model do to a short one served beside it?

    python benchmarks/bench_fairness.py

One process on one core serves M1 (64-128-64-10) and M2 (a sentence encoder, some 5 ms a row), with
coroutines for clients: one asks M1 every few milliseconds, eight keep M2 busy. Printed is the wait
for M1's answers alone and beside M2, by turns, and what the longest of M2's batches took. The bar:
M1's p99 beside M2 is at most twice its p99 alone and one batch of M2. Linux only: it pins itself.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parent))

import models

from modelserve import InferRequest, ModelRepository
from modelserve.messages import Exchange

CALLERS = 8
PAUSE = 0.002


async def short_waits(repository: ModelRepository, sample: dict, seconds: float) -> list[float]:
    """Return the seconds M1's answers took, asked for one after the other with pauses."""
    waits = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        await asyncio.sleep(PAUSE)
        asked = time.perf_counter()
        await repository.infer(InferRequest("M1", sample))
        waits.append(time.perf_counter() - asked)
    return waits


async def long_runs(repository: ModelRepository, samples: list[dict], runs: list[float]) -> None:
    """Keep M2 busy until cancelled; note what its batches took."""

    async def caller(number: int) -> None:
        while True:
            request = InferRequest("M2", samples[number % len(samples)])
            exchange = request.exchange = Exchange("inprocess", "M2")
            await repository.infer(request)
            runs.append(exchange.run)

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))


def percentile(values: list[float], percent: float) -> float:
    """Return a percentile in ms."""
    return float(np.percentile(values, percent)) * 1e3


async def measure(arguments: argparse.Namespace, repository: ModelRepository) -> bool:
    """Print the rounds; return whether the bar is met."""
    short = models.MODELS["M1"].samples[0]
    long = list(models.MODELS["M2"].samples)
    print("| M1 | p50 ms | p99 ms | max ms | M2 rows/s | M2 batch p99 ms |")
    print("|---|---|---|---|---|---|")
    alone_p99, beside_p99, batch_p99 = [], [], []
    for _ in range(arguments.rounds):
        alone = await short_waits(repository, short, arguments.seconds)
        runs: list[float] = []
        busy = asyncio.create_task(long_runs(repository, long, runs))
        beside = await short_waits(repository, short, arguments.seconds)
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)
        for name, waits in (("alone", alone), ("beside M2", beside)):
            rate = f"{len(runs) / arguments.seconds:.0f}" if waits is beside else ""
            batch = f"{percentile(runs, 99):.1f}" if waits is beside else ""
            print(
                f"| {name} | {percentile(waits, 50):.3f} | {percentile(waits, 99):.3f} "
                f"| {max(waits) * 1e3:.3f} | {rate} | {batch} |"
            )
        alone_p99.append(percentile(alone, 99))
        beside_p99.append(percentile(beside, 99))
        batch_p99.append(percentile(runs, 99))
    allowed = 2 * statistics.median(alone_p99) + statistics.median(batch_p99)
    found = statistics.median(beside_p99)
    met = found <= allowed
    print(f"\n{'met    ' if met else 'NOT MET'}  p99 beside M2 {found:.3f} ms <= {allowed:.3f} ms")
    return met


def main() -> int:
    """Print what M1's clients wait; exit status 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each half of a round")
    parser.add_argument("--core", type=int, default=1)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
    print(
        f"{platform.processor() or platform.machine()}, 1 core, Python "
        f"{platform.python_version()}, onnxruntime {onnxruntime.__version__}\n"
    )
    with ModelRepository() as repository:
        for name in ("M1", "M2"):
            model = models.MODELS[name]
            model.write()
            repository.add(name, models.REPOSITORY / model.served / "1", max_batch_size=64)
        return 0 if asyncio.run(measure(arguments, repository)) else 1


if __name__ == "__main__":
    sys.exit(main())
