"""Triton's control extensions: loading with configuration and files, log and trace settings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from modelserve.codecs import oip_control
from modelserve.errors import PermissionDenied, Unsupported
from modelserve.messages import Exchange
from modelserve.observe.logs import LogSettings
from modelserve.observe.recorder import Recorder
from modelserve.observe.tracing import TraceSettings
from modelserve.protocols import Observer

from .messages import Reply, Request, reply_json
from .table import SMALL_BODY, Endpoint, Route

if TYPE_CHECKING:
    from .routes import Routes

__all__ = ["EXTENSIONS", "endpoints", "settings_of"]

EXTENSIONS: Final = ("logging", "trace")
"""What the server's metadata says of it."""


class _Tap:
    """Hands what a server records to observers that come and go; without one it is not there."""

    __slots__ = ("_record", "_recorder", "_routes")

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._record = routes.record
        self._recorder = Recorder()

    def add(self, observer: Observer, *, eager: bool = False) -> None:
        self._recorder.add(observer, eager=eager)
        self._routes.record = _both(self._record, self._recorder.record)

    def remove(self, observer: Observer) -> None:
        self._recorder.remove(observer)
        if not self._recorder.observed:
            self._routes.record = self._record

    def flush(self) -> None:
        self._recorder.flush()


def _both(
    first: Callable[[Exchange], None] | None, second: Callable[[Exchange], None]
) -> Callable[[Exchange], None]:
    if first is None:
        return second
    one = first

    def record(exchange: Exchange) -> None:
        one(exchange)
        second(exchange)

    return record


def settings_of(routes: Routes, owner: Any) -> tuple[LogSettings, TraceSettings]:
    """Return the settings of what records a server's requests, or else of the server alone.

    Args:
        routes: The server's.
        owner: What is served, where it records the requests; None where something else does.
    """
    logs = getattr(owner, "log_settings", None)
    traces = getattr(owner, "trace_settings", None)
    tap = _Tap(routes)
    return (
        logs if isinstance(logs, LogSettings) else LogSettings(tap),
        traces if isinstance(traces, TraceSettings) else TraceSettings(tap),
    )


async def _load(routes: Routes, request: Request, route: Route) -> Reply:
    administrator = routes.administrator()
    load = await _decoded(request)
    if load.config is None and load.files is None:
        await administrator.aload(route.model, load.version)
        return reply_json(200, b"", request)
    if not routes.uploads:
        raise PermissionDenied(
            "loading with a configuration or files from the request is off; the server's owner "
            "can turn it on with uploads=True (modelserve serve --uploads)"
        )
    await administrator.aload(route.model, load.version, config=load.config, files=load.files)
    return reply_json(200, b"", request)


async def _decoded(request: Request) -> oip_control.Load:
    body, request.body = request.body, b""
    if len(body) <= SMALL_BODY:
        return oip_control.decode_load(body)
    # Some tens of milliseconds, in which requests for models go on.
    return await asyncio.to_thread(oip_control.decode_load, body)


async def _unload(routes: Routes, request: Request, route: Route) -> Reply:
    version = oip_control.decode_unload(request.body)
    await routes.administrator().aunload(route.model, version)
    return reply_json(200, b"", request)


async def _show_logging(routes: Routes, request: Request, route: Route) -> Reply:
    return reply_json(200, oip_control.encode_settings(routes.log_settings.current()), request)


async def _set_logging(routes: Routes, request: Request, route: Route) -> Reply:
    settings = routes.log_settings.update(oip_control.decode_settings(request.body))
    return reply_json(200, oip_control.encode_settings(settings), request)


async def _show_trace(routes: Routes, request: Request, route: Route) -> Reply:
    await _check_model(routes, route.model)
    settings = routes.trace_settings.current(route.model)
    return reply_json(200, oip_control.encode_settings(settings), request)


async def _set_trace(routes: Routes, request: Request, route: Route) -> Reply:
    settings = oip_control.decode_settings(request.body)
    await _check_model(routes, route.model)
    now = routes.trace_settings.update(settings, route.model)
    return reply_json(200, oip_control.encode_settings(now), request)


async def _check_model(routes: Routes, model: str) -> None:
    """Raise where there is no such model: nobody may make up names to be remembered."""
    if not model:
        return
    if not hasattr(routes.servable, "ready"):
        raise Unsupported("what is served here does not describe its models")
    await routes.catalog().ready(model)


_REPOSITORY: Final = "/v2/repository/models/{model}"

_ENDPOINTS: Final = (
    Endpoint(
        "POST",
        f"{_REPOSITORY}/unload",
        _unload,
        "admin",
        max_body=SMALL_BODY,
        summary="unload a model, or a version of it",
        described="control.UNLOAD",
    ),
    Endpoint(
        "GET",
        "/v2/logging",
        _show_logging,
        "read",
        summary="the log settings",
        described="control.SHOW_LOGGING",
    ),
    Endpoint(
        "POST",
        "/v2/logging",
        _set_logging,
        "admin",
        max_body=SMALL_BODY,
        summary="change the log settings",
        described="control.SET_LOGGING",
    ),
    *(
        endpoint
        for path, what in (
            ("/v2/trace/setting", "the trace settings"),
            ("/v2/models/{model}/trace/setting", "a model's trace settings"),
        )
        for endpoint in (
            Endpoint(
                "GET", path, _show_trace, "read", summary=what, described="control.SHOW_TRACE"
            ),
            Endpoint(
                "POST",
                path,
                _set_trace,
                "admin",
                max_body=SMALL_BODY,
                summary=f"change {what}",
                described="control.SET_TRACE",
            ),
        )
    ),
)


def endpoints(*, uploads: bool) -> Sequence[Endpoint]:
    """Return the endpoints.

    Args:
        uploads: Whether a request to load a model may bring files, and so have a large body.
    """
    load = Endpoint(
        "POST",
        f"{_REPOSITORY}/load",
        _load,
        "admin",
        max_body=None if uploads else SMALL_BODY,
        summary="load a model, a version of it, or what the request brings",
        described="control.LOAD",
    )
    return (load, *_ENDPOINTS)
