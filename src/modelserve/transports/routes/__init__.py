"""One table of routes for every HTTP transport, and what answers them."""

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
    "routes_of",
    "split_target",
]
