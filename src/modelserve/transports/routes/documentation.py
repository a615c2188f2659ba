"""/openapi.json, and /docs: a page to try models with.

What makes either is imported when somebody asks for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

from modelserve.errors import ServeError
from modelserve.protocols import Catalog, VersionInfo

from .messages import Reply, Request, reply_json
from .table import Endpoint, Route

if TYPE_CHECKING:
    from .routes import Routes

__all__ = ["endpoints"]

# Versions that are described. A gateway asks for each of them over the network.
_MOST_VERSIONS: Final = 256
# Of so many the document is written at once; of more by a thread.
_FEW_VERSIONS: Final = 16

_HTML: Final = b"text/html; charset=utf-8"


class _Ready:
    """The versions that are ready.

    Attributes:
        infos: Their descriptions, by model.
        defaults: The version of each model that answers by default.
        omitted: How many are left out.
    """

    __slots__ = ("defaults", "infos", "omitted")

    def __init__(
        self, infos: Sequence[VersionInfo], defaults: Mapping[str, str], omitted: int
    ) -> None:
        self.infos = infos
        self.defaults = defaults
        self.omitted = omitted

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Ready):
            return NotImplemented
        return (self.infos, self.defaults, self.omitted) == (
            other.infos,
            other.defaults,
            other.omitted,
        )

    __hash__ = None  # type: ignore[assignment]  # compared only


async def _ready(catalog: Catalog) -> _Ready:
    """Return what is ready now, as the catalog tells it."""
    known = [info for info in await catalog.index() if info.state == "READY"]
    infos: list[VersionInfo] = []
    defaults: dict[str, VersionInfo] = {}
    for info in known[:_MOST_VERSIONS]:
        try:
            default = defaults.get(info.model)
            if default is None:
                default = defaults[info.model] = await catalog.describe(info.model)
            if info.version == default.version:
                info = default
            elif info.signature is None:  # as a remote index has it
                info = await catalog.describe(info.model, info.version)
        except ServeError:  # it is gone since
            continue
        infos.append(info)
    versions = {model: default.version for model, default in defaults.items()}
    return _Ready(infos, versions, max(0, len(known) - _MOST_VERSIONS))


class _Documentation:
    """Answers with the document, made anew when what is ready has changed."""

    __slots__ = ("_body", "_ready")

    def __init__(self) -> None:
        self._ready: _Ready | None = None
        self._body = b""

    async def openapi(self, routes: Routes, request: Request, route: Route) -> Reply:
        """Answer with the OpenAPI document."""
        # Without a catalog there are the routes to describe.
        cataloged = hasattr(routes.servable, "index") and hasattr(routes.servable, "describe")
        ready = await _ready(routes.catalog()) if cataloged else _Ready([], {}, 0)
        body = self._body
        if ready != self._ready:
            if len(ready.infos) <= _FEW_VERSIONS:
                body = _document(routes, ready)
            else:
                # 0.4 ms for each, in which requests for models go on.
                body = await asyncio.to_thread(_document, routes, ready)
            self._body, self._ready = body, ready
        reply = reply_json(200, body, request)
        reply.extra = [(b"cache-control", b"no-store")]
        return reply


def _document(routes: Routes, ready: _Ready) -> bytes:
    import json

    from modelserve import __version__

    from .openapi import document

    found = document(
        routes.table.endpoints,
        ready.infos,
        version=__version__,
        defaults=ready.defaults,
        schemes=routes.schemes,
        controls=routes.controls,
        omitted=ready.omitted,
    )
    return json.dumps(found, ensure_ascii=False).encode(errors="replace")


@cache
def _page() -> tuple[bytes, bytes]:
    """Return the page and its content security policy: itself may run, and nothing else."""
    from importlib.resources import files

    folder = files("modelserve.transports.routes") / "page"
    page, style, script = (
        (folder / name).read_text("utf-8") for name in ("page.html", "page.css", "page.js")
    )
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    page = page.replace("/* page.css */", style).replace("/* page.js */", script)
    return page.encode(), policy.encode()


def _hash(text: str) -> str:
    from base64 import b64encode
    from hashlib import sha256

    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


async def _docs(routes: Routes, request: Request, route: Route) -> Reply:
    page, policy = _page()
    reply = Reply(200, _HTML, [page], len(page), request.id)
    reply.extra = [
        (b"cache-control", b"no-cache"),
        (b"content-security-policy", policy),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    ]
    return reply


def endpoints() -> list[Endpoint]:
    """Return the endpoints of the documentation, of one table."""
    return [
        Endpoint(
            "GET",
            "/openapi.json",
            _Documentation().openapi,
            "read",
            summary="all operations as an OpenAPI document",
            described="server.OPENAPI",
        ),
        Endpoint(
            "GET",
            "/docs",
            _docs,
            # The page alone tells nothing, and a browser has no key when it opens it.
            "",
            summary="a page to try the models with",
            described="server.DOCS",
        ),
    ]
