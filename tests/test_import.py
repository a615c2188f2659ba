"""`import modelserve` does nothing that was not asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import onnx_models

_LOOK = """
import json, logging, os, signal, sys, threading

before = set(sys.modules)
argv, environ, interval = list(sys.argv), dict(os.environ), sys.getswitchinterval()
interrupt = signal.getsignal(signal.SIGINT)
hook = sys.excepthook

import modelserve

print(json.dumps({
    "modules": sorted(set(sys.modules) - before),
    "threads": [thread.name for thread in threading.enumerate()],
    "handlers": [repr(one) for one in logging.getLogger().handlers],
    "level": logging.getLogger().level,
    "argv": sys.argv == argv,
    "environ": dict(os.environ) == environ,
    "interval": sys.getswitchinterval() == interval,
    "signals": signal.getsignal(signal.SIGINT) == interrupt,
    "hook": sys.excepthook is hook,
}))
"""

HEAVY = (
    "aiohttp",
    "asyncio",
    "cupy",
    "django",
    "fastapi",
    "flask",
    "granian",
    "grpc",
    "httpx",
    "hypercorn",
    "litestar",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "orjson",
    "prometheus_client",
    "pydantic",
    "quart",
    "rich",
    "sklearn",
    "starlette",
    "uvicorn",
    "uvloop",
)


@pytest.fixture(scope="module")
def after_import(fresh_python: Callable[..., str]) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(fresh_python(_LOOK, "--an-argument-of-the-host"))
    return facts


@pytest.mark.parametrize("module", HEAVY)
def test_import_loads_no(after_import: dict[str, Any], module: str) -> None:
    assert module not in after_import["modules"]


def test_import_loads_no_room(after_import: dict[str, Any]) -> None:
    loaded = [name for name in after_import["modules"] if name.startswith("modelserve.")]
    assert loaded == []


def test_import_starts_no_thread(after_import: dict[str, Any]) -> None:
    assert after_import["threads"] == ["MainThread"]


def test_import_leaves_logging_alone(after_import: dict[str, Any]) -> None:
    assert after_import["handlers"] == []
    assert after_import["level"] == 30


@pytest.mark.parametrize("thing", ["argv", "environ", "interval", "signals", "hook"])
def test_import_leaves_the_process_alone(after_import: dict[str, Any], thing: str) -> None:
    assert after_import[thing] is True


def test_first_use_of_a_name_loads_only_what_it_needs(fresh_python: Callable[..., str]) -> None:
    printed = fresh_python(
        "import sys, modelserve\n"
        "modelserve.InferRequest\n"
        "heavy = sys.argv[1:]\n"
        "print([name for name in heavy if name in sys.modules])",
        *(name for name in HEAVY if name != "numpy"),
    )
    assert printed.strip() == "[]"


_SERVE = """
import sys
from modelserve.repository.repository import ModelRepository
from modelserve.transports.http1.server import HTTP1Server
import modelserve.cli.server

with ModelRepository() as repository:
    repository.add("m", sys.argv[1])
    assert repository.ready
print([name for name in sys.argv[2:] if sys.modules.get(name)])
"""

RARE = (
    "email",
    "importlib.metadata",
    "modelserve.client",
    "modelserve.repository.triton_config",
    "modelserve.repository.text_proto",
    "modelserve.transports.asgi",
    "modelserve.transports.uvicorn_server",
    "modelserve.workers.supervisor",
    "numpy.random",
    "onnx",
    "sklearn",
    "tempfile",
    "tomllib",
    "uvicorn",
)
"""What a start and a first answer can do without; together a third of the time they take."""


def test_a_server_with_a_proven_model_has_loaded_nothing_rare(
    fresh_python: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_models.mlp())
    assert fresh_python(_SERVE, str(path), *RARE).strip() == "[]"
