"""A connection under TLS for tests, whose records are made by hand: they can be cut anywhere."""

from __future__ import annotations

import asyncio
import socket
import ssl

from transports.raw_http import BOUND, Peer


class Encrypted(Peer):
    """One connection to a server in this loop, under TLS."""

    def __init__(self, connected: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(connected)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="127.0.0.1")
        self.piece = 0
        """Bytes sent at once; 0 for all."""

    @classmethod
    async def connect(cls, url: str, context: ssl.SSLContext, piece: int = 0) -> Encrypted:
        host, _, port = url.removeprefix("https://").rpartition(":")
        connected = socket.socket()
        connected.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connected, (host, int(port)))
        peer = cls(connected, context)
        peer.piece = piece
        try:
            async with asyncio.timeout(BOUND):
                await peer.shake_hands()
        except BaseException:
            connected.close()
            raise
        return peer

    async def shake_hands(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.flush()
                self._in.write(await super().receive())
        await self.flush()

    async def flush(self) -> None:
        data = self._out.read()
        size = self.piece or len(data) or 1
        await super().send(*[data[at : at + size] for at in range(0, len(data), size)])

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.tls.write(piece)
            await self.flush()

    async def receive(self, size: int = 1 << 16) -> bytes:
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLWantReadError:
                data = await super().receive()
                if not data:
                    self._in.write_eof()
                    raise ConnectionResetError("closed without saying so") from None
                self._in.write(data)
            except ssl.SSLZeroReturnError:
                return b""
