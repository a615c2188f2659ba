"""A server for HTTP/1.1 of our own, for what uvicorn and an ASGI scope cost."""

from .limits import Limits as Limits
from .server import HTTP1Server as HTTP1Server
