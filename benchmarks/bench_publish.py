"""Does any request fail or go wrong while versions are published and unloaded?

    python benchmarks/bench_publish.py

Threads and coroutines ask without a pause, each answer is checked against the version that gave
it. Exits with 1 if one failed or was wrong.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from modelserve.repository.repository import ModelRepository
from versioned_models import Traffic, adds


def main() -> int:
    """Print how many requests were answered by which number of versions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--tasks", type=int, default=16)
    arguments = parser.parse_args()

    per_cycle = -(-arguments.requests // (arguments.cycles + 1))
    with (
        tempfile.TemporaryDirectory() as directory,
        ModelRepository(directory, keep="all") as repository,
    ):
        repository.publish("m", adds(1))
        started = time.perf_counter()
        asked = Traffic(repository, timeout=60)
        with asked.flowing(threads=arguments.threads, tasks=arguments.tasks) as traffic:
            for number in range(2, arguments.cycles + 2):
                traffic.more(per_cycle)
                repository.publish("m", adds(number))
                repository.unload("m", number - 1)
            traffic.more(per_cycle)
        seconds = time.perf_counter() - started
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}; "
        f"{arguments.threads} threads and {arguments.tasks} coroutines"
    )
    print(
        f"{traffic.answered} requests during {arguments.cycles} publish/unload cycles in "
        f"{seconds:.1f} s, answered by {len(traffic.versions)} versions: "
        f"{len(traffic.failed)} failed, {len(traffic.wrong)} wrong"
    )
    for error in (*traffic.failed, *traffic.wrong):
        print(repr(error))
    return 1 if traffic.failed or traffic.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
