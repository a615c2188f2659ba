"""Send many changed requests to a server in a process of its own, and see how it fares.

    PYTHONPATH=src:tests python tests/stress/fuzz_requests.py --requests 200000 --seed 0
    PYTHONPATH=src:tests python tests/stress/fuzz_requests.py --seed 0 --only 4711

Prints how many answers of each status came, the server's memory before and after, and every
request that got an answer it should not: a status 5xx that is none of 501, 503 and 504, an error
that is not `{"error": text}`, JSON that is none, or no answer at all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from stress.request_mutations import CONTROLLED, Sent, request
from wire import golden_repository
from wire.golden_models import MODELS

CONNECTIONS: Final = 16
PATIENCE: Final = 20.0
"""Seconds after which a server that has not answered is taken to hang."""
DECLARED: Final = frozenset((501, 503, 504))
"""What a server may answer that is no fault of the request."""
LONGEST_ERROR: Final = 2100


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class Outcome:
    """What all the answers were."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.wrong: list[tuple[int, str]] = []
        self.seconds = 0.0
        self.before = 0
        self.after = 0
        """Bytes of memory the server had, after a tenth of the requests and after all."""

    @property
    def growth(self) -> int:
        """Bytes by which the server grew."""
        return self.after - self.before


class Connection:
    """A connection to the server that is opened again when it ended."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, sent: Sent) -> Answer:
        """Return the answer to a request.

        Raises:
            OSError: There is none.
            TimeoutError: Likewise, in time.
        """
        for fresh in (False, True):
            if self._reader is None or fresh:
                self.close()
                self._reader, self._writer = await asyncio.open_connection(*self._address)
            try:
                async with asyncio.timeout(PATIENCE):
                    return await self._ask(sent)
            except (ConnectionError, asyncio.IncompleteReadError):
                # Ended by the server after the answer before; on a new one it must not happen.
                if fresh:
                    raise ConnectionError("the connection ended without an answer") from None
        raise AssertionError

    async def _ask(self, sent: Sent) -> Answer:
        assert self._reader is not None
        assert self._writer is not None
        self._writer.write(sent.wire())
        with suppress(ConnectionError):  # refused before all of it was read: the answer is there
            await self._writer.drain()
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        status = int(first.split(b" ", 2)[1])
        pairs = (line.partition(b": ")[::2] for line in lines)
        headers = {name.lower(): value for name, value in pairs}
        body = b""
        if sent.method != "HEAD":
            if headers.get(b"transfer-encoding") == b"chunked":
                body = await self._chunks()
            else:
                body = await self._reader.readexactly(int(headers[b"content-length"]))
        if headers.get(b"connection", b"").lower() == b"close":
            self.close()
        return Answer(status, headers, body)

    async def _chunks(self) -> bytes:
        assert self._reader is not None
        body = b""
        while True:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            piece = await self._reader.readexactly(size + 2)
            if not size:
                return body
            body += piece[:-2]

    def close(self) -> None:
        """End the connection."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def flaw(sent: Sent, answer: Answer) -> str:
    """Return what is wrong with an answer, whatever the request; nothing mostly."""
    kind = answer.headers.get(b"content-type", b"")
    if answer.status >= 500 and answer.status not in DECLARED:
        return f"status {answer.status}: {answer.body[:500]!r}"
    if sent.method == "HEAD":
        return ""
    if answer.status >= 400:
        if kind != b"application/json" or b"content-encoding" in answer.headers:
            return f"an error that is {kind!r}"
        return _flaw_of_error(answer.body)
    plain = answer.body and b"content-encoding" not in answer.headers
    return _flaw_of_json(answer.body) if plain and kind == b"application/json" else ""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _flaw_of_json(body: bytes) -> str:
    try:
        json.loads(body.decode(), parse_constant=_refuse)
    except ValueError as error:
        return f"no JSON: {error}"
    return ""


def _flaw_of_error(body: bytes) -> str:
    found = _flaw_of_json(body)
    if found:
        return found
    document = json.loads(body)
    if set(document) == {"name", "ready"} or set(document) == {"ready"}:
        return ""
    text = document.get("error")
    if not isinstance(text, str) or not text:
        return f"an error without text: {body[:200]!r}"
    if len(text) > LONGEST_ERROR:
        return f"an error of {len(text)} characters"
    if re.search(r"Traceback|\.py\b|site-packages|object at 0x", text):
        return f"an error that tells of the machine: {text[:300]}"
    return ""


def resident(process: int) -> int:
    """Return the bytes of memory a process has."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def fuzz(address: tuple[str, int], process: int, seed: int, count: int) -> Outcome:
    """Send so many requests and return what became of them."""
    outcome = Outcome()
    started = time.monotonic()
    numbers = iter(range(count))

    async def one_after_another() -> None:
        connection = Connection(*address)
        for number in numbers:
            if number == count // 10:
                outcome.before = resident(process)
            if number % 2000 == 1999:
                await _load_all(connection)
            sent = request(seed, number)
            try:
                answer = await connection.ask(sent)
            except (OSError, TimeoutError) as error:
                connection.close()
                outcome.wrong.append((number, f"no answer: {error or 'in time'}"))
                continue
            outcome.statuses[answer.status] += 1
            found = flaw(sent, answer)
            if found:
                outcome.wrong.append((number, found))
        connection.close()

    await asyncio.gather(*(one_after_another() for _ in range(min(CONNECTIONS, count))))
    outcome.seconds = time.monotonic() - started
    outcome.after = resident(process)
    return outcome


async def _load_all(connection: Connection) -> None:
    """Load what may have been unloaded, so that requests go on to reach models."""
    for name in (CONTROLLED, "add_one", "arithmetic", "versions"):
        await connection.ask(
            Sent("POST", b"/v2/repository/models/%b/load" % name.encode(), (), b"")
        )


async def still_serves(address: tuple[str, int]) -> bool:
    """Tell whether all models can answer, and one does."""
    connection = Connection(*address)
    try:
        for model in MODELS:
            path = f"/v2/repository/models/{model.name}/load".encode()
            await connection.ask(Sent("POST", path, (), b""))
        ready = await connection.ask(Sent("GET", b"/v2/health/ready", (), b""))
        tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
        body = json.dumps({"inputs": [tensor]}).encode()
        answer = await connection.ask(Sent("POST", b"/v2/models/add_one/infer", (), body))
    finally:
        connection.close()
    served = answer.status == 200 and json.loads(answer.body)["outputs"][0]["data"] == [2, 3, 4, 5]
    return served and ready.status == 200


@contextmanager
def served(environment: Mapping[str, str]) -> Iterator[tuple[tuple[str, int], int, Path]]:
    """Serve the models that are files, in a process; give its address, its id and its log."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        models, log = Path(name) / "models", Path(name) / "log"
        golden_repository.write(models)
        command = [sys.executable, "-m", "modelserve.cli", "serve", str(models)]
        with log.open("wb") as writable:
            process = subprocess.Popen(
                [*command, "--http", "127.0.0.1:0", "--admin", "on"],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=writable,
                stderr=subprocess.STDOUT,
            )
        try:
            yield _address(process, log), process.pid, log
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> tuple[str, int]:
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
        if found:
            return "127.0.0.1", int(found[1])
        time.sleep(0.05)
    raise RuntimeError(f"the server does not start: {log.read_text()}")


def main() -> int:
    """Fuzz, and tell; the exit status is 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="show and send the request of this number alone")
    arguments = parser.parse_args()
    with served(os.environ) as (address, process, log):
        if arguments.only is not None:
            sent = request(arguments.seed, arguments.only)
            print(sent.wire()[:20_000])
            answer = asyncio.run(Connection(*address).ask(sent))
            print(answer.status, answer.headers, answer.body[:20_000])
            print(log.read_text()[-20_000:])
            return 0
        outcome = asyncio.run(fuzz(address, process, arguments.seed, arguments.requests))
        serving = asyncio.run(still_serves(address))
        tracebacks = log.read_text(errors="replace").count("Traceback")
    print(f"{sum(outcome.statuses.values())} answers in {outcome.seconds:.0f} s")
    for status, number in sorted(outcome.statuses.items()):
        print(f"  {status}: {number}")
    print(f"memory: {outcome.before >> 20} MiB, then {outcome.after >> 20} MiB")
    print(f"tracebacks in the log: {tracebacks}")
    print(f"still serving: {'yes' if serving else 'no'}")
    for number, text in outcome.wrong[:50]:
        print(f"request {number}: {text}")
    print(f"{len(outcome.wrong)} wrong answers")
    return 0 if serving and not outcome.wrong and not tracebacks else 1


if __name__ == "__main__":
    sys.exit(main())
