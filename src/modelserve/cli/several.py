"""`modelserve serve --workers N`: a directory of models from several processes."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence

from modelserve.protocols import VersionInfo
from modelserve.transports.routes import PROTOCOLS

__all__ = ["serve_several"]


def serve_several(
    arguments: argparse.Namespace, on_loaded: Callable[[Sequence[VersionInfo]], None]
) -> int:
    """Serve as the arguments of `modelserve serve` say, until told to end.

    Args:
        arguments: The command line's.
        on_loaded: Called with what the workers have loaded; what it raises ends them.
    """
    from modelserve.workers import TLSFiles, serve_workers

    def report(infos: Sequence[VersionInfo]) -> None:
        on_loaded(infos)
        logging.getLogger("modelserve.workers").setLevel(logging.INFO)

    tls = None
    if arguments.tls_cert is not None:
        files = (arguments.tls_cert, arguments.tls_key, arguments.tls_client_ca)
        tls = TLSFiles(*("" if path is None else str(path.absolute()) for path in files))
    serve_workers(
        arguments.directory,
        workers=arguments.workers,
        http=arguments.http,
        load=arguments.model or "all",
        watch=arguments.watch,
        instances=arguments.instances,
        server=arguments.server,
        tls=tls,
        api_keys=arguments.api_keys,
        protocols=arguments.protocol or PROTOCOLS,
        docs=not arguments.no_docs,
        admin={"auto": None, "on": True, "off": False}[arguments.admin],
        uploads=arguments.uploads,
        drain=arguments.drain,
        on_loaded=report,
        on_ready=lambda url: print(f"serving on {url}", flush=True),
    )
    print("drained", flush=True)
    return 0
