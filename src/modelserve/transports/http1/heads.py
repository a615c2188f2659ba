"""Request heads: from bytes to what the server has to know of them, strictly.

The grammar is llhttp's, by httptools, in its strict mode. What RFC 9112 forbids or leaves open and
llhttp lets pass is refused here: everything two servers in a row could read in two ways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from modelserve.codecs import oip
from modelserve.errors import ClientError
from modelserve.protocols import Certificate
from modelserve.transports.routes import (
    OPTIONAL_HEADERS,
    NoSuchPath,
    Route,
    asks_to_compress,
    split_target,
)

from .limits import Limits

__all__ = ["END", "Head", "HeadTimeout", "Heads", "Malformed", "TooLong"]

END: Final = b"\r\n\r\n"

# Heads are remembered, in bounds: whoever sends ever new ones gains nothing.
_MOST_KNOWN: Final = 1024
_LONGEST_KNOWN: Final = 1024
_LONGEST_TARGET: Final = 8 << 10
_LENGTH_DIGITS: Final = 19

# Headers of which a second one would say something else, or be read by nobody.
_SINGLE: Final = frozenset(
    ("host", "content-length", "transfer-encoding", "authorization", "content-encoding")
)


class Malformed(ClientError):
    """The request is not HTTP/1.1 as this server takes it."""

    http = 400
    grpc = "INVALID_ARGUMENT"


class TooLong(Malformed):
    """The headers have too many bytes, or are too many."""

    http = 431


class HeadTimeout(ClientError):
    """The head did not arrive in time."""

    http = 408
    grpc = "DEADLINE_EXCEEDED"


class _TargetTooLong(Malformed):
    http = 414


class _UnknownExpectation(Malformed):
    http = 417


class _NotImplemented(Malformed):
    http = 501
    grpc = "UNIMPLEMENTED"


class _WrongVersion(Malformed):
    http = 505
    grpc = "UNIMPLEMENTED"


class Head:
    """One request head, which many requests may share: nothing in it ever changes.

    Attributes:
        method: The method, in capitals.
        path: The decoded path.
        header: Looks up a header by lower-case name.
        length: Bytes of the body; 0 where it is chunked.
        chunked: Whether the body comes in chunks.
        gathered: Whether requests with it may be answered together with others.
        json_size: The header Inference-Header-Content-Length.
        plain: Whether it has none of the `OPTIONAL_HEADERS` and does not ask for a compressed
            answer.
        keep_alive: Whether the client will send further requests.
        old: Whether it is HTTP/1.0, where keeping a connection has to be said.
        expects: Whether the client waits for a `100 Continue`.
        route: Where it goes, None where `refusal` says why nowhere.
        refusal: What is wrong with method or path; the head itself is well-formed.
    """

    __slots__ = (
        "chunked",
        "expects",
        "gathered",
        "header",
        "json_size",
        "keep_alive",
        "length",
        "method",
        "old",
        "path",
        "plain",
        "refusal",
        "route",
    )

    certificate: Final[Certificate | None] = None
    """A head alone is a `Caller` without a certificate."""

    def __init__(self, method: str, target: bytes, headers: dict[str, str]) -> None:
        self.method = method
        self.header: Callable[[str], str | None] = headers.get
        self.plain = OPTIONAL_HEADERS.isdisjoint(headers) and not asks_to_compress(
            headers.get("accept-encoding")
        )
        size = headers.get(oip.HEADER)
        # A number is read once; anything else is the codec's to refuse.
        digits = size is not None and size.isascii() and size.isdigit() and len(size) < 20
        self.json_size: int | str | None = int(size) if size is not None and digits else size
        self.length = 0
        self.chunked = False
        self.keep_alive = True
        self.old = False
        self.expects = False
        self.gathered = False
        self.route: Route | None = None
        self.refusal: ClientError | None = None
        self.path = ""
        try:
            self.path, _ = split_target(_origin_form(target))
        except NoSuchPath as error:
            self.refusal = error


class Heads:
    """Parses heads, and remembers them: a client sends the same one over and over.

    Equal bytes are the same head, so one lookup replaces the parser and the routing. Only whole
    heads of plain requests are kept, of at most 1 KiB, and at most 1024.

    Args:
        find: Returns the route of a method and path, or raises.
        limits: The server's limits.
        gathers: Tells of a route and the length of a body whether such requests are gathered.
        remember: Whether heads are kept; without, each is parsed anew.

    Raises:
        ImportError: httptools is not installed.
    """

    def __init__(
        self,
        find: Callable[[str, str], Route],
        limits: Limits,
        gathers: Callable[[Route | None, int], bool],
        *,
        remember: bool = True,
    ) -> None:
        try:
            from httptools import HttpParserUpgrade, HttpRequestParser
            from httptools.parser.errors import HttpParserError
        except ImportError as error:
            raise ImportError(
                'the HTTP/1.1 server needs httptools: pip install "modelserve[serve]"'
            ) from error
        self._parser: Any = HttpRequestParser
        self._error: Any = HttpParserError
        self._upgrade: Any = HttpParserUpgrade
        self._find = find
        self._gathers = gathers
        self._limits = limits
        self._known: dict[bytes, Head] = {}
        self._most = _MOST_KNOWN if remember else 0
        self.known = self._known.get
        """Returns the head of these very bytes, where it is remembered."""

    def parse(self, data: bytes) -> Head:
        """Return the head in `data`, which ends with the first empty line.

        Raises:
            Malformed: It cannot be answered; the connection has to be closed, for nobody knows
                where the next request begins.
        """
        head = self._read(data)
        try:
            if head.refusal is None:
                head.route = self._find(head.method, head.path)
        except ClientError as error:
            head.refusal = error
        plain = head.route is not None and head.keep_alive and not head.expects
        if plain and not head.chunked and not head.old and len(data) <= _LONGEST_KNOWN:
            if len(self._known) >= self._most:
                self._known.clear()
            if self._most:
                head.gathered = head.plain and self._gathers(head.route, head.length)
                self._known[data] = head
        return head

    def check_partial(self, data: bytes) -> None:
        """Raise for the beginning of a head that cannot become a good one any more.

        Raises:
            Malformed: As `parse`.
        """
        if len(data) > self._limits.max_header_size:
            raise TooLong(f"the head has more than {self._limits.max_header_size} bytes")
        if data.count(b"\n") != data.count(b"\r\n"):
            raise Malformed("a line ends with LF alone; expected CR LF")

    def _read(self, data: bytes) -> Head:
        if len(data) > self._limits.max_header_size:
            raise TooLong(f"the head has more than {self._limits.max_header_size} bytes")
        method, target = _request_line(data[: data.index(b"\r\n")])
        fields = _Fields(self._limits.max_headers)
        parser = fields.parser = self._parser(fields)
        try:
            parser.feed_data(data)
        except self._upgrade:
            pass  # nothing is upgraded here: the request is answered as it stands
        except self._error as error:
            if fields.refusal is not None:
                raise fields.refusal from None
            raise Malformed(f"malformed HTTP request: {error}") from None
        headers = fields.headers
        head = Head(method, target, headers)
        head.old = parser.get_http_version() == "1.0"
        head.keep_alive = fields.keep_alive and method != "CONNECT"
        self._frame(head, headers)
        if not head.old and "host" not in headers:
            raise Malformed("the header Host is missing")
        if "host" in headers and not _is_host(headers["host"]):
            raise Malformed("the header Host is malformed")
        expectation = headers.get("expect")
        if expectation is not None and not head.old:
            if expectation.lower() != "100-continue":
                raise _UnknownExpectation(f'unknown expectation "{expectation[:40]}"')
            head.expects = bool(head.length or head.chunked)
        return head

    def _frame(self, head: Head, headers: dict[str, str]) -> None:
        """Set how long the body is."""
        coding = headers.get("transfer-encoding")
        length = headers.get("content-length")
        if coding is not None:
            if head.old:
                raise Malformed("HTTP/1.0 has no Transfer-Encoding")
            if length is not None:
                raise Malformed("expected Content-Length or Transfer-Encoding, got both")
            if coding.lower() != "chunked":
                raise _NotImplemented("the only transfer coding here is chunked")
            head.chunked = True
        elif length is not None:
            digits = length.strip(" \t")
            if not (digits.isascii() and digits.isdigit() and len(digits) <= _LENGTH_DIGITS):
                raise Malformed("Content-Length is no number of bytes")
            head.length = int(digits)


class _Fields:
    """Collects header fields from httptools."""

    __slots__ = ("_left", "headers", "keep_alive", "parser", "refusal")

    def __init__(self, most: int) -> None:
        self._left = most
        self.parser: Any = None
        self.keep_alive = False
        self.headers: dict[str, str] = {}
        self.refusal: Malformed | None = None

    def on_header(self, name: bytes, value: bytes) -> None:
        self._left -= 1
        if self._left < 0:
            self.refusal = TooLong("the request has too many headers")
            raise self.refusal
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1").strip(" \t")
        headers = self.headers
        if key in headers:
            if key in _SINGLE:
                self.refusal = Malformed(f"the header {key} stands there twice")
                raise self.refusal
            text = f"{headers[key]}, {text}"
        headers[key] = text

    def on_headers_complete(self) -> None:
        # Behind a message that is whole, the parser has forgotten what its headers said.
        parser, self.parser = self.parser, None
        self.keep_alive = parser.should_keep_alive()


def _request_line(line: bytes) -> tuple[str, bytes]:
    parts = line.split(b" ")
    if len(parts) != 3 or not parts[1]:
        raise Malformed("expected METHOD TARGET HTTP/1.1 as first line, parted by single spaces")
    method, target, version = parts
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if version.startswith(b"HTTP/") and method.isalpha():
            raise _WrongVersion("this server speaks HTTP/1.1 and HTTP/1.0")
        raise Malformed("expected METHOD TARGET HTTP/1.1 as first line, parted by single spaces")
    if not method.replace(b"-", b"").isalpha():  # the parser skips line ends before it
        raise Malformed("a method has letters only")
    if len(target) > _LONGEST_TARGET:
        raise _TargetTooLong(f"the target has more than {_LONGEST_TARGET} bytes")
    if b"#" in target:
        raise Malformed("a request target has no fragment")
    if target[:9].lower().startswith((b"http:///", b"https:///")):
        raise Malformed("a request target with a scheme has a host")
    return method.decode("latin-1"), target


def _origin_form(target: bytes) -> bytes:
    """Return a target without the scheme and authority that a request to a proxy carries."""
    if target[:7].lower() == b"http://" or target[:8].lower() == b"https://":
        rest = target.partition(b"://")[2]
        slash = rest.find(b"/")
        question = rest.find(b"?")
        if slash < 0 or 0 <= question < slash:
            return b"/" + rest[question:] if question >= 0 else b"/"
        return rest[slash:]
    return target


def _is_host(value: str) -> bool:
    # An empty Host is what a client sends for a target without authority.
    return value.isascii() and not any(c in value for c in ' \t,/?#@\\"<>{}|^`')
