"""One table of routes for every HTTP transport, and what answers them."""

from .bodies import COMPRESSED_FROM, asks_to_compress
from .messages import (
    BINARY,
    JSON,
    MAX_BODY_SIZE,
    OPTIONAL_HEADERS,
    BodyTimeout,
    NoSuchPath,
    Pieces,
    Reply,
    Request,
    split_target,
)
from .routes import PROTOCOLS, AdminRoutes, Exposition, ProtocolName, Routes, routes_of
from .table import Route

__all__ = [
    "BINARY",
    "COMPRESSED_FROM",
    "JSON",
    "MAX_BODY_SIZE",
    "OPTIONAL_HEADERS",
    "PROTOCOLS",
    "AdminRoutes",
    "BodyTimeout",
    "Exposition",
    "NoSuchPath",
    "Pieces",
    "ProtocolName",
    "Reply",
    "Request",
    "Route",
    "Routes",
    "asks_to_compress",
    "routes_of",
    "split_target",
]
