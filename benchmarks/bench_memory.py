"""Does memory grow: over a million requests, or when a large model is loaded again and again?

    python benchmarks/bench_memory.py
    python benchmarks/bench_memory.py --requests 1000000

With `--requests`, `modelserve serve` answers so many over HTTP, half JSON and half binary, from 64
connections; the last line compares its resident memory at the end with that past the 50,000th.
Linux only; needs wrk. It does not depend on speed, and needs no quiet machine.

Without, every cycle loads in a new thread, as a server does, runs once and closes. The last line
compares the resident memory after cycle 200 with that after cycle 20; without `--keep` both are
idle states.
"""

from __future__ import annotations

import argparse
import os
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

_WARM = 50_000
"""Requests after which a server has met all it will need."""


def resident(process: int | str = "self") -> float:
    """Return a process's resident memory in MB."""
    for line in Path("/proc", str(process), "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1e3
    raise RuntimeError("no VmRSS line")


def over_requests(wanted: int) -> None:
    """Print the resident memory of a server as it answers."""
    import load
    from contestants import CONTESTANTS, OURS
    from models import MODELS
    from servers import Server

    generator, core = sorted(os.sched_getaffinity(0))[-2:]
    server = Server(CONTESTANTS[OURS], MODELS["M1"], core=core)
    try:
        server.wait()
        server.check()
        pid = server.process.pid  # taskset has become the server
        answered, warm = 0, 0.0
        print(f"Python {platform.python_version()}, {platform.platform()}; M1")
        print("| requests | resident MB |\n|---|---|")
        print(f"| 0 | {resident(pid):.1f} |")
        while answered < wanted:
            for wire in ("json", "binary"):
                script = server.scripts[wire]
                cell = load.run(server.url, script, connections=64, seconds=1, core=generator)
                cell.check()
                answered += cell.requests
            if not warm and answered >= _WARM:
                warm = resident(pid)
            print(f"| {answered:,} | {resident(pid):.1f} |", flush=True)
        growth = resident(pid) / warm - 1
        print(f"growth from the first line past {_WARM:,} requests: {growth * 100:+.2f} %")
    finally:
        server.stop()


def main() -> None:
    """Print resident memory over requests, or after 1, 20, 50, 100 and 200 cycles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=60)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--keep", action="store_true", help="one version always stays loaded")
    parser.add_argument("--plain", action="store_true", help="onnxruntime alone, for comparison")
    parser.add_argument("--requests", type=int, help="so many over HTTP instead of cycles")
    arguments = parser.parse_args()
    if arguments.requests:
        over_requests(arguments.requests)
        return

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
