"""`serve_workers`: serve a directory of models from several processes until told to end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from modelserve.errors import ServeError, Unsupported
from modelserve.protocols import VersionInfo
from modelserve.repository.store import LocalStore
from modelserve.transports.address import Address
from modelserve.transports.routes import MAX_BODY_SIZE, PROTOCOLS, ProtocolName
from modelserve.transports.serving import ServerName
from modelserve.workers.settings import Settings, TLSFiles
from modelserve.workers.shared import slots_for
from modelserve.workers.supervisor import Bounds, Supervisor

__all__ = ["serve_workers"]


def serve_workers(
    directory: str | os.PathLike[str],
    *,
    workers: int,
    http: str = "127.0.0.1:8000",
    load: Literal["all"] | Iterable[str] = "all",
    watch: bool = False,
    watch_interval: float = 1.0,
    instances: int = 1,
    server: ServerName = "http1",
    tls: TLSFiles | None = None,
    api_keys: str | os.PathLike[str] | None = None,
    protocols: Iterable[ProtocolName] = PROTOCOLS,
    docs: bool = True,
    admin: bool | None = None,
    uploads: bool = False,
    max_body_size: int = MAX_BODY_SIZE,
    drain: float = 30.0,
    spares: int = 1,
    hang_timeout: float = 10.0,
    max_rss: int | None = None,
    runtime: str | os.PathLike[str] | None = None,
    on_loaded: Callable[[Sequence[VersionInfo]], None] | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a directory of models from several processes, until SIGINT or SIGTERM.

    For a process that does nothing else: it becomes the supervisor, which loads no model. SIGHUP
    replaces the workers one after the other. A second SIGTERM ends the wait for requests under way.

    Args:
        directory: Directory of the models.
        workers: Processes that serve, from 1 on.
        http: Where to listen, as for `modelserve.serve`.
        load: Which models to load: all, or these.
        watch: Whether changes in the directory are followed.
        watch_interval: Seconds between two looks.
        instances: Instances of a model where its own configuration does not say.
        server: What parses HTTP.
        tls: Files for encrypted connections.
        api_keys: File of API keys, read by every worker when it starts to serve.
        protocols: Which protocols' routes there are, as for `modelserve.serve`.
        docs: Whether there are /openapi.json and /docs.
        admin: Whether to offer the control routes, as for `modelserve.serve`.
        uploads: Whether a request to load a model may bring its configuration and files.
        max_body_size: Bytes the body of an inference request may have.
        drain: Seconds that requests under way get to end.
        spares: Processes beside the workers that have loaded all models and take the place of one
            that ended. Without one a worker's place is empty until another has loaded.
        hang_timeout: Seconds after which a worker whose event loop does not turn is replaced.
        max_rss: Bytes of physical memory over which a worker is replaced; None for any.
        runtime: Directory for the control socket and the desired state, of this user alone and not
            in use by another server; None for a new one. Its path has to be short, for a socket
            is in it.
        on_loaded: Called with all versions when the first worker has loaded what it can; what it
            raises ends the server.
        on_ready: Called with the URL when all workers accept connections.

    Raises:
        OSError: The address cannot be listened on, or the runtime directory not be used.
        ModelNotFound: A model of `load` is not in the store.
        LoadError: A worker ended while it started.
        Unsupported: The system is Windows, where processes cannot share a socket so.
        ValueError: As `modelserve.HTTPServer`.
    """
    if sys.platform == "win32":
        raise Unsupported("several workers need a POSIX system; on Windows serve from one process")
    _check(workers, spares, hang_timeout, drain)
    address = Address(http)
    if admin and not address.loopback and api_keys is None:
        raise ValueError(
            f"admin=True on {address} would let anyone load and unload models: give api_keys, or "
            "listen on 127.0.0.1"
        )
    store = LocalStore(directory)
    names = None if isinstance(load, str) else tuple(load)
    with _runtime(runtime) as place:
        listening = address.bind()
        try:
            settings = Settings(
                directory=str(store.path),
                http=http,
                slots=slots_for(workers, spares),
                server=server,
                tls=tls,
                api_keys="" if api_keys is None else os.path.abspath(api_keys),
                protocols=tuple(protocols),
                docs=docs,
                admin=admin,
                uploads=uploads,
                max_body_size=max_body_size,
                drain=drain,
                instances=instances,
            )
            asyncio.run(
                _run(
                    settings,
                    Bounds(workers, spares, hang_timeout, max_rss),
                    url=str(address) if tls is None else str(address).replace("http", "https", 1),
                    watch=watch_interval if watch else None,
                    on_loaded=on_loaded,
                    on_ready=on_ready,
                    store=store,
                    load=names,
                    runtime=place,
                    listening=listening,
                )
            )
        finally:
            listening.close()
            address.release()


def _check(workers: int, spares: int, hang_timeout: float, drain: float) -> None:
    if workers < 1:
        raise ValueError(f"workers is 1 or more, got {workers}")
    if spares < 0:
        raise ValueError(f"spares is 0 or more, got {spares}")
    if not hang_timeout > 0:
        raise ValueError(f"hang_timeout is more than 0 seconds, got {hang_timeout}")
    if not drain >= 0:
        raise ValueError(f"drain is 0 or more seconds, got {drain}")


async def _run(
    settings: Settings,
    bounds: Bounds,
    *,
    url: str,
    watch: float | None,
    on_loaded: Callable[[Sequence[VersionInfo]], None] | None,
    on_ready: Callable[[str], None] | None,
    **options: Any,
) -> None:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    supervisor = Supervisor(settings, bounds, **options)

    def end() -> None:
        if ending.is_set():
            supervisor.give_up()
        ending.set()

    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.create_task(_reload(supervisor))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGTERM, end)
    loop.add_signal_handler(signal.SIGINT, end)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        await _unless(ending, supervisor.start())
        if on_loaded is not None and supervisor.infos is not None:
            on_loaded(supervisor.infos)
        await _unless(ending, supervisor.serve())
        if not ending.is_set():
            if watch is not None:
                supervisor.watch(watch)
            if on_ready is not None:
                on_ready(url)
        await ending.wait()
    finally:
        for task in reloads:
            task.cancel()
        await supervisor.stop()


async def _reload(supervisor: Supervisor) -> None:
    try:
        await supervisor.reload()
    except ServeError:
        return  # it goes on already


async def _unless(ending: asyncio.Event, work: Any) -> None:
    """Do the work, or part of it until it is to end."""
    task = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(ending.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
    finally:
        waiting.cancel()
        task.cancel()


@contextmanager
def _runtime(given: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Yield a directory of this user alone, which no other server uses."""
    if given is None:
        made = tempfile.mkdtemp(prefix="modelserve-")  # for this user alone
        try:
            yield Path(made)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return
    path = Path(os.path.abspath(given))
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(
            f"{path} has to be a directory of this user alone: chmod 700, or give another one"
        )
    import fcntl

    with open(path / "lock", "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OSError(error.errno, f"{path} is in use by another server") from error
        yield path
