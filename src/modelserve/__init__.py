"""Serve models from inside any Python process.

The public names are loaded when first used: `import modelserve` alone loads no runtime, no
transport and no third-party framework, and starts nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from modelserve.backends.onnxruntime import InferenceSession as InferenceSession
    from modelserve.backends.python import PythonBackend as PythonBackend
    from modelserve.client import AsyncClient as AsyncClient
    from modelserve.client import Client as Client
    from modelserve.client import Retries as Retries
    from modelserve.errors import BackendError as BackendError
    from modelserve.errors import Cancelled as Cancelled
    from modelserve.errors import ClientError as ClientError
    from modelserve.errors import Conflict as Conflict
    from modelserve.errors import DeadlineExceeded as DeadlineExceeded
    from modelserve.errors import IntegrityError as IntegrityError
    from modelserve.errors import InvalidInput as InvalidInput
    from modelserve.errors import LoadError as LoadError
    from modelserve.errors import MethodNotAllowed as MethodNotAllowed
    from modelserve.errors import ModelNotFound as ModelNotFound
    from modelserve.errors import ModelNotReady as ModelNotReady
    from modelserve.errors import Overloaded as Overloaded
    from modelserve.errors import PayloadTooLarge as PayloadTooLarge
    from modelserve.errors import PermissionDenied as PermissionDenied
    from modelserve.errors import QueueFull as QueueFull
    from modelserve.errors import RateLimited as RateLimited
    from modelserve.errors import ServeError as ServeError
    from modelserve.errors import Unauthenticated as Unauthenticated
    from modelserve.errors import UnavailableError as UnavailableError
    from modelserve.errors import Unsupported as Unsupported
    from modelserve.execution.batcher import AdaptiveBatcher as AdaptiveBatcher
    from modelserve.messages import BatchStatistics as BatchStatistics
    from modelserve.messages import Context as Context
    from modelserve.messages import Exchange as Exchange
    from modelserve.messages import InferRequest as InferRequest
    from modelserve.messages import InferResponse as InferResponse
    from modelserve.messages import ModelStatistics as ModelStatistics
    from modelserve.messages import Principal as Principal
    from modelserve.messages import Spent as Spent
    from modelserve.observe.metrics import Metrics as Metrics
    from modelserve.protocols import Admin as Admin
    from modelserve.protocols import Authenticator as Authenticator
    from modelserve.protocols import Backend as Backend
    from modelserve.protocols import Caller as Caller
    from modelserve.protocols import Catalog as Catalog
    from modelserve.protocols import Choice as Choice
    from modelserve.protocols import Observer as Observer
    from modelserve.protocols import Policy as Policy
    from modelserve.protocols import Servable as Servable
    from modelserve.protocols import Store as Store
    from modelserve.protocols import StoredVersion as StoredVersion
    from modelserve.protocols import Ticket as Ticket
    from modelserve.protocols import Traits as Traits
    from modelserve.protocols import VersionInfo as VersionInfo
    from modelserve.repository.decorator import Model as Model
    from modelserve.repository.decorator import model as model
    from modelserve.repository.repository import ModelRepository as ModelRepository
    from modelserve.repository.store import LocalStore as LocalStore
    from modelserve.routing.versions import Latest as Latest
    from modelserve.routing.versions import Pinned as Pinned
    from modelserve.security.authentication import APIKeys as APIKeys
    from modelserve.security.tls import ClientCertificates as ClientCertificates
    from modelserve.security.tls import server_context as server_context
    from modelserve.tensors import Signature as Signature
    from modelserve.tensors import TensorSpec as TensorSpec
    from modelserve.transports.asgi import ASGIApp as ASGIApp
    from modelserve.transports.asgi import mount as mount
    from modelserve.transports.http1.limits import Limits as Limits
    from modelserve.transports.serving import HTTPServer as HTTPServer
    from modelserve.transports.serving import serve as serve
    from modelserve.transports.shared_memory import SharedMemory as SharedMemory
    from modelserve.workers import serve_workers as serve_workers

__all__ = [
    "APIKeys",
    "ASGIApp",
    "AdaptiveBatcher",
    "Admin",
    "AsyncClient",
    "Authenticator",
    "Backend",
    "BackendError",
    "BatchStatistics",
    "Caller",
    "Cancelled",
    "Catalog",
    "Choice",
    "Client",
    "ClientCertificates",
    "ClientError",
    "Conflict",
    "Context",
    "DeadlineExceeded",
    "Exchange",
    "HTTPServer",
    "InferRequest",
    "InferResponse",
    "InferenceSession",
    "IntegrityError",
    "InvalidInput",
    "Latest",
    "Limits",
    "LoadError",
    "LocalStore",
    "MethodNotAllowed",
    "Metrics",
    "Model",
    "ModelNotFound",
    "ModelNotReady",
    "ModelRepository",
    "ModelStatistics",
    "Observer",
    "Overloaded",
    "PayloadTooLarge",
    "PermissionDenied",
    "Pinned",
    "Policy",
    "Principal",
    "PythonBackend",
    "QueueFull",
    "RateLimited",
    "Retries",
    "Servable",
    "ServeError",
    "SharedMemory",
    "Signature",
    "Spent",
    "Store",
    "StoredVersion",
    "TensorSpec",
    "Ticket",
    "Traits",
    "Unauthenticated",
    "UnavailableError",
    "Unsupported",
    "VersionInfo",
    "model",
    "mount",
    "serve",
    "serve_workers",
    "server_context",
]

__version__ = "0.1.0"

# Where each public name lives. No module may be named like a public name: importing it would put
# the module in the name's place.
_MODULES: Final[dict[str, str]] = {
    "APIKeys": "modelserve.security.authentication",
    "ASGIApp": "modelserve.transports.asgi",
    "AdaptiveBatcher": "modelserve.execution.batcher",
    "Admin": "modelserve.protocols",
    "AsyncClient": "modelserve.client",
    "Authenticator": "modelserve.protocols",
    "Backend": "modelserve.protocols",
    "BackendError": "modelserve.errors",
    "BatchStatistics": "modelserve.messages",
    "Caller": "modelserve.protocols",
    "Cancelled": "modelserve.errors",
    "Catalog": "modelserve.protocols",
    "Choice": "modelserve.protocols",
    "Client": "modelserve.client",
    "ClientCertificates": "modelserve.security.tls",
    "ClientError": "modelserve.errors",
    "Conflict": "modelserve.errors",
    "Context": "modelserve.messages",
    "DeadlineExceeded": "modelserve.errors",
    "Exchange": "modelserve.messages",
    "HTTPServer": "modelserve.transports.serving",
    "InferRequest": "modelserve.messages",
    "InferResponse": "modelserve.messages",
    "InferenceSession": "modelserve.backends.onnxruntime",
    "IntegrityError": "modelserve.errors",
    "InvalidInput": "modelserve.errors",
    "Latest": "modelserve.routing.versions",
    "Limits": "modelserve.transports.http1.limits",
    "LoadError": "modelserve.errors",
    "LocalStore": "modelserve.repository.store",
    "MethodNotAllowed": "modelserve.errors",
    "Metrics": "modelserve.observe.metrics",
    "Model": "modelserve.repository.decorator",
    "ModelNotFound": "modelserve.errors",
    "ModelNotReady": "modelserve.errors",
    "ModelRepository": "modelserve.repository.repository",
    "ModelStatistics": "modelserve.messages",
    "Observer": "modelserve.protocols",
    "Overloaded": "modelserve.errors",
    "PayloadTooLarge": "modelserve.errors",
    "PermissionDenied": "modelserve.errors",
    "Pinned": "modelserve.routing.versions",
    "Policy": "modelserve.protocols",
    "Principal": "modelserve.messages",
    "PythonBackend": "modelserve.backends.python",
    "QueueFull": "modelserve.errors",
    "RateLimited": "modelserve.errors",
    "Retries": "modelserve.client",
    "Servable": "modelserve.protocols",
    "ServeError": "modelserve.errors",
    "SharedMemory": "modelserve.transports.shared_memory",
    "Signature": "modelserve.tensors",
    "Spent": "modelserve.messages",
    "Store": "modelserve.protocols",
    "StoredVersion": "modelserve.protocols",
    "TensorSpec": "modelserve.tensors",
    "Ticket": "modelserve.protocols",
    "Traits": "modelserve.protocols",
    "Unauthenticated": "modelserve.errors",
    "UnavailableError": "modelserve.errors",
    "Unsupported": "modelserve.errors",
    "VersionInfo": "modelserve.protocols",
    "model": "modelserve.repository.decorator",
    "mount": "modelserve.transports.asgi",
    "serve": "modelserve.transports.serving",
    "serve_workers": "modelserve.workers",
    "server_context": "modelserve.security.tls",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'modelserve' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
