"""What a supervisor tells each worker to be; plain values, for they travel as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from modelserve.protocols import Authenticator
from modelserve.transports.routes import MAX_BODY_SIZE, PROTOCOLS, ProtocolName
from modelserve.transports.serving import ServerName

__all__ = ["Settings", "TLSFiles"]


class TLSFiles(NamedTuple):
    """PEM files for encrypted connections; every worker reads them when it starts.

    Args:
        certificate: The server's certificate, with its chain.
        key: Its private key.
        client_ca: Authorities whose clients are let in; empty: any client.
    """

    certificate: str
    key: str
    client_ca: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker serves, and how.

    Args:
        directory: Directory of the models.
        http: Address the listening socket has.
        server: What parses HTTP.
        tls: Files for encrypted connections.
        api_keys: File of API keys; empty admits everyone.
        protocols: Which protocols' routes there are.
        docs: Whether there are /openapi.json and /docs.
        admin: Whether control routes are offered; None decides by the address.
        uploads: Whether a request to load a model may bring its configuration and files.
        max_body_size: Bytes the body of an inference request may have.
        drain: Seconds that requests under way get to end.
        instances: Instances of a model where its own configuration does not say.
        slots: How many processes there may be at once.
    """

    directory: str
    http: str
    slots: int
    server: ServerName = "http1"
    tls: TLSFiles | None = None
    api_keys: str = ""
    protocols: tuple[ProtocolName, ...] = PROTOCOLS
    docs: bool = True
    admin: bool | None = None
    uploads: bool = False
    max_body_size: int = MAX_BODY_SIZE
    drain: float = 30.0
    instances: int = 1

    def encoded(self) -> dict[str, Any]:
        """Return the settings as JSON has them."""
        return asdict(self)

    @classmethod
    def decoded(cls, found: Mapping[str, Any]) -> Settings:
        """Return the settings that were encoded."""
        tls = found["tls"]
        values = {
            **found,
            "tls": None if tls is None else TLSFiles(*tls),
            "protocols": tuple(found["protocols"]),
        }
        return cls(**cast(Any, values))

    def authenticator(self) -> Authenticator | None:
        """Return who tells callers apart, from the file of keys as it is now.

        Raises:
            ValueError: The file holds no API keys.
            OSError: It cannot be read.
        """
        if not self.api_keys:
            return None
        from modelserve.security.authentication import APIKeys

        return APIKeys.from_file(Path(self.api_keys))
