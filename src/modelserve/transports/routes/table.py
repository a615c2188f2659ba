"""Which path is answered by what: every endpoint of every protocol, as one table.

The protocols' endpoints are in modules of their own; what is common to requests is `routes`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

from modelserve.errors import MethodNotAllowed

from .messages import NoSuchPath, Reply, Request

if TYPE_CHECKING:
    from .routes import Routes

__all__ = ["SMALL_BODY", "Call", "Endpoint", "Route", "Table"]

Call: TypeAlias = Callable[["Routes", Request, "Route"], Awaitable[Reply]]

SMALL_BODY: Final = 64 * 2**10
"""Bytes a body may have that only names things."""

# Paths are remembered, in bounds: whoever makes up model names gains nothing.
_MOST_FOUND: Final = 1024
_LONGEST_FOUND: Final = 256

# No path has more parts than this; the rest of a longer one is not looked at.
_MOST_PARTS: Final = 12


class Endpoint:
    """One method on one path.

    Args:
        method: GET (which answers HEAD, too) or POST.
        path: The path. A part in braces takes any text and is known by that name, as in
            ``/v2/models/{model}/infer``; the last part may end with a verb, as in
            ``/v1/models/{model}:predict``. A colon that no verb follows belongs to the name.
        call: Makes the reply.
        scope: What the caller must be allowed: ``"infer"``, ``"read"``, ``"admin"`` (a control
            route), or empty for nothing.
        max_body: Bytes the body may have; None for the limit of inference requests.
        records: Whether the request is one for inference, with an `Exchange`.
        plain: Whether it is the Open Inference Protocol's own inference, which transports may
            begin without a coroutine, and gather.
        describes: Whether whoever may ask a model may ask this, too.
        summary: What it answers, in a few words.
        described: Name of what more /openapi.json says of it, in a module of `schemas`, as in
            ``"oip.INFER"``: it is loaded only when somebody asks.
    """

    __slots__ = (
        "call",
        "described",
        "describes",
        "max_body",
        "method",
        "path",
        "plain",
        "records",
        "scope",
        "summary",
    )

    def __init__(
        self,
        method: str,
        path: str,
        call: Call,
        scope: str = "",
        *,
        max_body: int | None = 0,
        records: bool = False,
        plain: bool = False,
        describes: bool = False,
        summary: str = "",
        described: str = "",
    ) -> None:
        self.method = method
        self.path = path
        self.call = call
        self.scope = scope
        self.max_body = max_body
        self.records = records
        self.plain = plain
        self.describes = describes
        self.summary = summary
        self.described = described

    def __repr__(self) -> str:
        return f"<Endpoint {self.method} {self.path}>"


class Route:
    """Where a request goes.

    Attributes:
        infers: Whether it is an inference request of the Open Inference Protocol.
        records: Whether it is an inference request of any protocol.
        scope: What the caller must be allowed: infer, read, admin, or empty for nothing.
        max_body: Bytes the body may have; 0 where none is to be read.
        model: Name of the model, or empty.
        version: Version number or label, or empty.
        names: All parts of the path that have names.
    """

    __slots__ = (
        "endpoint",
        "infers",
        "max_body",
        "model",
        "names",
        "records",
        "scope",
        "version",
    )

    def __init__(self, endpoint: Endpoint, max_body: int, names: Mapping[str, str]) -> None:
        self.endpoint = endpoint
        self.infers = endpoint.plain
        self.records = endpoint.records
        self.scope = endpoint.scope
        self.max_body = max_body
        self.model = names.get("model", "")
        self.version = names.get("version", "") or names.get("label", "")
        self.names = MappingProxyType(dict(names))


class _Node:
    """A part of a path: what follows it, and what ends with it."""

    __slots__ = ("endpoints", "named", "parts")

    def __init__(self) -> None:
        self.parts: dict[str, _Node] = {}
        self.named: dict[str, _Node] = {}
        self.endpoints: dict[str, Endpoint] = {}


class Table:
    """Finds the endpoint of a method and path.

    Args:
        endpoints: What there is to find.
        max_body_size: Bytes the body of an inference request may have.
    """

    __slots__ = ("_max_body_size", "_root", "endpoints", "known")

    def __init__(self, endpoints: Iterable[Endpoint], max_body_size: int) -> None:
        self.endpoints = tuple(endpoints)
        self._max_body_size = max_body_size
        self._root = _Node()
        for endpoint in self.endpoints:
            self._add(endpoint)
        self.known: dict[tuple[str, str], Route] = {}
        """Routes by method and path that were found before."""

    def _add(self, endpoint: Endpoint) -> None:
        node = self._root
        for part in _parts(endpoint.path):
            if part.startswith("{"):
                node = node.named.setdefault(part[1:-1], _Node())
            else:
                node = node.parts.setdefault(part, _Node())
        node.endpoints[endpoint.method] = endpoint
        if endpoint.method == "GET":
            node.endpoints["HEAD"] = endpoint

    def find(self, method: str, path: str) -> Route:
        """Return the route of a method and decoded path; one "/" too many at its end is let be.

        Raises:
            NoSuchPath: There is none.
            MethodNotAllowed: There is one, with other methods.
        """
        found = self.known.get((method, path))
        if found is not None:
            return found
        # Litestar appends a "/" to whatever it gives to a mount. No path at all is one that a
        # transport could not decode.
        match = _match(self._root, _parts(path.removesuffix("/")), 0, {}) if path else None
        if match is None:
            raise NoSuchPath(f'there is no path "{path[:200]}" here')
        node, names = match
        endpoint = node.endpoints.get(method)
        if endpoint is None:
            _check_verb(node, path)
            allowed = tuple(node.endpoints)
            raise MethodNotAllowed(
                f"expected {' or '.join(allowed)}, got {method[:20]}", allow=allowed
            )
        limit = self._max_body_size if endpoint.max_body is None else endpoint.max_body
        route = Route(endpoint, limit, names)
        if len(self.known) >= _MOST_FOUND:
            self.known.clear()
        if len(path) <= _LONGEST_FOUND:
            self.known[method, path] = route
        return route


def _parts(path: str) -> list[str]:
    """Return the parts of a path; a verb behind its last colon is a part of its own."""
    before, *parts = path.split("/", _MOST_PARTS)
    if before:  # no path begins so
        return [""]
    if parts and ":" in parts[-1]:
        last, _, verb = parts[-1].rpartition(":")
        parts[-1:] = [last, f":{verb}"]
    return parts


def _check_verb(node: _Node, path: str) -> None:
    """Refuse a path whose verb, being none of those there are, was taken for a part of a name."""
    verbs = [part for part in node.parts if part.startswith(":")]
    _, colon, verb = path.rpartition("/")[2].rpartition(":")
    if verbs and colon:
        raise NoSuchPath(f'there is no verb ":{verb[:40]}" here; expected {" or ".join(verbs)}')


def _match(
    node: _Node, parts: list[str], at: int, names: dict[str, str]
) -> tuple[_Node, dict[str, str]] | None:
    """Return the node where the parts end, and the parts that have names.

    A part that is written in the table comes before one that has a name: where it leads nowhere,
    as for a model called ``stats``, the name is tried. No path in the table is long.
    """
    if at == len(parts):
        return (node, names) if node.endpoints else None
    part = parts[at]
    # A verb may be written in any case, and only that: what else there is may be a name.
    known = node.parts.get(part.lower() if part.startswith(":") else part)
    if known is not None:
        found = _match(known, parts, at + 1, names)
        if found is not None:
            return found
    for name, following in node.named.items():
        if not part:
            continue
        found = _match(following, parts, at + 1, {**names, name: part})
        if found is None and at == len(parts) - 2 and parts[-1].startswith(":"):
            # No verb of ours: it belongs to the name.
            found = _match(following, parts[:-1], at + 1, {**names, name: part + parts[-1]})
        if found is not None:
            return found
    return None
