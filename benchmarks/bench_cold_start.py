"""How long does a server take from the start of its process to its first right answer over HTTP?

    python benchmarks/bench_cold_start.py
    python benchmarks/bench_cold_start.py --model M2 --rounds 20 --contestants modelserve

A round starts every contestant once, in a new order, each alone on a core, and asks it from another
core every 2 ms until the answer is what onnxruntime computes. Compiled bytecode is kept from a
start before, that does not count, as it is beside an installed package. CPU is that of all threads
up to the answer; under other load its minimum still holds. The second table shows what ours spends:
a new interpreter is given more to do from line to line.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench_http import machine
from contestants import CONTESTANTS, OURS, versions
from models import MODELS, REPOSITORY, Model
from servers import Failed, Server

_BYTECODE = REPOSITORY.parent / "bytecode"
_LONGEST = 60.0
_PEERS = ("mosec-orjson", "triton", "litserve", "bentoml", "mlserver", "fastapi-orjson")

_LIBRARIES = "import argparse, asyncio, numpy, onnxruntime, uvloop, httptools, orjson"
_OURS = "import modelserve.cli.server, modelserve.transports.http1.server"
_OURS += ", modelserve.backends.onnxruntime"
_LOAD = "from modelserve import ModelRepository\n"
_LOAD += "repository = ModelRepository({directory!r}, load=[{name!r}]); assert repository.ready\n"
_STEPS = {
    "interpreter": "",
    "+ numpy": "import numpy",
    "+ onnxruntime": "import onnxruntime",
    "+ asyncio, uvloop, httptools, orjson, argparse": _LIBRARIES,
    "+ modules of modelserve": f"{_LIBRARIES}\n{_OURS}",
    "+ model loaded, proven, warm": f"{_LIBRARIES}\n{_OURS}\n{_LOAD}",
}

_END = "\nimport os; os._exit(0)"
"""A server's first answer does not wait for what the interpreter does at its end."""


def start(name: str, model: Model, core: int) -> tuple[float, float]:
    """Start a contestant; returns the ms until its first right answer, and its ms of CPU."""
    started = time.perf_counter()
    server = Server(CONTESTANTS[name], model, core=core)
    wire = next(iter(server.contestant.wires))
    try:
        while True:
            try:
                server.ask(wire, model, 0)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if server.process.poll() is not None:
                    raise Failed(f"it ended: {server.tail()!r}") from error
                if time.perf_counter() - started > _LONGEST:
                    raise Failed(f"no right answer in {_LONGEST:g} s: {error}") from error
                time.sleep(0.002)
            else:
                return (time.perf_counter() - started) * 1e3, server.cpu() * 1e3
    finally:
        server.stop()


def step(program: str, core: int) -> tuple[float, float]:
    """Run a program in a new interpreter; returns its ms and its ms of CPU."""
    started = time.perf_counter()
    process = subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", program])
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(f"a step ended with {process.returncode}")
    return wall * 1e3, (usage.ru_utime + usage.ru_stime) * 1e3


def _row(name: str, found: list[tuple[float, float]]) -> str:
    wall, cpu = zip(*found, strict=True)
    return (
        f"| {name} | {min(wall):.0f} | {statistics.median(wall):.0f} "
        f"| {min(cpu):.0f} | {statistics.median(cpu):.0f} |"
    )


def main() -> None:
    """Start everyone in turn and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=[n for n in MODELS if n != "sklearn"], default="M1")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--contestants", nargs="*", choices=CONTESTANTS, default=[OURS, *_PEERS])
    arguments = parser.parse_args()
    os.environ["PYTHONPYCACHEPREFIX"] = str(_BYTECODE)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    model = MODELS[arguments.model]
    model.write()
    names = [name for name in arguments.contestants if model.name in CONTESTANTS[name].models]
    for name in [name for name in names if CONTESTANTS[name].missing]:
        names.remove(name)
        print(f"{name} is not measured; first: {CONTESTANTS[name].missing}", file=sys.stderr)
    fields = {"directory": str(Path(REPOSITORY)), "name": model.served}
    steps = {what: program.format(**fields) + _END for what, program in _STEPS.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in (*names, *steps)}
    me, core = sorted(os.sched_getaffinity(0))[-2:]
    os.sched_setaffinity(0, {me})
    for number in range(arguments.rounds + 1):
        for name in random.Random(number).sample(names, len(names)):
            try:
                measured = start(name, model, core)
            except Failed as error:
                names.remove(name)
                print(f"{name} failed: {error}", file=sys.stderr)
            else:
                found[name] += [measured] * (number > 0)
        for what, program in steps.items():
            found[what] += [step(program, core)] * (number > 0)
    print(", ".join(f"{key} {value}" for key, value in (machine() | versions()).items()))
    print(f"\n{model.name}, {arguments.rounds} starts each, ms")
    head = "| min | median | CPU min | CPU median |\n|---|---|---|---|---|"
    print(f"| contestant {head}")
    for name in sorted(names, key=lambda name: min(found[name])):
        print(_row(name, found[name]))
    print(f"\n| ours up to {head}")
    for what in steps:
        print(_row(what, found[what]))


if __name__ == "__main__":
    main()
