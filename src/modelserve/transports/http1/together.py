"""Answers together what one turn of the event loop brought of plain requests for small models.

For a model of some microseconds a request's way costs more than its run: objects for each step,
and calls between them. Requests of one row that differ in their data alone take the steps as one
here: read, joined, run, cut into answers. Each still has its own record, id, and authentication.

Nothing depends on it. Whatever is not as usual (a head or body not seen before, a deadline, a busy
or slower model, a policy, any failure) goes the way of `Connection`, request by request, and what
is answered is the same, byte for byte.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from modelserve.codecs.oip_rows import RowKind, read_row, write_rows
from modelserve.messages import BatchRecord, Exchange
from modelserve.tensors import Tensor
from modelserve.transports.routes import BINARY, JSON, Route, Routes

from .heads import Head
from .replies import ReplyHeads

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["Together"]

_LOG = logging.getLogger(__name__)


def _none(model: str, version: str) -> int:
    return 0


# A larger body has its own cost, beside which the rest is small.
LARGEST: Final = 16 << 10
# Fewer are as well off on their own; it is two that share a run.
_FEWEST: Final = 2

_RunRows: TypeAlias = Callable[
    [str, str, Mapping[str, Tensor], int],
    tuple[str, Mapping[str, Tensor], BatchRecord] | None,
]


class _Arrival(NamedTuple):
    connection: Connection
    head: Head
    message: bytes
    body: int
    """Where the body begins in the message."""
    at: float


class _Group:
    """Arrivals that differ in their data alone."""

    __slots__ = ("arrivals", "kind", "most", "route", "rows", "took")

    def __init__(self, route: Route, kind: RowKind, most: int) -> None:
        self.route = route
        self.kind = kind
        self.most = most
        """Most rows of a run."""
        self.arrivals: list[_Arrival] = []
        self.rows: list[bytes] = []
        self.took = 0.0
        """Seconds that reading them took."""


class Together:
    """Gathers plain requests and answers them at the end of the turn.

    Args:
        routes: What answers.
        replies: Writes heads of replies.
    """

    __slots__ = ("_arrivals", "_most_rows", "_replies", "_routes", "_run_rows", "answered")

    def __init__(self, routes: Routes, replies: ReplyHeads) -> None:
        self._routes = routes
        self._replies = replies
        gathering = routes.gathering
        self._most_rows: Callable[[str, str], int] = gathering.most_rows if gathering else _none
        self._run_rows: _RunRows | None = gathering.run_rows if gathering else None
        self._arrivals: list[_Arrival] = []
        self.answered = 0
        """Requests that were answered together."""

    def takes(self, head: Head) -> bool:
        """Tell whether requests with this head may be gathered."""
        route = head.route
        return (
            self._run_rows is not None
            and route is not None
            and route.infers
            and head.plain
            and 0 < head.length <= min(LARGEST, route.max_body)
        )

    def add(self, connection: Connection, head: Head, message: bytes, body: int) -> None:
        """Take a whole request; its connection is told in the loop's next turn."""
        if not self._arrivals:
            asyncio.get_running_loop().call_soon(self._flush)
        self._arrivals.append(_Arrival(connection, head, message, body, perf_counter()))

    def _flush(self) -> None:
        arrivals, self._arrivals = self._arrivals, []
        if len(arrivals) < _FEWEST:
            for arrival in arrivals:
                self._let_go(arrival)
            return
        try:
            groups, others = self._grouped(arrivals)
            for group in groups:
                for start in range(0, len(group.arrivals), group.most):
                    self._answer(group, start, start + group.most)
            # Not before: what they put into the model's queue would be in the way of all.
            for arrival in others:
                self._let_go(arrival)
        except Exception:  # the boundary of a turn: nobody may be left without an answer
            _LOG.exception("requests that were gathered go their own ways")
            for arrival in arrivals:
                self._let_go(arrival)

    def _grouped(self, arrivals: list[_Arrival]) -> tuple[list[_Group], list[_Arrival]]:
        """Read the requests; returns groups of those that are as usual, and the others."""
        others: list[_Arrival] = []
        groups: dict[tuple[Route, RowKind], _Group] = {}
        bounds: dict[Route, int] = {}
        group: _Group | None = None
        began = perf_counter()
        for arrival in arrivals:
            head = arrival.head
            route: Route = head.route  # type: ignore[assignment]  # `takes` saw to it
            most = bounds.get(route, -1)
            if most < 0:
                most = bounds[route] = self._most_rows(route.model, route.version)
            read = read_row(arrival.message, arrival.body, head.json_size) if most else None
            if read is None or not arrival.connection.waits:
                others.append(arrival)
                continue
            kind, row = read
            if group is None or kind is not group.kind or route is not group.route:
                group = groups.setdefault((route, kind), _Group(route, kind, most))
            group.arrivals.append(arrival)
            group.rows.append(row)
        each = (perf_counter() - began) / len(arrivals)
        for group in groups.values():
            group.took = each
        return list(groups.values()), others

    def _answer(self, group: _Group, start: int, stop: int) -> None:
        arrivals, rows = group.arrivals[start:stop], group.rows[start:stop]
        if self._routes.authenticates:
            admitted = [self._admits(group.route, arrival) for arrival in arrivals]
            for arrival, name in zip(arrivals, admitted, strict=True):
                if name is None:
                    self._let_go(arrival)  # to be refused
            rows = [row for row, name in zip(rows, admitted, strict=True) if name is not None]
            arrivals = [a for a, name in zip(arrivals, admitted, strict=True) if name is not None]
            names = [name for name in admitted if name is not None]
        else:
            names = [""] * len(arrivals)
        ran = self._run(group, rows) if rows else None
        if ran is None:
            for arrival in arrivals:
                self._let_go(arrival)
            return
        version, record, bodies, json_size, encoding = ran
        opening = self._replies.opening(200, JSON if json_size is None else BINARY)
        model, took = group.route.model, group.took
        middle = b""
        if json_size is not None:
            middle = b"inference-header-content-length: %d\r\n" % json_size
        self.answered += len(arrivals)
        routes, record_exchange = self._routes, self._routes.record
        for arrival, body, name in zip(arrivals, bodies, names, strict=True):
            exchange = Exchange("http", model, id=routes.new_id())
            size = len(body)
            # One write each: the head, and what the answer says.
            arrival.connection.reply_gathered(
                b"%b%d\r\nx-request-id: %b\r\n%b\r\n%b"
                % (opening, size, exchange.id.encode(), middle, body)
            )
            if record_exchange is not None:
                exchange.version = version
                exchange.started = exchange.enqueued = arrival.at
                exchange.principal = name
                exchange.bytes_in = arrival.head.length
                exchange.bytes_out = size
                exchange.rows = 1
                exchange.decode = took
                exchange.encode = encoding
                exchange.batch = record
                record_exchange(exchange)

    def _run(
        self, group: _Group, rows: list[bytes]
    ) -> tuple[str, BatchRecord, list[bytes], int | None, float] | None:
        """Run joined rows and return what the answers are made of."""
        kind, route, run_rows = group.kind, group.route, self._run_rows
        if run_rows is None:
            return None
        count = len(rows)
        joined: Any = np.frombuffer(b"".join(rows), kind.dtype)
        ran = run_rows(
            route.model, route.version, {kind.name: joined.reshape(count, *kind.row)}, count
        )
        if ran is None:
            return None
        version, outputs, record = ran
        began = perf_counter()
        written = write_rows(route.model, version, outputs, count, binary=kind.binary)
        if written is None:
            return None
        bodies, json_size = written
        return version, record, bodies, json_size, (perf_counter() - began) / count

    def _admits(self, route: Route, arrival: _Arrival) -> str | None:
        """Return the name of a caller who may ask, None for one who is to be refused."""
        try:
            return self._routes.admitted(route, arrival.connection.caller(arrival.head)).name
        except Exception:  # whatever it was is told where the request is refused
            return None

    def _let_go(self, arrival: _Arrival) -> None:
        """Leave a request to its own way."""
        arrival.connection.serve_gathered(arrival.head, arrival.message[arrival.body :])
