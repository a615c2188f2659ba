"""TLS between the sockets and a connection, at less than the event loop's own layer costs.

A record that came whole is decrypted by one call and a reply encrypted by one. The event loops'
layers ask OpenSSL after every record whether there is another, and are told by an exception.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, Final, cast

from .connection import Connection

if TYPE_CHECKING:
    from .server import HTTP1Server

__all__ = ["SecureTransport"]

# As much as a record may hold; a larger buffer would be got from the system, and given back, each
# time.
_READ: Final = 16 << 10
# A large reply is encrypted in pieces, so that it is not held three times.
_PIECE: Final = 256 << 10
_HANDSHAKE: Final = 10.0
"""Seconds the handshake may take."""


class SecureTransport(asyncio.Transport, asyncio.Protocol):
    """The protocol of an encrypted connection's socket, and the transport of what it carries.

    Args:
        server: The server it belongs to.
        context: The server's TLS context.
    """

    def __init__(self, server: HTTP1Server, context: ssl.SSLContext) -> None:
        super().__init__()
        self._server = server
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        # The object below the public one, where there is one: its methods are calls into OpenSSL
        # without a Python function around each; of three a request, that saves 0.3 us.
        below: Any = getattr(self._tls, "_sslobj", self._tls)
        self._read_plain: Any = below.read
        self._write_plain: Any = below.write
        self._pending: Any = below.pending
        self._context = context
        self._socket: asyncio.Transport = cast(asyncio.Transport, None)
        self._app: Any = None  # a Connection, or what receives a large body for it
        """What gets the plain bytes; None until the handshake is done."""
        self._buffered = False
        self._over = False
        self.due = inf
        """When the server is to call `overdue`, while the handshake lasts."""

    # ------------------------------------------------------------------ the socket's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the client to begin the handshake."""
        self._socket = cast(asyncio.Transport, transport)
        self._server.opened(self)
        self.due = self._server.now + _HANDSHAKE

    def connection_lost(self, error: Exception | None) -> None:
        """Pass it on."""
        self._over = True
        if self._app is None:
            self._server.closed(self)
        else:
            self._app.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Decrypt what came."""
        if self._over:
            return
        self._incoming.write(data)
        if self._app is None and not self._shake_hands():
            return
        self._read()

    def eof_received(self) -> bool:
        """Close: an encrypted connection is not closed by halves."""
        if self._app is not None:
            self._app.eof_received()
        return False

    def pause_writing(self) -> None:
        """Pass it on."""
        if self._app is not None:
            self._app.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        if self._app is not None:
            self._app.resume_writing()

    def _shake_hands(self) -> bool:
        """Go on with the handshake; tell whether it is done."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return False
        except (ssl.SSLError, ssl.CertificateError):
            self._send()  # the alert that says why
            self._over = True
            self._socket.close()
            return False
        self._send()
        self.due = inf
        self._server.closed(self)
        self._app = Connection(self._server)
        self._app.connection_made(self)
        return True

    def _read(self) -> None:
        try:
            while not self._over:
                if self._buffered:
                    read = self._read_plain(_READ, self._app.get_buffer(-1))
                    if not read:
                        self._end()
                        return
                    self._app.buffer_updated(read)
                else:
                    data = self._read_plain(_READ)
                    if not data:
                        self._end()
                        return
                    self._app.data_received(data)
                if not self._incoming.pending and not self._pending():
                    return  # nothing is left: not to be found out by an exception
        except ssl.SSLWantReadError:
            self._send()  # what the protocol itself may have to say, such as a new key
        except ssl.SSLZeroReturnError:
            self._end()
        except ssl.SSLError:
            self._send()
            self._over = True
            self._socket.abort()

    def _end(self) -> None:
        """Close, for the client said that it sends no more."""
        if not self._over:
            self._app.eof_received()
            self.close()

    def _send(self) -> None:
        data = self._outgoing.read()
        if data:
            self._socket.write(data)

    # ------------------------------------------------------------------ the connection's side

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        if self._over:
            return
        if len(data) <= _PIECE:
            self._write_plain(data)
            self._socket.write(self._outgoing.read())
            return
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _PIECE):
            self._write_plain(view[start : start + _PIECE])
            self._socket.write(self._outgoing.read())

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Encrypt and send, in order."""
        for data in list_of_data:
            self.write(data)

    def close(self) -> None:
        """Say so to the client, and close when everything is sent."""
        if not self._over:
            self._over = True
            self._say_goodbye()
        self._socket.close()

    def _say_goodbye(self) -> None:
        with suppress(ssl.SSLError):  # it waits for the client to say so too; we do not
            self._tls.unwrap()
        self._send()

    def abort(self) -> None:
        """Cut the connection off."""
        self._over = True
        self._socket.abort()

    def is_closing(self) -> bool:
        """Tell whether it is closed or about to be."""
        return self._socket.is_closing()

    def can_write_eof(self) -> bool:
        """Tell that it can be said that nothing more will be written."""
        return True

    def write_eof(self) -> None:
        """Say so; what the client still sends is thrown away, as is its own word of the end."""
        if not self._over:
            self._over = True
            self._say_goodbye()

    def get_write_buffer_size(self) -> int:
        """Return the bytes not yet sent."""
        return self._socket.get_write_buffer_size()

    def pause_reading(self) -> None:
        """Receive nothing more for now."""
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        """Receive again."""
        self._socket.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Give the plain bytes to another protocol from now on."""
        self._app = protocol
        self._buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return a fact of the connection, such as ``peercert``."""
        if name == "peercert":
            return self._tls.getpeercert()
        if name == "sslcontext":
            return self._context
        return self._socket.get_extra_info(name, default)

    # ------------------------------------------------------------------ the server's side, before

    def overdue(self) -> None:
        """End a handshake that takes too long."""
        self.abort()

    def shut(self) -> None:
        """End a handshake, for the server takes no more."""
        self.abort()

    def give_up(self) -> None:
        """End a handshake, for the server's time is over."""
        self.abort()
