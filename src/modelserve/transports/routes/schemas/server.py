"""What the endpoints of the server itself say of themselves."""

from __future__ import annotations

from typing import Final

from .described import Described, Schema, json_of
from .parts import STRING, object_of

__all__ = ["DOCS", "METRICS", "OPENAPI"]

_TEXT: Final = {**STRING, "description": "Counters and histograms for Prometheus."}

METRICS: Final = Described(
    "server", gives={"text/plain": _TEXT, "application/openmetrics-text": _TEXT}
)

OPENAPI: Final = Described(
    "server",
    gives=json_of(
        Schema(
            "OpenAPI",
            object_of(
                {"openapi": STRING, "info": {"type": "object"}, "paths": {"type": "object"}},
                *("openapi", "info", "paths"),
            ),
        )
    ),
)

DOCS: Final = Described("server", gives={"text/html": STRING})
