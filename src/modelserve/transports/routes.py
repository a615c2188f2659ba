"""One table of routes for every HTTP transport: paths, scopes, limits, errors to statuses.

A transport reads and writes; everything between is here. On the way of a request nothing is
awaited but the servable, so a transport may step `answer` without a task or even a loop.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from math import ceil, nan
from secrets import token_hex
from time import monotonic, perf_counter
from typing import Any, Final, Literal, Protocol, TypeAlias, cast

from modelserve.codecs import oip, oip_catalog
from modelserve.errors import (
    BackendError,
    ClientError,
    InvalidInput,
    MethodNotAllowed,
    PayloadTooLarge,
    PermissionDenied,
    ServeError,
    Unauthenticated,
    Unsupported,
)
from modelserve.messages import Exchange, InferRequest, InferResponse, Principal
from modelserve.protocols import (
    Admin,
    Authenticator,
    Caller,
    Catalog,
    Certificate,
    Done,
    Gathering,
    Servable,
    Ticket,
)

__all__ = [
    "BINARY",
    "JSON",
    "MAX_BODY_SIZE",
    "OPTIONAL_HEADERS",
    "AdminRoutes",
    "BodyTimeout",
    "Exposition",
    "NoSuchPath",
    "Reply",
    "Request",
    "Route",
    "Routes",
    "routes_of",
    "split_target",
]

_LOG = logging.getLogger(__name__)

MAX_BODY_SIZE: Final = 64 * 2**20
"""Default for the bytes a body may have, 64 MiB."""

# Paths are remembered, in bounds: whoever makes up model names gains nothing.
_MOST_FOUND: Final = 1024
_LONGEST_FOUND: Final = 256

_SMALL_BODY: Final = 64 * 2**10

# Three centuries, as the codec has it for the parameter: more would not survive the arithmetic.
_LONGEST_TIMEOUT: Final = 1e10

OPTIONAL_HEADERS: Final = frozenset(
    (
        "content-encoding",
        "idempotency-key",
        "traceparent",
        "x-explain",
        "x-request-id",
        "x-request-timeout",
    )
)
"""Headers that say something about an inference request, and mostly are not there."""

# A compressed body costs its sender little and the event loop what it becomes.
_MAX_RATIO: Final = 100
_ALWAYS_DECOMPRESSED: Final = 2**20

AdminRoutes: TypeAlias = bool | Literal["direct"]

# Where a proxy says for whom it asks, and a browser which page asks. A proxy that says nothing
# cannot be told from a caller.
_ON_BEHALF: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via", "origin")

Body: TypeAlias = bytes | bytearray | memoryview
Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

_NO_HEADERS: Final[Headers] = ()
_ANYONE: Final = Principal("")
JSON: Final = b"application/json"
BINARY: Final = b"application/octet-stream"
_HEADER: Final = oip.HEADER.encode()

# Up to here a body is decoded before anybody looks whether its model is there.
_CHEAP_BODY: Final = 4096


class Exposition(Protocol):
    """Renders metrics."""

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return a text of metrics and its content type, given the header `Accept`."""
        ...


class NoSuchPath(ClientError):
    """No route has this path."""

    http = 404
    grpc = "UNIMPLEMENTED"


class BodyTimeout(ClientError):
    """The body did not arrive in time."""

    http = 408
    grpc = "DEADLINE_EXCEEDED"


class Request:
    """One HTTP request as a transport hands it over.

    Args:
        method: The method, in capitals.
        path: The decoded path relative to the mount, beginning with "/".
        header: Looks up a header by lower-case name.
        body: The whole body; set after `Routes.open` allowed it. An inference request gives it
            up while it is answered.
    """

    __slots__ = (
        # While it is answered without a coroutine:
        "_deliver",
        "_message",
        "_routes",
        "body",
        "certificate",
        "exchange",
        "explains",
        "header",
        "id",
        "json_size",
        "method",
        "path",
        "plain",
        "principal",
    )

    def __init__(
        self, method: str, path: str, header: Callable[[str], str | None], body: Body = b""
    ) -> None:
        self.method = method
        self.path = path
        self.header = header
        self.body = body
        self.id = ""
        """The request's id; from `X-Request-Id`, or made by `Routes.open`."""
        self.exchange: Exchange | None = None
        """The record of an inference request; None for every other."""
        self.principal: Principal | None = None
        self.certificate: Certificate | None = None
        """The client's certificate, where the transport asked for one."""
        self.json_size: int | str | None = None
        """Bytes of the JSON part of a body with binary tensors, as the header says it."""
        self.explains = False
        """Whether the caller wants to know where the time went."""
        self.plain = False
        """Whether the transport knows that it has none of the `OPTIONAL_HEADERS`, and has set
        `json_size`: the headers are not looked at then."""

    def answering(
        self, routes: Routes, message: InferRequest, deliver: Callable[[Reply], None]
    ) -> Done:
        """Return what a servable is to call with the response to the request."""
        self._routes = routes
        self._message = message
        self._deliver = deliver
        return self._done

    def _done(self, response: InferResponse | None, error: BaseException | None) -> None:
        routes = self._routes
        try:
            if response is None:
                raise error or RuntimeError("there is neither a response nor an error")
            reply = routes._encode(self, self._message, response)
        except Exception as failure:  # the boundary of one HTTP request
            reply = routes.refuse(self, failure)
        self._deliver(reply)


class Reply:
    """What a transport is to write.

    Args:
        status: HTTP status code.
        content_type: The body's media type.
        body: Buffers to write in order. A reply to HEAD has none.
        size: Bytes of the body.
        id: The request's id.
        json_size: Bytes of the JSON part of a body with binary tensors, else None.
    """

    __slots__ = ("body", "content_type", "extra", "id", "json_size", "size", "status")

    def __init__(
        self,
        status: int,
        content_type: bytes,
        body: list[bytes | memoryview],
        size: int,
        id: str,
        json_size: int | None = None,
    ) -> None:
        self.status = status
        self.content_type = content_type
        self.body = body
        self.size = size
        self.id = id
        self.json_size = json_size
        self.extra: Headers = _NO_HEADERS
        """Headers beside those that the other attributes make."""

    @property
    def headers(self) -> Headers:
        """All headers: names in lower case, and values."""
        headers = [
            (b"content-type", self.content_type),
            (b"content-length", b"%d" % self.size),
            (b"x-request-id", self.id.encode()),
        ]
        if self.json_size is not None:
            headers.append((_HEADER, b"%d" % self.json_size))
        return [*headers, *self.extra]


_Call: TypeAlias = Callable[["Routes", Request, "Route"], Awaitable[Reply]]


class _Endpoint:
    __slots__ = ("call", "max_body", "methods", "scope")

    def __init__(
        self, call: _Call, methods: tuple[str, ...], scope: str, max_body: int | None = 0
    ) -> None:
        self.call = call
        self.methods = methods
        self.scope = scope
        self.max_body = max_body


class Route:
    """Where a request goes.

    Attributes:
        infers: Whether it is an inference request.
        scope: What the caller must be allowed: infer, read, admin, or empty for nothing.
        max_body: Bytes the body may have; 0 where none is to be read.
        model: Name of the model, or empty.
        version: Version number or label, or empty.
    """

    __slots__ = ("_endpoint", "infers", "max_body", "model", "scope", "version")

    def __init__(self, endpoint: _Endpoint, max_body: int, model: str, version: str) -> None:
        self._endpoint = endpoint
        self.infers = endpoint is _INFER
        self.scope = endpoint.scope
        self.max_body = max_body
        self.model = model
        self.version = version


class Routes:
    """The Open Inference Protocol's REST routes, and /metrics, over one servable.

    A transport calls, in this order: `open`, which decides before a body is read; `answer`;
    `close` when the reply is written. Whatever `open` or the reading raises goes to `refuse`.

    Args:
        servable: What answers. Routes whose protocol it lacks (`Catalog`, `Admin`) answer 501.
            With a method `check(model, version)` that raises for what it would refuse, it is asked
            before a request's body is decompressed and decoded; with `check_deadline(model,
            version, deadline)` also of requests that say how much time they have.
        admin: Whether load and unload are offered; ``"direct"``: not to requests that come from
            a web page or through a proxy.
        authenticator: Tells who is calling; None lets everyone do everything else.
        metrics: What /metrics shows; None for nothing.
        record: Gets every closed exchange; by default the servable's own `record`, if it has one.
        max_body_size: Bytes the body of an inference request may have, decompressed too; and
            decompressed it may have 100 times as many as before, or 1 MiB.

    Raises:
        TypeError: What is to be served has no `infer`.
        ValueError: The limit is negative.

    Example:
        >>> from modelserve.testing import StubModel
        >>> routes = Routes(StubModel())
        >>> routes.open(Request("GET", "/v2/models/stub", {}.get)).model
        'stub'
    """

    def __init__(
        self,
        servable: Servable,
        *,
        admin: AdminRoutes = False,
        authenticator: Authenticator | None = None,
        metrics: Exposition | None = None,
        record: Callable[[Exchange], None] | None = None,
        max_body_size: int = MAX_BODY_SIZE,
    ) -> None:
        if isinstance(servable, type) or not hasattr(servable, "infer"):
            raise TypeError(_not_servable(servable))
        if max_body_size < 0:
            raise ValueError(f"max_body_size is 0 or more bytes, got {max_body_size}")
        self._servable = servable
        self._check: Callable[[str, str], None] | None = getattr(servable, "check", None)
        self._check_deadline: Callable[[str, str, float], None] | None = getattr(
            servable, "check_deadline", None
        )
        self._begin: Any = getattr(servable, "begin", None)
        self.gathering: Gathering | None = None
        """The servable, where it runs rows that a transport gathered."""
        if hasattr(servable, "row_runner"):
            self.gathering = cast(Gathering, servable)
        self.authenticates = authenticator is not None
        self._admin = admin
        self._authenticator = authenticator
        self._metrics = metrics
        self.record: Callable[[Exchange], None] | None = record or getattr(servable, "record", None)
        """Gets every closed exchange."""
        self._max_body_size = max_body_size
        self._found: dict[tuple[str, str], Route] = {}
        self._prefix = token_hex(8)
        self._count = count(1)

    def find(self, method: str, path: str) -> Route:
        """Return the route of a method and decoded path; one "/" too many at its end is let be.

        Raises:
            NoSuchPath: There is none.
            MethodNotAllowed: There is one, with other methods.
        """
        found = self._found.get((method, path))
        if found is not None:
            return found
        endpoint, model, version = _split(path)
        if endpoint is None:
            raise NoSuchPath(f'there is no path "{path[:200]}" here')
        if method not in endpoint.methods:
            raise MethodNotAllowed(
                f"expected {' or '.join(endpoint.methods)}, got {method[:20]}",
                allow=endpoint.methods,
            )
        limit = self._max_body_size if endpoint.max_body is None else endpoint.max_body
        route = Route(endpoint, limit, model, version)
        if len(self._found) >= _MOST_FOUND:
            self._found.clear()
        if len(path) <= _LONGEST_FOUND:
            self._found[method, path] = route
        return route

    def open(self, request: Request, route: Route | None = None) -> Route:
        """Find a request's route and admit its caller, before a body is read.

        Args:
            request: The request, without its body.
            route: Its route, where `find` was asked before.

        Raises:
            NoSuchPath: No route has the path.
            MethodNotAllowed: The route has other methods.
            Unauthenticated: The caller did not prove who it is.
            PermissionDenied: It may not do this, or nobody may.
        """
        if request.plain:
            request.id = self.new_id()
        else:
            request.id = self._request_id(request.header("x-request-id"))
        if route is None:
            route = self.find(request.method, request.path)
        if route.infers:
            exchange = request.exchange = Exchange("http", route.model, id=request.id)
            exchange.version = route.version
        elif route.scope == "admin":
            self._admit_to_control(request)
        if self._authenticator is not None and route.scope:
            self._authenticate(self._authenticator, request, route)
        return route

    def _authenticate(self, authenticator: Authenticator, request: Request, route: Route) -> None:
        principal = request.principal = authenticator.authenticate(request)
        if request.exchange is not None:
            request.exchange.principal = principal.name
        self._check_scope(principal, route)

    def admitted(self, route: Route, caller: Caller) -> Principal:
        """Return who is calling; for a transport that opens no `Request`.

        Raises:
            Unauthenticated: The caller did not prove who it is.
            PermissionDenied: It may not do this.
        """
        if self._authenticator is None:
            return _ANYONE
        principal = self._authenticator.authenticate(caller)
        self._check_scope(principal, route)
        return principal

    def _check_scope(self, principal: Principal, route: Route) -> None:
        if route.scope not in principal.scopes and not (
            # Whoever may ask a model may know what it takes.
            route._endpoint in _DESCRIBING and "infer" in principal.scopes
        ):
            raise PermissionDenied(f'"{principal.name}" lacks the scope "{route.scope}" this needs')

    def _admit_to_control(self, request: Request) -> None:
        if not self._admin:
            raise PermissionDenied(
                "control routes are off; the server's owner can turn them on with admin=True"
            )
        if self._admin == "direct" and any(request.header(name) for name in _ON_BEHALF):
            raise PermissionDenied(
                "control routes are for callers on this machine, and this request came from a web "
                "page or through a proxy; the server's owner can turn them on with an "
                "authenticator, or admin=True"
            )

    def _request_id(self, given: str | None) -> str:
        if given and len(given) <= 128 and given.isascii() and _is_visible(given):
            return given
        return self.new_id()

    def new_id(self) -> str:
        """Return an id for a request that came without one."""
        return f"{self._prefix}-{next(self._count):x}"

    async def answer(self, request: Request, route: Route) -> Reply:
        """Return the reply to an opened request whose body is set; errors become replies too."""
        try:
            reply = await route._endpoint.call(self, request, route)
        except Exception as error:  # the boundary of one HTTP request
            return self.refuse(request, error)
        if request.method == "HEAD":
            reply.body = []
        return reply

    def begin(
        self, request: Request, route: Route, deliver: Callable[[Reply], None]
    ) -> Ticket | None:
        """Answer an opened inference request by a call of `deliver`, without a coroutine.

        Args:
            request: The request, with its body.
            route: Its route.
            deliver: Called once with the reply, on this event loop, after `begin` returned.

        Returns:
            What takes the request back when its client is gone; or None where this way is not
            offered and `answer` is to be awaited.

        Raises:
            Exception: What is to go to `refuse`; `deliver` is not called then.
        """
        if self._begin is None or not route.infers:
            return None
        started = perf_counter()
        message = self._decode(request, route)
        cast(Exchange, request.exchange).decode = perf_counter() - started
        ticket: Ticket = self._begin(message, request.answering(self, message, deliver))
        return ticket

    def anonymous(self) -> Request:
        """Return what stands for a request that could not be understood."""
        request = Request("", "", _no_header)
        request.id = self._request_id(None)
        return request

    def refuse(self, request: Request, error: Exception) -> Reply:
        """Return the reply that tells an error, without what a remote caller may not see.

        What it may not see is logged, with the request's id in both places.
        """
        request.id = request.id or self._request_id(request.header("x-request-id"))
        exchange = request.exchange
        if isinstance(error, ServeError):
            status, code, public = error.http, error.grpc, error.public
        else:
            status, code, public = 500, "INTERNAL", False
        if exchange is not None:
            exchange.code = code
        if public:
            text = str(error)
        else:
            what = "the model failed" if isinstance(error, BackendError) else "internal error"
            text = f"{what}; request id {request.id}"
            _LOG.error(
                "%s %r failed, request id %s",
                request.method,
                request.path[:200],
                request.id,
                # Once in the log is enough, where the model ran; the id tells which request it was.
                exc_info=None if isinstance(error, BackendError) and error.logged else error,
            )
        reply = _reply(status, oip.encode_error(text), request)
        if isinstance(error, MethodNotAllowed):
            reply.extra = [(b"allow", ", ".join(error.allow).encode())]
        elif isinstance(error, Unauthenticated):
            reply.extra = [(b"www-authenticate", b'Bearer realm="modelserve"')]
        retry_after = getattr(error, "retry_after", None)
        if retry_after is not None:
            reply.extra = [(b"retry-after", b"%d" % max(1, ceil(retry_after)))]
        if request.method == "HEAD":
            reply.body = []
        return reply

    def close(self, request: Request, bytes_out: int) -> None:
        """Record an exchange whose reply is written, or will never be."""
        exchange = request.exchange
        if exchange is not None and self.record is not None:
            request.exchange = None
            exchange.bytes_out = bytes_out
            self.record(exchange)

    # The servable's optional protocols, by their methods: nothing is inherited.

    def _catalog(self) -> Catalog:
        if not hasattr(self._servable, "describe"):
            raise Unsupported("what is served here does not describe its models")
        return cast(Catalog, self._servable)

    def _administrator(self) -> Admin:
        if not hasattr(self._servable, "aload"):
            raise Unsupported("what is served here cannot load or unload models")
        return cast(Admin, self._servable)

    def _decode(self, request: Request, route: Route) -> InferRequest:
        """Return the message in a request, which no longer has its body then."""
        body, request.body = request.body, b""
        exchange = cast(Exchange, request.exchange)
        exchange.bytes_in = len(body)
        encoding = None
        if not request.plain:
            request.json_size = request.header(oip.HEADER)
            encoding = request.header("content-encoding")
        if self._check_deadline is not None:
            seconds = _timeout(request, body)
            if seconds is not None:
                self._check_deadline(route.model, route.version, monotonic() + seconds)
        if encoding or len(body) > _CHEAP_BODY:
            self._check_model(route)
            if encoding:
                body = _decompress(body, encoding, route.max_body)
        try:
            message = oip.decode_request(
                body, model=route.model, version=route.version, header_length=request.json_size
            )
        except ClientError:
            self._check_model(route)  # that there is no such model comes first
            raise
        if message.id:
            exchange.id = message.id
        elif not request.plain and request.id == request.header("x-request-id"):
            message.id = request.id  # one that we made up is not echoed as if it were the caller's
        message.exchange = exchange
        message.principal = request.principal
        if not request.plain:
            message.trace = request.header("traceparent") or ""
            message.idempotency_key = request.header("idempotency-key") or ""
            request.explains = (request.header("x-explain") or "").lower() in ("1", "true")
            timeout = request.header("x-request-timeout")
            if timeout is not None:
                _set_deadline(message, timeout)
        if message.parameters and "explain" in message.parameters:
            request.explains = _take_flag(message, "explain")
        return message

    def _check_model(self, route: Route) -> None:
        if self._check is not None:
            self._check(route.model, route.version)

    async def _infer(self, request: Request, route: Route) -> Reply:
        started = perf_counter()
        # In a call of its own: nothing of the body may be held here while the servable is awaited.
        message = self._decode(request, route)
        cast(Exchange, request.exchange).decode = perf_counter() - started
        response = await self._servable.infer(message)
        return self._encode(request, message, response)

    def _encode(self, request: Request, message: InferRequest, response: InferResponse) -> Reply:
        started = perf_counter()
        exchange = cast(Exchange, request.exchange)
        exchange.version = response.version
        if request.explains:
            response.parameters = {**response.parameters, **_explained(exchange)}
        parts, json_size = oip.encode_response(response, message)
        size = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        kind = JSON if json_size is None else BINARY
        reply = Reply(200, kind, parts, size, request.id, json_size)
        exchange.encode = perf_counter() - started
        if request.explains:
            reply.extra = [(b"server-timing", _server_timing(exchange).encode())]
        return reply

    async def _server(self, request: Request, route: Route) -> Reply:
        from modelserve import __version__

        extensions = ["binary_tensor_data", "parameters"]
        if hasattr(self._servable, "index"):
            extensions.append("model_repository")
        body = oip_catalog.encode_server("modelserve", __version__, extensions)
        return _reply(200, body, request)

    async def _live(self, request: Request, route: Route) -> Reply:
        return _reply(200, oip_catalog.encode_live(), request)

    async def _ready(self, request: Request, route: Route) -> Reply:
        # Without a catalog nothing says that it is not: the server itself answers.
        ready = not hasattr(self._servable, "ready") or await self._catalog().ready()
        return _reply(200 if ready else 503, oip_catalog.encode_ready(ready), request)

    async def _model_ready(self, request: Request, route: Route) -> Reply:
        ready = await self._catalog().ready(route.model, route.version)
        body = oip_catalog.encode_ready(ready, model=route.model)
        return _reply(200 if ready else 503, body, request)

    async def _model(self, request: Request, route: Route) -> Reply:
        info = await self._catalog().describe(route.model, route.version)
        return _reply(200, oip_catalog.encode_metadata(info), request)

    async def _index(self, request: Request, route: Route) -> Reply:
        ready_only = oip_catalog.decode_index_request(request.body)
        infos = await self._catalog().index()
        shown = (info for info in infos if not ready_only or info.state == "READY")
        return _reply(200, oip_catalog.encode_index(shown), request)

    async def _load(self, request: Request, route: Route) -> Reply:
        version = oip_catalog.decode_change(request.body)
        await self._administrator().aload(route.model, version)
        return _reply(200, b"", request)

    async def _unload(self, request: Request, route: Route) -> Reply:
        version = oip_catalog.decode_change(request.body)
        await self._administrator().aunload(route.model, version)
        return _reply(200, b"", request)

    async def _show_metrics(self, request: Request, route: Route) -> Reply:
        if self._metrics is None:
            raise Unsupported("no metrics are kept here")
        try:
            body, content_type = self._metrics.render(request.header("accept") or "")
        except ImportError as error:  # what to install is for whoever runs the server, and scrapes
            raise Unsupported(str(error)) from error
        return Reply(200, content_type.encode(), [body], len(body), request.id)


def routes_of(
    servable: Servable,
    *,
    admin: AdminRoutes = False,
    authenticator: Authenticator | None = None,
    max_body_size: int = MAX_BODY_SIZE,
    metrics: Exposition | bool = True,
    record: Callable[[Exchange], None] | None = None,
) -> Routes:
    """Return the routes of a servable; its own metrics are shown where it has any.

    Args:
        servable: What answers.
        admin: As for `Routes`.
        authenticator: As for `Routes`.
        max_body_size: As for `Routes`.
        metrics: What /metrics shows: an object with `render`, True for the servable's own
            `metrics` where it has one, False for nothing.
        record: As for `Routes`.
    """
    if isinstance(metrics, bool):
        found = getattr(servable, "metrics", None) if metrics else None
        exposition = cast(Exposition, found) if hasattr(found, "render") else None
    else:
        exposition = metrics
    return Routes(
        servable,
        admin=admin,
        authenticator=authenticator,
        metrics=exposition,
        record=record,
        max_body_size=max_body_size,
    )


def _not_servable(found: object) -> str:
    kind = f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__
    return (
        "expected an object with a coroutine method infer(request), such as a ModelRepository, "
        f"a model made by modelserve.model, or an AsyncClient; got {kind}"
    )


_GET: Final = ("GET", "HEAD")
_POST: Final = ("POST",)
_INFER: Final = _Endpoint(Routes._infer, _POST, "infer", None)
_FIXED: Final = {
    "/v2": _Endpoint(Routes._server, _GET, "read"),
    "/v2/health/live": _Endpoint(Routes._live, _GET, ""),
    "/v2/health/ready": _Endpoint(Routes._ready, _GET, ""),
    "/v2/repository/index": _Endpoint(Routes._index, _POST, "read", _SMALL_BODY),
    "/metrics": _Endpoint(Routes._show_metrics, _GET, "read"),
}
_MODEL: Final[dict[str | None, _Endpoint]] = {
    "infer": _INFER,
    "ready": _Endpoint(Routes._model_ready, _GET, "read"),
    None: _Endpoint(Routes._model, _GET, "read"),
}
_DESCRIBING: Final = (_MODEL["ready"], _MODEL[None])
_REPOSITORY: Final = {
    "load": _Endpoint(Routes._load, _POST, "admin", _SMALL_BODY),
    "unload": _Endpoint(Routes._unload, _POST, "admin", _SMALL_BODY),
}


def _split(path: str) -> tuple[_Endpoint | None, str, str]:
    """Return a path's endpoint, if it has one, model and version."""
    if path.endswith("/"):
        # Litestar appends one to whatever it gives to a mount.
        path = path[:-1]
    parts = path.split("/")
    if path.startswith("/v2/models/"):
        model, version, tail = parts[3], "", parts[4:]
        versioned = len(tail) > 1 and tail[0] == "versions"
        if versioned:
            version, tail = tail[1], tail[2:]
        named = bool(model) and bool(version) is versioned
        endpoint = _MODEL.get("/".join(tail) if tail else None) if named else None
        return endpoint, model, version
    if path.startswith("/v2/repository/models/") and len(parts) == 6:
        model = parts[4]
        return _REPOSITORY.get(parts[5]) if model else None, model, ""
    return _FIXED.get(path), "", ""


def _is_visible(text: str) -> bool:
    return text.isprintable() and " " not in text


def _reply(status: int, body: bytes | memoryview, request: Request) -> Reply:
    return Reply(status, JSON, [body], len(body), request.id)


def _timeout(request: Request, body: Body) -> float | None:
    """Return the seconds a request has, as far as that can be told without decoding it."""
    said = None if request.plain else request.header("x-request-timeout")
    if said is None:
        return oip.peek_timeout(body)
    try:
        seconds = float(said)
    except ValueError:
        return None
    return seconds if 0 < seconds <= _LONGEST_TIMEOUT else None


def _set_deadline(message: InferRequest, timeout: str) -> None:
    """Let a message end after so many seconds, unless it ends sooner."""
    try:
        seconds = float(timeout)
    except ValueError:
        seconds = nan
    if not 0 < seconds <= _LONGEST_TIMEOUT:
        raise InvalidInput(
            f'expected seconds above 0, got "{timeout[:40]}"', path="header X-Request-Timeout"
        )
    deadline = monotonic() + seconds
    if message.deadline is None or deadline < message.deadline:
        message.deadline = deadline


def _take_flag(message: InferRequest, name: str) -> bool:
    """Take a parameter that is not the model's from a message: with it it would have its own
    batch.
    """
    parameters = dict(message.parameters)
    value = parameters.pop(name)
    if not isinstance(value, bool):
        raise InvalidInput(
            f"expected true or false, got {type(value).__name__}", path=f"parameters.{name}"
        )
    message.parameters = parameters
    return value


def _explained(exchange: Exchange) -> dict[str, float | int | str]:
    """Return what a response can say of its exchange: not how long writing it takes."""
    return {f"explain_{k}": v for k, v in exchange.explain().items() if k != "encode_us"}


def _server_timing(exchange: Exchange) -> str:
    """Return an exchange as the header Server-Timing has it, in milliseconds."""
    times = ", ".join(
        f"{name};dur={getattr(exchange, name) * 1e3:.3f}"
        for name in ("decode", "queue", "run", "encode")
    )
    batch = f"{exchange.batch_requests} requests, {exchange.batch_rows} rows, {exchange.reason}"
    return f'{times}, batch;desc="{batch}"'


def _no_header(name: str) -> None:
    return None


def _decompress(body: Body, encoding: str, limit: int) -> bytes:
    encoding = encoding.strip().lower()
    if encoding == "identity":
        return bytes(body)
    if encoding not in ("gzip", "deflate"):
        raise Unsupported(f'content encoding "{encoding[:40]}"; expected gzip or deflate')
    bound = min(limit, max(_ALWAYS_DECOMPRESSED, _MAX_RATIO * len(body)))
    stream = zlib.decompressobj(31 if encoding == "gzip" else 15)
    try:
        plain = stream.decompress(body, bound + 1)
    except zlib.error as error:
        raise InvalidInput(f"the body is not valid {encoding}: {error}") from None
    if len(plain) > bound:
        why = "" if bound == limit else f" and {_MAX_RATIO} times what was sent"
        raise PayloadTooLarge(f"the decompressed body has more than {bound} bytes{why}")
    if not stream.eof or stream.unused_data:
        raise InvalidInput(f"the body is not one whole {encoding} stream")
    return plain


def split_target(target: bytes) -> tuple[str, str]:
    """Return the decoded path and the raw query of an HTTP/1.1 request target.

    For transports that parse HTTP themselves.

    Raises:
        NoSuchPath: The path is not UTF-8, has an encoded "/" (which no name may hold) or a
            malformed escape.
    """
    raw, _, query = target.partition(b"?")
    if b"%" in raw:
        raw = _unquote(raw)
    try:
        return raw.decode(), query.decode("latin-1")
    except UnicodeDecodeError:
        raise NoSuchPath("the path is not UTF-8") from None


def _unquote(raw: bytes) -> bytes:
    first, *rest = raw.split(b"%")
    pieces = [first]
    for piece in rest:
        try:
            byte = bytes.fromhex(piece[:2].decode())
        except ValueError:
            byte = b""
        if len(byte) != 1 or byte == b"/":
            raise NoSuchPath("the path has an escape that cannot be")
        pieces += (byte, piece[2:])
    return b"".join(pieces)
