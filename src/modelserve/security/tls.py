"""TLS contexts for servers, and callers known by their certificates."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, ClassVar, TypeAlias

from modelserve.errors import Unauthenticated
from modelserve.messages import Principal
from modelserve.protocols import Caller
from modelserve.security.authentication import checked_scopes

__all__ = ["ClientCertificates", "server_context"]

_Path: TypeAlias = str | PathLike[str]


def server_context(
    certificate: _Path, key: _Path, *, client_ca: _Path | None = None
) -> ssl.SSLContext:
    """Return the TLS context of a server: TLS 1.2 or newer, HTTP/1.1 by ALPN.

    Args:
        certificate: PEM file of the server's certificate, with its chain.
        key: PEM file of its private key, which is not protected by a passphrase.
        client_ca: PEM file of the authorities whose clients are let in; every client has to show a
            certificate then (mutual TLS).

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is not what it should be, or key and certificate do not belong together.
    """
    for path in (certificate, key, client_ca):
        if path is not None:
            with open(path, "rb"):  # ssl's own error would not say which file it was
                pass
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Off by itself from OpenSSL 3 on: it costs the client nothing, and us a handshake each time.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # With a password of our own OpenSSL does not ask for one, of a terminal where there is one.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise ValueError(
            f"{certificate}, {key}: no certificate with its private key in PEM, the key without a "
            f"passphrase ({error.reason})"
        ) from error
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError as error:
            raise ValueError(f"{client_ca}: no certificates in PEM ({error.reason})") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class ClientCertificates:
    """Authenticates callers by the certificate they showed in the TLS handshake.

    A caller is known by its certificate's common name, or by a DNS name or URI among the
    alternative names. The handshake has checked that an authority of ours vouches for it.

    Args:
        callers: Scopes by name: any of ``"infer"``, ``"read"`` and ``"admin"``.

    Raises:
        ValueError: A scope is malformed.

    Example:
        >>> from types import SimpleNamespace
        >>> callers = ClientCertificates({"web-shop": {"infer"}})
        >>> certificate = {"subject": ((("commonName", "web-shop"),),)}
        >>> caller = SimpleNamespace(header={}.get, certificate=certificate)
        >>> callers.authenticate(caller).name
        'web-shop'
    """

    __slots__ = ("_principals",)

    schemes: ClassVar = {"certificate": {"type": "mutualTLS"}}
    """How a caller shows who it is, as OpenAPI has it."""

    def __init__(self, callers: Mapping[str, Iterable[str]]) -> None:
        self._principals = {
            name: Principal(name, checked_scopes(name, scopes)) for name, scopes in callers.items()
        }

    def __repr__(self) -> str:
        return f"<ClientCertificates of {len(self._principals)} callers>"

    def authenticate(self, caller: Caller) -> Principal:
        """Return whom a caller's certificate names.

        Raises:
            Unauthenticated: There is no certificate, or it names nobody who is known.
        """
        certificate = caller.certificate
        if certificate is None:
            raise Unauthenticated("a client certificate is needed")
        for name in _names(certificate):
            principal = self._principals.get(name)
            if principal is not None:
                return principal
        raise Unauthenticated("the client certificate names nobody who is known here")


def _names(certificate: Mapping[str, Any]) -> Iterable[str]:
    """Return the names a certificate gives, most specific first."""
    alternatives: Iterable[tuple[str, str]] = certificate.get("subjectAltName", ())
    for kind, name in alternatives:
        if kind in ("DNS", "URI"):
            yield name
    for relative in certificate.get("subject", ()):
        for key, name in relative:
            if key == "commonName":
                yield name
