"""How fast is an answer over HTTP, beside the bare sketch and beside others, on one core each?

    python benchmarks/peers/install.py && python benchmarks/bench_http.py --json build/http.json
    python benchmarks/bench_http.py --list
    python benchmarks/bench_http.py --contestants modelserve floor --models M1 --connections 64

Every contestant serves the same model from one core, wrk loads it from another. Each is first asked
16 different requests many at once, and its answers compared with plain onnxruntime's; one that
answers wrongly is not measured. All stay up: rounds visit them in a new order each time, and those
not visited are paused. Rates and times are medians over the rounds, ratios are of medians, with the
smallest and largest ratio within one round. CPU is what all threads of all processes of the
contestant used; where other programs are about, ratios "by CPU" hold longer than those of rates.
Linux, `taskset` and `wrk` are needed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import bars
import contestants
import load
from contestants import CONTESTANTS, OURS, Contestant
from models import MODELS, Model
from servers import Failed, Server, busy

CONNECTIONS = {"M1": (1, 8, 64), "M2": (8, 32, 64), "M3": (64,), "tree": (1, 64), "sklearn": (64,)}
# A model of 5 ms a row answers few requests in a cell.
_LONGER = {"M2": 3}


@dataclass(frozen=True, slots=True)
class Cell:
    """One contestant loaded for a time."""

    model: str
    wire: str
    connections: int
    contestant: str
    round: int
    rate: float
    cpu: float
    """us a request."""
    p50: float
    p99: float
    others: float
    """Share of the server's core that other programs took."""


class Measurement:
    """What was measured so far, and how."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.cells: list[Cell] = []
        self.raw: dict[str, list[dict[str, float]]] = {}
        self.together: dict[str, list[float]] = {}
        self.failed: dict[str, str] = {}

    def fail(self, server: Server, error: Exception) -> None:
        """Remember and say that a contestant is not measured."""
        self.failed[f"{server.contestant.name} {server.model.name}"] = str(error)
        print(f"{server.contestant.name} on {server.model.name}: {error}", file=sys.stderr)

    @contextmanager
    def running(self, model: Model, chosen: Sequence[Contestant]) -> Iterator[list[Server]]:
        """Start contestants one after the other and check them; at the end stop them."""
        servers: list[Server] = []
        try:
            for contestant in chosen:
                server = Server(contestant, model, core=self.arguments.server_core)
                servers.append(server)
                try:
                    server.wait()
                    server.check()
                except Failed as error:
                    self.fail(server, error)
                    server.stop()
                    servers.remove(server)
                else:
                    server.pause()
            yield servers
        finally:
            for server in servers:
                server.stop()

    def visit(self, server: Server, wire: str, connections: int, number: int) -> Cell:
        """Load one server for the time of a cell."""
        arguments = self.arguments
        seconds = arguments.seconds * _LONGER.get(server.model.name, 1)
        core = arguments.load_core
        server.resume()
        try:
            if number == 0:  # not counted: servers learn, and write their first pages
                server.load(wire, connections=connections, seconds=1, core=core).check()
            before = (server.cpu(), busy(arguments.server_core), time.monotonic())
            found = server.load(wire, connections=connections, seconds=seconds, core=core)
            elapsed = time.monotonic() - before[2]
            used = server.cpu() - before[0]
            others = max(0.0, busy(arguments.server_core) - before[1] - used) / elapsed
        finally:
            server.pause()
        found.check()
        return Cell(
            model=server.model.name,
            wire=wire,
            connections=connections,
            contestant=server.contestant.name,
            round=number,
            rate=found.rate,
            cpu=used / found.requests * 1e6,
            p50=found.p50,
            p99=found.p99,
            others=others,
        )

    def measure(self, model: Model, chosen: Sequence[Contestant]) -> None:
        """Run all rounds of one model."""
        arguments = self.arguments
        # Seeded, so that a run can be repeated in its order.
        order = random.Random(len(self.cells))
        with self.running(model, chosen) as servers:
            for number in range(arguments.rounds):
                if model.content is not None and not arguments.no_raw:
                    self.raw.setdefault(model.name, []).append(self.raw_limit(model))
                for connections in arguments.connections or CONNECTIONS[model.name]:
                    for wire in arguments.wires:
                        asked = [s for s in servers if wire in s.contestant.wires]
                        order.shuffle(asked)
                        for server in asked:
                            try:
                                cell = self.visit(server, wire, connections, number)
                            except (ValueError, RuntimeError) as error:
                                self.fail(server, error)
                                server.stop()
                                servers.remove(server)
                            else:
                                self.cells.append(cell)
                progress(f"{model.name}: round {number + 1} of {arguments.rounds}")

    def raw_limit(self, model: Model) -> dict[str, float]:
        """Return rows/s of onnxruntime alone on the servers' core, by batch size."""
        program = [sys.executable, str(Path(__file__).parent / "models.py"), "--raw", model.name]
        command = ["taskset", "-c", str(self.arguments.server_core), *program]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return json.loads(output)

    def measure_together(self) -> None:
        """Load M1 alone, and beside M2 in the same server."""
        arguments = self.arguments
        small, large = MODELS["M1"], MODELS["M2"]
        contestant = contestants.both(small, large)
        with self.running(small, [contestant]) as started:
            if not started:
                return
            [server] = started
            script = server.script("binary", large)
            server.resume()
            server.check(large)
            for number in range(arguments.rounds):
                alone = self.visit(server, "binary", 64, number)
                server.resume()
                core, seconds = arguments.load_core, arguments.seconds
                other = load.start(
                    server.url, script, connections=8, seconds=seconds + 1, core=core
                )
                time.sleep(0.5)
                found = server.load("binary", connections=64, seconds=seconds, core=core)
                behind = load.result(other)
                found.check()
                behind.check()
                for name, value in (
                    ("M1 alone, p99", alone.p99),
                    ("M1 beside M2, p99", found.p99),
                    ("M1 alone, requests/s", alone.rate),
                    ("M1 beside M2, requests/s", found.rate),
                    ("M2 beside M1, requests/s", behind.rate),
                ):
                    self.together.setdefault(name, []).append(value)
                progress(f"M1 and M2 together: round {number + 1} of {arguments.rounds}")

    def document(self) -> dict:
        """Return everything for a file."""
        return {
            "machine": machine(),
            "versions": contestants.versions(),
            "seconds": self.arguments.seconds,
            "rounds": self.arguments.rounds,
            "cells": [asdict(cell) for cell in self.cells],
            "raw": self.raw,
            "together": self.together,
            "failed": self.failed,
        }


def progress(text: str) -> None:
    """Say how far it is, where tables are not written to."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def machine() -> dict[str, str | int]:
    """Describe the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cpus": os.cpu_count() or 0,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def print_tables(document: dict) -> None:
    """Print a table per model, wire and number of connections, ours last compared with all."""
    print(", ".join(f"{name} {value}" for name, value in document["machine"].items()))
    print(", ".join(f"{name} {value}" for name, value in document["versions"].items()))
    results = bars.Results(document)
    for model, wire, connections in results.groups():
        names = results.contestants(model, wire, connections)
        reference = next((n for n in (OURS, "modelserve-function") if n in names), names[0])
        print(f"\n{model}, {wire}, {connections} connections; {document['rounds']} rounds")
        print(f"| contestant | requests/s | us CPU | p50 us | p99 us | {reference} / it | by CPU |")
        print("|---|---|---|---|---|---|---|")
        group = (model, wire, connections)
        for name in sorted(names, key=lambda n: -results.median(*group, n, "rate")):
            rate, cpu, p50, p99 = (
                results.median(*group, name, what) for what in ("rate", "cpu", "p50", "p99")
            )
            ratio = results.ratio((*group, reference), (*group, name), "rate")
            less = results.ratio((*group, name), (*group, reference), "cpu")
            print(
                f"| {name} | {rate:,.0f} | {cpu:.1f} | {p50:,.0f} | {p99:,.0f} "
                f"| {ratio} | {less.value:.2f} |"
            )
    for model in document["raw"]:
        best, rows = results.raw_best(model)
        print(f"\n{model}, onnxruntime alone: best {best:,.0f} rows/s, at a batch of {rows}")
    for name, values in document["together"].items():
        print(f"{name}: {statistics.median(values):,.0f}")
    disturbed = sum(cell["others"] > 0.05 for cell in document["cells"])
    if disturbed:
        print(
            f"\nOther programs took more than 5 % of the servers' core in {disturbed} of "
            f"{len(document['cells'])} cells: only CPU a request, and ratios of it, can be trusted."
        )
    if document["failed"]:
        print("\nNot measured:")
        for name, why in document["failed"].items():
            print(f"- {name}: {why.splitlines()[0] if why else 'no reason known'}")


def parse() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contestants", nargs="+", metavar="NAME", choices=[*CONTESTANTS])
    parser.add_argument("--without", nargs="+", metavar="NAME", choices=[*CONTESTANTS], default=[])
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    parser.add_argument(
        "--wires", nargs="+", choices=["json", "binary"], default=["json", "binary"]
    )
    parser.add_argument(
        "--connections", nargs="+", type=int, help="default: by model, as the bars need them"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one cell")
    parser.add_argument("--server-core", type=int, default=1)
    parser.add_argument("--load-core", type=int, default=0)
    parser.add_argument("--no-raw", action="store_true", help="do not measure onnxruntime alone")
    parser.add_argument("--no-together", action="store_true", help="do not serve M1 beside M2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all cells there")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="print an earlier run")
    parser.add_argument("--list", action="store_true", help="say who takes part, and end")
    return parser.parse_args()


def print_contestants() -> None:
    """Say who takes part, on which models, and what is not installed."""
    for contestant in CONTESTANTS.values():
        wires = ", ".join(f"{wire} ({form})" for wire, (_, form) in contestant.wires.items())
        missing = f"; first: {contestant.missing}" if contestant.missing else ""
        print(f"{contestant.name}: {' '.join(contestant.models)}; {wires}{missing}")


def measure(arguments: argparse.Namespace) -> dict:
    """Run everything that was asked for; what is measured survives an interruption."""
    chosen = [
        contestant
        for contestant in CONTESTANTS.values()
        if contestant.name in (arguments.contestants or CONTESTANTS)
        and contestant.name not in arguments.without
    ]
    measurement = Measurement(arguments)
    for contestant in chosen:
        if contestant.missing:
            measurement.failed[contestant.name] = f"not installed; {contestant.missing}"
    there = [contestant for contestant in chosen if not contestant.missing]
    for name in arguments.models:
        MODELS[name].write()
    try:
        for name in arguments.models:
            taking_part = [c for c in there if name in c.models]
            if taking_part:
                measurement.measure(MODELS[name], taking_part)
        both = {"M1", "M2"} <= set(arguments.models)
        if both and not arguments.no_together and any(c.name == OURS for c in there):
            measurement.measure_together()
    except KeyboardInterrupt:
        print("interrupted: what follows is what was measured until then", file=sys.stderr)
    return measurement.document()


def main() -> None:
    """Measure, or print an earlier run."""
    arguments = parse()
    # Like Ctrl-C: what was started is stopped, what was measured is printed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if arguments.list:
        print_contestants()
        return
    if arguments.from_json:
        document = json.loads(arguments.from_json.read_text())
    else:
        document = measure(arguments)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(document, indent=1))
    if not document["cells"]:
        failures = "; ".join(f"{n}: {why}" for n, why in document["failed"].items())
        raise SystemExit(f"nothing was measured: {failures}")
    print_tables(document)
    bars.print_bars(document)


if __name__ == "__main__":
    main()
