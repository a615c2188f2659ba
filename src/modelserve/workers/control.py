"""Asks a running supervisor, from another process of the same user, given its runtime directory."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from modelserve.workers.wire import MAX_MESSAGE, Message, decode_error, encode

__all__ = ["reload", "route", "status"]


def status(runtime: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the supervisor's processes and what they serve.

    Args:
        runtime: The runtime directory that was given to `serve_workers`.

    Returns:
        ``generation`` of the desired state; ``replaced``, how many workers were; and ``workers``,
        for each its ``pid``, ``phase`` (starting, loaded, promoted, serving or stopping) and the
        ``generation`` it has reached.

    Raises:
        OSError: No supervisor runs there.
    """
    found: dict[str, Any] = _ask(runtime, {"call": "status"})
    return found


def reload(runtime: str | os.PathLike[str]) -> None:
    """Have all workers replaced, one after the other; returns when they are.

    Args:
        runtime: The runtime directory that was given to `serve_workers`.

    Raises:
        Conflict: They are being replaced already.
        OSError: No supervisor runs there.
    """
    _ask(runtime, {"call": "reload"})


def route(runtime: str | os.PathLike[str], model: str, version: str) -> None:
    """Set which version answers requests that name none; returns when all workers do so.

    Args:
        runtime: The runtime directory that was given to `serve_workers`.
        model: Name of the model.
        version: Version number or label, one that is loaded; empty for the default again.

    Raises:
        LoadError: It is not loaded; then the route is as before.
        OSError: No supervisor runs there.
    """
    _ask(runtime, {"call": "route", "model": model, "route": version})


def _ask(runtime: str | os.PathLike[str], message: Message) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(Path(runtime) / "control"))
        connection.sendall(encode(message))
        with connection.makefile("rb") as stream:
            length = int.from_bytes(stream.read(4), "big")
            answer = json.loads(stream.read(min(length, MAX_MESSAGE)) or b"{}")
    if "error" in answer:
        raise decode_error(answer)
    if "result" not in answer:
        raise ConnectionError("the supervisor ended")
    return answer["result"]
