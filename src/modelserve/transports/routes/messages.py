"""HTTP requests and replies as transports hand them over, and what both sides name alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from modelserve.codecs import oip
from modelserve.codecs.shared_memory import Placements
from modelserve.errors import ClientError
from modelserve.messages import Exchange, InferRequest, InferResponse, Principal
from modelserve.protocols import Certificate, Done

if TYPE_CHECKING:
    from .routes import Routes

__all__ = [
    "BINARY",
    "JSON",
    "MAX_BODY_SIZE",
    "OPTIONAL_HEADERS",
    "Body",
    "BodyTimeout",
    "Headers",
    "NoSuchPath",
    "Pieces",
    "Reply",
    "Request",
    "reply_json",
    "split_target",
]

MAX_BODY_SIZE: Final = 64 * 2**20
"""Default for the bytes a body may have, 64 MiB."""

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

Body: TypeAlias = bytes | bytearray | memoryview
Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

_NO_HEADERS: Final[Headers] = ()
JSON: Final = b"application/json"
BINARY: Final = b"application/octet-stream"
_HEADER: Final = oip.HEADER.encode()


class NoSuchPath(ClientError):
    """No route has this path."""

    http = 404
    grpc = "UNIMPLEMENTED"


class BodyTimeout(ClientError):
    """The body did not arrive in time."""

    http = 408
    grpc = "DEADLINE_EXCEEDED"


class Pieces(Protocol):
    """A body that comes piece by piece."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return what gives the pieces."""
        ...

    def aclose(self) -> Coroutine[Any, Any, None]:
        """End what makes the pieces, begun or not."""
        ...


class Extras:
    """What few inference requests ask for.

    Attributes:
        explains: Whether the caller wants to know where the time went.
        placements: Where outputs are to go that are not to be in the body.
    """

    __slots__ = ("explains", "placements")

    def __init__(self) -> None:
        self.explains = False
        self.placements: Placements | None = None


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
        "extras",
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
        self.extras: Extras | None = None
        """What few requests ask for; None in all others."""
        self.plain = False
        """Whether the transport knows that it has none of the `OPTIONAL_HEADERS`, does not ask for
        a compressed answer, and has set `json_size`: the headers are not looked at then."""

    @property
    def explains(self) -> bool:
        """Whether the caller wants to know where the time went."""
        return self.extras is not None and self.extras.explains

    def asking(self) -> Extras:
        """Return what it asks for beside the usual, to be added to."""
        if self.extras is None:
            self.extras = Extras()
        return self.extras

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
            reply = routes.encode(self, self._message, response)
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
        stream: Pieces of the body as they come, instead of `body` and `size`: each is to be sent
            before the next is asked for. Whoever takes the reply closes it, however that ends.
    """

    __slots__ = ("body", "content_type", "extra", "id", "json_size", "size", "status", "stream")

    def __init__(
        self,
        status: int,
        content_type: bytes,
        body: list[bytes | memoryview],
        size: int,
        id: str,
        json_size: int | None = None,
        stream: Pieces | None = None,
    ) -> None:
        self.status = status
        self.content_type = content_type
        self.body = body
        self.size = size
        self.id = id
        self.json_size = json_size
        self.stream = stream
        self.extra: Headers = _NO_HEADERS
        """Headers beside those that the other attributes make."""

    @property
    def headers(self) -> Headers:
        """All headers: names in lower case, and values."""
        headers = [(b"content-type", self.content_type), (b"x-request-id", self.id.encode())]
        if self.stream is None:
            headers.insert(1, (b"content-length", b"%d" % self.size))
        if self.json_size is not None:
            headers.append((_HEADER, b"%d" % self.json_size))
        return [*headers, *self.extra]


def reply_json(status: int, body: bytes | memoryview, request: Request) -> Reply:
    """Return a reply with a body in JSON, or with none."""
    return Reply(status, JSON, [body], len(body), request.id)


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
