"""Does memory grow when a 60 MB model is loaded and unloaded again and again?

    python benchmarks/bench_memory.py

Every cycle loads in a new thread, as a server does, runs once and closes. The last line compares
the resident memory after cycle 200 with that after cycle 20; without `--keep` both are idle states.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import onnx_models
from modelserve.backends.onnxruntime import InferenceSession


def resident() -> float:
    """Return this process's resident memory in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1e3
    raise RuntimeError("no VmRSS line")


def main() -> None:
    """Print resident memory after 1, 20, 50, 100 and 200 cycles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=60)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--keep", action="store_true", help="one version always stays loaded")
    parser.add_argument("--plain", action="store_true", help="onnxruntime alone, for comparison")
    arguments = parser.parse_args()

    x = np.ones((1, 64), np.float32)
    kept: list[InferenceSession] = []

    def cycle(path: Path) -> None:
        if arguments.plain:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            onnxruntime.InferenceSession(path, options).run(None, {"x": x})
            return
        kept.append(InferenceSession(path))
        kept[-1].run({"x": x})
        if len(kept) > arguments.keep:
            kept.pop(0).close()

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "model.onnx")
        path.write_bytes(onnx_models.weights(arguments.megabytes))
        print(
            f"Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}, "
            f"{platform.platform()}; model of {path.stat().st_size / 1e6:.0f} MB"
        )
        print("| cycle | resident MB | ms a cycle |")
        print("|---|---|---|")
        started, seen = time.perf_counter(), {}
        for count in range(1, arguments.cycles + 1):
            thread = threading.Thread(target=cycle, args=(path,))
            thread.start()
            thread.join()
            if count in (1, 20, 50, 100, 200):
                seen[count] = resident()
                spent = (time.perf_counter() - started) / count * 1e3
                print(f"| {count} | {seen[count]:.1f} | {spent:.0f} |")
    if 20 in seen and 200 in seen:
        print(f"growth from cycle 20 to 200: {(seen[200] / seen[20] - 1) * 100:+.1f} %")


if __name__ == "__main__":
    main()
