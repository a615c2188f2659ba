"""What a run of `bench_http.py` must show, and whether it does.

    python benchmarks/bars.py build/http.json

A bar compares medians; "best of" takes the best setting of a peer. A bar whose contestants were not
measured stays open.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Place = tuple[str, str, int, str]
"""Model, wire, connections, contestant."""


class Missing(Exception):
    """Something a bar needs was not measured."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of medians, and the smallest and largest of one round."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}-{self.high:.2f})"


class Results:
    """Medians and ratios out of the cells of a run."""

    def __init__(self, document: dict) -> None:
        self.document = document
        self.cells: dict[Place, list[dict]] = {}
        for cell in document["cells"]:
            place = (cell["model"], cell["wire"], cell["connections"], cell["contestant"])
            self.cells.setdefault(place, []).append(cell)

    def groups(self) -> list[tuple[str, str, int]]:
        """Return what contestants were compared in, in the order of measurement."""
        return list(dict.fromkeys(place[:3] for place in self.cells))

    def contestants(self, model: str, wire: str, connections: int) -> list[str]:
        """Return who was measured there."""
        return [place[3] for place in self.cells if place[:3] == (model, wire, connections)]

    def values(self, place: Place, what: str) -> list[float]:
        """Return a quantity of every round.

        Raises:
            Missing: There was none.
        """
        if place not in self.cells:
            raise Missing(f"{place[3]} on {place[0]}, {place[1]}, {place[2]} connections")
        return [cell[what] for cell in self.cells[place]]

    def median(self, model: str, wire: str, connections: int, name: str, what: str) -> float:
        """Return the median over the rounds."""
        return statistics.median(self.values((model, wire, connections, name), what))

    def best(self, model: str, wire: str, connections: int, names: Sequence[str], what: str) -> str:
        """Return the one of the contestants that does best: the highest rate, the lowest time."""
        group = (model, wire, connections)
        there = [name for name in names if (*group, name) in self.cells]
        if not there:
            raise Missing(f"{' or '.join(names)} on {model}, {wire}, {connections} connections")
        choose = max if what == "rate" else min
        return choose(there, key=lambda name: self.median(*group, name, what))

    def ratio(self, ours: Place, theirs: Place, what: str) -> Ratio:
        """Return ours by theirs."""
        value = statistics.median(self.values(ours, what)) / statistics.median(
            self.values(theirs, what)
        )
        by_round = {cell["round"]: cell[what] for cell in self.cells[theirs]}
        paired = [
            cell[what] / by_round[cell["round"]]
            for cell in self.cells[ours]
            if cell["round"] in by_round
        ] or [value]
        return Ratio(value, min(paired), max(paired))

    def raw_best(self, model: str) -> tuple[float, int]:
        """Return onnxruntime's best rows/s (of medians over the rounds) and its batch size."""
        rounds = self.document["raw"].get(model)
        if not rounds:
            raise Missing(f"onnxruntime alone on {model}")
        medians = {rows: statistics.median(found[rows] for found in rounds) for rows in rounds[0]}
        rows = max(medians, key=medians.__getitem__)
        return medians[rows], int(rows)

    def raw_run(self, model: str, rows: int) -> float:
        """Return the us of one run of a batch by onnxruntime alone."""
        rounds = self.document["raw"].get(model)
        if not rounds:
            raise Missing(f"onnxruntime alone on {model}")
        return rows / statistics.median(found[str(rows)] for found in rounds) * 1e6


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar: what is asked, and what was found."""

    title: str
    asked: str
    find: Callable[[Results], tuple[str, bool | None]]
    """Returns the finding as text, and whether it is enough (None: only to be told)."""


def _at_least(
    limit: float, ours: Place, theirs: Sequence[str], what: str = "rate"
) -> Callable[[Results], tuple[str, bool | None]]:
    def find(results: Results) -> tuple[str, bool | None]:
        name = results.best(*ours[:3], theirs, what)
        ratio = results.ratio(ours, (*ours[:3], name), what)
        text = f"{ratio} x {name}"
        if what == "rate":
            by_cpu = results.ratio((*ours[:3], name), ours, "cpu")
            text += f"; by CPU {by_cpu.value:.2f}"
        return text, (ratio.value >= limit if what == "rate" else ratio.value <= limit)

    return find


def _told(ours: Place, theirs: Sequence[str]) -> Callable[[Results], tuple[str, bool | None]]:
    find = _at_least(0, ours, theirs)
    return lambda results: (find(results)[0], None)


def _raw_share(
    limit: float, model: str, wire: str, connections: int
) -> Callable[[Results], tuple[str, bool | None]]:
    def find(results: Results) -> tuple[str, bool | None]:
        best, rows = results.raw_best(model)
        share = results.median(model, wire, connections, "modelserve", "rate") / best
        return f"{share:.3f} of {best:,.0f} rows/s (batch {rows})", share >= limit

    return find


def _below_triton(results: Results) -> tuple[str, bool | None]:
    ratios = [
        results.ratio(("M1", wire, 1, "modelserve"), ("M1", wire, 1, "triton"), "p50")
        for wire in ("json", "binary")
    ]
    return " and ".join(f"{r} x triton" for r in ratios), all(r.value < 1 for r in ratios)


def _tree(results: Results) -> tuple[str, bool | None]:
    group = ("tree", "json", 64)
    name = results.best(*group, _BY_HAND, "rate")
    found = [
        f"{ours}: {results.ratio((*group, ours), (*group, name), 'rate')}"
        for ours in ("modelserve", "modelserve-in-fastapi", "modelserve-beside-fastapi")
        if (*group, ours) in results.cells
    ]
    if not found:
        raise Missing("modelserve on tree, json, 64 connections")
    return f"{'; '.join(found)} x {name}", None


def _together(results: Results) -> tuple[str, bool | None]:
    found = results.document["together"]
    if not found:
        raise Missing("M1 and M2 served together")
    alone = statistics.median(found["M1 alone, p99"])
    beside = statistics.median(found["M1 beside M2, p99"])
    one, eight = results.raw_run("M2", 1), results.raw_run("M2", 8)
    text = (
        f"p99 {beside:,.0f} us, alone {alone:,.0f}; a run of M2 {one:,.0f} (1 row) to "
        f"{eight:,.0f} (8 rows, as many as its connections)"
    )
    return text, beside <= 2 * alone + eight


_BY_HAND = ("fastapi", "fastapi-orjson", "fastapi-threads")
_MOSEC = ("mosec-orjson", "mosec-orjson-single", "mosec")
_MOSEC_RAW = ("mosec-raw", "mosec-raw-single")


def _bars() -> Iterator[Bar]:
    def ours(
        wire: str, name: str = "modelserve", connections: int = 64, model: str = "M1"
    ) -> Place:
        return (model, wire, connections, name)

    json_, binary = ours("json"), ours("binary")
    yield Bar("M1 JSON against Mosec with orjson", ">= 1.7", _at_least(1.7, json_, _MOSEC))
    yield Bar("M1 binary against Mosec's raw bytes", ">= 1.5", _at_least(1.5, binary, _MOSEC_RAW))
    for wire, place in (("JSON", json_), ("binary", binary)):
        title = f"M1 {wire} against Triton (Python backend)"
        yield Bar(title, ">= 3.3", _at_least(3.3, place, ["triton"]))
    for wire, place in (("JSON", json_), ("binary", binary)):
        yield Bar(f"M1 {wire} against floor.py", ">= 0.75", _at_least(0.75, place, ["floor"]))
    yield Bar(
        "M1 JSON, ASGIApp in FastAPI against FastAPI by hand",
        ">= 4",
        _at_least(4, ours("json", "modelserve-in-fastapi"), _BY_HAND),
    )
    yield Bar(
        "M1 JSON, ms.mount beside FastAPI against FastAPI by hand",
        "told",
        _told(ours("json", "modelserve-beside-fastapi"), _BY_HAND),
    )
    for peer in ("litserve", "bentoml"):
        yield Bar(
            f"scikit-learn's predict, @ms.model against {peer}",
            ">= 10",
            _at_least(
                10, ours("json", "modelserve-function", model="sklearn"), [peer, f"{peer}-batched"]
            ),
        )
    for wire in ("json", "binary"):
        yield Bar(
            f"M1 {wire}, CPU a request with TLS and API key",
            "<= 1.2",
            _at_least(1.2, ours(wire, "modelserve-tls"), ["modelserve"], "cpu"),
        )
    for wire in ("json", "binary"):
        title = f"M1 {wire}, one connection: p50 against floor.py"
        yield Bar(title, "<= 1.25", _at_least(1.25, ours(wire, connections=1), ["floor"], "p50"))
    yield Bar("M1, one connection: p50 against Triton", "< 1", _below_triton)
    for connections in (8, 32, 64):
        for wire in ("json", "binary"):
            title = f"M2 {wire}, {connections} connections: share of onnxruntime alone"
            yield Bar(title, ">= 0.95", _raw_share(0.95, "M2", wire, connections))
    for wire in ("json", "binary"):
        place = ours(wire, connections=32, model="M2")
        title = f"M2 {wire}, 32 connections: p99 against Triton"
        yield Bar(title, "<= 1.3", _at_least(1.3, place, ["triton", "triton-8"], "p99"))
    yield Bar(
        "M3 binary: share of onnxruntime alone", ">= 0.6", _raw_share(0.6, "M3", "binary", 64)
    )
    yield Bar("tree JSON against FastAPI by hand", "told", _tree)
    yield Bar("M1 beside M2: p99", "<= 2 x alone + a run of M2", _together)


def print_bars(document: dict) -> None:
    """Print every bar with what was measured, then those that nothing was measured for."""
    results = Results(document)
    open_bars = []
    print("\n| bar | asked | measured | met |")
    print("|---|---|---|---|")
    for bar in _bars():
        try:
            found, met = bar.find(results)
        except Missing as missing:
            open_bars.append(f"{bar.title} ({missing})")
        else:
            verdict = {True: "yes", False: "NO", None: "-"}[met]
            print(f"| {bar.title} | {bar.asked} | {found} | {verdict} |")
    if open_bars:
        print("\nOpen, for want of:")
        for text in open_bars:
            print(f"- {text}")


if __name__ == "__main__":
    print_bars(json.loads(Path(sys.argv[1]).read_text()))
