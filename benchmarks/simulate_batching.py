"""How long do requests wait under different ways of batching? Simulated: the same every time.

    python benchmarks/simulate_batching.py [--seeds 10] [--requests 4000] [--model M2]

The batcher's real judgement, with a clock of its own, against: the batch that waits whenever the
model is free ("natural"), no batching, fixed windows, and AIMD as in Clipper (objective: ten runs
of one row). Models are given by the time of a batch of n rows, with 5 % noise and one run in a
hundred thrice as long. "load" is the share of the throughput at the best batch size. Times in ms,
p50 / p99 of Poisson arrivals, means over the seeds; then rows/s of callers that ask again a tenth
of a run after their answer, as a share of the best. "-" where a way cannot keep up.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from execution.simulator import (
    MODELS,
    Aimd,
    Model,
    Natural,
    Ours,
    Policy,
    Simulation,
    capacity,
    poisson,
)

LOADS = (0.3, 0.6, 0.8, 0.9)
CALLERS = (1, 2, 8, 32, 64)
MEANS = {
    "wide": "1.75 + 0.2 n ms",
    "mid": "0.3 + 0.1 n ms",
    "M1": "3.8 + 0.35 n us",
    "M2": "about 5 ms a row, best at 8",
    "conv": "1.0 n ms",
}


def policies(model: Model) -> dict[str, Callable[[], Policy]]:
    return {
        "modelserve": Ours,
        "natural": Natural,
        "none": lambda: Natural(1),
        "window 1 ms": lambda: Natural(window=1e-3),
        "window 5 ms": lambda: Natural(window=5e-3),
        "AIMD": lambda: Aimd(10 * model(1)),
    }


def open_loop(make: Callable[[], Policy], model: Model, load: float, count: int, seeds: int) -> str:
    middle, late = [], []
    for seed in range(seeds):
        arrivals = poisson(load * capacity(model), count, seed)
        outcome = Simulation(make(), model, arrivals=arrivals, seed=seed).run()
        middle.append(1e3 * outcome.percentile(50, count // 4))
        late.append(1e3 * outcome.percentile(99, count // 4))
    return f"{mean(middle):.3g} / {mean(late):.3g}"


def closed_loop(make: Callable[[], Policy], model: Model, callers: int, count: int) -> str:
    pause = 0.1 * model(1)

    def think(rng: random.Random) -> float:
        return pause * rng.uniform(0.5, 1.5)

    outcome = Simulation(make(), model, callers=callers, requests=count, think=think).run()
    return f"{outcome.throughput(len(outcome.runs) // 3) / capacity(model):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="traces to average over")
    parser.add_argument("--requests", type=int, default=4000, help="requests of a trace")
    parser.add_argument("--model", choices=sorted(MODELS), action="append", help="only this one")
    arguments = parser.parse_args()
    names = arguments.model or list(MODELS)
    for name in names:
        model = MODELS[name]
        ways = policies(model)
        print(f"\n{name}: {MEANS[name]}, at best {capacity(model):.4g} rows/s")
        print(f"{'':12}" + "".join(f"{way:>18}" for way in ways))
        for load in LOADS:
            cells = [
                "-"
                if way == "none" and load * capacity(model) * model(1) > 1
                else open_loop(make, model, load, arguments.requests, arguments.seeds)
                for way, make in ways.items()
            ]
            print(f"{f'load {load:.0%}':12}" + "".join(f"{cell:>18}" for cell in cells))
        for callers in CALLERS:
            cells = [
                closed_loop(make, model, callers, 4 * arguments.requests) for make in ways.values()
            ]
            print(f"{f'{callers} callers':12}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
