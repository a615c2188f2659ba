"""Servers in processes of their own: start one, begin a request, see that it accepts no more."""

import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event
from time import monotonic


@contextmanager
def python(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Run a Python process beside the test; it does not outlive it."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def half_a_request(port: int, path: str, body: bytes) -> Iterator[socket.socket]:
    """Send all of a request but its body, and wait until it is under way."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
            "expect: 100-continue\r\n\r\n".encode()
        )
        # Sent when the application asks for the body: by then the request is its to answer.
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        yield connection


def wait_until_refused(port: int) -> None:
    """Wait until new connections are refused."""
    end = monotonic() + 10
    while monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:  # it waited to be accepted when the listener was closed
            continue
        Event().wait(0.01)
    raise AssertionError("new connections are still accepted")
