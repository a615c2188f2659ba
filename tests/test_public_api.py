"""The public names: what they are, where they live, and that each resolves."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import modelserve

PUBLIC = [
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

MODULES = sorted(found.name for found in pkgutil.walk_packages(modelserve.__path__, "modelserve."))


def test_public_names_are_these() -> None:
    assert modelserve.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_resolves(name: str) -> None:
    value = getattr(modelserve, name)
    assert value.__module__.startswith("modelserve.")
    assert value.__name__ == name


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_described(name: str) -> None:
    text = inspect.getdoc(getattr(modelserve, name)) or ""
    # A dataclass without a docstring gets its signature as one.
    assert text
    assert not text.startswith(f"{name}(")


def test_dir_lists_the_public_names() -> None:
    assert set(PUBLIC) <= set(dir(modelserve))


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse(Path(modelserve.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.asname: node.module
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == modelserve._MODULES


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        modelserve.nonsense  # noqa: B018


def test_no_module_hides_a_public_name() -> None:
    children = {found.name for found in pkgutil.iter_modules(modelserve.__path__)}
    assert children.isdisjoint(PUBLIC)


@pytest.mark.parametrize("module", MODULES)
def test_names_a_module_exports_exist(module: str) -> None:
    loaded = importlib.import_module(module)
    missing = [name for name in getattr(loaded, "__all__", ()) if not hasattr(loaded, name)]
    assert missing == []


@pytest.mark.parametrize("module", MODULES)
def test_module_says_what_it_holds(module: str) -> None:
    assert importlib.import_module(module).__doc__
