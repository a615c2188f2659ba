"""Chromium without a window, by its DevTools protocol over a pair of pipes: no driver, no port."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Final

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS: Final = 15.0

_OPTIONS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--remote-debugging-pipe",
)


def executable() -> str | None:
    """Return where a Chromium is, if one is installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One page of a browser. What it complains of is in `complaints`."""

    def __init__(self, send: int, receive: int) -> None:
        self._send = os.fdopen(send, "wb", 0)
        self._receive = os.fdopen(receive, "rb", 0)
        self._numbers = count(1)
        self._messages: Queue[dict[str, Any]] = Queue()
        self._session = ""
        self.complaints: list[str] = []
        """Errors and refusals by the content security policy that the console shows."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        held = b""
        while data := self._receive.read(1 << 16):
            *whole, held = (held + data).split(b"\0")
            for message in whole:
                self._messages.put(json.loads(message))

    def end(self) -> None:
        """Close the pipes, once the browser is gone."""
        self._reader.join(SECONDS)
        self._send.close()
        self._receive.close()

    def begin(self) -> None:
        """Open the page."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; returns its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        while True:
            try:
                answer = self._messages.get(timeout=SECONDS)
            except Empty:
                raise AssertionError(f"the browser does not answer {method}") from None
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        if event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.complaints.append(told["entry"]["text"])

    def run(self, script: str) -> Any:
        """Run an expression in the page, to its end where it is a promise; returns its value."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> Any:
        """Wait until an expression is true in the page; returns its value."""
        script = f"""new Promise((done, fail) => {{
            const end = performance.now() + {SECONDS * 1000 / 2};
            (function look() {{
                let found = false;
                try {{ found = {condition}; }} catch {{ /* it is not there yet */ }}
                if (found) done(found);
                else if (performance.now() > end) fail(new Error(document.body.innerText));
                else setTimeout(look, 10);
            }})();
        }})"""
        return self.run(script)

    def open(self, url: str) -> None:
        """Go to an address, and wait for the page there."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def text(self, selector: str) -> str:
        """Return the text of an element as it is shown."""
        found = self.run(f"document.querySelector({json.dumps(selector)}).innerText")
        assert isinstance(found, str)
        return found

    def look(self, width: int, height: int = 0, *, dark: bool = False) -> bytes:
        """Return a picture of the page as PNG; without a height of all of it."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        metrics = {"width": width, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", height=height or 800, **metrics)
        if not height:
            height = self.run("document.documentElement.scrollHeight")
            self.call("Emulation.setDeviceMetricsOverride", height=height, **metrics)
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """Run a Chromium with one page.

    Args:
        folder: An empty directory for what it keeps.
    """
    path = executable()
    assert path is not None
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()

    def take_over() -> None:  # the browser reads from 3 and writes to 4
        spare_in, spare_out = os.dup(theirs_in), os.dup(theirs_out)
        os.dup2(spare_in, 3)
        os.dup2(spare_out, 4)

    process = subprocess.Popen(
        [path, *_OPTIONS, f"--user-data-dir={folder}"],
        preexec_fn=take_over,
        close_fds=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    page = Page(ours_out, ours_in)
    try:
        page.begin()
        yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        page.end()
