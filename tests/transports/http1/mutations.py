"""Requests with a few bytes changed, by a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

_TELLING: Final = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b" ", b"\t", b"\x0b", b"\x7f", b"\xff", b":", b";",
    b",",
    b"0", b"1", b"-", b"+", b"f", b"0\r\n\r\n", b"content-length: 5\r\n", b"content-length: 0\r\n",
    b"transfer-encoding: chunked\r\n", b"transfer-encoding: identity\r\n", b"connection: close\r\n",
    b"connection: keep-alive\r\n", b"host: b\r\n", b"expect: 100-continue\r\n", b"upgrade: h2c\r\n",
    b"GET /in HTTP/1.1\r\nhost: a\r\n\r\n", b" HTTP/1.1", b" HTTP/1.0", b"\r\n ", b"chunked",
)  # fmt: skip


def _insert(data: bytes, at: int, rng: Random) -> bytes:
    return data[:at] + rng.choice(_TELLING) + data[at:]


def _delete(data: bytes, at: int, rng: Random) -> bytes:
    return data[:at] + data[at + rng.choice((1, 1, 1, 2, 5, 20)) :]


def _replace(data: bytes, at: int, rng: Random) -> bytes:
    new = rng.choice(_TELLING)
    return data[:at] + new + data[at + len(new) :]


def _flip(data: bytes, at: int, rng: Random) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _repeat(data: bytes, at: int, rng: Random) -> bytes:
    size = rng.choice((1, 2, 10, 40))
    return data[: at + size] + data[at:]


def _swap(data: bytes, at: int, rng: Random) -> bytes:
    other = rng.randrange(len(data))
    first, second = sorted((at, other))
    size = min(8, second - first)
    parts = data[:first], data[second : second + size], data[first + size : second]
    return b"".join((*parts, data[first : first + size], data[second + size :]))


def _cut(data: bytes, at: int, rng: Random) -> bytes:
    return data[:at]


_CHANGES: Final[Sequence[Callable[[bytes, int, Random], bytes]]] = (
    _insert,
    _insert,
    _insert,
    _delete,
    _replace,
    _flip,
    _repeat,
    _swap,
    _cut,
)


def mutated(data: bytes, rng: Random) -> bytes:
    """Return the data with one to four changes; of two thirds of them one is near a line's end."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        at = rng.randrange(len(data))
        if rng.random() < 0.67:
            at = max(0, min(data.find(b"\r\n", at) + rng.randrange(-3, 4), len(data) - 1))
        data = rng.choice(_CHANGES)(data, at, rng)
    return data
