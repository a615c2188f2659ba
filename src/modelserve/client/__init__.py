"""Clients for any server of the Open Inference Protocol (REST): one blocking, one for asyncio."""

from .clients import AsyncClient, Client
from .core import Retries

__all__ = ["AsyncClient", "Client", "Retries"]
