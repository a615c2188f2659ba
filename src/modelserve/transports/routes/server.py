"""What there is whatever the protocols: /metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from modelserve.errors import Unsupported

from .messages import Reply, Request
from .table import Endpoint, Route

if TYPE_CHECKING:
    from .routes import Routes

__all__ = ["ENDPOINTS"]


async def _metrics(routes: Routes, request: Request, route: Route) -> Reply:
    if routes.metrics is None:
        raise Unsupported("no metrics are kept here")
    try:
        body, content_type = routes.metrics.render(request.header("accept") or "")
    except ImportError as error:  # what to install is for whoever runs the server, and scrapes
        raise Unsupported(str(error)) from error
    return Reply(200, content_type.encode(), [body], len(body), request.id)


ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/metrics",
        _metrics,
        "read",
        summary="metrics as text",
        described="server.METRICS",
    ),
)
