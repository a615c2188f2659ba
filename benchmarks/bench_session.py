"""What does `InferenceSession.run` cost over onnxruntime's own `run`?

    python benchmarks/bench_session.py

Interleaved rounds of the same calls on the model 64-128-64-10; ratios compare within this run.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import onnx_models
from modelserve.backends.onnxruntime import InferenceSession


def main() -> None:
    """Print microseconds a call at several batch sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--calls", type=int, default=400)
    arguments = parser.parse_args()

    content = onnx_models.mlp()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    plain = onnxruntime.InferenceSession(content, options)
    ours = InferenceSession(content)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}, "
        f"numpy {np.__version__}; us a call: minimum (median) of {arguments.rounds} rounds"
    )
    print("| batch | onnxruntime | modelserve | difference of medians | ratio of medians |")
    print("|---|---|---|---|---|")
    for rows in (1, 8, 32, 64):
        x = np.random.default_rng(0).standard_normal((rows, 64), np.float32)
        np.testing.assert_array_equal(ours.run({"x": x})["y"], plain.run(["y"], {"x": x})[0])
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(arguments.rounds):
            started = time.perf_counter()
            for _ in range(arguments.calls):
                plain.run(["y"], {"x": x})
            between = time.perf_counter()
            for _ in range(arguments.calls):
                ours.run({"x": x})
            ended = time.perf_counter()
            times[0].append((between - started) / arguments.calls * 1e6)
            times[1].append((ended - between) / arguments.calls * 1e6)
        medians = [statistics.median(column) for column in times]
        print(
            f"| {rows} | {min(times[0]):.2f} ({medians[0]:.2f}) | {min(times[1]):.2f} "
            f"({medians[1]:.2f}) | {medians[1] - medians[0]:+.2f} | {medians[1] / medians[0]:.3f} |"
        )


if __name__ == "__main__":
    main()
