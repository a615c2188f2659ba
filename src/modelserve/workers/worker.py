"""One worker process: loads what is desired, serves when it is told to, ends with its supervisor.

Started by `supervisor` with descriptors of the listening socket and of the shared memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Coroutine, Sequence
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any, Final

from modelserve.protocols import VersionInfo
from modelserve.transports.serving import HTTPServer, loop_factory
from modelserve.transports.shared_memory import SharedMemory
from modelserve.workers.desired import Desired
from modelserve.workers.following import FollowingRepository
from modelserve.workers.settings import Settings
from modelserve.workers.shared import Shared
from modelserve.workers.wire import Message, decode_error, encode, receive

__all__ = ["main"]

_log = logging.getLogger("modelserve.workers")

_TICK: Final = 0.05
_LINGER: Final = 1.0
"""Seconds in which a connection gets one more answer when its worker ends."""
_SWITCH_INTERVAL: Final = 1e-4
"""As `modelserve.serve` has it."""


class Worker:
    """One process among several: connected to its supervisor until either ends.

    Args:
        reader: What the supervisor sends.
        writer: What it is told.
        settings: What to serve, and how.
        runtime: Directory of the desired state.
        slot: Which part of the shared memory is this process's alone.
        shared: The shared memory.
        listening: The listening socket.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        settings: Settings,
        runtime: Path,
        slot: int,
        shared: Shared,
        listening: socket.socket,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._settings = settings
        self._state_file = runtime / "state.json"
        self._slot = slot
        self._shared = shared
        self._listening = listening
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._ids = count(1)
        self._ending = asyncio.Event()
        self._followed = 0
        self._following: asyncio.Task[None] | None = None
        self._server: HTTPServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._repository = FollowingRepository(
            settings.directory, self._ask, instances=settings.instances
        )
        self._repository.metrics.share(shared.pool, slot)

    async def run(self) -> None:
        """Load, serve when told to, and return when everything under way is answered."""
        tick = asyncio.create_task(self._tick())
        listen = asyncio.create_task(self._listen())
        ending = asyncio.create_task(self._ending.wait())
        try:
            loading = asyncio.create_task(self._load())
            await asyncio.wait({loading, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                return  # nobody waits for what is being loaded, on threads that hold up no end
            await loading
            await ending
            if self._server is not None:
                await self._server.stop(linger=min(_LINGER, self._settings.drain))
            self._repository.metrics.leave()
            await self._repository.aclose(drain=self._settings.drain)
        finally:
            self._repository.metrics.flush()
            for task in (tick, listen, ending, loading):
                task.cancel()

    async def _load(self) -> None:
        models = await self._catch_up()
        infos = [_described(info) for info in await self._repository.index()]
        self._shared.follow(self._slot, self._followed)
        self._send(
            {
                "event": "loaded",
                "infos": infos,
                "models": models,
                "generation": self._followed,
            }
        )

    async def _tick(self) -> None:
        """Show that the loop turns, what was counted, and look whether something is to follow."""
        while True:
            self._shared.beat(self._slot, monotonic())
            self._repository.metrics.flush()
            idle = self._following is None or self._following.done()
            if idle and self._followed and self._shared.generation != self._followed:
                self._following = asyncio.create_task(self._follow())
            await asyncio.sleep(_TICK)

    async def _follow(self) -> None:
        models = await self._catch_up()
        self._followed_to(self._followed, models)

    async def _catch_up(self) -> dict[str, Message]:
        desired = await asyncio.to_thread(Desired.read, self._state_file)
        models = await self._repository.follow(desired)
        self._followed = desired.generation
        return models

    def _followed_to(self, generation: int, models: dict[str, Message]) -> None:
        self._shared.follow(self._slot, generation)
        self._send({"event": "followed", "generation": generation, "models": models})

    # ------------------------------------------------------------------ messages

    def _send(self, message: Message) -> None:
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def _ask(self, message: Message) -> Any:
        """Send a control call and return its result, or raise its error."""
        number = next(self._ids)
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        self._send({**message, "id": number})
        try:
            return await future
        finally:
            del self._calls[number]

    async def _listen(self) -> None:
        """Do what the supervisor says, until it says nothing more: then it has ended."""
        try:
            while (message := await receive(self._reader)) is not None:
                self._obey(message)
        finally:
            for future in self._calls.values():
                if not future.done():
                    future.set_exception(decode_error({"text": "the server is stopping"}))
            self._ending.set()

    def _obey(self, message: Message) -> None:
        future = self._calls.get(message.get("id", 0))
        if future is not None and not future.done():
            if "error" in message:
                future.set_exception(decode_error(message))
            else:
                future.set_result(message.get("result"))
            return
        order = message.get("do")
        if order == "serve":
            self._start(self._serve())
        elif order == "stop":
            self._ending.set()
        elif order == "give_up" and self._server is not None:
            self._server.give_up()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self) -> None:
        try:
            if self._followed != self._shared.generation:
                await self._follow()
            settings = self._settings
            server = HTTPServer(
                self._repository,
                http=settings.http,
                server=settings.server,
                tls=await asyncio.to_thread(_tls, settings),
                protocols=settings.protocols,
                docs=settings.docs,
                admin=settings.admin,
                uploads=settings.uploads,
                # Registered in one process, it would be there for some requests and not for others.
                shared_memory=SharedMemory(
                    refusal="several processes serve here, and shared memory would be registered "
                    "in one of them; serve with one worker"
                ),
                authenticator=await asyncio.to_thread(settings.authenticator),
                max_body_size=settings.max_body_size,
                drain=settings.drain,
                bound=self._listening,
            )
            await server.start()
        except (OSError, ValueError, ImportError) as error:
            _log.error("worker %d cannot serve: %s", os.getpid(), error)
            self._ending.set()
            return
        self._server = server
        self._send({"event": "serving"})

    def end(self) -> None:
        """Answer what is under way and return from `run`; the second time, do not wait for it."""
        if self._ending.is_set() and self._server is not None:
            self._server.give_up()
        self._ending.set()


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls is None:
        return None
    from modelserve.security.tls import server_context

    certificate, key, client_ca = settings.tls
    return server_context(certificate, key, client_ca=client_ca or None)


def _described(info: VersionInfo) -> list[Any]:
    return [info.model, info.version, info.state, info.reason, list(info.labels), info.batching]


async def _run(runtime: Path, slot: int, listening: int, memory: int) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # it is for the supervisor
    reader, writer = await asyncio.open_unix_connection(str(runtime / "control"))
    writer.write(encode({"hello": slot, "pid": os.getpid()}))
    first = await receive(reader)
    if first is None:
        return
    settings = Settings.decoded(first["settings"])
    bound = socket.socket(fileno=listening)
    bound.setblocking(False)
    worker = Worker(
        reader,
        writer,
        settings=settings,
        runtime=runtime,
        slot=slot,
        shared=Shared(memory, settings.slots),
        listening=bound,
    )
    loop.add_signal_handler(signal.SIGTERM, worker.end)
    try:
        await worker.run()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def main(arguments: Sequence[str]) -> None:
    """Run a worker, given the runtime directory, its slot, and two descriptors."""
    # Its own log, for it is a process of its own. What cannot be loaded is the supervisor's to say,
    # once for all.
    logging.getLogger("modelserve.repository").addFilter(lambda r: r.levelno < logging.ERROR)
    stderr = logging.StreamHandler()
    stderr.setFormatter(logging.Formatter("%(levelname)s %(name)s [%(process)d]: %(message)s"))
    stderr.setLevel(logging.WARNING)
    logging.getLogger().addHandler(stderr)
    runtime, slot, listening, memory = arguments
    sys.setswitchinterval(_SWITCH_INTERVAL)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_run(Path(runtime), int(slot), int(listening), int(memory)))
