"""What one client may ask of the server: bytes, seconds, connections."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the HTTP/1.1 server. Seconds are floats; they are kept to within a quarter.

    Args:
        header_timeout: Seconds from the first byte of a request's head to its last.
        body_timeout: Seconds the whole body may take to arrive.
        idle_timeout: Seconds a connection may wait for its next request.
        write_timeout: Seconds a client may take nothing of an answer that was written for it.
        max_header_size: Bytes the request line and the headers may have together.
        max_headers: How many headers a request may have.
        max_connections: Connections at once; None for as many as the system allows. One more is
            answered 503 and closed.

    Raises:
        TypeError: A bound is no number.
        ValueError: A bound is not above 0.
    """

    header_timeout: float = 10.0
    body_timeout: float = 30.0
    idle_timeout: float = 75.0
    write_timeout: float = 30.0
    max_header_size: int = 32 << 10
    max_headers: int = 100
    max_connections: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name == "max_connections":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{field.name} is a number, got {value!r}")
            if not value > 0:
                raise ValueError(f"{field.name} is above 0, got {value}")

    @property
    def shortest(self) -> float:
        """The shortest of the times, in seconds."""
        return min(self.header_timeout, self.body_timeout, self.idle_timeout, self.write_timeout)
