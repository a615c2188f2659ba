"""One HTTP/1.1 connection: requests in, replies out, one after the other.

A request may come in any number of pieces, so reading is a matter of states:

HEAD  waiting for a whole head, or for any byte at all
BODY  the head was admitted; waiting for the rest of the body
BUSY  the request is being answered; what arrives meanwhile is kept, up to a bound
GATHERED  it will be at the end of the loop's turn, together with others
LAST  the last reply is written; what still arrives is thrown away

The usual request comes in one piece and has a head that is known: `data_received` takes one look
at it and begins to answer.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from modelserve.errors import Cancelled, ModelNotReady, Overloaded, PayloadTooLarge, ServeError
from modelserve.protocols import Caller, Ticket
from modelserve.transports.routes import BodyTimeout, Pieces, Reply, Request, Route
from modelserve.transports.together import Arrival

from .chunked import ChunkedBody
from .heads import END, Head, HeadTimeout
from .replies import CONTINUE

if TYPE_CHECKING:
    from .server import HTTP1Server

__all__ = ["Connection"]

_LOG = logging.getLogger(__name__)

# What a client may send ahead while its request is answered.
_MOST_AHEAD: Final = 64 << 10
# A body of this size or more is received where it will lie, instead of piece by piece.
_LARGE: Final = 64 << 10
# A reply up to this size is one buffer to the kernel.
_JOINED: Final = 64 << 10
# After the last reply a client may go on sending for so long, and so much, before it is cut off:
# to be cut off at once could cost it the reply.
_LINGER: Final = 2.0
_LINGER_BYTES: Final = 4 << 20
# A client that closed its side may have left, or only be done with sending: what is answered within
# so many seconds is written to it, and what takes longer is taken back.
_HALF_CLOSED: Final = 1.0

_HEAD, _BODY, _BUSY, _GATHERED, _LAST = range(5)


class Connection(asyncio.Protocol):
    """Serves one connection. Everything happens on the event loop's thread.

    Args:
        server: The server it belongs to.
    """

    __slots__ = (
        "_begun",
        "_blocked",
        "_chunks",
        "_ended",
        "_head",
        "_held",
        "_known",
        "_lingered",
        "_paused",
        "_request",
        "_route",
        "_routes",
        "_server",
        "_state",
        "_streaming",
        "_taken",
        "_task",
        "_ticket",
        "_transport",
        "_unsent",
        "certificate",
        "due",
    )

    def __init__(self, server: HTTP1Server) -> None:
        self._server = server
        self._routes = server.routes
        self._known = server.heads.known
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._state = _HEAD
        self._held = b""
        """Bytes received and not yet used."""
        self._begun = False
        """Whether a head has begun to arrive."""
        self._head: Head | None = None
        self._request: Request | None = None
        self._route: Route | None = None
        self._chunks: ChunkedBody | None = None
        self._ticket: Ticket | None = None
        self._task: asyncio.Task[Any] | None = None
        self._streaming = False
        """Whether the reply under way is written piece by piece."""
        self._taken: asyncio.Event | None = None
        """Set when the client took what was written; where a stream waits for it."""
        self._paused = False
        """Whether nothing is read, so that the client waits."""
        self._blocked = False
        """Whether the client does not take what was written."""
        self._ended = False
        """Whether the client closed its side."""
        self._unsent = 0
        self._lingered = 0
        self.due = inf
        """When the server is to call `overdue`, by its own clock."""
        self.certificate: dict[str, Any] | None = None

    # ------------------------------------------------------------------ the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over a connection."""
        self._transport = cast(asyncio.Transport, transport)
        self.certificate = transport.get_extra_info("peercert") or None
        if not self._server.opened(self):
            if self._transport.is_closing():
                self._state = _LAST
                return
            error = Overloaded("the server has all the connections it takes", retry_after=1.0)
            self._refuse(error, close=True)
        elif self._server.draining and not self._server.lingering:
            self.shut()
        else:
            self.due = self._server.now + self._server.limits.idle_timeout

    def connection_lost(self, error: Exception | None) -> None:
        """Take back what nobody waits for any more."""
        self._server.closed(self)
        self._take_back()
        self._state = _LAST
        self._held = b""
        self._chunks = None
        self.due = inf

    def pause_writing(self) -> None:
        """Note that the client does not take what was written."""
        self._blocked = True
        self._watch_reader()

    def resume_writing(self) -> None:
        """Go on once the client took it."""
        self._blocked = False
        if self._streaming:
            self.due = inf
            if self._taken is not None:
                self._taken.set()
        elif self._state == _HEAD:
            self._await_request()
        elif self._state == _LAST:
            self._linger()

    def eof_received(self) -> bool:
        """Note that the client closed its side; ours stays open for an answer on its way."""
        self._ended = True
        if self._transport.get_extra_info("sslcontext") is not None:
            return False
        if self._state == _HEAD:
            # What it sent ahead is taken up when it takes what was written.
            return self._blocked and bool(self._held)
        if self._request is not None:
            self._bound_wait()
        return self._state in (_BUSY, _GATHERED)

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        if self._state == _HEAD and not (self._held or self._blocked):
            # The usual case: a head that is known, with its whole body and nothing behind.
            end = data.find(END) + 4
            head = self._known(data[:end])
            if head is not None and len(data) - end == head.length:
                if head.gathered:
                    self._state = _GATHERED
                    self.due = inf
                    self._server.together.add(
                        Arrival(self, head.route, data, end, head.json_size, perf_counter(), head)  # type: ignore[arg-type]  # it has one
                    )
                else:
                    self._serve(head, data[end:])
                return
        if self._state == _LAST:
            self._lingered += len(data)
            if self._lingered > _LINGER_BYTES:
                self._transport.abort()
            return
        self._held += data
        self._use_held()

    # ------------------------------------------------------------------ reading

    def _use_held(self) -> None:
        if self._state == _HEAD:
            if not self._blocked:
                self._read_head()
        elif self._state == _BODY:
            self._read_body()
        waits = self._state in (_BUSY, _GATHERED) or (self._state == _HEAD and self._blocked)
        if waits and len(self._held) > _MOST_AHEAD and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _read_head(self) -> None:
        """Begin a request, if its head is whole."""
        held = self._skip_empty_lines() if self._held[:1] == b"\r" else self._held
        end = held.find(END) + 4
        try:
            if end < 4:
                self._server.heads.check_partial(held)
                if held and not self._begun:
                    self._begun = True
                    self._due_in(self._server.limits.header_timeout)
                return
            head = self._known(held[:end]) or self._server.heads.parse(held[:end])
        except ServeError as error:
            self._refuse(error, close=True)
            return
        self._begun = False
        rest, length = held[end:], head.length
        if len(rest) >= length and not head.chunked:
            self._held = rest[length:]
            self._serve(head, rest[:length])
            return
        self._held = rest
        try:
            self._open(head)
        except Exception as error:  # the boundary of one request, up to its body
            self._refuse(error, close=True)
            return
        if head.chunked:
            self._chunks = ChunkedBody(self._limit)
        self._state = _BODY
        self._due_in(self._server.limits.body_timeout)
        if head.expects and not rest:
            self._transport.write(CONTINUE)
        self._read_body()

    def _skip_empty_lines(self) -> bytes:
        """Drop empty lines before a request, as RFC 9112 2.2 has it; returns what is left."""
        held = self._held
        size = len(held) - len(held.lstrip(b"\r\n")) & ~1
        if held[:size] == b"\r\n" * (size // 2):
            self._held = held[size:]
        return self._held

    def _open(self, head: Head) -> None:
        """Open the request of a head, or raise why it is refused before its body is read."""
        self._head = head
        request = self._request = Request(head.method, head.path, head.header)
        request.plain = head.plain
        request.json_size = head.json_size
        request.certificate = self.certificate
        if head.refusal is not None:
            raise head.refusal
        self._route = self._routes.open(request, head.route)
        if head.length > self._limit:
            raise PayloadTooLarge(f"the body has {head.length} bytes; {self._limit} are allowed")

    @property
    def _limit(self) -> int:
        """Bytes the present request's body may have. One that nobody reads is read and dropped."""
        assert self._route is not None
        return self._route.max_body or self._server.dropped

    def _read_body(self) -> None:
        """Answer the request, if its body is whole."""
        assert self._head is not None
        held, length = self._held, self._head.length
        if self._chunks is not None:
            self._held = b""
            try:
                rest = self._chunks.feed(held)
            except ServeError as error:
                self._refuse(error, close=True)
                return
            if rest is not None:
                self._held = rest
                body, self._chunks = self._chunks.data, None
                self._answer(memoryview(body).toreadonly() if len(body) > _LARGE else bytes(body))
        elif len(held) >= length:
            self._held = held[length:]
            self._answer(held[:length])
        elif length >= _LARGE:
            self._held = b""
            try:
                _LargeBody(self, self._transport, length, held)
            except MemoryError:
                full = Overloaded("there is no memory for a body of this size", retry_after=1.0)
                self._refuse(full, close=True)

    def whole(self, body: memoryview) -> None:
        """Answer the request whose large body is whole; called by what received it."""
        if self._state == _BODY:
            self._answer(body)

    # ------------------------------------------------------------------ answering

    def _serve(self, head: Head, body: bytes) -> None:
        """Answer a request that is there as a whole."""
        try:
            self._open(head)
        except Exception as error:  # the boundary of one request, up to its body
            self._refuse(error, close=False)
        else:
            self._answer(body)

    def _answer(self, body: bytes | memoryview) -> None:
        request, route, routes = (
            cast(Request, self._request),
            cast(Route, self._route),
            self._routes,
        )
        self._state = _BUSY
        self.due = inf
        if route.max_body:
            request.body = body
        try:
            self._ticket = routes.begin(request, route, self.deliver)
        except Exception as error:  # the boundary of one request
            self.deliver(routes.refuse(request, error))
            return
        if self._ticket is None:
            task = self._task = asyncio.get_running_loop().create_task(
                routes.answer(request, route)
            )
            task.add_done_callback(self._done)
        if self._ended:
            self._bound_wait()

    @property
    def waits(self) -> bool:
        """Whether it still waits for the answer to a request that was gathered."""
        return self._state == _GATHERED and not (self._ended or self._server.draining)

    def caller(self, arrival: Arrival) -> Caller:
        """Return who is calling, for an authenticator."""
        head: Head = arrival.head
        if self.certificate is None:
            return head
        request = Request(head.method, head.path, head.header)
        request.certificate = self.certificate
        return request

    def serve_gathered(self, arrival: Arrival) -> None:
        """Answer a request that was gathered, by itself."""
        if self._state == _GATHERED:
            self._serve(arrival.head, arrival.message[arrival.start :])

    def reply_gathered(self, id: str, body: bytes, json_size: int | None) -> None:
        """Write the reply to a request that was gathered, and go on to the next."""
        self._transport.write(self._server.replies.whole(id, body, json_size))
        self._go_idle()

    def refuse_gathered(self, reply: Reply) -> None:
        """Write the refusal of a request that was gathered, and go on to the next."""
        head = self._server.replies.head(reply, keep=True, old=False)
        self._transport.write(head + reply.body[0])
        self._go_idle()

    def _done(self, task: asyncio.Task[Reply]) -> None:
        if self._task is not task:
            if not task.cancelled() and task.exception() is None:
                self._server.throw_away(task.result())
            return
        if task.cancelled() and task.cancelling():  # the loop ends
            self._transport.abort()
            return
        self._task = None
        assert self._request is not None
        if task.cancelled():  # by what it waited for
            error = RuntimeError("the answer was cancelled")
            self.deliver(self._routes.refuse(self._request, error))
        else:
            self.deliver(task.result())

    def deliver(self, reply: Reply) -> None:
        """Write the reply to the present request, and go on to the next."""
        request, head, server = self._request, self._head, self._server
        assert request is not None
        if reply.stream is not None:
            self._pour(reply, reply.stream)
            return
        self._ticket = self._request = None
        keep = head is not None and head.keep_alive and not server.draining
        if self._ended and not self._held:
            keep = False
        self._write(reply, keep)
        if keep:
            self._go_idle()
        else:
            self._finish()
        # Last: whoever records may fail, and the next request is to be answered all the same.
        if request.exchange is not None:
            self._routes.close(request, reply.size)

    def _pour(self, reply: Reply, stream: Pieces) -> None:
        """Write a reply to the present request piece by piece, then go on to the next."""
        head, server = self._head, self._server
        assert head is not None
        keep = head.keep_alive and not head.old and not server.draining and not self._ended
        self._transport.write(server.replies.stream_head(reply, keep=keep, old=head.old))
        self._streaming = True
        task = self._task = asyncio.get_running_loop().create_task(
            self._write_pieces(stream, chunked=not head.old)
        )
        task.add_done_callback(lambda done: self._poured(done, keep))

    async def _write_pieces(self, stream: Pieces, *, chunked: bool) -> int:
        """Write a body, no faster than the client takes it; returns its bytes."""
        size = 0
        write = self._transport.write
        async with aclosing(stream):
            async for piece in stream:
                if piece:
                    size += len(piece)
                    write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                if self._blocked:
                    self._taken = asyncio.Event()
                    await self._taken.wait()
                    self._taken = None
        if chunked:
            write(b"0\r\n\r\n")
        return size

    def _poured(self, task: asyncio.Task[int], keep: bool) -> None:
        """Go on to the next request after a reply that was written piece by piece."""
        self._streaming = False
        failure = None if task.cancelled() else task.exception()
        if self._task is not task:  # it was taken back
            return
        self._task = None
        if task.cancelled() or failure is not None:
            # The client cannot be told any more, but by an end that is none.
            if failure is not None:
                _LOG.error("a stream of answers failed", exc_info=failure)
            self._transport.abort()
            return
        request, self._request = self._request, None
        assert request is not None
        if keep and not self._server.draining and not (self._ended and not self._held):
            self._go_idle()
        else:
            self._finish()
        self._routes.close(request, task.result())

    def _go_idle(self) -> None:
        """Wait for the next request, or take it up if it is here."""
        self._state = _HEAD
        if self._held or self._paused:
            # Not from here: a client that sends many requests ahead must not keep the others
            # waiting, nor pile up calls.
            self._state = _BUSY
            asyncio.get_running_loop().call_soon(self._go_on)
        elif not self._blocked:
            self.due = self._server.now + self._server.idle_timeout

    def _go_on(self) -> None:
        """Take up what arrived while the last request was answered."""
        if self._state != _BUSY or self._request is not None:
            return
        self._state = _HEAD
        self._await_request()

    def _await_request(self) -> None:
        if self._blocked:
            self._watch_reader()
            return
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        self._due_in(self._server.limits.idle_timeout)
        if self._held:
            self._use_held()
        if self._ended and self._state in (_HEAD, _BODY):  # the rest of it will never come
            self._transport.close()

    def _write(self, reply: Reply, keep: bool) -> None:
        head = self._head
        lines = self._server.replies.head(reply, keep=keep, old=head is not None and head.old)
        body = reply.body
        if reply.size > _JOINED:
            self._transport.writelines((lines, *body))
        elif len(body) == 1:
            self._transport.write(lines + body[0])
        else:
            self._transport.write(b"".join((lines, *body)))

    def _refuse(self, error: Exception, *, close: bool) -> None:
        """Answer the present request, or what was to become one, with an error."""
        request = self._request
        if request is None:
            request = self._request = self._routes.anonymous()
        reply = self._routes.refuse(request, error)
        if not close:
            self.deliver(reply)
            return
        self._request = None
        self._held = b""
        self._chunks = None
        self._write(reply, keep=False)
        self._state = _LAST
        self._linger()
        self._routes.close(request, reply.size)

    # ------------------------------------------------------------------ ends

    def _finish(self) -> None:
        """Close after the last reply; the client has been told that it is."""
        self._state = _LAST
        if self._held or self._paused:
            self._held = b""
            self._linger()
        else:
            self._transport.close()
            self._watch_reader()

    def _linger(self) -> None:
        """Leave the client time to read the last reply while it may still be sending."""
        if self._blocked or self._transport.is_closing():
            self._watch_reader()
            return
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if self._ended:  # it has said all
            self._transport.close()
        elif self._transport.can_write_eof():
            try:
                self._transport.write_eof()
            except OSError:  # it is gone
                self._transport.abort()
        if self._transport.get_write_buffer_size():
            self._watch_reader()
        else:
            self._due_in(_LINGER)

    def _take_back(self) -> None:
        """Cancel the answer that is under way, if there is one."""
        request, self._request = self._request, None
        if request is None:
            return
        if request.exchange is not None:
            request.exchange.code = Cancelled.grpc
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            ticket.cancel()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        self._routes.close(request, 0)

    def _bound_wait(self) -> None:
        """Give the present request, whose client closed its side, a little longer."""
        asyncio.get_running_loop().call_later(_HALF_CLOSED, self._leave, self._request)

    def _leave(self, request: Request | None) -> None:
        if self._request is request and self._state == _BUSY:
            self._transport.abort()

    def shut(self) -> None:
        """Close as soon as no request is under way; the server takes no more."""
        if self._state == _HEAD and not self._begun and not self._held:
            self._state = _LAST
            self._transport.close()
            self._watch_reader()

    def give_up(self) -> None:
        """Answer what is under way with 503, for the server's time is over."""
        request = self._request
        if self._streaming:
            self._take_back()
            self._transport.abort()  # nothing else tells that the body is not whole
        elif self._state in (_BUSY, _BODY) and request is not None:
            ticket, self._ticket = self._ticket, None
            task, self._task = self._task, None
            if ticket is not None:
                ticket.cancel()
            if task is not None:
                task.cancel()
            self._refuse(ModelNotReady("the server is stopping"), close=True)
        self._transport.close()

    def abort(self) -> None:
        """Cut the connection off."""
        self._transport.abort()

    # ------------------------------------------------------------------ time

    def _due_in(self, seconds: float) -> None:
        self.due = self._server.now + seconds

    def _watch_reader(self) -> None:
        """See to it that a client that takes nothing is cut off."""
        self._unsent = self._transport.get_write_buffer_size()
        self._due_in(self._server.limits.write_timeout)

    def overdue(self) -> None:
        """Do what is to be done when `due` has passed."""
        unsent = self._transport.get_write_buffer_size()
        if unsent and (self._streaming or self._state in (_HEAD, _LAST)):
            if unsent < self._unsent:
                self._watch_reader()
            else:
                self._transport.abort()
        elif self._state == _LAST:
            self._transport.abort()
        elif self._state == _BODY:
            seconds = self._server.limits.body_timeout
            self._refuse(BodyTimeout(f"the body took more than {seconds:g} seconds"), close=True)
        elif self._begun:
            seconds = self._server.limits.header_timeout
            self._refuse(HeadTimeout(f"the head took more than {seconds:g} seconds"), close=True)
        elif self._state == _HEAD:
            self._transport.close()


class _LargeBody(asyncio.BufferedProtocol):
    """Receives the rest of a large body straight into one buffer, in a connection's place.

    Args:
        connection: Whose request it is.
        transport: Its transport.
        length: Bytes of the whole body.
        begun: What of it has arrived.
    """

    def __init__(
        self, connection: Connection, transport: asyncio.Transport, length: int, begun: bytes
    ) -> None:
        self._connection = connection
        self._transport = transport
        # Not filled with zeros: the system provides the memory as it is written.
        self._body = memoryview(cast(Any, np.empty(length, np.uint8)))
        self._body[: len(begun)] = begun
        self._left = self._body[len(begun) :]
        self.eof_received = connection.eof_received  # type: ignore[method-assign]
        self.connection_lost = connection.connection_lost  # type: ignore[method-assign, assignment]
        self.pause_writing = connection.pause_writing  # type: ignore[method-assign]
        self.resume_writing = connection.resume_writing  # type: ignore[method-assign]
        transport.set_protocol(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go."""
        return self._left

    def buffer_updated(self, nbytes: int) -> None:
        """Take note of bytes received."""
        self._left = self._left[nbytes:]
        if not self._left:
            self._transport.set_protocol(self._connection)
            self._connection.whole(self._body.toreadonly())
