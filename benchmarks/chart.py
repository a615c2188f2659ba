"""Draw the chart of the README out of a run of `bench_http.py`.

    python benchmarks/bench_http.py --models M1 --connections 64 --json build/http.json
    python benchmarks/chart.py build/http.json docs/_static/requests.svg

Bars are medians of requests/s on one core; the thin line in each spans the rounds. Of a peer's
settings the best one is shown. The SVG has a light and a dark face, and its own description.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path

import bars

MODEL, CONNECTIONS = "M1", 64
_Bars = tuple[tuple[str, tuple[str, ...]], ...]
"""What is written beside each bar, and the contestants of which it shows the best."""
_PANELS: tuple[tuple[str, str, _Bars], ...] = (
    (
        "json",
        "JSON",
        (
            ("modelserve serve", ("modelserve",)),
            ("modelserve in FastAPI", ("modelserve-in-fastapi",)),
            ("Mosec with orjson", ("mosec-orjson", "mosec-orjson-single")),
            ("Mosec", ("mosec",)),
            ("Triton, Python backend", ("triton",)),
            ("FastAPI by hand", ("fastapi", "fastapi-orjson", "fastapi-threads")),
            ("MLServer", ("mlserver",)),
            ("LitServe", ("litserve", "litserve-batched")),
            ("BentoML", ("bentoml", "bentoml-batched")),
        ),
    ),
    (
        "binary",
        "Binary tensors",
        (
            ("modelserve serve", ("modelserve",)),
            ("modelserve in FastAPI", ("modelserve-in-fastapi",)),
            ("Mosec, raw bytes", ("mosec-raw", "mosec-raw-single")),
            ("Triton, Python backend", ("triton",)),
            ("FastAPI by hand, raw bytes", ("fastapi",)),
        ),
    ),
)
_LEFT, _WIDTH, _RIGHT = 190, 470, 80
_ROW, _BAR = 26, 16
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .title { font-weight: 600; font-size: 14px; }
  .note { font-size: 11px; fill: #59636e; }
  .ours { fill: #1f6feb; } .peer { fill: #a5adb8; }
  .span { stroke: #1f2328; stroke-width: 1; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .note { fill: #9198a1; }
    .ours { fill: #4493f8; } .peer { fill: #59636e; } .span { stroke: #e6edf3; }
  }
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One bar."""

    title: str
    ours: bool
    rate: float
    low: float
    high: float


def rows(results: bars.Results, wire: str, shown: _Bars) -> list[Row]:
    """Return the bars of a wire, the longest first."""
    found = []
    for title, names in shown:
        try:
            name = results.best(MODEL, wire, CONNECTIONS, names, "rate")
        except bars.Missing:
            continue
        rates = results.values((MODEL, wire, CONNECTIONS, name), "rate")
        median = results.median(MODEL, wire, CONNECTIONS, name, "rate")
        found.append(Row(title, title.startswith("modelserve"), median, min(rates), max(rates)))
    return sorted(found, key=lambda row: -row.rate)


def _panel(title: str, shown: list[Row], top: int, scale: float) -> list[str]:
    lines = [f'<text class="title" x="12" y="{top + 14}">{escape(title)}</text>']
    for index, row in enumerate(shown):
        y = top + 26 + index * _ROW
        width = max(1.0, row.rate * scale)
        middle = y + _BAR / 2
        kind = "ours" if row.ours else "peer"
        low, high = _LEFT + row.low * scale, _LEFT + row.high * scale
        end = max(_LEFT + width, high) + 6
        lines += [
            f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(row.title)}</text>',
            f'<rect class="{kind}" x="{_LEFT}" y="{y}" rx="2" '
            f'width="{width:.1f}" height="{_BAR}"/>',
            f'<line class="span" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:g}" y2="{middle:g}"/>',
            f'<text x="{end:.1f}" y="{y + 13}">{row.rate:,.0f}</text>',
        ]
    return lines


def draw(document: dict) -> str:
    """Return the SVG."""
    results = bars.Results(document)
    panels = [
        (f"{title}: requests/s on one core", found)
        for wire, title, shown in _PANELS
        if (found := rows(results, wire, shown))
    ]
    if not panels:
        raise SystemExit(f"the run has nothing on {MODEL} with {CONNECTIONS} connections")
    largest = max(max(row.rate, row.high) for _, shown in panels for row in shown)
    lines, top = [], 8
    for title, shown in panels:
        lines += _panel(title, shown, top, _WIDTH / largest)
        top += 26 + len(shown) * _ROW + 14
    machine, versions = document["machine"], document["versions"]
    notes = [
        f"MLP 64-128-64-10, one row a request, {CONNECTIONS} connections; medians of "
        f"{document['rounds']} rounds, the line spans them.",
        f"{machine['processor']}, Python {machine['python']}, "
        f"onnxruntime {versions.get('onnxruntime', '?')}; benchmarks/bench_http.py",
    ]
    for note in notes:
        lines.append(f'<text class="note" x="12" y="{top + 8}">{escape(note)}</text>')
        top += 16
    told = "; ".join(
        f"{title}: " + ", ".join(f"{row.title} {row.rate:,.0f}" for row in shown)
        for title, shown in panels
    )
    width, height = _LEFT + _WIDTH + _RIGHT, top + 6
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-labelledby="title description">',
            '<title id="title">Requests a second on one core, by server</title>',
            f'<desc id="description">{escape(told)}</desc>',
            f"<style>{_STYLE}</style>",
            *lines,
            "</svg>\n",
        ]
    )


def main() -> None:
    """Write the chart."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("svg", type=Path)
    arguments = parser.parse_args()
    arguments.svg.write_text(draw(json.loads(arguments.results.read_text())), "utf-8")


if __name__ == "__main__":
    main()
