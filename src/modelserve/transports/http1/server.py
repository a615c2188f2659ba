"""The HTTP/1.1 server: listens, watches the time of its connections, drains.

What a connection does is `connection`; what is answered is the routes'.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Final

from modelserve.transports.routes import Reply, Route, Routes
from modelserve.transports.together import Together

from .connection import Connection
from .heads import Heads
from .limits import Limits
from .replies import ReplyHeads
from .tls import SecureTransport

__all__ = ["HTTP1Server"]

_LONGEST_TICK: Final = 0.5
_LAST_WORDS: Final = 1.0
"""Seconds that answers have to be taken after the drain is over."""
# Turns of the loop in which a connection that was just accepted is made, and one that was just
# closed is lost.
_TURNS: Final = 4
# Event loops differ in how far ahead they can set a timer.
_LONGEST_TIMER: Final = 365 * 86_400.0


def _never(route: Route | None, length: int) -> bool:
    return False


class HTTP1Server:
    """Serves routes over HTTP/1.1 on one event loop.

    One timer looks at all connections, every half second or more often where a limit is short:
    a timer for each request would cost more than the rest of its bookkeeping.

    Args:
        routes: What answers.
        limits: What one client may ask for.
        tls: With a context, connections are encrypted.
        drain: Seconds that requests under way get to end when it stops.
        remember_heads: Whether a request head that came before is recognised instead of parsed.
        gather: Whether plain requests of one turn of the loop, for a model of microseconds, are
            read, run and answered together; of those whose heads are remembered.

    Raises:
        ImportError: httptools is not installed.
    """

    def __init__(
        self,
        routes: Routes,
        *,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        drain: float = 30.0,
        remember_heads: bool = True,
        gather: bool = True,
    ) -> None:
        if limits is not None and not isinstance(limits, Limits):
            raise TypeError(f"limits: expected a Limits, got {type(limits).__name__}")
        self.routes = routes
        self.limits = limits or Limits()
        self.idle_timeout = self.limits.idle_timeout
        self.replies = ReplyHeads()
        self.together = Together(routes)
        self.heads = Heads(
            routes.find,
            self.limits,
            self.together.takes if gather else _never,
            remember=remember_heads,
        )
        self.draining = False
        self.lingering = False
        """Whether a connection may still send a request, which is then its last."""
        self.dropped: Final = 64 << 10
        """Bytes of a body nobody wants that are read and dropped, to keep the connection."""
        self.now = 0.0
        """The loop's time when it was last looked at: often enough for what is counted by it."""
        self._tls = tls
        self._drain = drain
        self._connections: set[Connection | SecureTransport] = set()
        self._turned_away: set[Connection | SecureTransport] = set()
        """Those of them that were one too many: they stay a while, to see the refusal."""
        self._closing: set[asyncio.Future[None]] = set()
        """Streams that are being ended."""
        self._listener: asyncio.Server | None = None
        self._tick = min(_LONGEST_TICK, self.limits.shortest / 4)
        self._timer: asyncio.TimerHandle | None = None
        self._given_up = asyncio.Event()
        self._empty = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None

    async def start(self, bound: socket.socket) -> None:
        """Accept connections on a listening socket, which it closes at the end."""
        loop = asyncio.get_running_loop()
        self._look(loop)
        unix = bound.family == getattr(socket, "AF_UNIX", None)
        create = loop.create_unix_server if unix else loop.create_server
        self._listener = await create(
            self._connect,
            sock=bound,
            start_serving=False,  # in one step it could be cancelled between listening and telling
        )
        await self._listener.start_serving()

    def _connect(self) -> asyncio.Protocol:
        return Connection(self) if self._tls is None else SecureTransport(self, self._tls)

    # ------------------------------------------------------------------ what connections call

    def opened(self, connection: Connection | SecureTransport) -> bool:
        """Take note of a connection; tell whether it is not one too many."""
        self._connections.add(connection)
        most = self.limits.max_connections
        if most is None or len(self._connections) - len(self._turned_away) <= most:
            return True
        if len(self._turned_away) >= most:
            connection.abort()  # not even a refusal: who comes in such numbers reads none
        self._turned_away.add(connection)
        return False

    def closed(self, connection: Connection | SecureTransport) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        self._turned_away.discard(connection)
        if not self._connections:
            self._empty.set()

    def throw_away(self, reply: Reply) -> None:
        """End what makes a reply that nobody takes any more."""
        if reply.stream is not None:
            task = asyncio.ensure_future(reply.stream.aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    # ------------------------------------------------------------------ time

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = now = loop.time()
        # First: whatever fails below, there is a next time.
        self._timer = loop.call_later(self._tick, self._look, loop)
        self.replies.turn_clock()
        for connection in [each for each in self._connections if each.due <= now]:
            connection.overdue()

    # ------------------------------------------------------------------ the end

    async def stop(self, *, linger: float = 0.0) -> None:
        """Accept no more, answer what is under way, end. If cancelled, it ends all the same.

        Args:
            linger: Seconds in which a connection may still send a request, its last: where another
                process has taken over, a client that was just sending one does not lose it.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(linger))
        await asyncio.shield(self._stopping)

    async def _stop(self, linger: float) -> None:
        self.draining, self.lingering = True, linger > 0
        if self._listener is not None:
            # Not closed at once: asyncio would lose what it accepted in this very turn.
            loop = asyncio.get_running_loop()
            for accepting in self._listener.sockets:
                with contextlib.suppress(NotImplementedError):  # not every loop works so
                    loop.remove_reader(accepting.fileno())
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            self._listener.close()
        if self.lingering:
            await self._emptied(linger, early=True)
            self.lingering = False
        for connection in tuple(self._connections):
            connection.shut()
        await self._emptied(self._drain, early=True)
        for connection in tuple(self._connections):
            connection.give_up()
        await self._emptied(_LAST_WORDS, early=False)
        for connection in tuple(self._connections):
            connection.abort()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        if self._timer is not None:
            self._timer.cancel()

    async def _emptied(self, seconds: float, *, early: bool) -> None:
        """Wait until there is no connection, for a limited time."""
        if not self._connections:
            return
        self._empty.clear()
        waits = {asyncio.ensure_future(self._empty.wait())}
        if early:
            waits.add(asyncio.ensure_future(self._given_up.wait()))
        try:
            timeout = seconds if seconds < _LONGEST_TIMER else None
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def give_up(self) -> None:
        """End the drain of a server that was told to stop: what is under way is answered 503."""
        self._given_up.set()
