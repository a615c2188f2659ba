"""`modelserve bench`: how fast a server answers, in a closed loop or at a given rate."""

from __future__ import annotations

import argparse
import json
import sys
from argparse import ArgumentTypeError
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modelserve.cli.arguments import at_least, seconds

if TYPE_CHECKING:
    import ssl

    from modelserve.cli.load.measurements import Measurement
    from modelserve.cli.load.preparation import Model
    from modelserve.protocols import VersionInfo

__all__ = ["declare"]

_PATIENCE: Final = 30.0
"""Seconds an answer is waited for where no deadline is given."""
_CLOSED: Final = 64
_OPEN: Final = 512


def declare(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "bench",
        help="measure how fast a server answers",
        description=(
            "Ask a server of the Open Inference Protocol what a model takes, check an answer, then "
            "load it and print rates and latencies. Exit status 1 if an answer failed or was wrong."
        ),
    )
    parser.add_argument(
        "url", metavar="URL", help="http://host:port, https://host, or unix:/path/of/the/socket"
    )
    parser.add_argument("model", metavar="MODEL", help="name of the model")
    parser.add_argument("--version", default="", help="version or label (default: what answers)")
    _declare_requests(parser.add_argument_group("requests"))
    _declare_load(parser.add_argument_group("load"))
    _declare_server(parser.add_argument_group("server"))
    parser.add_argument("--json", metavar="FILE", help="write everything measured; - prints it")
    parser.add_argument(
        "--allow-failures", action="store_true", help="exit status 0 even if requests failed"
    )
    parser.set_defaults(run=_run)


def _declare_requests(group: Any) -> None:
    group.add_argument(
        "--input",
        metavar="FILE",
        type=Path,
        help=".npz, or JSON: a request, or lists by input name (default: made up)",
    )
    group.add_argument(
        "--rows",
        metavar="N",
        type=at_least(1),
        default=0,
        help="rows of a request; cuts --input into requests of so many (default: 1, or all)",
    )
    group.add_argument(
        "--shape",
        metavar="NAME:SIZES",
        type=_shape,
        action="append",
        default=[],
        help="shape of a made-up input, such as ids:1,64; may be repeated (default: open sizes 1)",
    )
    group.add_argument("--binary", action="store_true", help="binary tensors instead of JSON")
    group.add_argument(
        "--any-answer", action="store_true", help="do not compare answers with the first one"
    )
    group.add_argument(
        "--seed", metavar="N", type=at_least(0), default=0, help="of inputs and arrivals"
    )


def _declare_load(group: Any) -> None:
    group.add_argument(
        "--connections",
        metavar="N",
        type=at_least(1),
        help=f"connections (default: {_CLOSED}; with --rate at most {_OPEN})",
    )
    group.add_argument(
        "--rate",
        metavar="R",
        type=_rate,
        help="requests a second, at random moments (default: each connection asks when answered)",
    )
    group.add_argument(
        "--duration",
        metavar="SECONDS",
        type=seconds,
        default=10.0,
        help="time to measure (default: %(default)g)",
    )
    group.add_argument(
        "--warm-up",
        metavar="SECONDS",
        type=seconds,
        default=1.0,
        help="load before that (default: %(default)g)",
    )
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_positive,
        help="deadline of each request, which the server is told (default: none)",
    )


def _declare_server(group: Any) -> None:
    group.add_argument(
        "--api-key-file", metavar="FILE", type=Path, help="file that holds an API key"
    )
    group.add_argument(
        "--header",
        metavar="NAME:VALUE",
        type=_header,
        action="append",
        default=[],
        help="header of each request; may be repeated",
    )
    group.add_argument("--ca", metavar="FILE", type=Path, help="certificates to trust")
    group.add_argument(
        "--insecure", action="store_true", help="do not check the server's certificate"
    )


def _positive(text: str) -> float:
    number = seconds(text)
    if not number:
        raise ArgumentTypeError(f'expected seconds above 0, got "{text}"')
    return number


def _rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not isfinite(number) or number <= 0:
        raise ArgumentTypeError(f'expected requests a second above 0, got "{text}"')
    return number


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition(":")
    try:
        shape = tuple(int(size) for size in sizes.split(",")) if sizes else ()
    except ValueError:
        shape = (-1,)
    if not name or min(shape, default=0) < 0:
        raise ArgumentTypeError(f'expected a name and sizes such as ids:1,64, got "{text}"')
    return name, shape


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not name.strip() or not colon or any(c in text for c in "\r\n"):
        raise ArgumentTypeError(f'expected a header such as "x-name: value", got "{text}"')
    return name.strip(), value.strip()


def _run(arguments: argparse.Namespace) -> int:
    # Only here: the other commands do not wait for an event loop and a HTTP client to be imported.
    from modelserve.cli.load.generator import Plan, generate
    from modelserve.cli.load.preparation import Model, Server, prepare
    from modelserve.cli.load.report import Progress, print_tables

    server = Server(
        arguments.url,
        api_key=_api_key(arguments),
        headers=dict(arguments.header),
        ssl_context=_ssl_context(arguments),
        binary=arguments.binary,
        timeout=_PATIENCE,
    )
    model = Model(
        arguments.model,
        arguments.version,
        rows=arguments.rows,
        shapes=dict(arguments.shape),
        binary=arguments.binary,
        deadline=arguments.timeout,
        any_answer=arguments.any_answer,
        seed=arguments.seed,
    )
    info, shots = prepare(server, model, arguments.input)
    assert server.received is not None
    plan = Plan(
        connections=arguments.connections or _connections(arguments.rate),
        rate=arguments.rate,
        duration=arguments.duration,
        warm_up=arguments.warm_up,
        deadline=arguments.timeout,
        limit=_PATIENCE if arguments.timeout is None else arguments.timeout + 1.0,
        seed=arguments.seed,
        server_timing="server-timing" in server.received.headers,
    )
    progress = Progress(sys.stderr, plan.duration)
    try:
        found = generate(server.origin, shots, plan, progress)
    finally:
        progress.end()
    if arguments.json != "-":
        print(_title(server.name, model, info))
        print_tables(found)
    if arguments.json is not None:
        _write(arguments, info, found)
    return _status(found, arguments.allow_failures)


def _connections(rate: float | None) -> int:
    """As many as a rate may need if answers take a second; each costs the server memory."""
    return _CLOSED if rate is None else min(_OPEN, max(8, round(rate)))


def _api_key(arguments: argparse.Namespace) -> str | None:
    if arguments.api_key_file is None:
        return None
    path: Path = arguments.api_key_file
    key = path.read_text(encoding="utf-8").strip()
    if not key or len(key.split()) != 1:
        raise ValueError(f"{path}: expected one API key and nothing else")
    return key


def _ssl_context(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    if not arguments.url.startswith("https:"):
        if arguments.ca is not None or arguments.insecure:
            raise ValueError("--ca and --insecure are for a URL that begins with https:")
        return None
    import ssl

    context = ssl.create_default_context()
    if arguments.ca is not None:
        try:
            context.load_verify_locations(arguments.ca)
        except ssl.SSLError as error:
            raise ValueError(f"{arguments.ca} holds no certificates: {error}") from error
    if arguments.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _title(name: str, model: Model, info: VersionInfo) -> str:
    version = f" version {info.version}" if info.version else ""
    wire = "binary tensors" if model.binary else "JSON"
    return f"{name}  {model.name}{version}  {wire}"


def _write(arguments: argparse.Namespace, info: VersionInfo, found: Measurement) -> None:
    document = {
        "url": arguments.url,
        "model": arguments.model,
        "version": info.version,
        "binary": arguments.binary,
        **found.document(),
    }
    text = json.dumps(document, indent=2)
    if arguments.json == "-":
        print(text)
    else:
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")


def _status(found: Measurement, allow_failures: bool) -> int:
    if found.ended == "interrupted":
        return 130
    # A load without one right answer measured nothing, whatever is allowed.
    failed = found.failed and not allow_failures
    return 1 if failed or found.ended or not found.requests else 0
