"""Every row of the table, as one piece, byte by byte, and cut in two wherever it can be."""

import asyncio
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest

from modelserve.testing import StubModel
from modelserve.transports.http1 import Limits
from modelserve.transports.serving import HTTPServer
from transports.http1.rows import PROBE, PROBED, ROWS, Row, get
from transports.http1.verdicts import judge
from transports.raw_http import Answer, converse

# Above this many bytes each further one costs time and shows nothing new.
SHORT = 120
LONGEST_BY_BYTES = 20_000

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def url(runner: asyncio.Runner) -> Iterator[str]:
    # Long enough for a slow machine, and shorter than what the client takes for a hang.
    limits = Limits(header_timeout=5, body_timeout=5, idle_timeout=5)
    server = HTTPServer(
        StubModel(name="echo"), http="127.0.0.1:0", server="http1", limits=limits, drain=0
    )
    runner.run(server.start())
    yield server.url
    runner.run(server.stop())


async def answers_to(url: str, row: Row, cuts: Iterable[int] = ()) -> list[Answer]:
    """Send a row and what follows it, cut at these places; see who is still there."""
    data = row.data if row.end == "cut" else row.data + PROBE
    ends = [0, *cuts, len(data)]
    pieces = [data[start:end] for start, end in pairwise(ends)]
    answers = await converse(url, pieces, bodiless=row.bodiless, finish=row.end == "cut")
    if not answers or answers[-1].told != PROBED:
        (alive,) = await converse(url, [get("/v2/health/live", "connection: close")])
        assert alive.status == 200
    return answers


async def agree(url: str, row: Row, all_cuts: Iterable[Iterable[int]]) -> None:
    """Fail unless a row in pieces has the verdict that it has as a whole."""
    whole = await answers_to(url, row)
    for cuts in all_cuts:
        answers = await answers_to(url, row, cuts)
        judge(row, answers)
        if row.end != "cut":
            assert answers[0].told == whole[0].told


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_in_one_piece(row: Row, url: str, runner: asyncio.Runner) -> None:
    judge(row, runner.run(answers_to(url, row)))


@pytest.mark.parametrize(
    "row", [row for row in ROWS if len(row.data) < LONGEST_BY_BYTES], ids=lambda row: row.name
)
def test_row_byte_by_byte(row: Row, url: str, runner: asyncio.Runner) -> None:
    size = len(row.data) + (0 if row.end == "cut" else len(PROBE))
    runner.run(agree(url, row, [range(1, size)]))


@pytest.mark.parametrize(
    "row", [row for row in ROWS if len(row.data) < SHORT], ids=lambda row: row.name
)
def test_row_cut_in_two(row: Row, url: str, runner: asyncio.Runner) -> None:
    runner.run(agree(url, row, [(at,) for at in range(1, len(row.data))]))
