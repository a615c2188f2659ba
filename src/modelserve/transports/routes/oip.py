"""The Open Inference Protocol, version 2: health, metadata, and the repository's index.

Inference itself is in `routes`, Triton's extensions for control in `control`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from modelserve.codecs import oip_catalog

from . import control
from .messages import Reply, Request, reply_json
from .table import SMALL_BODY, Endpoint, Route

if TYPE_CHECKING:
    from .routes import Routes

__all__ = ["ENDPOINTS", "MODEL_PATHS"]


async def _server(routes: Routes, request: Request, route: Route) -> Reply:
    from modelserve import __version__

    extensions = ["binary_tensor_data", "classification", "parameters"]
    for method, names in (
        ("index", ("model_repository", "model_repository(unload_dependents)")),
        ("config", ("model_configuration",)),
        ("statistics", ("statistics",)),
    ):
        if hasattr(routes.servable, method):
            extensions += names
    if routes.controls and not routes.shared_memory.refusal:
        extensions.append("system_shared_memory")
    extensions += control.EXTENSIONS
    body = oip_catalog.encode_server("modelserve", __version__, extensions)
    return reply_json(200, body, request)


async def _live(routes: Routes, request: Request, route: Route) -> Reply:
    return reply_json(200, oip_catalog.encode_live(), request)


async def _ready(routes: Routes, request: Request, route: Route) -> Reply:
    # Without a catalog nothing says that it is not: the server itself answers.
    ready = not hasattr(routes.servable, "ready") or await routes.catalog().ready()
    return reply_json(200 if ready else 503, oip_catalog.encode_ready(ready), request)


async def _model_ready(routes: Routes, request: Request, route: Route) -> Reply:
    ready = await routes.catalog().ready(route.model, route.version)
    body = oip_catalog.encode_ready(ready, model=route.model)
    return reply_json(200 if ready else 503, body, request)


async def _models(routes: Routes, request: Request, route: Route) -> Reply:
    infos = await routes.catalog().index()
    names = {info.model: None for info in infos if info.state == "READY"}
    return reply_json(200, oip_catalog.encode_models(names), request)


async def _model(routes: Routes, request: Request, route: Route) -> Reply:
    info = await routes.catalog().describe(route.model, route.version)
    return reply_json(200, oip_catalog.encode_metadata(info), request)


async def _index(routes: Routes, request: Request, route: Route) -> Reply:
    ready_only = oip_catalog.decode_index_request(request.body)
    infos = await routes.catalog().index()
    shown = (info for info in infos if not ready_only or info.state == "READY")
    return reply_json(200, oip_catalog.encode_index(shown), request)


MODEL_PATHS: Final = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
"""Paths of a model, to which others are added."""

ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/v2",
        _server,
        "read",
        summary="the server's name, version and extensions",
        described="oip.SERVER",
    ),
    Endpoint(
        "GET",
        "/v2/health/live",
        _live,
        summary="whether the server is alive",
        described="oip.LIVE",
    ),
    Endpoint(
        "GET",
        "/v2/health/ready",
        _ready,
        summary="whether all models can answer",
        described="oip.READY",
    ),
    Endpoint(
        "GET",
        "/v2/models",
        _models,
        "read",
        summary="names of the models that can answer",
        described="oip.MODELS",
    ),
    *(
        endpoint
        for path in MODEL_PATHS
        for endpoint in (
            Endpoint(
                "GET",
                path,
                _model,
                "read",
                describes=True,
                summary="what a model takes and gives",
                described="oip.METADATA",
            ),
            Endpoint(
                "GET",
                f"{path}/ready",
                _model_ready,
                "read",
                describes=True,
                summary="whether a model can answer",
                described="oip.MODEL_READY",
            ),
        )
    ),
    Endpoint(
        "POST",
        "/v2/repository/index",
        _index,
        "read",
        max_body=SMALL_BODY,
        summary="every version of every model, with its state",
        described="oip.INDEX",
    ),
)
