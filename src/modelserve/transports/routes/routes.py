"""What all requests over HTTP have in common: admission, limits, errors to statuses, inference.

A transport reads and writes; everything between is here, and in the endpoints of each protocol. On
the way of an inference request nothing is awaited but the servable, so a transport may step
`answer` without a task or even a loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from secrets import token_hex
from time import monotonic, perf_counter
from typing import Any, Final, Literal, Protocol, TypeAlias, cast, get_args

from modelserve.codecs import oip, oip_shared
from modelserve.codecs.shared_memory import Placements, SharedMemoryNeeded
from modelserve.errors import (
    BackendError,
    ClientError,
    InvalidInput,
    PermissionDenied,
    ServeError,
    Unsupported,
)
from modelserve.execution.classification import classified_response, classifies
from modelserve.messages import Exchange, InferRequest, InferResponse, Principal
from modelserve.protocols import Admin, Authenticator, Caller, Catalog, Gathering, Servable, Ticket
from modelserve.transports.shared_memory import SharedMemory, shared_memory_of

from . import control, documentation, generate, server, statistics, v1
from . import oip as oip_endpoints
from . import shared_memory as shared_memory_endpoints
from .bodies import (
    COMPRESSED_FROM,
    asks_to_compress,
    compress_answer,
    compress_asked,
    decompress,
)
from .headers import LONGEST_TIMEOUT, headers_of, is_request_id, seconds_of, server_timing
from .messages import BINARY, JSON, MAX_BODY_SIZE, Body, Reply, Request, reply_json
from .table import Endpoint, Route, Table

__all__ = ["PROTOCOLS", "AdminRoutes", "Exposition", "ProtocolName", "Routes", "routes_of"]

_LOG = logging.getLogger(__name__)

AdminRoutes: TypeAlias = bool | Literal["direct"]

# Where a proxy says for whom it asks, and a browser which page asks. A proxy that says nothing
# cannot be told from a caller.
_ON_BEHALF: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via", "origin")

ProtocolName: TypeAlias = Literal["oip", "tfserving", "kserve"]
PROTOCOLS: Final[tuple[ProtocolName, ...]] = get_args(ProtocolName)
"""Names of the protocols there are routes of."""

_ANYONE: Final = Principal("")

# Of an error that a client is told: names in it may be the client's own, of any length.
_LONGEST_TEXT: Final = 2000

# What a refusal asks for, where an authenticator does not say what it takes.
_BEARER: Final = {"bearer": {"type": "http", "scheme": "bearer"}}

# Up to here a body is decoded before anybody looks whether its model is there.
_CHEAP_BODY: Final = 4096


class Exposition(Protocol):
    """Renders metrics."""

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return a text of metrics and its content type, given the header `Accept`."""
        ...


class Routes:
    """The routes of the protocols over HTTP, and /metrics, over one servable.

    A transport calls, in this order: `open`, which decides before a body is read; `answer`;
    `close` when the reply is written. Whatever `open` or the reading raises goes to `refuse`.

    Args:
        servable: What answers. Routes whose protocol it lacks (`Catalog`, `Admin`) answer 501.
            With a method `check(model, version)` that raises for what it would refuse, it is asked
            before a request's body is decompressed and decoded; with `check_deadline(model,
            version, deadline)` also of requests that say how much time they have.
        protocols: Which protocols' routes there are.
        docs: Whether there are /openapi.json and /docs.
        admin: Whether control routes (load, unload) are offered; ``"direct"``: not to requests
            that come from a web page or through a proxy.
        uploads: Whether a request to load a model may bring its configuration and files.
        shared_memory: Whether clients may register shared memory, where control routes are
            offered; or what they register it in, for several transports to have the same.
        authenticator: Tells who is calling; None lets everyone do everything else.
        metrics: What /metrics shows; None for nothing.
        record: Gets every closed exchange; by default the servable's own `record`, if it has one.
        max_body_size: Bytes the body of an inference request may have, decompressed too; and
            decompressed it may have 100 times as many as before, or 1 MiB.

    Raises:
        TypeError: What is to be served has no `infer`.
        ValueError: The limit is negative, or there is no such protocol.

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
        protocols: Iterable[ProtocolName] = PROTOCOLS,
        docs: bool = True,
        admin: AdminRoutes = False,
        uploads: bool = False,
        shared_memory: SharedMemory | bool = True,
        authenticator: Authenticator | None = None,
        metrics: Exposition | None = None,
        record: Callable[[Exchange], None] | None = None,
        max_body_size: int = MAX_BODY_SIZE,
    ) -> None:
        if isinstance(servable, type) or not hasattr(servable, "infer"):
            raise TypeError(_not_servable(servable))
        if max_body_size < 0:
            raise ValueError(f"max_body_size is 0 or more bytes, got {max_body_size}")
        self.servable = servable
        """What answers."""
        self.protocols = _checked_protocols(protocols)
        """Which protocols' routes there are."""
        self.uploads = uploads
        """Whether a request to load a model may bring its configuration and files."""
        self.shared_memory = shared_memory_of(shared_memory, max_body_size)
        """The shared memory that clients registered."""
        self.table = Table(_endpoints(self.protocols, docs=docs, uploads=uploads), max_body_size)
        """Every endpoint there is."""
        self._known = self.table.known
        self._check: Callable[[str, str], None] | None = getattr(servable, "check", None)
        self._check_deadline: Callable[[str, str, float], None] | None = getattr(
            servable, "check_deadline", None
        )
        self._begin: Any = getattr(servable, "begin", None)
        self.gathering: Gathering | None = None
        """The servable, where it runs rows that a transport gathered."""
        if hasattr(servable, "row_runner"):
            self.gathering = cast(Gathering, servable)
        # Chosen once: whoever asks for no classes pays nothing for them.
        knows_classes = getattr(servable, "classifies", False)
        self._write = oip.encode_response if knows_classes else _write_classified
        self.authenticates = authenticator is not None
        self._admin = admin
        self._authenticator = authenticator
        self.metrics = metrics
        """What /metrics shows."""
        self.record: Callable[[Exchange], None] | None = record or getattr(servable, "record", None)
        """Gets every closed exchange."""
        # Where somebody else is given the exchanges, what is served does not see them.
        owner = servable if record is None else None
        self.log_settings, self.trace_settings = control.settings_of(self, owner)
        self._prefix = token_hex(8)
        self._count = count(1)

    @property
    def controls(self) -> bool:
        """Whether control routes are offered to anyone."""
        return bool(self._admin)

    @property
    def schemes(self) -> Mapping[str, Mapping[str, Any]]:
        """How callers authenticate, as OpenAPI's security schemes; none where everyone may ask."""
        if self._authenticator is None:
            return {}
        return getattr(self._authenticator, "schemes", _BEARER)

    def find(self, method: str, path: str) -> Route:
        """Return the route of a method and decoded path; see `Table.find`."""
        return self._known.get((method, path)) or self.table.find(method, path)

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
        if route.records:
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
            route.endpoint.describes and "infer" in principal.scopes
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
        return given if given and is_request_id(given) else self.new_id()

    def new_id(self) -> str:
        """Return an id for a request that came without one."""
        return f"{self._prefix}-{next(self._count):x}"

    async def answer(self, request: Request, route: Route) -> Reply:
        """Return the reply to an opened request whose body is set; errors become replies too."""
        try:
            reply = await route.endpoint.call(self, request, route)
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
        if not request.plain and asks_to_compress(request.header("accept-encoding")):
            return None  # a thread may have to do that
        if _is_raw(request):
            return None  # what the model takes has to be asked for
        started = perf_counter()
        message = self.decode(request, route)
        cast(Exchange, request.exchange).decode = perf_counter() - started
        ticket: Ticket = self._begin(message, request.answering(self, message, deliver))
        return ticket

    def anonymous(self) -> Request:
        """Return what stands for a request that could not be understood."""
        request = Request("", "", _no_header)
        request.id = self._request_id(None)
        return request

    def refuse(self, request: Request, error: Exception) -> Reply:
        """Return the reply that tells an error, without what a remote caller may not see."""
        request.id = request.id or self._request_id(request.header("x-request-id"))
        status, text = self.told(request, error)
        reply = reply_json(status, oip.encode_error(text), request)
        reply.extra = headers_of(error)
        if request.method == "HEAD":
            reply.body = []
        return reply

    def told(self, request: Request, error: Exception) -> tuple[int, str]:
        """Return the status and text for an error, and put its code into the request's record.

        What a remote caller may not see is logged, with the request's id in both places.
        """
        exchange = request.exchange
        if isinstance(error, ServeError):
            status, code, public = error.http, error.grpc, error.public
        else:
            status, code, public = 500, "INTERNAL", False
        if exchange is not None:
            exchange.code = code
        if public:
            text = str(error)
            if len(text) > _LONGEST_TEXT:
                text = f"{text[:_LONGEST_TEXT]}..."
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
        return status, text

    def close(self, request: Request, bytes_out: int) -> None:
        """Record an exchange whose reply is written, or will never be."""
        exchange = request.exchange
        if exchange is not None and self.record is not None:
            request.exchange = None
            exchange.bytes_out = bytes_out
            self.record(exchange)

    # The servable's optional protocols, by their methods: nothing is inherited.

    def catalog(self) -> Catalog:
        """Return what describes models.

        Raises:
            Unsupported: What is served does not.
        """
        if not hasattr(self.servable, "describe"):
            raise Unsupported("what is served here does not describe its models")
        return cast(Catalog, self.servable)

    def administrator(self) -> Admin:
        """Return what loads and unloads models.

        Raises:
            Unsupported: What is served does not.
        """
        if not hasattr(self.servable, "aload"):
            raise Unsupported("what is served here cannot load or unload models")
        return cast(Admin, self.servable)

    def decode(self, request: Request, route: Route) -> InferRequest:
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
            self.check_model(route)
            if encoding:
                body = decompress(body, encoding, route.max_body)
        try:
            message = oip.decode_request(
                body, model=route.model, version=route.version, header_length=request.json_size
            )
        except SharedMemoryNeeded:
            message = self._decode_shared(request, route, body)
        except ClientError:
            self.check_model(route)  # that there is no such model comes first
            raise
        if message.id:
            exchange.id = message.id
        elif not request.plain and request.id == request.header("x-request-id"):
            message.id = request.id  # one that we made up is not echoed as if it were the caller's
        message.exchange = exchange
        message.principal = request.principal
        if not request.plain:
            _read_headers(message, request)
        if message.parameters and "explain" in message.parameters:
            request.asking().explains = _take_flag(message, "explain")
        return message

    def _decode_shared(self, request: Request, route: Route, body: Body) -> InferRequest:
        """Return the message in a request some tensors of which are in shared memory.

        It is told by a decoding that failed: so no other request is asked whether it is one.
        """
        self.check_model(route)
        placements = Placements(self.shared_memory, route.max_body)
        message = oip_shared.decode_shared(
            body,
            placements,
            model=route.model,
            version=route.version,
            header_length=request.json_size,
        )
        if len(placements):
            request.asking().placements = placements
        return message

    async def _decode_raw(self, request: Request, route: Route) -> InferRequest:
        """Return the message in a request whose body is one tensor's bytes and nothing else."""
        info = await self.catalog().describe(route.model, route.version)
        if info.signature is None:
            raise InvalidInput(f'model "{route.model}" does not say what it takes')
        message = oip.decode_raw(
            self.take_body(request, route),
            info.signature,
            batched=info.max_batch_size > 0,
            model=route.model,
            version=route.version,
        )
        self.address(message, request)
        return message

    def take_body(self, request: Request, route: Route) -> Body:
        """Return the body of a request for inference, decompressed; the request has none then.

        For protocols whose messages are not the Open Inference Protocol's.

        Raises:
            ModelNotFound: The servable tells that there is no such model.
            ModelNotReady: It is not loaded.
            DeadlineExceeded, Overloaded: It could not be answered in the time it has.
            InvalidInput: The body is not compressed as its header says.
            PayloadTooLarge: Decompressed it is larger than allowed.
            Unsupported: It is compressed in another way.
        """
        body, request.body = request.body, b""
        if request.exchange is not None:
            request.exchange.bytes_in = len(body)
        self.check_model(route)
        if self._check_deadline is not None:
            seconds = _timeout(request, b"")
            if seconds is not None:
                self._check_deadline(route.model, route.version, monotonic() + seconds)
        encoding = request.header("content-encoding")
        return decompress(body, encoding, route.max_body) if encoding else body

    def address(self, message: InferRequest, request: Request) -> None:
        """Put into a message what the request's headers say, who asks, and its record.

        For protocols whose messages are not the Open Inference Protocol's.

        Raises:
            InvalidInput: A header holds what it must not.
        """
        exchange = cast(Exchange, request.exchange)
        if message.id:
            exchange.id = message.id
        elif request.id == request.header("x-request-id"):
            message.id = request.id
        message.exchange = exchange
        message.principal = request.principal
        _read_headers(message, request)

    def check_model(self, route: Route) -> None:
        """Raise what a request for a model that is not there is to be told, if it is known now."""
        if self._check is not None:
            self._check(route.model, route.version)

    async def infer(self, request: Request, route: Route) -> Reply:
        """Answer a request of the Open Inference Protocol's own inference."""
        started = perf_counter()
        # In a call of its own: nothing of the body may be held here while the servable is awaited.
        if _is_raw(request):
            message = await self._decode_raw(request, route)
        else:
            message = self.decode(request, route)
        cast(Exchange, request.exchange).decode = perf_counter() - started
        response = await self.servable.infer(message)
        reply = self.encode(request, message, response)
        if not request.plain:
            await compress_asked(reply, request.header("accept-encoding") or "")
        return reply

    def encode(self, request: Request, message: InferRequest, response: InferResponse) -> Reply:
        """Return the reply that carries a response."""
        started = perf_counter()
        exchange = cast(Exchange, request.exchange)
        exchange.version = response.version
        extras = request.extras
        if extras is None:
            parts, json_size = self._write(response, message)
        else:
            if extras.explains:
                response.parameters = {**response.parameters, **_explained(exchange)}
            if extras.placements is None:
                parts, json_size = self._write(response, message)
            else:
                if self._write is _write_classified and classifies(message):
                    response = classified_response(response, message)
                parts, json_size = oip_shared.encode_shared(response, message, extras.placements)
        size = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        kind = JSON if json_size is None else BINARY
        reply = Reply(200, kind, parts, size, request.id, json_size)
        if size >= COMPRESSED_FROM:
            compress_answer(reply, request.header("accept-encoding") or "")
        exchange.encode = perf_counter() - started
        if extras is not None and extras.explains:
            timing = (b"server-timing", server_timing(exchange).encode())
            reply.extra = [*reply.extra, timing]
        return reply


def routes_of(
    servable: Servable,
    *,
    protocols: Iterable[ProtocolName] = PROTOCOLS,
    docs: bool = True,
    admin: AdminRoutes = False,
    uploads: bool = False,
    shared_memory: SharedMemory | bool = True,
    authenticator: Authenticator | None = None,
    max_body_size: int = MAX_BODY_SIZE,
    metrics: Exposition | bool = True,
    record: Callable[[Exchange], None] | None = None,
) -> Routes:
    """Return the routes of a servable; its own metrics are shown where it has any.

    Args:
        servable: What answers.
        protocols: As for `Routes`.
        docs: As for `Routes`.
        admin: As for `Routes`.
        uploads: As for `Routes`.
        shared_memory: As for `Routes`.
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
        protocols=protocols,
        docs=docs,
        admin=admin,
        uploads=uploads,
        shared_memory=shared_memory,
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


def _checked_protocols(protocols: Iterable[ProtocolName]) -> frozenset[ProtocolName]:
    names = list(protocols)
    for name in names:
        if name not in PROTOCOLS:
            raise ValueError(f"protocols are any of {', '.join(PROTOCOLS)}; got {name!r}")
    return frozenset(names)


_INFER: Final = [
    Endpoint(
        "POST",
        f"{path}/infer",
        Routes.infer,
        "infer",
        max_body=None,
        records=True,
        plain=True,
        summary="the outputs of a model for inputs",
        described="oip.INFER",
    )
    for path in oip_endpoints.MODEL_PATHS
]


def _endpoints(protocols: frozenset[ProtocolName], *, docs: bool, uploads: bool) -> list[Endpoint]:
    """Return the endpoints of some protocols, and those that there are whatever the protocols."""
    endpoints = [*server.ENDPOINTS]
    if docs:
        endpoints += documentation.endpoints()
    if "oip" in protocols:
        endpoints += (*_INFER, *oip_endpoints.ENDPOINTS, *generate.ENDPOINTS)
        endpoints += (*statistics.ENDPOINTS, *control.endpoints(uploads=uploads))
        endpoints += shared_memory_endpoints.ENDPOINTS
    endpoints += v1.endpoints(protocols)
    return endpoints


def _timeout(request: Request, body: Body) -> float | None:
    """Return the seconds a request has, as far as that can be told without decoding it."""
    said = None if request.plain else request.header("x-request-timeout")
    if said is None:
        return oip.peek_timeout(body)
    try:
        seconds = float(said)
    except ValueError:
        return None
    return seconds if 0 < seconds <= LONGEST_TIMEOUT else None


def _is_raw(request: Request) -> bool:
    """Tell whether a body has no JSON part."""
    size = request.json_size if request.plain else request.header(oip.HEADER)
    return size == 0 or size == "0"


def _read_headers(message: InferRequest, request: Request) -> None:
    """Put into a message what the `OPTIONAL_HEADERS` say."""
    message.trace = request.header("traceparent") or ""
    message.idempotency_key = request.header("idempotency-key") or ""
    if (request.header("x-explain") or "").lower() in ("1", "true"):
        request.asking().explains = True
    timeout = request.header("x-request-timeout")
    if timeout is not None:
        _set_deadline(message, timeout)


def _set_deadline(message: InferRequest, timeout: str) -> None:
    """Let a message end after so many seconds, unless it ends sooner."""
    deadline = monotonic() + seconds_of(timeout)
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


def _write_classified(
    response: InferResponse, message: InferRequest
) -> tuple[list[bytes | memoryview], int | None]:
    """Encode the response of a servable that knows nothing of classes."""
    if classifies(message):
        response = classified_response(response, message)
    return oip.encode_response(response, message)


def _no_header(name: str) -> None:
    return None
