"""TLS contexts and client certificates: what is let in, and what files are refused with."""

import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from modelserve.errors import Unauthenticated
from modelserve.security.tls import ClientCertificates, server_context

CALLERS = ClientCertificates({"web-shop": {"infer"}, "spiffe://ours/admin": {"admin", "read"}})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    other = authority.issue_cert("localhost")
    paths = {name: directory / f"{name}.pem" for name in ("cert", "key", "other", "ca", "text")}
    issued.cert_chain_pems[0].write_to_path(paths["cert"])
    issued.private_key_pem.write_to_path(paths["key"])
    other.private_key_pem.write_to_path(paths["other"])
    authority.cert_pem.write_to_path(paths["ca"])
    paths["text"].write_text("this is no certificate")
    return paths


def showing(certificate: Any) -> Any:
    return SimpleNamespace(header={}.get, certificate=certificate)


def named(common_name: str, *alternatives: tuple[str, str]) -> Any:
    return showing(
        {"subject": ((("commonName", common_name),),), "subjectAltName": tuple(alternatives)}
    )


def test_context_takes_tls_1_2_and_newer(files: dict[str, Path]) -> None:
    context = server_context(files["cert"], files["key"])
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_authorities_make_a_certificate_necessary(files: dict[str, Path]) -> None:
    context = server_context(files["cert"], files["key"], client_ca=files["ca"])
    assert context.verify_mode == ssl.CERT_REQUIRED


@pytest.mark.parametrize(("cert", "key"), [("cert", "other"), ("text", "key"), ("cert", "text")])
def test_files_that_do_not_fit_are_named(files: dict[str, Path], cert: str, key: str) -> None:
    with pytest.raises(ValueError, match=f"{cert}.pem, .*{key}.pem: no certificate with its"):
        server_context(files[cert], files[key])


def test_key_with_a_passphrase_is_refused_and_nobody_asked_for_it(
    files: dict[str, Path], tmp_path: Path
) -> None:
    key = serialization.load_pem_private_key(files["key"].read_bytes(), password=None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ValueError, match="without a passphrase"):
        server_context(files["cert"], locked)


def test_authorities_that_are_none_are_named(files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"text\.pem: no certificates in PEM"):
        server_context(files["cert"], files["key"], client_ca=files["text"])


def test_missing_file_is_named(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pem"):
        server_context(tmp_path / "nothing.pem", files["key"])


@pytest.mark.parametrize(
    ("caller", "name"),
    [
        (named("web-shop"), "web-shop"),
        (named("other", ("DNS", "web-shop")), "web-shop"),
        (named("other", ("URI", "spiffe://ours/admin")), "spiffe://ours/admin"),
        (named("web-shop", ("IP Address", "127.0.0.1")), "web-shop"),
    ],
)
def test_known_name_is_let_in(caller: Any, name: str) -> None:
    assert CALLERS.authenticate(caller).name == name


@pytest.mark.parametrize(
    "caller", [named("stranger"), named(""), showing({}), named("x", ("email", "web-shop"))]
)
def test_unknown_name_is_refused(caller: Any) -> None:
    with pytest.raises(Unauthenticated, match="nobody who is known"):
        CALLERS.authenticate(caller)


def test_no_certificate_is_refused() -> None:
    with pytest.raises(Unauthenticated, match="a client certificate is needed"):
        CALLERS.authenticate(showing(None))


def test_unknown_scope_is_refused() -> None:
    with pytest.raises(ValueError, match='"web-shop": unknown scope'):
        ClientCertificates({"web-shop": {"root"}})
