"""A server of several processes in a process of its own, and requests to it that never cease."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from modelserve import workers

PROGRAM = """
import json, logging, sys
from modelserve.workers import serve_workers
logging.basicConfig(level=logging.INFO)
options = json.loads(sys.argv[1])
serve_workers(on_ready=lambda url: print(url, flush=True), **options)
"""
ROW = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0.0, 0.0, 0.0, 0.0]}
BODY = json.dumps({"inputs": [ROW]}).encode()


def until(condition: Callable[[], Any], timeout: float = 12.0) -> Any:
    """Return what the condition says when it holds."""
    end = monotonic() + timeout
    while not (found := condition()):
        assert monotonic() < end, "it did not come true in time"
        Event().wait(0.02)
    return found


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        if sys.platform == "linux":
            return False
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


class Several:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], url: str, runtime: Path, log: Path) -> None:
        self.process = process
        self._log = log
        self.url = url
        self.runtime = runtime

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.url.rpartition(":")[2])

    def logged(self) -> str:
        """What supervisor and workers have written to their log."""
        # Opened anew: a position of our own, while they write.
        return self._log.read_text()

    def status(self) -> dict[str, Any]:
        return workers.status(self.runtime)

    def pids(self, *phases: str) -> set[int]:
        found = self.status()["workers"]
        return {w["pid"] for w in found if w["phase"] in (phases or ("serving",))}

    def complete(self, count: int) -> bool:
        """Whether so many serve, and a spare waits."""
        return len(self.pids("serving")) == count and len(self.pids("loaded")) == 1

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Send one request on a connection of its own: to any worker."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET" if body is None else "POST", path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def version(self, model: str = "m") -> str:
        status, body = self.ask(f"/v2/models/{model}/infer", BODY)
        return str(json.loads(body)["model_version"]) if status == 200 else str(status)

    def versions(self, times: int = 20) -> set[str]:
        """Versions that answered, or statuses, over many connections."""
        return {self.version() for _ in range(times)}

    def change(self, verb: str, model: str, version: str = "") -> tuple[int, str]:
        parameters = {"parameters": {"version": version}} if version else {}
        status, body = self.ask(
            f"/v2/repository/models/{model}/{verb}", json.dumps(parameters).encode()
        )
        return status, body.decode()

    def counted(self) -> float:
        """Requests that were answered well, as the metrics of any worker have it."""
        text = self.ask("/metrics")[1].decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "modelserve_requests_total" and sample.labels["code"] == "OK"
        )

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)


@contextmanager
def several(
    environment: Mapping[str, str], directory: Path, workers: int = 2, **options: Any
) -> Iterator[Several]:
    """Run a server until the end of the block."""
    # A socket's path may have about a hundred characters; pytest's directories take more.
    runtime = Path(tempfile.mkdtemp(prefix="ms-"))
    given = {
        "directory": str(directory),
        "workers": workers,
        "http": "127.0.0.1:0",
        "runtime": str(runtime),
        **options,
    }
    with (
        tempfile.NamedTemporaryFile("w+") as log,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(given)],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, "it did not serve"
            yield Several(process, url, runtime, Path(log.name))
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(15)
        except BaseException:
            sys.stderr.write(Path(log.name).read_text())
            raise
        finally:
            process.kill()
            shutil.rmtree(runtime, ignore_errors=True)


class Asking:
    """Clients that ask without a pause, each on a connection that it keeps.

    Attributes:
        answered: How many requests were answered well.
        lost: What became of the others.
        refused: What became of connections that answered nothing.
        versions: How often each version has answered.
    """

    def __init__(self, port: int, *, clients: int = 4, per_connection: int = 20) -> None:
        self._port = port
        self._each = per_connection
        self._stop = Event()
        self._threads = [
            Thread(target=self._run, args=(index,), daemon=True) for index in range(clients)
        ]
        self._answers = [0] * clients
        self.lost: list[str] = []
        self.refused: list[str] = []
        self.versions: Counter[str] = Counter()

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        self.more(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End when what is under way is answered."""
        self._stop.set()
        for thread in self._threads:
            thread.join(15)

    @property
    def answered(self) -> int:
        return sum(self._answers)

    def more(self, count: int) -> None:
        """Wait until so many further requests were answered."""
        goal = self.answered + count
        until(lambda: self.answered >= goal)

    def _run(self, mine: int) -> None:
        while not self._stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
            before = self._answers[mine]
            try:
                connection.connect()
                self._ask_on(connection, mine)
            except (OSError, http.client.HTTPException) as error:
                fresh = self._answers[mine] == before
                (self.refused if fresh else self.lost).append(repr(error))
            finally:
                connection.close()

    def _ask_on(self, connection: http.client.HTTPConnection, mine: int) -> None:
        for _ in range(self._each):
            if self._stop.is_set():
                return
            connection.request("POST", "/v2/models/m/infer", BODY)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                self.lost.append(f"{answer.status} {body!r}")
                return
            self.versions[json.loads(body)["model_version"]] += 1
            self._answers[mine] += 1
            if answer.will_close:
                return
