"""The ASGI application alone on each server, and below a prefix in each framework, for real."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any

import httpx
import numpy as np
import pytest

import serving
from modelserve.testing import StubModel
from modelserve.transports.asgi import ASGIApp, mount

X = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, 2.5]}


def model_answers_at(url: str) -> None:
    """Check what a client sees below a prefix, whatever stands around it."""
    with httpx.Client(base_url=url, trust_env=False, timeout=10) as client:
        ready = client.get("/v2/health/ready")
        assert (ready.status_code, ready.json()) == (200, {"ready": True})
        answer = client.post("/v2/models/stub/infer", json={"inputs": [X]})
        assert answer.status_code == 200
        assert answer.json()["outputs"] == [X]
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": "x",
                        "datatype": "FP32",
                        "shape": [70_000],
                        "parameters": {"binary_data_size": 280_000},
                    }
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        x = np.arange(70_000, dtype=np.float32)
        answer = client.post(
            "/v2/models/stub/versions/1/infer",
            content=head + x.tobytes(),
            headers={"Inference-Header-Content-Length": str(len(head))},
        )
        start = int(answer.headers["inference-header-content-length"])
        assert np.array_equal(np.frombuffer(answer.content[start:], np.float32), x)
        nope = client.get("/v2/models/nope")
        assert nope.status_code == 404
        assert nope.json() == {"error": 'there is no model "nope"'}
        wrong = client.post("/v2/models/stub/infer", content=b"{")
        assert wrong.status_code == 400
        assert "not valid JSON" in wrong.json()["error"]


def host_answers_at(url: str) -> None:
    answer = httpx.get(f"{url}/hello", trust_env=False, timeout=10)
    assert (answer.status_code, answer.text) == (200, "hello")


# Frameworks: each returns its application with the models below /ml and a page of its own


def starlette(models: ASGIApp) -> Any:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route

    return Starlette(
        routes=[
            Route("/hello", lambda request: PlainTextResponse("hello")),
            Mount("/ml", app=models),
        ]
    )


def fastapi(models: ASGIApp) -> Any:
    from fastapi import FastAPI
    from fastapi.responses import PlainTextResponse

    app = FastAPI()

    @app.get("/hello")
    async def hello() -> PlainTextResponse:
        return PlainTextResponse("hello")

    app.mount("/ml", models)
    return app


def starlette_with_middleware(models: ASGIApp) -> Any:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route

    async def through(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    return Starlette(
        routes=[
            Route("/hello", lambda request: PlainTextResponse("hello")),
            Mount("/ml", app=models),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=through)],
    )


def litestar(models: ASGIApp) -> Any:
    from litestar import Litestar, MediaType, asgi, get

    @get("/hello", media_type=MediaType.TEXT)
    async def hello() -> str:
        return "hello"

    below = asgi("/ml", is_mount=True, copy_scope=True)(models)
    return Litestar([hello, below], openapi_config=None)


@pytest.fixture(scope="session")
def django_settings() -> None:
    import django
    from django.conf import settings
    from django.http import HttpResponse
    from django.urls import path

    urls = [path("hello", lambda request: HttpResponse("hello"))]
    settings.configure(
        ROOT_URLCONF=type("urls", (), {"urlpatterns": urls}), ALLOWED_HOSTS=["*"], SECRET_KEY="x"
    )
    django.setup()


def django(models: ASGIApp) -> Any:
    from django.core.asgi import get_asgi_application

    return mount(get_asgi_application(), "/ml", models)


def quart(models: ASGIApp) -> Any:
    from quart import Quart

    app = Quart("host")

    @app.get("/hello")
    async def hello() -> str:
        return "hello"

    return mount(app, "/ml", models)


FRAMEWORKS = [starlette, starlette_with_middleware, fastapi, litestar, django, quart]


@pytest.mark.usefixtures("django_settings")
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.__name__)
def test_models_answer_below_a_prefix(framework: Callable[[ASGIApp], Any]) -> None:
    with serving.on_uvicorn(framework(ASGIApp(StubModel()))) as url:
        model_answers_at(f"{url}/ml")
        host_answers_at(url)


@pytest.mark.parametrize("framework", [starlette, litestar], ids=lambda f: f.__name__)
def test_models_answer_below_a_prefix_behind_a_proxy_path(framework: Any) -> None:
    app = framework(ASGIApp(StubModel()))
    with serving.on_uvicorn(app, root_path="/front") as url:
        model_answers_at(f"{url}/ml")


def test_mounts_nest() -> None:
    app = mount(mount(None, "/b", StubModel()), "/a", mount(None, "/c", StubModel()))
    with serving.on_uvicorn(app) as url:
        model_answers_at(f"{url}/b")
        model_answers_at(f"{url}/a/c")
        nothing = httpx.get(f"{url}/c/v2", trust_env=False)
        assert (nothing.status_code, set(nothing.json())) == (404, {"error"})


# WSGI


def flask(models: Any) -> Any:
    from flask import Flask
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    app = Flask("host")
    app.add_url_rule("/hello", view_func=lambda: "hello", endpoint="hello")
    return DispatcherMiddleware(app, {"/ml": models})


def django_wsgi(models: Any) -> Any:
    from django.core.wsgi import get_wsgi_application
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    return DispatcherMiddleware(get_wsgi_application(), {"/ml": models})


@contextmanager
def wsgi(app: ASGIApp) -> Iterator[Any]:
    """The application as a WSGI one; afterwards, no task of it may be left."""
    import threading

    from a2wsgi import ASGIMiddleware

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def left() -> set[Any]:
        return asyncio.all_tasks() - {asyncio.current_task()}

    try:
        yield ASGIMiddleware(app, wait_time=5.0, loop=loop)
        tasks = asyncio.run_coroutine_threadsafe(left(), loop).result(5)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()
    assert tasks == set()


@pytest.mark.usefixtures("django_settings")
@pytest.mark.parametrize("framework", [flask, django_wsgi], ids=lambda f: f.__name__)
def test_models_answer_below_a_prefix_under_wsgi(framework: Any) -> None:
    with wsgi(ASGIApp(StubModel())) as models, serving.on_werkzeug(framework(models)) as url:
        model_answers_at(f"{url}/ml")
        host_answers_at(url)


def test_answer_slow_enough_to_be_watched_passes_wsgi() -> None:
    with (
        wsgi(ASGIApp(StubModel(latency=0.2))) as models,
        serving.on_werkzeug(flask(models)) as url,
    ):
        answer = httpx.post(f"{url}/ml/v2/models/stub/infer", json={"inputs": [X]}, trust_env=False)
        assert answer.json()["outputs"] == [X]


# Servers


@pytest.mark.parametrize("lifespan", ["off", "on"])
@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_alone_on_uvicorn(lifespan: str, http: str) -> None:
    with serving.on_uvicorn(ASGIApp(StubModel()), lifespan=lifespan, http=http) as url:
        model_answers_at(url)


def test_alone_on_hypercorn() -> None:
    with serving.on_hypercorn(ASGIApp(StubModel())) as url:
        model_answers_at(url)


def test_alone_on_granian(environment: dict[str, str], tmp_path: Any) -> None:
    (tmp_path / "served.py").write_text(
        "from modelserve.testing import StubModel\n"
        "from modelserve.transports.asgi import ASGIApp\n"
        "app = ASGIApp(StubModel())\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "granian", "--interface", "asgi", "--no-ws"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "served:app"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, process)
            model_answers_at(url)
        finally:
            process.terminate()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end = monotonic() + 15
    while True:
        try:
            httpx.get(f"{url}/v2/health/live", trust_env=False)
        except httpx.TransportError:
            assert process.poll() is None, "the server ended"
            assert monotonic() < end, "the server did not start"
            sleep(0.05)
        else:
            return
