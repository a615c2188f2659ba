"""The HTTP routes as an ASGI 3 application, and mounting it beside another one.

No framework and no lifespan are needed. Sockets and HTTP parsing are the ASGI server's.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, current_task
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import aclosing
from time import perf_counter
from typing import Any, Final, TypeAlias, TypeGuard, cast

from modelserve.codecs import oip
from modelserve.errors import Cancelled, PayloadTooLarge
from modelserve.messages import Exchange
from modelserve.protocols import Authenticator, Caller, Servable

from .interruption import Interrupted, Interruptible, Message, Receive, Timers, Watches
from .routes import (
    BINARY,
    JSON,
    MAX_BODY_SIZE,
    OPTIONAL_HEADERS,
    PROTOCOLS,
    AdminRoutes,
    BodyTimeout,
    Exposition,
    NoSuchPath,
    Pieces,
    ProtocolName,
    Reply,
    Request,
    Route,
    asks_to_compress,
    routes_of,
)
from .shared_memory import SharedMemory
from .together import Arrival, Together

__all__ = ["ASGIApp", "Message", "Receive", "Scope", "Send", "mount"]

Scope: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_OPTIONAL: Final = frozenset(name.encode() for name in OPTIONAL_HEADERS)
_JSON_SIZE: Final = oip.HEADER.encode()


class ASGIApp:
    """Serves models over HTTP inside any ASGI server or framework, at any prefix.

    The routes are those of the Open Inference Protocol v2 with Triton's extensions, of TF Serving
    and KServe v1, and /metrics. One object may serve several event loops.
    It owns nothing: it starts nothing at lifespan startup and closes nothing at shutdown.

    A client that goes away while its request waits or runs takes the request back, where the
    server tells: it is looked for once an answer takes longer than 50 ms.

    Args:
        servable: What answers: a repository, a model, a client.
        protocols: Which protocols' routes there are: any of ``"oip"``, ``"tfserving"``,
            ``"kserve"``.
        docs: Whether there are /openapi.json, which describes all routes and models, and /docs, a
            page to try the models with.
        admin: Whether control routes (such as those that load and unload models) are offered.
            Without an authenticator everyone who reaches the app may then use them; with
            ``"direct"`` only those whose request comes neither from a web page nor through a proxy.
        uploads: Whether a request to load a model may bring its configuration and files; where
            control routes are offered.
        shared_memory: Whether clients may register shared memory, where control routes are
            offered; or what they register it in, for several transports to have the same.
        authenticator: Tells who is calling; None admits everyone.
        max_body_size: Bytes the body of an inference request may have.
        body_timeout: Seconds the whole body may take to arrive; None for any time.
        metrics: What /metrics shows: an object with `render`, True for the servable's own
            `metrics` where it has one, False for nothing.
        record: Gets every closed exchange; by default the servable's own `record`, if it has one.
        gather: Whether plain requests of one turn of the loop, for a model of microseconds, are
            read, run and answered together.

    Raises:
        TypeError: What is to be served has no `infer`.
        ValueError: A limit is negative, or there is no such protocol.

    Example:
        >>> from modelserve.testing import StubModel
        >>> app = ASGIApp(StubModel(name="echo"))  # `uvicorn module:app`, or app.mount("/ml", app)
    """

    def __init__(
        self,
        servable: Servable,
        *,
        protocols: Iterable[ProtocolName] = PROTOCOLS,
        docs: bool = True,
        admin: AdminRoutes = False,
        uploads: bool = False,
        shared_memory: SharedMemory | bool = True,
        authenticator: Authenticator | None = None,
        max_body_size: int = MAX_BODY_SIZE,
        body_timeout: float | None = 30.0,
        metrics: Exposition | bool = True,
        record: Callable[[Exchange], None] | None = None,
        gather: bool = True,
    ) -> None:
        if body_timeout is not None and body_timeout <= 0:
            raise ValueError(f"body_timeout is more than 0 seconds, got {body_timeout}")
        self._body_timeout = body_timeout
        self._watches = Watches()
        self._gathers = gather
        self._gatherings: dict[asyncio.AbstractEventLoop, Together] = {}
        self._routes = routes_of(
            servable,
            protocols=protocols,
            docs=docs,
            admin=admin,
            uploads=uploads,
            shared_memory=shared_memory,
            authenticator=authenticator,
            max_body_size=max_body_size,
            metrics=metrics,
            record=record,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection scope."""
        kind = scope["type"]
        if kind == "http":
            await self._http(scope, receive, send)
        elif kind == "lifespan":
            await _lifespan(receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003, "reason": "no WebSocket here"})
        else:
            raise ValueError(f'unknown ASGI scope type "{kind}"')

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        request = Request(scope["method"], _path(scope), _Headers(headers))
        encoding = headers.get(b"accept-encoding")
        # Most clients' libraries name several encodings, which asks for none.
        asks = encoding is not None and asks_to_compress(encoding.decode("latin-1"))
        if not asks and _OPTIONAL.isdisjoint(headers):
            request.plain = True
            size = headers.get(_JSON_SIZE)
            request.json_size = None if size is None else size.decode("latin-1")
        sent = 0
        try:
            reply = await self._reply(request, receive)
            if reply is None:
                _gone(request)
                return
            if reply.stream is not None:
                sent = await self._stream(reply, reply.stream, receive, send)
                return
            await send(
                {"type": "http.response.start", "status": reply.status, "headers": reply.headers}
            )
            body = reply.body
            whole = body[0] if len(body) == 1 else b"".join(body)
            await send({"type": "http.response.body", "body": whole})
            sent = reply.size
        except OSError:
            # How a server may tell that the client is gone; nobody is left to be told.
            _gone(request)
        except Interrupted:  # the client is gone, in the middle of a stream
            _gone(request)
        except CancelledError:
            _gone(request)
            raise
        finally:
            self._routes.close(request, sent)

    async def _reply(self, request: Request, receive: Receive) -> Reply | None:
        """Return the reply, or None when there is nobody to answer any more."""
        routes = self._routes
        try:
            reply, body = None, None
            if request.plain and self._gathers:
                reply, body = await self._together(request, receive)
                if reply is not None:
                    return reply
            route = routes.open(request)
            if route.max_body:
                request.body = await self._body(request, route, receive) if body is None else body
            body = None  # nothing of it may be held here while the servable is awaited
        except _ClientGone:
            return None
        except Interrupted:
            error = BodyTimeout(f"the body took more than {self._body_timeout} seconds")
            return routes.refuse(request, error)
        except Exception as failure:  # the boundary of one HTTP request, up to its body
            return routes.refuse(request, failure)
        answer = routes.answer(request, route)
        if request.exchange is None:
            return await answer
        try:
            return await self._watches.watched(answer, receive)
        except Interrupted:
            return None
        except CancelledError as cancelled:
            task = current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled this task: what it waited for was cancelled inside the servable.
            return routes.refuse(request, RuntimeError(f"the answer was cancelled: {cancelled}"))

    async def _stream(self, reply: Reply, stream: Pieces, receive: Receive, send: Send) -> int:
        """Send a reply that comes piece by piece; returns the bytes of its body."""
        async with aclosing(stream):
            await send(
                {"type": "http.response.start", "status": reply.status, "headers": reply.headers}
            )
            return await self._watches.watched(_send_pieces(stream, send), receive)

    async def _body(self, request: Request, route: Route, receive: Receive) -> bytes:
        reading = _read(receive, route.max_body, request.header("content-length"))
        timeout = self._body_timeout
        return await (Interruptible(reading, Timers(timeout)) if timeout else reading)

    async def _together(
        self, request: Request, receive: Receive
    ) -> tuple[Reply | None, bytes | None]:
        """Answer a request together with others, if it is one for that.

        Returns:
            The reply, or None; and the body, where it was read.
        """
        route = self._routes.find(request.method, request.path)
        said = request.header("content-length") or ""
        length = int(said) if said.isascii() and said.isdigit() and len(said) < 10 else 0
        if not self._gathering().takes(route, length):
            return None, None
        if self._routes.authenticates:
            try:
                self._routes.admitted(route, request)
            except Exception:  # it is told where the request is refused
                return None, None
        try:
            body = await self._body(request, route, receive)
        except Exception:
            self._routes.open(request, route)  # for the record
            raise
        if type(body) is not bytes:  # some servers' are something alike
            return None, body
        size = request.json_size
        if isinstance(size, str):
            size = int(size) if size.isascii() and size.isdigit() and len(size) < 10 else -1
        outcome: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        arrival = Arrival(_Asker(request, outcome), route, body, 0, size, perf_counter(), None)
        self._gathering().add(arrival)
        return await outcome, body

    def _gathering(self) -> Together:
        """Return what gathers requests on the running loop."""
        loop = asyncio.get_running_loop()
        together = self._gatherings.get(loop)
        if together is None:
            for known in [known for known in self._gatherings if known.is_closed()]:
                del self._gatherings[known]
            together = self._gatherings[loop] = Together(self._routes)
        return together


async def _send_pieces(stream: Pieces, send: Send) -> int:
    """Send a body piece by piece, no faster than the server takes it; returns its bytes."""
    size = 0
    async for piece in stream:
        if piece:
            size += len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
    return size


def _gone(request: Request) -> None:
    if request.exchange is not None:
        request.exchange.code = Cancelled.grpc


def _path(scope: Scope) -> str:
    """Return the path below the mount, whether the server left the mount's prefix on or not."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root:
        root = root.rstrip("/")
        if path.startswith(root) and (len(path) == len(root) or path[len(root)] == "/"):
            path = path[len(root) :] or "/"
    raw: bytes | None = scope.get("raw_path")
    if raw and b"%" in raw and b"%2f" in raw.lower():
        # An encoded "/" is data to its sender; decoded it would pass for a separator.
        return ""
    return path


class _Asker:
    """A task that waits for the answer to a request that was gathered."""

    __slots__ = ("_outcome", "_request")

    def __init__(self, request: Request, outcome: asyncio.Future[Reply | None]) -> None:
        self._request = request
        self._outcome = outcome

    @property
    def waits(self) -> bool:
        return not self._outcome.done()

    def caller(self, arrival: Arrival) -> Caller:
        return self._request

    def reply_gathered(self, id: str, body: bytes, json_size: int | None) -> None:
        if not self._outcome.done():
            kind = JSON if json_size is None else BINARY
            self._outcome.set_result(Reply(200, kind, [body], len(body), id, json_size))

    def refuse_gathered(self, reply: Reply) -> None:
        if not self._outcome.done():
            self._outcome.set_result(reply)

    def serve_gathered(self, arrival: Arrival) -> None:
        if not self._outcome.done():
            self._outcome.set_result(None)


class _Headers:
    """Looks up a request's headers by lower-case name."""

    __slots__ = ("_values",)

    def __init__(self, headers: dict[bytes, bytes]) -> None:
        self._values = headers

    def __call__(self, name: str) -> str | None:
        value = self._values.get(name.encode())
        return None if value is None else value.decode("latin-1")


async def _read(receive: Receive, limit: int, length: str | None) -> bytes:
    if length is not None and length.isdecimal() and int(length[:20]) > limit:
        raise PayloadTooLarge(f"the body has {length[:20]} bytes; {limit} are allowed")
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise PayloadTooLarge(f"the body has {len(body)} bytes; {limit} are allowed")
        return body
    chunks = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise _ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise PayloadTooLarge(f"the body has more than the {limit} bytes allowed")
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)
        message = await receive()


class _ClientGone(Exception):
    """The client went away before its body was whole."""


async def _lifespan(receive: Receive, send: Send) -> None:
    while (await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def mount(app: Application | None, path: str, mounted: Application | Servable) -> Application:
    """Return an ASGI application that gives one path to `mounted`, and everything else to `app`.

    For frameworks without a mount of their own, such as Django and Quart.

    Args:
        app: The application beside, which gets the lifespan too; None answers 404.
        path: The prefix, e.g. ``"/ml"``.
        mounted: An ASGI application, or a servable to be wrapped in an `ASGIApp`.

    Raises:
        TypeError: `mounted` is neither, or `app` no ASGI application.
        ValueError: The prefix does not begin with "/", or is only that.

    Example:
        >>> from modelserve.testing import StubModel
        >>> application = mount(None, "/ml", StubModel())
    """
    prefix = path.rstrip("/")
    if not prefix.startswith("/"):
        raise ValueError(f'a prefix is like "/ml", got {path!r}')
    inner = mounted if _is_application(mounted) else ASGIApp(cast(Servable, mounted))
    beside = _nothing if app is None else app
    if not callable(beside):
        raise TypeError(f"app: expected an ASGI application or None, got {type(app).__name__}")

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            root = scope.get("root_path", "").rstrip("/")
            below = _path(scope)
            if below == prefix or below.startswith(prefix + "/"):
                scope = {**scope, "root_path": root + prefix, "path": root + below}
                await inner(scope, receive, send)
                return
        await beside(scope, receive, send)

    return dispatch


def _is_application(mounted: Application | Servable) -> TypeGuard[Application]:
    # A model made of a function may be called, too: as that function.
    return callable(mounted) and not hasattr(mounted, "infer")


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1003, "reason": "nothing here"})
    else:
        error = NoSuchPath(f'there is no path "{scope["path"][:200]}" here')
        body = oip.encode_error(str(error))
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": error.http, "headers": headers})
        await send({"type": "http.response.body", "body": body})
