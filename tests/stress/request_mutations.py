"""Requests to every endpoint there is, with something changed: their JSON, bytes, path or headers.

A request is a function of a seed and its number: whatever goes wrong can be sent again.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from modelserve.testing import StubModel
from modelserve.transports.routes import Routes
from wire.golden_asks import LENGTH
from wire.golden_requests import corpus

CONTROLLED: Final = "line"
"""The one model that is loaded and unloaded on purpose."""

LONGEST: Final = 2 << 20
"""Bytes of a body; what is far beyond a limit may end the connection before the answer is read."""

_MODELS: Final = ("add_one", "arithmetic", "classifier", "echo_bytes", "echo_int64", "line", "nope")
_VERSIONS: Final = ("1", "3", "9", "stable", "0", "x")
_WORDS: Final = ("data", "name", "shape", "datatype", "inputs", "outputs", "parameters", "id")


class Sent(NamedTuple):
    """A request to send; the body's length is always told right."""

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def wire(self) -> bytes:
        """Return all of it, as it goes over a connection that is kept."""
        lines = [b"%b %b HTTP/1.1" % (self.method.encode(), self.target), b"host: fuzz"]
        lines += [b"%b: %b" % header for header in self.headers]
        if self.body or self.method in ("POST", "PUT", "PATCH"):
            lines.append(b"content-length: %d" % len(self.body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body


def _seeds() -> list[Sent]:
    """Return what is changed: the requests Triton was asked, but those that change the server."""
    found = []
    for group, asks in corpus().items():
        if group == "control":
            continue
        for ask in asks:
            headers = tuple((name.encode(), value.encode()) for name, value in ask.headers)
            found.append(Sent(ask.method, ask.path.encode(), headers, ask.body))
    return found


_SEEDS: Final = _seeds()
_ENDPOINTS: Final = Routes(StubModel(), admin=True).table.endpoints
_BODIES: Final = [b"", b"{}", b'{"parameters":{}}', b'{"ready":true}', b'{"text_input":"a"}']
_BODIES_OF_ALL: Final = [*_BODIES, *(seed.body for seed in _SEEDS if seed.body)]


def request(seed: int, number: int) -> Sent:
    """Return a request, made and changed as the seed and its number say."""
    rng = Random(f"{seed} {number}")
    sent = rng.choice(_SEEDS) if rng.random() < 0.6 else _at_an_endpoint(rng)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        sent = rng.choice(_CHANGES)(sent, rng)
    return sent


def _at_an_endpoint(rng: Random) -> Sent:
    endpoint = rng.choice(_ENDPOINTS)
    model = CONTROLLED if endpoint.scope == "admin" else rng.choice(_MODELS)
    parts = []
    for part in endpoint.path.split("/"):
        name, _, verb = part.partition(":")
        if name == "{model}":
            name = model
        elif name == "{version}":
            name = rng.choice(_VERSIONS)
        elif name.startswith("{"):
            name = rng.choice(("r", "1", "stable", "nope"))
        parts.append(f"{name}:{verb}" if verb else name)
    body = rng.choice(_BODIES_OF_ALL) if endpoint.method == "POST" else b""
    return Sent(endpoint.method, "/".join(parts).encode(), (), body)


# ------------------------------------------------------------------ JSON


def _value(rng: Random) -> Any:
    """Return a JSON value that somebody may not have thought of."""
    return rng.choice(
        (
            *(None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 5e-324, "", "x", "\0", "\u2028"),
            *(2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**40),
            *([], {}, [[]], [[[]]], [1, 2, 3], {"a": {"b": []}}, [None], ["a", 1, True]),
            *("FP32", "BYTES", "x" * 3000, "é\U0001f600", "../../etc/passwd", "%s%n{0}", "1e5"),
            *([0] * 2000, [[1] * 3] * 50, {str(n): n for n in range(100)}, [1] * 40),
        )
    )


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container in a document, with each key of it."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(found) < 500:
        one = waiting.pop()
        keys: Sequence[Any] = ()
        if isinstance(one, dict):
            keys = list(one)
        elif isinstance(one, list):
            keys = range(min(len(one), 20))
        for key in keys:
            found.append((one, key))
            waiting.append(one[key])
    return found


def _change_json(sent: Sent, rng: Random) -> Sent:
    head, behind = _split(sent)
    try:
        document = json.loads(head)
    except (ValueError, RecursionError):
        return _change_bytes(sent, rng)
    places = _places(document)
    if not places:
        return sent._replace(body=json.dumps(_value(rng)).encode())
    container, key = rng.choice(places)
    way = rng.randrange(6)
    if way < 3:
        container[key] = _value(rng)
    elif way == 3:
        del container[key]
    elif isinstance(container, list):
        container[key:key] = [container[key]] * rng.choice((1, 2, 1200))
    elif way == 4:
        container[rng.choice(_WORDS)] = container.pop(key)
    else:
        container[rng.choice((*_WORDS, "nope", "binary_data_size", "timeout", "config"))] = _value(
            rng
        )
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode(errors="replace")
    if len(text) > LONGEST:
        return sent
    if rng.random() < 0.05:
        text = text.replace(b'"', b'"\\ud800', 1)
    return _joined(sent, text, behind, rng)


def _split(sent: Sent) -> tuple[bytes, bytes]:
    for name, value in sent.headers:
        if name == LENGTH.encode() and value.isdigit() and int(value) <= len(sent.body):
            return sent.body[: int(value)], sent.body[int(value) :]
    return sent.body, b""


def _joined(sent: Sent, head: bytes, behind: bytes, rng: Random) -> Sent:
    headers = sent.headers
    if any(name == LENGTH.encode() for name, _ in headers) and rng.random() < 0.9:
        kept = tuple(header for header in headers if header[0] != LENGTH.encode())
        headers = (*kept, (LENGTH.encode(), b"%d" % len(head)))
    return sent._replace(body=head + behind, headers=headers)


# ------------------------------------------------------------------ bytes, paths, headers


def _change_bytes(sent: Sent, rng: Random) -> Sent:
    body = sent.body
    at = rng.randrange(len(body) + 1)
    tokens = (
        *(b"\0", b"\xff", b'"', b"{", b"}", b"[", b"]", b",", b":", b"-", b"e", b"1e999", b"NaN"),
        *(b"null", b"true", b"\\", b"\\u", b"9" * 400, b"[" * 3000, b"\xf0\x9f", rng.randbytes(8)),
    )
    way = rng.randrange(5)
    if way == 0:
        body = body[:at] + rng.choice(tokens) + body[at:]
    elif way == 1:
        body = body[:at] + body[at + rng.choice((1, 2, 8, 40)) :]
    elif way == 2:
        body = body[:at]
    elif way == 3 and body:
        at = min(at, len(body) - 1)
        body = body[:at] + bytes([body[at] ^ (1 << rng.randrange(8))]) + body[at + 1 :]
    else:
        body = body[:at] + body[max(0, at - 60) :]
    return sent._replace(body=body)


def _change_compression(sent: Sent, rng: Random) -> Sent:
    body = sent.body if rng.random() < 0.9 else b" " * rng.choice((10**5, 3 * 10**6))
    coding = rng.choice((b"gzip", b"deflate"))
    body = gzip.compress(body, 1) if rng.random() < 0.5 else zlib.compress(body, 1)
    return sent._replace(body=body, headers=(*sent.headers, (b"content-encoding", coding)))


def _change_path(sent: Sent, rng: Random) -> Sent:
    parts = sent.target.split(b"/")
    at = rng.randrange(len(parts))
    way = rng.randrange(6)
    if way == 0:
        parts[at] = quote(
            rng.choice(("é", "a b", "..", ".", "\0", "%", "x" * 300, "日本"))
        ).encode()
    elif way == 1:
        del parts[at]
    elif way == 2:
        parts.insert(
            at, rng.choice((b"", b"versions", b"models", b"%2f", b"%zz", b"%ff", b"infer"))
        )
    elif way == 3:
        parts[at] = parts[at].swapcase()
    elif way == 4:
        parts.append(rng.choice((b"", b"infer", b"ready", b"?a=b", b"#x", b":predict", b"::")))
    else:
        parts = parts * rng.choice((2, 5, 40))
    return sent._replace(target=b"/".join(parts) or b"/")


def _change_method(sent: Sent, rng: Random) -> Sent:
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
    return sent._replace(method=rng.choice(methods))


def _change_headers(sent: Sent, rng: Random) -> Sent:
    name, values = rng.choice(_HEADERS)
    return sent._replace(headers=(*sent.headers, (name, rng.choice(values))))


_HEADERS: Final[Sequence[tuple[bytes, Sequence[bytes]]]] = (
    (LENGTH.encode(), (b"0", b"1", b"10", b"-1", b"1e3", b"99999999999999999999", b"", b"x")),
    (b"content-encoding", (b"gzip", b"deflate", b"br", b"identity", b"", b"gzip, gzip")),
    (b"accept-encoding", (b"gzip", b"deflate", b"*", b"gzip;q=nan", b";;", b"x" * 2000)),
    (b"accept", (b"*/*", b"text/plain", b"application/openmetrics-text", b"\xff")),
    (b"content-type", (b"application/json", b"text/html", b"multipart/form-data", b"\xe9")),
    (b"x-request-id", (b"a", b"x" * 200, b"a b", b"\xff\xfe", b"{}")),
    (b"x-request-timeout", (b"0.5", b"0", b"-1", b"nan", b"1e999", b"x", b"0.000001")),
    (b"x-explain", (b"1", b"true", b"maybe")),
    (b"traceparent", (b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"x", b"")),
    (b"idempotency-key", (b"k", b"")),
    (b"authorization", (b"Bearer x", b"Basic !!!", b"")),
    (b"x-forwarded-for", (b"1.2.3.4",)),
    (b"cookie", (b"a=b", b"x" * 3000)),
    (b"triton-grpc-error", (b"true",)),
)

_CHANGES: Final[Sequence[Callable[[Sent, Random], Sent]]] = (
    *(_change_json,) * 6,
    *(_change_bytes,) * 3,
    *(_change_headers,) * 2,
    _change_compression,
    _change_path,
    _change_method,
)
