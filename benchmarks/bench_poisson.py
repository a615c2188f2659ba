"""Does the adaptive batcher answer sooner than fixed windows, AIMD or none, at any load?

    python benchmarks/bench_poisson.py

The same Poisson arrivals go to modelserve's batcher and to those of `rival_batchers`, over the same
backend object, in one process pinned to a core: a trace is played to each of them by turns, in an
order that changes. Another process on another core holds the clock: it writes the moment each
request was due into a pipe, which wakes the event loop as a socket would; latency counts from that
moment, and that process's own lateness is printed. Loads are shares of the capacity, which is what
the fastest of them makes of many requests that are all there at once. One that cannot carry a load
at all is left out of it.

"+" in the tables: modelserve takes longer. An interval is that of the mean difference over traces,
paired, 95 %. The verdict is "worse" only if the whole interval of p50 or p99 is above zero.
Exit status 1 if any of them is, at loads up to 90 %. It takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

import models
from rival_batchers import RivalBatcher

import onnx_models
from modelserve import AdaptiveBatcher, InferenceSession, InferRequest

Arrays = Mapping[str, np.ndarray]
Submit = Callable[[Arrays], Coroutine[Any, Any, Arrays]]

OURS = "modelserve"
INLINE_BELOW = 100e-6
REPORTED_ONLY = 95
LEAD = 0.02
"""Seconds from a trace's start to its first arrival."""
MOST_ROWS = 64
BURST_SECONDS = 0.3

# Student's t, two-sided 95 %, by degrees of freedom from 1 on.
T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160),
    *(2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056),
    *(2.052, 2.048, 2.045, 2.042),
)


# ---------------------------------------------------------------------- the process with the clock


def play() -> None:
    """Read traces from the standard input, and write each moment as it comes to the output."""
    source, sink = sys.stdin.buffer, sys.stdout.fileno()
    while head := source.read(8):
        gaps = np.frombuffer(source.read(8 * int(np.frombuffer(head, np.int64)[0])))
        dues = time.perf_counter() + LEAD + gaps
        late = array("d")
        sent, count = 0, len(dues)
        listed = dues.tolist()
        while sent < count:
            now = time.perf_counter()
            if listed[sent] > now:
                continue
            first = sent
            while sent < count and listed[sent] <= now and sent - first < 256:
                late.append(now - listed[sent])
                sent += 1
            os.write(sink, dues[first:sent].tobytes())
        summary = [np.nan, *np.quantile(late, (0.5, 0.99)), max(late)]
        os.write(sink, np.array(summary).tobytes())


class Clock:
    """The process that plays traces."""

    def __init__(self, core: int) -> None:
        command = [sys.executable, __file__, "--play"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self._process.pid, {core})

    async def play(self, gaps: np.ndarray, arrive: Callable[[float], None]) -> np.ndarray:
        """Call `arrive` at each moment of a trace; return p50, p99 and maximum of the lateness."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[np.ndarray] = loop.create_future()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        rest = b""

        def read() -> None:
            nonlocal rest
            data = rest + os.read(pipe, 1 << 15)
            whole = len(data) // 8 * 8
            rest = data[whole:]
            moments = np.frombuffer(data[:whole])
            marks = np.flatnonzero(np.isnan(moments))
            if not marks.size:
                for due in moments.tolist():
                    arrive(due)
            elif len(moments) < marks[0] + 4:
                rest = data
            else:
                for due in moments[: marks[0]].tolist():
                    arrive(due)
                ended.set_result(moments[marks[0] + 1 :])

        loop.add_reader(pipe, read)
        try:
            self._process.stdin.write(np.int64(len(gaps)).tobytes() + gaps.tobytes())
            self._process.stdin.flush()
            return await ended
        finally:
            loop.remove_reader(pipe)

    def close(self) -> None:
        """End it."""
        self._process.communicate()


# ---------------------------------------------------------------------- batchers by one interface


@dataclass(frozen=True)
class Batcher:
    """A batcher under test."""

    name: str
    submit: Submit
    close: Callable[[], Any]


def ours(session: InferenceSession, row: Arrays) -> Batcher:
    """Return modelserve's batcher, as the repository makes it: warm at one row and at many."""
    batcher = AdaptiveBatcher(
        [session], max_batch_size=MOST_ROWS, max_queue_size=1 << 20, model="m", version="1"
    )
    for rows in (1, 1, MOST_ROWS, MOST_ROWS):
        inputs = {name: np.repeat(values, rows, axis=0) for name, values in row.items()}
        batcher.run_at_load(InferRequest("m", inputs), inputs, rows)

    async def submit(inputs: Arrays) -> Arrays:
        # Found to be plain, as the repository finds them.
        plain = session.signature.rows_of(inputs) == 1
        return await batcher.submit(InferRequest("m", inputs), inputs, 1, plain)

    return Batcher(OURS, submit, partial(batcher.close, drain=5.0))


def seconds_of(session: InferenceSession, row: Arrays, rows: int = 1) -> float:
    """Return what a run takes at best."""
    inputs = {name: np.repeat(values, rows, axis=0) for name, values in row.items()}
    session.run(inputs)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        session.run(inputs)
        times.append(time.perf_counter() - started)
    return min(times)


@contextmanager
def contestants(session: InferenceSession, row: Arrays) -> Iterator[list[Batcher]]:
    """Make all batchers over one backend; the AIMD one gets ten runs of one row as its SLO."""
    alone = seconds_of(session, row)
    make = partial(RivalBatcher, session, inline=alone < INLINE_BELOW)
    rivals = {
        "none": make(most=1),
        "window 1 ms": make(delay=0.001),
        "window 5 ms": make(delay=0.005),
        "AIMD": make(slo=max(0.001, 10 * alone)),
    }
    made = [Batcher(name, rival.submit, rival.close) for name, rival in rivals.items()]
    made.insert(0, ours(session, row))
    try:
        yield made
    finally:
        for batcher in made:
            batcher.close()


# ---------------------------------------------------------------------- measuring


async def burst(batcher: Batcher, row: Arrays) -> float:
    """Return requests a second out of many that are there at once; as many as take a while."""
    count = MOST_ROWS
    while True:
        started = time.perf_counter()
        await asyncio.gather(*(batcher.submit(row) for _ in range(count)))
        took = time.perf_counter() - started
        if took > BURST_SECONDS:
            return count / took
        count *= 2


async def trace(
    clock: Clock, batcher: Batcher, gaps: np.ndarray, row: Arrays
) -> tuple[float, float, np.ndarray]:
    """Play a trace to a batcher; return p50 and p99 in seconds, and the clock's lateness."""
    loop = asyncio.get_running_loop()
    latencies = array("d")
    under_way: set[asyncio.Task[None]] = set()
    submit = batcher.submit

    async def ask(due: float) -> None:
        await submit(row)
        latencies.append(time.perf_counter() - due)

    def arrive(due: float) -> None:
        task = loop.create_task(ask(due))
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    late = await clock.play(gaps, arrive)
    async with asyncio.timeout(60):
        await asyncio.gather(*under_way)
    if len(latencies) != len(gaps):
        raise RuntimeError(f"{len(gaps) - len(latencies)} requests were not answered")
    p50, p99 = np.quantile(latencies, (0.5, 0.99))
    return float(p50), float(p99), late


def interval(differences: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean."""
    mean = statistics.fmean(differences)
    freedom = len(differences) - 1
    t = T_95[freedom - 1] if freedom <= len(T_95) else 1.96
    half = t * statistics.stdev(differences) / len(differences) ** 0.5
    return mean - half, mean + half


def compared(ours: list[float], rival: list[float]) -> tuple[str, bool]:
    """Return the interval of the paired difference as text, and whether all of it is above 0."""
    low, high = interval([a - b for a, b in zip(ours, rival, strict=True)])
    scale = statistics.fmean(rival)
    text = f"{low * 1e3:+.3f} .. {high * 1e3:+.3f} ({low / scale:+.0%} .. {high / scale:+.0%})"
    return text, low > 0


async def measure(
    name: str, content: bytes | Path, row: Arrays, clock: Clock, arguments: argparse.Namespace
) -> int:
    """Print one model's lines; return in how many cells modelserve was worse."""
    session = InferenceSession(content)
    worse = 0
    with contestants(session, row) as batchers:
        rates = {batcher.name: 0.0 for batcher in batchers}
        for _ in range(3):
            for batcher in batchers:
                rates[batcher.name] = max(rates[batcher.name], await burst(batcher, row))
        capacity = max(rates.values())
        told = ", ".join(f"{who} {rate:,.0f}" for who, rate in rates.items())
        print(f"\n**{name}**: one row takes {seconds_of(session, row) * 1e3:.3f} ms; ", end="")
        print(f"requests/s out of a burst: {told}\n")
        print("| load | batcher | p50 ms | p99 ms | p50: difference | p99: difference | verdict |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for load in arguments.loads:
            rate = capacity * load / 100
            carrying = [b for b in batchers if b.name == OURS or rates[b.name] > rate]
            worse += await cell(load, rate, carrying, row, clock, arguments)
    session.close()
    return worse


async def cell(
    load: int,
    rate: float,
    batchers: list[Batcher],
    row: Arrays,
    clock: Clock,
    arguments: argparse.Namespace,
) -> int:
    """Play all traces of one load; print the lines, return how often modelserve was worse."""
    p50: dict[str, list[float]] = {batcher.name: [] for batcher in batchers}
    p99: dict[str, list[float]] = {batcher.name: [] for batcher in batchers}
    lateness = []
    count = max(20, round(rate * arguments.seconds))
    for seed in range(arguments.seeds):
        gaps = np.cumsum(np.random.default_rng((load, seed)).exponential(1 / rate, count))
        turn = seed % len(batchers)
        for batcher in batchers[turn:] + batchers[:turn]:
            half, most, late = await trace(clock, batcher, gaps, row)
            p50[batcher.name].append(half)
            p99[batcher.name].append(most)
            lateness.append(late)
    worse = 0
    for batcher in batchers:
        name = batcher.name
        medians = f"{statistics.median(p50[name]) * 1e3:.3f} | "
        medians += f"{statistics.median(p99[name]) * 1e3:.3f}"
        if name == OURS:
            half, most, _ = np.median(lateness, axis=0) * 1e3
            note = f"clock late by p50 {half:.3f}, p99 {most:.3f}, "
            note += f"max {np.max(lateness) * 1e3:.3f}"
            if most > 0.5e3 * statistics.median(p99[name]):
                note += ": TOO LATE, it needs an idle core"
            print(f"| {load} % = {rate:,.0f}/s | {name} | {medians} | | | {note} |")
            continue
        first, slower = compared(p50[OURS], p50[name])
        second, later = compared(p99[OURS], p99[name])
        verdict = "WORSE" if slower or later else "not worse"
        worse += (slower or later) and load < REPORTED_ONLY
        print(f"| | {name} | {medians} | {first} | {second} | {verdict} |", flush=True)
    return worse


def sources(names: list[str]) -> Iterator[tuple[str, bytes | Path, Arrays]]:
    """Make the models asked for, and a row for each."""
    rng = np.random.default_rng(0)
    features = {"x": rng.standard_normal((1, 64), np.float32)}
    for name in names:
        if name == "wide":
            yield name, onnx_models.wide(), features
        else:
            model = models.MODELS[name]
            yield name, model.write(), model.samples[0]


async def run(arguments: argparse.Namespace) -> int:
    """Measure every model; return in how many cells modelserve was worse."""
    clock = Clock(arguments.clock_core)
    try:
        worse = 0
        for name, content, row in sources(arguments.models):
            worse += await measure(name, content, row, clock, arguments)
        return worse
    finally:
        clock.close()


def main() -> int:
    """Print latencies by model, load and batcher, with verdicts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["wide", "M1", "M2"])
    parser.add_argument("--loads", nargs="+", type=int, default=[30, 60, 80, 90, REPORTED_ONLY])
    parser.add_argument("--seeds", type=int, default=10, help="traces of each load, at least 2")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a trace")
    parser.add_argument("--core", type=int, default=1, help="of the batchers and models")
    parser.add_argument("--clock-core", type=int, default=0)
    parser.add_argument("--play", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.play:
        play()
        return 0
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {arguments.core})
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}; "
        f"{arguments.seeds} traces of {arguments.seconds:g} s a load"
    )
    try:
        import uvloop

        factory: Any = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        worse = runner.run(run(arguments))
    print(f"\nmodelserve is worse in {worse} cells up to 90 %")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
