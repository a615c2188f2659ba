"""Answers together what one turn of the event loop brought of plain requests for small models.

For a model of some microseconds a request's way costs more than its run: objects for each step,
and calls between them. Requests of one row that differ in their data alone take the steps as one
here: read, joined, run, cut into answers. Each still has its own record, id, and authentication.

Nothing depends on it. Whatever is not as usual (a body whose form was not seen before, a deadline,
a busy or slower model, a policy, any failure) goes the transport's own way, request by request, and
what is answered is the same, byte for byte.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic, perf_counter
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from modelserve.codecs.oip import encode_error, peek_timeout
from modelserve.codecs.oip_rows import RowKind, read_row, write_rows
from modelserve.errors import ServeError
from modelserve.messages import BatchRecord, Exchange
from modelserve.protocols import Caller, RowRunner
from modelserve.transports.routes import COMPRESSED_FROM, JSON, Reply, Route, Routes
from modelserve.transports.routes.headers import headers_of

__all__ = ["Arrival", "Asker", "Together"]

_LOG = logging.getLogger(__name__)


# A larger body has its own cost, beside which the rest is small.
LARGEST: Final = 16 << 10
_PAUSE: Final = 1.0
"""Seconds for which a model is let be whose answers could not be written together: its runs were in
vain."""


class Asker(Protocol):
    """Who asked: the transport's end of a request that was gathered."""

    @property
    def waits(self) -> bool:
        """Whether there is still somebody to answer."""
        ...

    def caller(self, arrival: Arrival) -> Caller:
        """Return who is calling, for an authenticator."""
        ...

    def reply_gathered(self, id: str, body: bytes, json_size: int | None) -> None:
        """Send the answer.

        Args:
            id: The request's id.
            body: The answer.
            json_size: Bytes of its JSON part where binary tensors follow it, else None.
        """
        ...

    def serve_gathered(self, arrival: Arrival) -> None:
        """Answer the request by itself, the transport's own way."""
        ...

    def refuse_gathered(self, reply: Reply) -> None:
        """Send a refusal, whose body is one buffer."""
        ...


class Arrival(NamedTuple):
    """A plain inference request that is there as a whole.

    Args:
        asker: Who asked.
        route: Where it goes.
        message: What holds its body, up to its end.
        start: Where the body begins.
        json_size: Bytes of the body's JSON part where binary tensors may follow, else None.
        at: When it came; a point of `time.perf_counter()`.
        head: The transport's own, for the asker.
    """

    asker: Asker
    route: Route
    message: bytes
    start: int
    json_size: int | str | None
    at: float
    head: Any


class _Group:
    """Arrivals that differ in their data alone."""

    __slots__ = ("arrivals", "kind", "most", "route", "rows", "runner", "took")

    def __init__(self, route: Route, kind: RowKind, runner: RowRunner, most: int) -> None:
        self.route = route
        self.kind = kind
        self.runner = runner
        self.most = most
        """Most rows of a run."""
        self.arrivals: list[Arrival] = []
        self.rows: list[bytes] = []
        self.took = 0.0
        """Seconds that reading them took."""


class Together:
    """Gathers plain requests and answers them at the end of the turn.

    Args:
        routes: What answers.
    """

    __slots__ = ("_arrivals", "_gathering", "_late", "_paused", "_routes", "_told", "answered")

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._gathering = routes.gathering
        self._late: Callable[[str, str, float], ServeError | None] | None = getattr(
            routes.servable, "late", None
        )
        self._told = "", b""
        """The error told last, and the body that tells it: most are told again."""
        self._arrivals: list[Arrival] = []
        self._paused: dict[tuple[str, str], float] = {}
        """Until when, by model and version asked for; only of those that are loaded."""
        self.answered = 0
        """Requests that were answered together."""

    def takes(self, route: Route | None, length: int) -> bool:
        """Tell whether requests without `OPTIONAL_HEADERS` for a route may be gathered.

        Args:
            route: The route.
            length: Bytes of the body.
        """
        return (
            self._gathering is not None
            and route is not None
            and route.infers
            and 0 < length <= min(LARGEST, route.max_body)
        )

    def add(self, arrival: Arrival) -> None:
        """Take a request; its asker is told in the loop's next turn."""
        if not self._arrivals:
            asyncio.get_running_loop().call_soon(self._flush)
        self._arrivals.append(arrival)

    def _flush(self) -> None:
        arrivals, self._arrivals = self._arrivals, []
        try:
            groups, others = self._grouped(arrivals)
            for group in groups:
                for start in range(0, len(group.arrivals), group.most):
                    self._answer(group, start, start + group.most)
            # Not before: what they put into the model's queue would be in the way of all.
            for arrival in others:
                if self._late is None or not self._refuse_late(arrival):
                    self._let_go(arrival)
        except Exception:  # the boundary of a turn: nobody may be left without an answer
            _LOG.exception("requests that were gathered go their own ways")
            for arrival in arrivals:
                self._let_go(arrival)

    def _grouped(self, arrivals: list[Arrival]) -> tuple[list[_Group], list[Arrival]]:
        """Read the requests; returns groups of those that are as usual, and the others."""
        others: list[Arrival] = []
        groups: dict[tuple[Route, RowKind], _Group] = {}
        runners: dict[Route, tuple[RowRunner | None, int]] = {}
        group: _Group | None = None
        began = perf_counter()
        for arrival in arrivals:
            route = arrival.route
            found = runners.get(route)
            if found is None:
                found = runners[route] = self._runner(route, began)
            runner, most = found
            read = read_row(arrival.message, arrival.start, arrival.json_size) if most else None
            if read is None or runner is None or not arrival.asker.waits:
                others.append(arrival)
                continue
            kind, row = read
            if group is None or kind is not group.kind or route is not group.route:
                group = groups.get((route, kind))
                if group is None:
                    group = groups[route, kind] = _Group(route, kind, runner, most)
            group.arrivals.append(arrival)
            group.rows.append(row)
        each = (perf_counter() - began) / len(arrivals)
        for group in groups.values():
            group.took = each
        return list(groups.values()), others

    def _runner(self, route: Route, now: float) -> tuple[RowRunner | None, int]:
        """Return what runs rows for a route, and how many at once; 0 where none may."""
        gathering = self._gathering
        paused = self._paused and self._paused.get((route.model, route.version), now) > now
        if paused or gathering is None:
            return None, 0
        runner = gathering.row_runner(route.model, route.version)
        return runner, 0 if runner is None else runner.most_rows

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
            names = [""] * len(rows)
        ran = self._run(group, rows) if rows else None
        if ran is None:
            for arrival in arrivals:
                self._let_go(arrival)
            return
        version, record, bodies, json_size, encoding = ran
        self.answered += len(arrivals)
        routes, record_exchange = self._routes, self._routes.record
        model, took = group.route.model, group.took
        for arrival, body, name in zip(arrivals, bodies, names, strict=True):
            exchange = Exchange("http", model, id=routes.new_id())
            arrival.asker.reply_gathered(exchange.id, body, json_size)
            if record_exchange is not None:
                exchange.version = version
                exchange.started = exchange.enqueued = arrival.at
                exchange.principal = name
                exchange.bytes_in = len(arrival.message) - arrival.start
                exchange.bytes_out = len(body)
                exchange.rows = 1
                exchange.decode = took
                exchange.encode = encoding
                exchange.batch = record
                record_exchange(exchange)

    def _run(
        self, group: _Group, rows: list[bytes]
    ) -> tuple[str, BatchRecord, list[bytes], int | None, float] | None:
        """Run joined rows and return what the answers are made of."""
        kind, route, runner = group.kind, group.route, group.runner
        count = len(rows)
        joined: Any = np.frombuffer(b"".join(rows), kind.dtype)
        ran = runner.run_rows({kind.name: joined.reshape(count, *kind.row)}, count)
        if ran is None:
            return None
        outputs, record = ran
        version = runner.version
        began = perf_counter()
        written = write_rows(route.model, version, outputs, count, binary=kind.binary)
        if written is None:
            self._paused[route.model, route.version] = began + _PAUSE
            return None
        bodies, json_size = written
        if json_size is None and len(bodies[0]) >= COMPRESSED_FROM:
            # Who would take it compressed is looked at one by one; beside such answers a request's
            # way costs little.
            self._paused[route.model, route.version] = began + _PAUSE
            return None
        return version, record, bodies, json_size, (perf_counter() - began) / count

    def _admits(self, route: Route, arrival: Arrival) -> str | None:
        """Return the name of a caller who may ask, None for one who is to be refused."""
        try:
            return self._routes.admitted(route, arrival.asker.caller(arrival)).name
        except Exception:  # whatever it was is told where the request is refused
            return None

    def _refuse_late(self, arrival: Arrival) -> bool:
        """Refuse a request that would be too late, if it says first how much time it has.

        As the routes do; without a way down to the model and back, that takes half the time.
        """
        seconds = None
        if arrival.json_size not in (0, "0"):  # otherwise there is no JSON in it
            seconds = peek_timeout(arrival.message, arrival.start)
        if seconds is None or self._late is None or not arrival.asker.waits:
            return False
        route, routes = arrival.route, self._routes
        name = self._admits(route, arrival) if routes.authenticates else ""
        if name is None:
            return False
        # Counted from when it came.
        left = seconds - (perf_counter() - arrival.at)
        error = self._late(route.model, route.version, monotonic() + left)
        if error is None:
            return False
        text = str(error)
        if text != self._told[0]:
            self._told = text, encode_error(text)
        body = self._told[1]
        exchange = Exchange("http", route.model, id=routes.new_id())
        reply = Reply(error.http, JSON, [body], len(body), exchange.id)
        reply.extra = headers_of(error)
        arrival.asker.refuse_gathered(reply)
        if routes.record is not None:
            exchange.version = route.version
            exchange.code = error.grpc
            exchange.started = arrival.at
            exchange.principal = name
            exchange.bytes_in = len(arrival.message) - arrival.start
            exchange.bytes_out = len(body)
            routes.record(exchange)
        return True

    def _let_go(self, arrival: Arrival) -> None:
        """Leave a request to its own way."""
        arrival.asker.serve_gathered(arrival)
