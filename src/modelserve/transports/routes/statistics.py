"""Triton's extensions that tell a model's configuration, and what its versions have done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from modelserve.codecs import oip_statistics
from modelserve.errors import Unsupported

from .messages import Reply, Request, reply_json
from .oip import MODEL_PATHS
from .table import Endpoint, Route

if TYPE_CHECKING:
    from .routes import Routes

__all__ = ["ENDPOINTS"]


async def _config(routes: Routes, request: Request, route: Route) -> Reply:
    if not hasattr(routes.servable, "config"):
        raise Unsupported("what is served here does not tell its models' configurations")
    config = await routes.catalog().config(route.model, route.version)
    return reply_json(200, oip_statistics.encode_config(config), request)


async def _statistics(routes: Routes, request: Request, route: Route) -> Reply:
    if not hasattr(routes.servable, "statistics"):
        raise Unsupported("what is served here keeps no statistics")
    found = await routes.catalog().statistics(route.model, route.version)
    return reply_json(200, oip_statistics.encode_statistics(found), request)


ENDPOINTS: Final = (
    *(
        Endpoint(
            "GET",
            f"{path}/config",
            _config,
            "read",
            describes=True,
            summary="a model's configuration, as Triton has it",
            described="statistics.CONFIG",
        )
        for path in MODEL_PATHS
    ),
    *(
        Endpoint(
            "GET",
            f"{path}/stats",
            _statistics,
            "read",
            summary="what versions have done",
            described="statistics.STATISTICS",
        )
        for path in ("/v2/models", *MODEL_PATHS)
    ),
)
