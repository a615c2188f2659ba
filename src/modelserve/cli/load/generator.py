"""Sends requests over raw HTTP/1.1 connections, in a closed loop or at a rate; notes the answers.

One event loop, no task and no coroutine for a request; requests are bytes made beforehand. Needs
httptools. Nothing here knows models or prints.
"""

from __future__ import annotations

import asyncio
import gc
import re
import ssl
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from time import perf_counter
from typing import Any, Final, NamedTuple

import numpy as np

from modelserve.cli.load.measurements import Measurement, Tally
from modelserve.errors import UnavailableError
from modelserve.transports.serving import loop_factory

__all__ = ["Origin", "Plan", "Shot", "generate"]

_TICK: Final = 0.1
"""Seconds between two looks at what has been noted, and at requests that wait for too long."""
_SPIN: Final = 0.003
"""Seconds before a request is due from which on the loop does not sleep: timers are that coarse."""
_BURST: Final = 64
"""Requests sent at once before answers are read again."""
_AT_ONCE: Final = 64
"""Connections opened at the same time."""
_OPENING: Final = 30.0
"""Seconds that opening connections may take."""
_GONE: Final = 3.0
"""Seconds without any connection after which the server counts as gone."""
_DRAWN: Final = 4096
_MOST_TEXT: Final = 300
_MOST_BODIES: Final = 64
_RETRY_AFTER: Final = re.compile(rb"\r\nretry-after:[ \t]*([^\r\n]{1,40})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Shot:
    """A request, ready to send, and what answers it rightly.

    Args:
        wire: The whole request.
        answer: The body of its right answer.
        equals: Tells whether another body says the same. Asked once for each different body; where
            each is different, as with servers that number their answers, for a sample of them.
        rows: Its rows.
    """

    wire: bytes
    answer: bytes
    equals: Callable[[bytes], bool]
    rows: int = 1
    _known: dict[bytes, bool] = field(default_factory=dict)
    _unknown: Iterator[int] = field(default_factory=lambda: cycle(range(16)))

    def right(self, body: bytes) -> bool:
        """Tell whether a body is a right answer."""
        found = self._known.get(body)
        if found is not None:
            return found
        if len(self._known) < _MOST_BODIES:
            found = self._known[body] = self.equals(body)
            return found
        return next(self._unknown) != 0 or self.equals(body)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where connections go: a host and port, or the path of a Unix socket."""

    host: str
    port: int
    socket: str | None = None
    ssl_context: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """How to load a server.

    Args:
        connections: Connections to use.
        rate: Requests a second, arriving as a Poisson process; None for a closed loop, in which
            every connection sends its next request as soon as it has an answer.
        duration: Seconds to measure.
        warm_up: Seconds before that, which are not measured.
        deadline: Seconds within which an answer counts as in time; None for any time.
        limit: Seconds after which an answer is not waited for any more.
        seed: Makes arrivals the same again.
        server_timing: Read the header `Server-Timing` of the answers.
    """

    connections: int = 64
    rate: float | None = None
    duration: float = 10.0
    warm_up: float = 1.0
    deadline: float | None = None
    limit: float = 30.0
    seed: int = 0
    server_timing: bool = False


def generate(
    origin: Origin,
    shots: Sequence[Shot],
    plan: Plan,
    on_progress: Callable[[Tally, float], None] | None = None,
) -> Measurement:
    """Load a server and return what came of it.

    On SIGINT it ends at once and returns what there is.

    Args:
        origin: The server.
        shots: Requests to send in turn.
        plan: How many, for how long.
        on_progress: Called every tenth of a second with the tally and the seconds measured.

    Raises:
        UnavailableError: No connection could be made.
    """
    try:
        import httptools
    except ImportError as error:
        raise ImportError(
            'loading a server needs httptools: pip install "modelserve[serve]"'
        ) from (error)
    load = (_ClosedLoop if plan.rate is None else _OpenLoop)(origin, shots, plan, httptools)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection in the middle would look like the server's latency
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(load.run(on_progress))
    finally:
        if collecting:
            gc.enable()


class _Connection(asyncio.Protocol):
    """One connection, with at most one request under way."""

    __slots__ = (
        "_body",
        "_data",
        "_load",
        "_more",
        "_parser",
        "_shot",
        "busy",
        "due",
        "sent",
        "transport",
    )

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._parser: Any = load.parser(self)
        self._body = b""
        self._more: list[bytes] = []
        self._data = b""
        """What came last: an answer's head, most of the time."""
        self._shot: Shot = load.shots[0]
        self.busy = False
        self.due = 0.0
        self.sent = 0.0
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set when connected

    def send(self, due: float, now: float) -> None:
        """Send the next request, which was due at a time."""
        load = self._load
        shot = self._shot = load.next_shot()
        self.busy = True
        self.due = due
        self.sent = now
        load.tally.sent += 1
        self.transport.write(shot.wire)

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream's is a Transport

    def data_received(self, data: bytes) -> None:
        self._data = data
        load = self._load
        try:
            self._parser.feed_data(data)
        except load.callback_error:
            raise  # a fault here, not there
        except load.parser_error as error:
            load.fail(self, "not HTTP", str(error)[:_MOST_TEXT])
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._load.lost(self, error)

    # What the parser calls

    def on_body(self, body: bytes) -> None:
        if self._body:
            self._more.append(body)
        else:
            self._body = body

    def on_message_complete(self) -> None:
        parser = self._parser
        status = parser.get_status_code()
        body, self._body = self._body, b""
        if self._more:
            body, self._more = b"".join((body, *self._more)), []
        if status < 200:  # an interim answer
            return
        load = self._load
        now = perf_counter()
        self.busy = False
        tally = load.tally
        tally.answered += 1
        if status == 200 and (body == self._shot.answer or self._shot.right(body)):
            if self.due >= load.began:
                tally.right.append(now - self.due)
        else:
            load.refused(self, status, self._data, body, now)
        if parser.should_keep_alive():
            load.free(self, now)
        else:
            self.transport.close()


class _HeedfulConnection(_Connection):
    """A connection that also reads headers, which costs time for each of them."""

    __slots__ = ()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 13 and name.lower() == b"server-timing":
            timings = self._load.tally.server_timings
            if len(timings) < 200:  # a sample of each tick
                timings.append(value.decode("latin-1"))


class _Measured(NamedTuple):
    """Seconds, and what happened in them."""

    seconds: float
    sent: int
    completed: int


class _Load(ABC):
    """What both loops do: keep connections open, measure for a time, note what fails."""

    def __init__(self, origin: Origin, shots: Sequence[Shot], plan: Plan, httptools: Any) -> None:
        self.shots = shots
        self.parser: Callable[[_Connection], Any] = httptools.HttpResponseParser
        self.parser_error: type[Exception] = httptools.HttpParserError
        self.callback_error: type[Exception] = httptools.HttpParserCallbackError
        self.plan = plan
        self.tally = Tally(plan.deadline)
        self.began = float("inf")
        """When the measured requests begin; those due before are not noted."""
        self.sending = False
        self.next_shot: Callable[[], Shot] = _turns(shots).__next__
        self._origin = origin
        self._protocol = _HeedfulConnection if plan.server_timing else _Connection
        self._connections: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._over = False
        self._without_since: float | None = None
        self._why_without = ""
        self._on_progress: Callable[[Tally, float], None] | None = None

    async def run(self, on_progress: Callable[[Tally, float], None] | None) -> Measurement:
        """Connect, warm up, measure, wait for the last answers."""
        self._on_progress = on_progress
        measured: _Measured | None = None
        ended = ""
        try:
            await self._open_all()
            if self.plan.warm_up:
                self.start()
                ended = await self._watch(perf_counter() + self.plan.warm_up)
            self.tally = Tally(self.plan.deadline)
            self.began = perf_counter()
            if not self.plan.warm_up:
                self.start()
            ended = ended or await self._watch(self.began + self.plan.duration)
            self.stop()
            measured = self._measured()
            if not ended:
                await self._watch_rest()
            self.give_up()
        except asyncio.CancelledError:
            ended = "interrupted"
        finally:
            await self._close()
        self.tally.fold()
        return Measurement(
            self.tally,
            *(measured or self._measured()),
            sum(shot.rows for shot in self.shots) / len(self.shots),
            self.plan.connections,
            self.plan.rate,
            self.plan.deadline,
            ended,
        )

    def _measured(self) -> _Measured:
        """What was done since requests are measured, up to the moment the server was gone."""
        end = perf_counter() if self._without_since is None else self._without_since
        return _Measured(max(0.0, end - self.began), self.tally.sent, self.tally.answered)

    @abstractmethod
    def start(self) -> None:
        """Begin to send."""

    @abstractmethod
    def free(self, connection: _Connection, now: float) -> None:
        """Use a connection that has nothing under way."""

    @property
    def waiting(self) -> bool:
        """Whether requests that were due have not been answered."""
        return any(connection.busy for connection in self._connections)

    def stop(self) -> None:
        """Make no more requests."""
        self.sending = False

    def give_up(self) -> None:
        """Count the requests that will not be answered any more."""
        for connection in self._connections:
            self.fail(connection, "no answer", "the load ended first")

    def sweep(self, now: float) -> None:
        """Give up requests that have waited for too long."""
        for connection in [c for c in self._connections if c.busy]:
            if now - connection.sent > self.plan.limit:
                self.fail(connection, "no answer", f"none within {self.plan.limit:g} s")
                connection.transport.abort()

    # What connections report

    def fail(self, connection: _Connection, kind: str, text: str) -> None:
        """Count the request under way on a connection as failed."""
        if connection.busy and connection.due >= self.began:
            self.tally.fail(kind, text)
        connection.busy = False

    def refused(
        self, connection: _Connection, status: int, data: bytes, body: bytes, now: float
    ) -> None:
        """Count an answer that is not the right one."""
        if connection.due < self.began:
            return
        if not self.tally.retry_after and (found := _RETRY_AFTER.search(data)) is not None:
            self.tally.retry_after = found[1].decode("latin-1")
        self.tally.refused.append(now - connection.due)
        text = body[:_MOST_TEXT].decode("utf-8", "replace")
        self.tally.fail("wrong" if status == 200 else str(status), text)

    def lost(self, connection: _Connection, error: Exception | None) -> None:
        """Replace a connection that was closed."""
        if self._over:
            return
        if connection.busy:
            text = "the server closed the connection before the answer was whole"
            self.fail(connection, "connection lost", text)
        self._connections.discard(connection)
        self.tally.reconnects += 1
        self._soon(self._reopen())

    # Connections

    async def _open_all(self) -> None:
        slots = asyncio.Semaphore(_AT_ONCE)

        async def open_one() -> None:
            async with slots:
                await self._open()

        try:
            async with asyncio.timeout(_OPENING), asyncio.TaskGroup() as group:
                for _ in range(self.plan.connections):
                    group.create_task(open_one())
        except* OSError as errors:
            first = errors.exceptions[0]
            why = str(first) or f"none within {_OPENING:g} s"
            raise UnavailableError(f"no connection can be made: {why}") from first

    async def _open(self) -> _Connection:
        loop, origin = asyncio.get_running_loop(), self._origin
        name = origin.host if origin.ssl_context is not None else None
        if origin.socket is not None:
            _, connection = await loop.create_unix_connection(
                lambda: self._protocol(self), origin.socket
            )
        else:
            _, connection = await loop.create_connection(
                lambda: self._protocol(self),
                origin.host,
                origin.port,
                ssl=origin.ssl_context,
                server_hostname=name,
            )
        self._connections.add(connection)
        self._without_since = None
        return connection

    async def _reopen(self) -> None:
        pause = 0.02
        while not self._over:
            try:
                async with asyncio.timeout(_OPENING):
                    connection = await self._open()
            except OSError as error:  # TimeoutError included
                self._why_without = str(error) or "no answer"
                if not self._connections and self._without_since is None:
                    self._without_since = perf_counter()
                await asyncio.sleep(pause)
                pause = min(1.0, pause * 2)
            else:
                self.free(connection, perf_counter())
                return

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _close(self) -> None:
        self._over = True
        self.sending = False
        for connection in self._connections:
            connection.transport.abort()
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)

    # Time

    async def _watch(self, end: float) -> str:
        """Let time pass until then; return why it was cut short, empty where it was not."""
        while (now := perf_counter()) < end:
            await asyncio.sleep(min(_TICK, end - now))
            now = perf_counter()
            self.tally.fold()
            self.sweep(now)
            if self._on_progress is not None:
                self._on_progress(self.tally, now - self.began)
            since = self._without_since
            if since is not None and now - since > _GONE:
                return f"the server cannot be reached any more: {self._why_without}"
        return ""

    async def _watch_rest(self) -> None:
        """Wait for the answers under way; `sweep` bounds it."""
        while self.waiting and self._without_since is None:
            await self._watch(perf_counter() + _TICK / 10)


def _turns(shots: Sequence[Shot]) -> Iterator[Shot]:
    return cycle(shots)


class _ClosedLoop(_Load):
    """Every connection asks again as soon as it is answered."""

    def start(self) -> None:
        self.sending = True
        now = perf_counter()
        for connection in list(self._connections):
            connection.send(now, now)

    def free(self, connection: _Connection, now: float) -> None:
        if self.sending:
            connection.send(now, now)


class _OpenLoop(_Load):
    """Requests are due at random moments, whatever became of those before.

    Times count from the moment a request was due. One for which no connection is free waits, and
    its waiting counts too.
    """

    def __init__(self, origin: Origin, shots: Sequence[Shot], plan: Plan, httptools: Any) -> None:
        super().__init__(origin, shots, plan, httptools)
        assert plan.rate is not None
        self._gap = 1 / plan.rate
        self._random = np.random.default_rng(plan.seed)
        self._idle: deque[_Connection] = deque()
        self._backlog: deque[float] = deque()
        self._dues: Iterator[float] = iter(())
        self._due = 0.0

    def start(self) -> None:
        self.sending = True
        self._idle.extend(self._connections)
        self._dues = self._arrivals(perf_counter())
        self._due = next(self._dues)
        self._pump()

    def _arrivals(self, now: float) -> Iterator[float]:
        while True:
            times = now + np.cumsum(self._random.exponential(self._gap, _DRAWN))
            yield from times.tolist()
            now = float(times[-1])

    def _pump(self) -> None:
        """Send what is due, and come back when the next one is."""
        if not self.sending:
            return
        now = perf_counter()
        for _ in range(_BURST):
            due = self._due
            if due > now:
                break
            if due >= self.began:
                self.tally.lateness.append(now - due)
            if self._idle:
                self._idle.popleft().send(due, now)
            else:
                self._backlog.append(due)
            self._due = next(self._dues)
            now = perf_counter()
        loop = asyncio.get_running_loop()
        left = self._due - now
        if left > 2 * _SPIN:
            loop.call_later(left - _SPIN, self._pump)
        else:
            # It spins: a timer may be a millisecond late, and that is a whole answer.
            loop.call_soon(self._pump)

    def free(self, connection: _Connection, now: float) -> None:
        if self._backlog:
            self._expire(now)
        if not self._backlog:
            self._idle.append(connection)
            return
        due = self._backlog.popleft()
        if due >= self.began:
            self.tally.held.append(now - due)
        connection.send(due, now)

    def lost(self, connection: _Connection, error: Exception | None) -> None:
        with suppress(ValueError):  # it may not have been idle
            self._idle.remove(connection)
        super().lost(connection, error)

    @property
    def waiting(self) -> bool:
        return bool(self._backlog) or super().waiting

    def give_up(self) -> None:
        super().give_up()
        while self._backlog:
            if self._backlog.popleft() >= self.began:
                self.tally.fail("not sent", "the load ended first")

    def sweep(self, now: float) -> None:
        super().sweep(now)
        self._expire(now)

    def _expire(self, now: float) -> None:
        """Give up requests that waited for a connection until nobody would want the answer."""
        limit = self.plan.limit if self.plan.deadline is None else self.plan.deadline
        while self._backlog and now - self._backlog[0] > limit:
            if self._backlog.popleft() >= self.began:
                self.tally.fail("not sent", f"no connection was free within {limit:g} s")
