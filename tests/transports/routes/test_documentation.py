"""/docs and /openapi.json on every transport: what is sent, where, and whether it is there."""

import asyncio
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import modelserve as ms
from modelserve.testing import StubModel
from modelserve.transports.routes import PROTOCOLS
from modelserve.workers.settings import Settings

PATHS = ["/docs", "/docs/", "/openapi.json"]


def get(app: Any, path: str, method: str = "GET", **options: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, **options)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            return await client.request(method, path)

    return asyncio.run(ask())


def alone(path: str, **options: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with (
            ms.HTTPServer(StubModel(), http="127.0.0.1:0", **options) as server,
            httpx.AsyncClient(base_url=server.url) as client,
        ):
            return await client.get(path)

    return asyncio.run(ask())


class Elements(HTMLParser):
    """Collects what a page refers to, and the text of its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.inside: dict[str, str] = {}
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        for name, value in attributes:
            if name in ("src", "href", "action", "srcset"):
                self.references.append(value or "")
            if name.startswith("on") or name == "style":
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.inside[self._tag] = self.inside.get(self._tag, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""


def test_the_page_runs_itself_and_nothing_else() -> None:
    answer = get(ms.ASGIApp(StubModel()), "/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Elements(answer.text)
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )

    def hash_of(tag: str) -> str:
        return f"'sha256-{b64encode(sha256(page.inside[tag].encode()).digest()).decode()}'"

    assert policy == {
        "default-src": "'none'",
        "script-src": hash_of("script"),
        "style-src": hash_of("style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert page.references == ["data:,", "#main", "openapi.json"]
    assert page.handlers == []


def test_the_page_fetches_nothing_from_elsewhere_and_writes_no_markup() -> None:
    page = get(ms.ASGIApp(StubModel()), "/docs").text
    assert not re.search(r"https?://|//[a-z]+\.[a-z]+/", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", page)
    assert not re.search(r"localStorage|sessionStorage|document\.cookie", page)
    assert not re.search(r"@import|url\(", page)


def test_neither_is_kept_by_caches() -> None:
    app = ms.ASGIApp(StubModel())
    assert get(app, "/openapi.json").headers["cache-control"] == "no-store"
    assert get(app, "/docs").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", PATHS)
def test_they_are_there_for_get_and_head(path: str) -> None:
    app = ms.ASGIApp(StubModel())
    whole, head = get(app, path), get(app, path, "HEAD")
    assert (whole.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]
    refused = get(app, path, "POST")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", PATHS)
def test_they_are_there_below_a_prefix(path: str) -> None:
    mounted = Starlette(routes=[Mount("/ml", ms.ASGIApp(StubModel()))])
    assert get(mounted, f"/ml{path}").status_code == 200
    beside = ms.mount(None, "/a/b", StubModel())
    assert get(beside, f"/a/b{path}").status_code == 200
    assert get(ms.ASGIApp(StubModel()), f"/x{path}", root_path="/x").status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_the_server_has_them(path: str) -> None:
    answer = alone(path, admin=True)
    assert answer.status_code == 200
    assert answer.content == get(ms.ASGIApp(StubModel(), admin=True), path).content


@pytest.mark.parametrize("path", PATHS)
def test_they_can_be_left_out(path: str) -> None:
    assert get(ms.ASGIApp(StubModel(), docs=False), path).status_code == 404
    assert alone(path, docs=False).status_code == 404
    assert alone(path, docs=False, server="uvicorn").status_code == 404


@pytest.mark.parametrize("protocols", [("kserve",), ()])
def test_they_are_there_whatever_the_protocols(protocols: Any) -> None:
    app = ms.ASGIApp(StubModel(), protocols=protocols)
    paths = get(app, "/openapi.json").json()["paths"]
    assert ("/v1/models" in paths, "/v2" in paths) == (bool(protocols), False)
    assert get(app, "/docs").status_code == 200


def test_the_page_is_for_everyone_and_the_document_for_those_with_a_key() -> None:
    _, hashed = ms.APIKeys.generate()
    keys = ms.APIKeys({"ada": (hashed, {"read"})})
    app = ms.ASGIApp(StubModel(name="secret-name"), authenticator=keys)
    page = get(app, "/docs")
    assert page.status_code == 200
    assert "secret-name" not in page.text
    assert get(app, "/openapi.json").status_code == 401


def test_workers_get_the_option() -> None:
    settings = Settings("models", "127.0.0.1:0", 4, docs=False)
    assert Settings.decoded(settings.encoded()) == settings
    assert settings.protocols == PROTOCOLS


def test_the_command_line_has_the_option() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "modelserve.cli", "serve", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert "--no-docs" in done.stdout


def test_the_page_is_part_of_the_package() -> None:
    folder = Path(str(files("modelserve.transports.routes"))) / "page"
    assert {path.name for path in folder.iterdir()} == {"page.html", "page.css", "page.js"}


def test_nothing_of_it_is_loaded_before_it_is_asked_for(fresh_python: Callable[..., str]) -> None:
    code = """
import sys
from modelserve.testing import StubModel
from modelserve.transports.asgi import ASGIApp
ASGIApp(StubModel())
print([name for name in sys.modules if ".schemas" in name or name.endswith(".openapi")])
"""
    assert fresh_python(code).strip() == "[]"
