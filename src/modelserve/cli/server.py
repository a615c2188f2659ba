"""`modelserve serve`: a directory of models over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import logging
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelserve.cli.arguments import at_least, seconds
from modelserve.cli.several import serve_several
from modelserve.errors import LoadError
from modelserve.protocols import VersionInfo
from modelserve.repository.repository import ModelRepository
from modelserve.security.authentication import APIKeys
from modelserve.transports.address import Address
from modelserve.transports.routes import PROTOCOLS
from modelserve.transports.serving import serve

__all__ = ["declare"]


def declare(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "serve",
        help="serve a directory of models over HTTP",
        description=(
            "Serve every model of a directory (DIR/<model>/<version>/model.onnx) over HTTP until "
            "SIGINT or SIGTERM; then answer what is under way and end."
        ),
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="directory of models")
    parser.add_argument(
        "--http",
        metavar="HOST:PORT",
        default="127.0.0.1:8000",
        help="address to listen on, or unix:PATH; port 0 takes a free one (default: %(default)s)",
    )
    parser.add_argument("--watch", action="store_true", help="follow changes in the directory")
    parser.add_argument(
        "--model",
        metavar="NAME",
        action="append",
        help="load this model; may be repeated (default: all)",
    )
    parser.add_argument(
        "--instances",
        metavar="N",
        type=at_least(1),
        default=1,
        help="instances of each model (default: 1)",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=at_least(1),
        default=1,
        help="processes that serve side by side (default: 1)",
    )
    parser.add_argument(
        "--server",
        choices=("http1", "uvicorn"),
        default="http1",
        help="what parses HTTP (default: %(default)s, our own)",
    )
    parser.add_argument(
        "--tls-cert", metavar="FILE", type=Path, help="PEM certificate, with its chain: serve https"
    )
    parser.add_argument("--tls-key", metavar="FILE", type=Path, help="PEM private key for it")
    parser.add_argument(
        "--tls-client-ca",
        metavar="FILE",
        type=Path,
        help="PEM authorities; only clients they vouch for are let in",
    )
    parser.add_argument(
        "--api-keys", metavar="FILE", type=Path, help="TOML or JSON file of API keys"
    )
    parser.add_argument(
        "--admin",
        choices=("auto", "on", "off"),
        default="auto",
        help="control routes (load, unload); auto: on a loopback address or with --api-keys",
    )
    parser.add_argument(
        "--uploads",
        action="store_true",
        help="let a request to load a model bring its configuration and files",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        action="append",
        help="protocol to speak; may be repeated (default: all)",
    )
    parser.add_argument(
        "--no-docs",
        action="store_true",
        help="offer neither /openapi.json nor /docs, a page to try the models with",
    )
    parser.add_argument(
        "--drain",
        metavar="SECONDS",
        type=seconds,
        default=30.0,
        help="time requests under way get to end (default: %(default)g)",
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="serve even if a model cannot be loaded"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    directory: Path = arguments.directory
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a directory; give the directory of the models")
    keys = None if arguments.api_keys is None else _keys(arguments.api_keys)
    tls = _tls(arguments)
    _check_address(arguments, keys)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    if arguments.workers > 1:
        return serve_several(arguments, on_loaded=lambda infos: _accept(infos, arguments))
    with _load(arguments) as repository:
        infos = asyncio.run(repository.index())
        _accept(infos, arguments)
        # From here on each change is told: what is served now stands above.
        logging.getLogger("modelserve").setLevel(logging.INFO)
        serve(
            repository,
            http=arguments.http,
            protocols=arguments.protocol or PROTOCOLS,
            docs=not arguments.no_docs,
            admin={"auto": None, "on": True, "off": False}[arguments.admin],
            uploads=arguments.uploads,
            authenticator=keys,
            server=arguments.server,
            tls=tls,
            drain=arguments.drain,
            on_ready=lambda url: print(f"serving on {url}", flush=True),
        )
        print("drained", flush=True)
    return 0


def _keys(path: Path) -> APIKeys:
    try:
        return APIKeys.from_file(path)
    except ValueError as error:
        raise ValueError(f"{path} holds no API keys: {error}") from error


def _tls(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    certificate, key, ca = arguments.tls_cert, arguments.tls_key, arguments.tls_client_ca
    if certificate is None and key is None and ca is None:
        return None
    if certificate is None or key is None:
        raise ValueError("TLS needs both --tls-cert and --tls-key")
    from modelserve.security.tls import server_context

    return server_context(certificate, key, client_ca=ca)


def _check_address(arguments: argparse.Namespace, keys: APIKeys | None) -> None:
    """Say what is wrong with the address now, and not when all models are loaded."""
    address = Address(arguments.http)
    if arguments.admin == "on" and keys is None and not address.loopback:
        raise ValueError(
            f"--admin on at {address} would let anyone load and unload models: give --api-keys, "
            "or listen on 127.0.0.1"
        )
    address.bind().close()
    address.release()


def _load(arguments: argparse.Namespace) -> ModelRepository:
    log = logging.getLogger("modelserve.repository")
    log.addFilter(_is_no_failure)  # the report tells what could not be loaded
    try:
        return ModelRepository(
            arguments.directory,
            load=arguments.model or "all",
            watch=arguments.watch,
            instances=arguments.instances,
        )
    finally:
        log.removeFilter(_is_no_failure)


def _is_no_failure(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


def _accept(infos: Sequence[VersionInfo], arguments: argparse.Namespace) -> None:
    _report(infos)
    _check_loaded(infos, arguments)


def _report(infos: Sequence[VersionInfo]) -> None:
    for info in infos:
        if info.state == "READY":
            labels = f" ({', '.join(info.labels)})" if info.labels else ""
            print(f"{info.model} version {info.version}{labels} ready; batching {info.batching}")
        elif _is_missing(info):
            print(
                f"{info.model} version {info.version} cannot be served: {info.reason}",
                file=sys.stderr,
            )


def _is_missing(info: VersionInfo) -> bool:
    return info.state == "UNAVAILABLE" and info.reason != "not loaded"


def _check_loaded(infos: Sequence[VersionInfo], arguments: argparse.Namespace) -> None:
    if arguments.keep_going:
        return
    if any(map(_is_missing, infos)):
        raise LoadError("not every model could be loaded; --keep-going serves what there is")
    if not infos and not arguments.watch:
        raise LoadError(
            f"{arguments.directory} holds no models; expected DIR/<model>/<version>/model.onnx, as "
            "`modelserve publish` makes"
        )
