"""The page /docs in a real browser: what it shows, sends and copies."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import modelserve as ms
from browser import Page, chromium, executable
from serving import on_uvicorn

from . import described_models as models

pytestmark = [
    pytest.mark.skipif(executable() is None, reason="no Chromium is installed"),
    pytest.mark.timeout(60),
]

SHOWN = "!document.getElementById('operations').hidden"
ANSWERED = "document.querySelector('.answer .status') && !document.querySelector('.waiting')"
PRESS = "document.querySelector('button.main').click()"


@contextmanager
def on_http1(servable: Any, **options: Any) -> Iterator[str]:
    """Serve by the server of our own, on a loop in a thread."""
    server = ms.HTTPServer(servable, http="127.0.0.1:0", **options)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(10)

    try:
        run(server.__aenter__())
        try:
            yield server.url
        finally:
            run(server.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("browser")) as one:
        yield one


@pytest.fixture(scope="module")
def repository() -> Iterator[ms.ModelRepository]:
    with ms.ModelRepository() as found:
        found.add("digits", models.digits(1))
        found.add(models.several())
        found.add(models.fixed())
        found.add(models.words())
        found.add(models.odd())
        yield found


@pytest.fixture(scope="module")
def url(repository: ms.ModelRepository) -> Iterator[str]:
    with on_http1(repository) as found:
        yield found


@pytest.fixture(autouse=True)
def no_complaints(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let no test pass whose page threw or broke its content security policy."""
    page: Page = request.getfixturevalue("page")
    page.complaints.clear()
    yield
    page.run("1")  # what it complained of before is here then
    wrong = [text for text in page.complaints if "Failed to load resource" not in text]
    assert not wrong


def open_model(page: Page, url: str, name: str) -> None:
    page.open(f"{url}/docs")
    page.wait(SHOWN)
    page.run(f"location.hash = '#/' + encodeURIComponent({name!r})")
    page.wait(f"document.querySelector('h2').textContent === {name!r}")


def send(page: Page, body: str | None = None) -> tuple[str, str]:
    """Press Send; returns the status and what is shown below it."""
    if body is not None:
        page.run(
            f"(field => {{ field.value = {body!r}; field.dispatchEvent(new Event('input')); }})"
            "(document.getElementById('body'))"
        )
    page.run("document.querySelector('.answer').replaceChildren()")
    page.run(PRESS)
    page.wait(ANSWERED)
    return page.text(".answer .status"), page.text(".answer")


def test_send_posts_the_example_and_shows_the_answer(page: Page, url: str) -> None:
    open_model(page, url, "digits")
    status, shown = send(page)
    assert status == "200 OK"
    assert '"name": "probabilities"' in shown
    assert " ms, " in shown
    assert "rows \N{MULTIPLICATION SIGN} 64" in page.text(".tensors")
    assert "up to 64 rows" in page.text(".facts")


def test_every_integer_is_shown_as_it_was_sent(page: Page, url: str) -> None:
    open_model(page, url, "several")
    body = page.run("document.getElementById('body').value")
    largest = body.replace("[1, 1, 1]\n", "[1, 2, 18446744073709551615]\n")
    assert largest != body
    status, shown = send(page, largest)
    assert status == "200 OK"
    assert "[1, 2, 18446744073709551615]" in shown


def test_an_error_is_shown_with_its_place(page: Page, url: str) -> None:
    open_model(page, url, "digits")
    status, shown = send(page, '{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1]}]}')
    assert status == "400 Bad Request"
    assert "inputs[0]: expected data" in shown
    assert "not valid JSON" in send(page, "{")[1]


def test_a_stream_is_shown(page: Page, url: str) -> None:
    open_model(page, url, "words")
    status, shown = send(page, '{"text_input": "one two three", "most": 2}')
    assert status == "200 OK"
    assert shown.count("data: ") == 2


def test_the_time_is_told_where_that_is_asked(page: Page, url: str) -> None:
    open_model(page, url, "digits")
    page.run("document.querySelector('input[type=checkbox]').click()")
    _, shown = send(page)
    assert "queue 0." in shown
    assert "1 requests, 1 rows" in shown


def test_names_and_texts_are_never_markup(page: Page, url: str) -> None:
    open_model(page, url, models.ODD)
    status, shown = send(page)
    assert status == "400 Bad Request"
    assert f"{models.ODD} is refused" in shown
    assert page.run("document.title") == f"{models.ODD} - modelserve"
    assert page.run("document.images.length") == 0


@pytest.mark.parametrize("name", ["digits", "several", "fixed"])
def test_the_lines_of_python_ask_the_same(
    page: Page, url: str, repository: ms.ModelRepository, name: str
) -> None:
    open_model(page, url, name)
    found: dict[str, Any] = {}
    exec(page.text("section[aria-label=Python] pre"), found)
    expected = repository.predict(name, found["inputs"])
    assert found["outputs"].keys() == expected.keys()
    for output, value in expected.items():
        np.testing.assert_array_equal(found["outputs"][output], value)


def test_the_curl_command_asks_the_same(page: Page, url: str) -> None:
    import shlex

    open_model(page, url, "several")
    command = shlex.split(page.text("section[aria-label=curl] pre").replace("\\\n", " "))
    assert command[:2] == ["curl", f"{url}/v2/models/several/infer"]
    status, shown = send(page, command[command.index("-d") + 1])
    assert status == "200 OK"
    assert "several" in shown


def test_all_operations_are_listed(page: Page, url: str) -> None:
    page.open(f"{url}/docs")
    page.wait(SHOWN)
    rows = page.run("document.querySelectorAll('#operation-list tr').length")
    document = page.run("fetch('openapi.json').then(answer => answer.json())")
    assert rows == sum(map(len, document["paths"].values()))


def test_without_a_model_it_says_so(page: Page) -> None:
    with ms.ModelRepository() as empty, on_http1(empty) as url:
        page.open(f"{url}/docs")
        page.wait(SHOWN)
        assert "No model is ready." in page.text("#notice")
        empty.add(models.fixed())
        page.run("document.getElementById('reload').click()")
        page.wait("document.querySelector('h2')?.textContent === 'fixed'")


def test_a_key_is_asked_for_and_sent(page: Page, repository: ms.ModelRepository) -> None:
    key, hashed = ms.APIKeys.generate()
    keys = ms.APIKeys({"ada": (hashed, {"read", "infer"})})
    with on_http1(repository, authenticator=keys) as url:
        page.open(f"{url}/docs")
        page.wait("!document.getElementById('key').hidden")
        assert page.run("document.activeElement.id") == "key-value"
        for given in ("wrong", key):
            page.run(f"document.getElementById('key-value').value = {given!r}")
            page.run("document.querySelector('#key button').click()")
            if given == "wrong":
                page.wait("document.getElementById('notice').textContent.includes('401')")
        page.wait(SHOWN)
        open_hash = "location.hash = '#/digits'"
        page.run(open_hash)
        page.wait("document.querySelector('h2').textContent === 'digits'")
        assert send(page)[0] == "200 OK"
        assert key not in page.text("main")
        stored = "JSON.stringify([localStorage, sessionStorage, document.cookie])"
        assert page.run(stored) == '[{},{},""]'


@pytest.mark.parametrize("end", ["/docs", "/docs/"])
def test_it_works_below_a_prefix(page: Page, repository: ms.ModelRepository, end: str) -> None:
    app = Starlette(routes=[Mount("/a/ml", ms.ASGIApp(repository))])
    with on_uvicorn(app) as url:
        page.open(f"{url}/a/ml{end}#/digits")
        page.wait(SHOWN)
        assert send(page)[0] == "200 OK"
        assert f'ms.Client("{url}/a/ml")' in page.text("section[aria-label=Python] pre")


def test_it_works_with_the_keyboard_alone(page: Page, url: str) -> None:
    open_model(page, url, "digits")
    page.run("document.getElementById('body').focus()")
    for kind in ("keyDown", "keyUp"):
        page.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", modifiers=2, windowsVirtualKeyCode=13
        )
    page.wait(ANSWERED)
    assert page.text(".answer .status") == "200 OK"


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_nothing_runs_out_of_the_window(page: Page, url: str, width: int, tmp_path: Path) -> None:
    page.look(width, 800)
    for name in ("digits", models.ODD):
        open_model(page, url, name)
        send(page)
        assert page.run("document.documentElement.scrollWidth") <= width
