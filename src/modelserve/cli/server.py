"""`modelserve serve`: a directory of models over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

from modelserve.repository.repository import ModelRepository
from modelserve.security.authentication import APIKeys
from modelserve.transports.serving import Address, serve

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
        "--instances", metavar="N", type=int, default=1, help="instances of each model (default: 1)"
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
        "--drain",
        metavar="SECONDS",
        type=float,
        default=30.0,
        help="time requests under way get to end (default: %(default)g)",
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="serve even if a model cannot be loaded"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    directory: Path = arguments.directory
    Address(arguments.http)  # a wrong address is said before models are loaded
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a directory; give the directory of the models")
    keys = None if arguments.api_keys is None else APIKeys.from_file(arguments.api_keys)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    with ModelRepository(
        directory,
        load="none" if arguments.model else "all",
        watch=arguments.watch,
        instances=arguments.instances,
    ) as repository:
        for name in arguments.model or ():
            repository.load(name)
        if not _report(repository, arguments.watch) and not arguments.keep_going:
            return 1
        serve(
            repository,
            http=arguments.http,
            admin={"auto": None, "on": True, "off": False}[arguments.admin],
            authenticator=keys,
            drain=arguments.drain,
            on_ready=lambda url: print(f"serving on {url}", flush=True),
        )
        print("drained", flush=True)
    return 0


def _report(repository: ModelRepository, watch: bool) -> bool:
    """Say what is loaded; returns whether nothing that should be is missing."""
    infos = asyncio.run(repository.index())
    for info in infos:
        if info.state == "READY":
            labels = f" ({', '.join(info.labels)})" if info.labels else ""
            print(f"{info.model} version {info.version}{labels} ready; batching {info.batching}")
    missing = [
        info for info in infos if info.state == "UNAVAILABLE" and info.reason != "not loaded"
    ]
    for info in missing:
        print(f"{info.model} version {info.version} is missing: {info.reason}", file=sys.stderr)
    if missing:
        print("not serving; --keep-going serves what there is", file=sys.stderr)
        return False
    if not infos and not watch:
        print(
            "no models: expected DIR/<model>/<version>/model.onnx, as `modelserve publish` makes",
            file=sys.stderr,
        )
        return False
    return True
