"""Where a server listens: a host and port, or the path of a Unix socket."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
from typing import Final

__all__ = ["Address"]

_BACKLOG: Final = 2048


class Address:
    """Where to listen: ``HOST:PORT``, ``[IPV6]:PORT``, or ``unix:PATH``. Port 0 takes a free one.

    Raises:
        ValueError: The text is none of these.

    Example:
        >>> Address("127.0.0.1:8000").loopback
        True
    """

    __slots__ = ("_inode", "host", "path", "port")

    def __init__(self, text: str) -> None:
        self.host, self.port, self.path = "", 0, ""
        self._inode: tuple[int, int] | None = None
        if text.startswith("unix:"):
            self.path = text.removeprefix("unix:")
            if not self.path:
                raise ValueError("an address unix:PATH needs a path")
            return
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(
                f'"{text}" is no address; expected HOST:PORT such as 127.0.0.1:8000, or unix:PATH'
            )
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f'"{text}": an IPv6 address stands in brackets, as in [::1]:8000')
        self.host, self.port = host or "127.0.0.1", int(port)

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def bind(self) -> socket.socket:
        """Return a socket that listens here; `port` is then the real one.

        Raises:
            OSError: The address is taken, not this machine's, or not permitted.
        """
        if self.path:
            return self._bind_path()
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        # With the protocol named, asyncio sees TCP in its connections and sends small answers at
        # once.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            if sys.platform != "win32":  # there it would let two servers share the port
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((self.host, self.port))
            bound.listen(_BACKLOG)
            bound.setblocking(False)
        except BaseException as error:
            bound.close()
            if isinstance(error, OSError):
                raise self._explained(error) from error
            raise
        self.port = bound.getsockname()[1]
        return bound

    def _bind_path(self) -> socket.socket:
        if not hasattr(socket, "AF_UNIX"):
            raise OSError("this system has no Unix sockets")
        import os
        import stat

        with contextlib.suppress(FileNotFoundError):
            # What a dead server left; a living one's socket answers and is left alone.
            if stat.S_ISSOCK(os.stat(self.path).st_mode) and not self._answers():
                os.unlink(self.path)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bound.bind(self.path)
            bound.listen(_BACKLOG)
            bound.setblocking(False)
            found = os.stat(self.path)
        except OSError as error:
            bound.close()
            raise self._explained(error) from error
        self._inode = found.st_dev, found.st_ino
        return bound

    def release(self) -> None:
        """Remove the file of a Unix socket that `bind` made; not that of a server after this one.

        While requests under way are answered, a successor may listen on the same path already.
        """
        if self._inode is None:
            return
        import os

        with contextlib.suppress(OSError):
            found = os.stat(self.path)
            if (found.st_dev, found.st_ino) == self._inode:
                os.unlink(self.path)
        self._inode = None

    def _answers(self) -> bool:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.settimeout(1.0)
            probe.connect(self.path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        finally:
            probe.close()
        return True

    def _explained(self, error: OSError) -> OSError:
        reason = (error.strerror or str(error)).lower()
        return OSError(error.errno, f"cannot listen on {self}: {reason}")
