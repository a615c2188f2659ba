"""A contestant as a running process: pinned to a core, asked, checked, paused and stopped.

Linux only: processes and their CPU time are read from /proc.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from pathlib import Path

import load
import models
from contestants import PEERS, Contestant, tls_context

_START = 45.0
"""Seconds a server may take until its first right answer."""
_SCRATCH = Path(__file__).parents[1] / "build" / "benchmarks"


class Failed(Exception):
    """A contestant could not be started, or answered wrongly."""


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _parents() -> dict[int, tuple[int, int, int]]:
    """Return parent, session and time of start of every process."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path("/proc", entry, "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                continue
            # The name in brackets may hold anything; what is wanted follows it.
            fields = text.rpartition(")")[2].split()
            found[int(entry)] = (int(fields[1]), int(fields[3]), int(fields[19]))
    return found


def busy(core: int) -> float:
    """Return the seconds a core has spent on programs since the machine started."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith(f"cpu{core} "):
            return sum(map(int, line.split()[1:4])) / os.sysconf("SC_CLK_TCK")
    raise ValueError(f"there is no core {core}")


class Server:
    """A contestant that serves one model."""

    def __init__(self, contestant: Contestant, model: models.Model, *, core: int) -> None:
        self.contestant, self.model = contestant, model
        self.port = free_port()
        self.log = _SCRATCH / "logs" / f"{contestant.name}-{model.name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.tls: ssl.SSLContext | None = None
        self.scratch = tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)
        environment = {
            **os.environ,
            "TMPDIR": self.scratch.name,
            # One core is all there is; pools of threads would only fight for it.
            "OMP_NUM_THREADS": "1",
            **contestant.environment(model),
        }
        if contestant.peer:
            environment.pop("PYTHONPATH", None)  # its environment is its own
        command = ["taskset", "-c", str(core), *contestant.command(model, self.port)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=PEERS,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.scripts = {wire: self.script(wire, model) for wire in contestant.wires}

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"{self.contestant.scheme}://127.0.0.1:{self.port}"

    def _path(self, wire: str, model: models.Model) -> str:
        return self.contestant.wires[wire][0].format(model=model.served)

    def _request(self, wire: str, model: models.Model, index: int) -> tuple[bytes, dict[str, str]]:
        body, headers = models.encode(self.contestant.wires[wire][1], model.samples[index])
        return body, headers | self.contestant.headers()

    def script(self, wire: str, model: models.Model) -> Path:
        """Write the generator's script of a model's requests."""
        requests = [self._request(wire, model, index) for index in range(models.SAMPLES)]
        headers = requests[0][1]
        if any(other != headers for _, other in requests):
            raise ValueError("the generator sends the same headers with every request")
        directory = _SCRATCH / "requests" / f"{self.contestant.name}-{model.name}-{wire}"
        bodies = [body for body, _ in requests]
        return load.write_script(directory, self._path(wire, model), headers, bodies)

    def _connect(self) -> http.client.HTTPConnection:
        if self.contestant.scheme == "https":
            self.tls = self.tls or tls_context()
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=self.tls)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, wire: str, model: models.Model, index: int) -> None:
        """Send a sample of a model and check the answer.

        Raises:
            OSError, http.client.HTTPException: There was none.
            ValueError: It was wrong.
        """
        connection = self._connect()
        try:
            body, headers = self._request(wire, model, index)
            connection.request("POST", self._path(wire, model), body, headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise ValueError(f"{answer.status}: {content[:300]!r}")
            form = self.contestant.wires[wire][1]
            found = {name.lower(): value for name, value in answer.getheaders()}
            model.check(index, models.decode(form, model.output, found, content))
        finally:
            connection.close()

    def wait(self) -> float:
        """Wait for the first right answer; returns the seconds since the start.

        Raises:
            Failed: There was none in time, or the process ended.
        """
        started = time.monotonic()
        wire = next(iter(self.contestant.wires))
        while True:
            try:
                self.ask(wire, self.model, 0)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if self.process.poll() is not None:
                    why = f"it ended with {self.process.returncode}"
                elif time.monotonic() - started > _START:
                    why = f"no right answer in {_START:g} s: {error}"
                else:
                    time.sleep(0.05)
                    continue
                raise Failed(f"{why}; {self.log} ends with {self.tail()!r}") from None
            return time.monotonic() - started

    def check(self, model: models.Model | None = None) -> None:
        """Ask every sample over every wire, many at once, so that they meet in batches.

        Raises:
            Failed: An answer is not what onnxruntime computes.
        """
        model = model or self.model
        wires = self.contestant.wires
        asked = [(wire, model, index) for wire in wires for index in range(models.SAMPLES)] * 2
        with concurrent.futures.ThreadPoolExecutor(models.SAMPLES) as pool:
            try:
                list(pool.map(lambda one: self.ask(*one), asked))
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise Failed(f"wrong: {error}") from error

    def tail(self) -> str:
        """Return the end of what it printed."""
        return self.log.read_text(errors="replace")[-600:].strip()

    def processes(self) -> list[int]:
        """Return its process and all that came of it."""
        parents = _parents()
        found = {self.process.pid} & set(parents)
        found |= {pid for pid, (_, session, _) in parents.items() if session == self.process.pid}
        grown = True
        while grown:
            children = {pid for pid, (parent, _, _) in parents.items() if parent in found} - found
            found |= children
            grown = bool(children)
        return sorted(found)

    def cpu(self) -> float:
        """Return the seconds of CPU its processes' threads have used."""
        total = 0
        for pid in self.processes():
            for path in Path("/proc", str(pid), "task").glob("*/schedstat"):
                try:
                    total += int(path.read_text().split()[0])
                except (FileNotFoundError, ProcessLookupError):  # the thread has ended
                    continue
        return total / 1e9

    def _signal(self, number: int) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def pause(self) -> None:
        """Keep it from using the core while others are measured."""
        if self.contestant.pausable:
            self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it and all its processes."""
        before = _parents()
        there = self.processes()
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        after = _parents()
        for pid in there:
            if pid not in after or after[pid][2] != before[pid][2]:  # another one by now
                continue
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.scratch.cleanup()

    def load(self, wire: str, *, connections: int, seconds: float, core: int) -> load.Load:
        """Load it over a wire from another core."""
        script = self.scripts[wire]
        return load.run(self.url, script, connections=connections, seconds=seconds, core=core)
