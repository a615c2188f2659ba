"""A worker process as its supervisor sees it: start it, tell it, look at it, end it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Final, Literal, TypeAlias

import modelserve
from modelserve.workers.wire import Message, encode

__all__ = ["Phase", "Process", "resident_bytes"]

Phase: TypeAlias = Literal["starting", "loaded", "promoted", "serving", "stopping"]

_PROGRAM: Final = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from modelserve.workers.worker import main; main(sys.argv[2:])"
)


class Process:
    """One worker process.

    Args:
        slot: Its part of the shared memory.
        runtime: Directory of the desired state and the control socket.
        listening: Descriptor of the listening socket.
        memory: Descriptor of the shared memory.

    Raises:
        OSError: The system starts no more processes.
    """

    def __init__(self, slot: int, runtime: Path, listening: int, memory: int) -> None:
        self.slot = slot
        self.phase: Phase = "starting"
        self.replace = ""
        """Why another one is to take its place; empty: it is not."""
        self.followed = 0
        self.born = monotonic()
        self.stopped = 0.0
        """When it was told to stop."""
        self._writer: asyncio.StreamWriter | None = None
        root = str(Path(modelserve.__file__).parents[1])
        # Spawned, not forked: a fork would inherit threads' locks and the supervisor's loop. In a
        # process group of its own, so that a terminal's interrupt reaches the supervisor alone.
        self._popen = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                _PROGRAM,
                root,
                str(runtime),
                *map(str, (slot, listening, memory)),
            ],
            pass_fds=(listening, memory),
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
        self.pid = self._popen.pid

    @property
    def connected(self) -> bool:
        """Whether it has said hello."""
        return self._writer is not None

    @property
    def status(self) -> int | None:
        """Its exit status, minus a signal's number; None while it runs."""
        return self._popen.poll()

    def connect(self, writer: asyncio.StreamWriter) -> None:
        """Take the connection it has opened."""
        self._writer = writer

    def tell(self, message: Message) -> None:
        """Send it a message, if it is there to get it."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(message))

    def serve(self) -> None:
        """Have it accept connections."""
        self.phase = "promoted"
        self.tell({"do": "serve"})

    def stop(self) -> None:
        """Have it answer what it has, and end."""
        self.stopped = self.stopped or monotonic()
        if self.phase == "starting":
            self._popen.kill()  # it has nothing, and may not listen yet
        self.phase = "stopping"
        self.tell({"do": "stop"})

    def kill(self) -> None:
        """End it now."""
        self.phase = "stopping"
        self._popen.kill()


def resident_bytes(pid: int) -> int:
    """Return the physical memory a process has; 0 where it cannot be told.

    On Linux it is read from /proc; elsewhere `ps` is asked, which takes some milliseconds.
    """
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, IndexError):
        return 0
    try:
        done = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, timeout=5
        )
        return int(done.stdout) * 1024
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0
