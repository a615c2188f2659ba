"""The process that keeps workers: how many serve, what they serve, when one is replaced.

It loads no model and answers no request. What it decides about models is written to one file,
`desired`; how it starts and ends a process is `process`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from modelserve.errors import Conflict, LoadError, ModelNotFound, ServeError, Unsupported
from modelserve.protocols import VersionInfo
from modelserve.repository.store import STABLE, LocalStore
from modelserve.repository.watcher import Watcher
from modelserve.workers.desired import Desired, ModelState
from modelserve.workers.process import Process, resident_bytes
from modelserve.workers.settings import Settings
from modelserve.workers.shared import Shared
from modelserve.workers.wire import Message, encode, encode_error, receive

if TYPE_CHECKING:
    from modelserve.repository.control import Control

__all__ = ["Bounds", "Supervisor"]

_log = logging.getLogger("modelserve.workers")

_TICK: Final = 0.1
_LATE: Final = 2.0
"""Seconds between two looks after which the machine, not a worker, was slow."""
_START: Final = 120.0
"""Seconds a worker has until it says hello."""
_YOUNG: Final = 5.0
"""Seconds; one that ends sooner counts as failing to start."""
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 30.0
_LAST_WORDS: Final = 3.0
"""Seconds after the drain until a worker that should have ended is killed."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many processes there are, and when one is replaced.

    Args:
        workers: Processes that serve.
        spares: Processes that have loaded everything and wait to take a place.
        hang_timeout: Seconds after which a worker whose loop does not turn is replaced.
        max_rss: Bytes of physical memory over which one is replaced; None for any.
    """

    workers: int
    spares: int = 1
    hang_timeout: float = 10.0
    max_rss: int | None = None


class Supervisor:
    """Keeps workers on one listening socket; lives on one event loop, in a process of its own.

    Args:
        settings: What each worker is told.
        bounds: How many there are, and when one is replaced.
        store: Where the models are.
        load: Names of models to load; None for all there are.
        runtime: A directory of this user alone, for the control socket and the desired state.
        listening: The listening socket.
    """

    def __init__(
        self,
        settings: Settings,
        bounds: Bounds,
        *,
        store: LocalStore,
        load: Iterable[str] | None,
        runtime: Path,
        listening: socket.socket,
    ) -> None:
        self._settings = settings
        self._bounds = bounds
        self._store = store
        self._load = None if load is None else tuple(load)
        self._runtime = runtime
        self._listening = listening
        self._memory = Shared.create(settings.slots, runtime)
        self._shared = Shared(self._memory, settings.slots)
        self._desired = Desired()
        self._processes: list[Process] = []
        self._changing = asyncio.Lock()
        self._reloading = asyncio.Lock()
        self._news = asyncio.Condition()
        self._outcomes: dict[int, dict[int, dict[str, Message]]] = {}
        self._failures = 0
        self._not_before = 0.0
        self._looked = monotonic()
        self._patient_until = 0.0
        self._measured = 0.0
        self._control: asyncio.Server | None = None
        self._watcher: Watcher | None = None
        self._watched: _Watched | None = None  # a watcher holds it weakly
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._replaced = 0
        self.infos: Sequence[VersionInfo] | None = None
        """What the first worker has loaded; None until then."""

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Start all workers; returns when one of them has loaded what it could (`infos`).

        Raises:
            ModelNotFound: A model that is to be loaded is not in the store.
            LoadError: A worker ended while it started.
            OSError: The runtime directory cannot be used.
        """
        desired = Desired().changed(await asyncio.to_thread(self._first_states))
        desired.write(self._state_file)
        self._desired, self._shared.generation = desired, desired.generation
        path = self._runtime / "control"
        path.unlink(missing_ok=True)
        self._control = await asyncio.start_unix_server(self._connected, str(path))
        os.chmod(path, 0o600)
        for _ in range(self._bounds.workers + self._bounds.spares):
            self._spawn()
        await self._until(lambda: self.infos is not None)

    async def serve(self) -> None:
        """Have the workers accept connections; returns when all do.

        Raises:
            LoadError: A worker ended while it started.
        """
        self._spawn_task(self._keep())
        await self._until(lambda: self._count("serving") >= self._bounds.workers)

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            ended = [p.status for p in self._processes if p.status is not None]
            if ended or self._replaced:
                status = f" with status {ended[0]}" if ended else ""
                raise LoadError(f"a worker ended{status} while it started; its log says why")
            await self._wait_for_news(_TICK)

    def watch(self, interval: float) -> None:
        """Follow changes of the store from now on."""
        # The watcher looks at names, at the store, and calls `follow`; that is all of a `Control`.
        self._watched = _Watched(self)
        self._watcher = Watcher(cast("Control", self._watched), interval)

    async def stop(self) -> None:
        """Have every worker answer what it has and end; kill those that do not."""
        self._stopping = True
        # Else who connects now would wait for an answer until the last worker has ended.
        self._listening.close()
        if self._watcher is not None:
            await asyncio.to_thread(self._watcher.stop)
        for process in self._processes:
            process.stop()
        end = monotonic() + self._settings.drain + _LAST_WORDS
        while self._reap() and monotonic() < end:
            await self._wait_for_news(0.02)
        for process in self._processes:
            _log.error("worker %d did not end in time and was killed", process.pid)
            process.kill()
        while self._reap():
            await self._wait_for_news(0.02)
        for task in self._tasks:
            task.cancel()
        if self._control is not None:
            self._control.close()
        os.close(self._memory)
        for name in ("control", "state.json"):
            with contextlib.suppress(OSError):
                (self._runtime / name).unlink(missing_ok=True)

    def give_up(self) -> None:
        """End the wait for requests under way; they are answered 503."""
        for process in self._processes:
            process.tell({"do": "give_up"})

    @property
    def _state_file(self) -> Path:
        return self._runtime / "state.json"

    def _spawn_task(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------ keeping processes

    async def _keep(self) -> None:
        while not self._stopping:
            try:
                self._look()
                self._balance()
            except OSError as error:
                _log.error("a worker could not be started: %s", error.strerror)
                self._not_before = monotonic() + _FIRST_PAUSE
            await self._wait_for_news(_TICK)

    def _balance(self) -> None:
        """Let spares take the places that are free, and start new ones."""
        wanted = self._bounds.workers
        sound = [p for p in self._processes if p.phase in ("promoted", "serving") and not p.replace]
        doubtful = [p for p in self._processes if p.phase == "serving" and p.replace]
        waiting = [p for p in self._processes if p.phase in ("starting", "loaded")]
        for spare in [p for p in waiting if p.phase == "loaded"]:
            if len(sound) < wanted:
                spare.serve()
                sound.append(spare)
                waiting.remove(spare)
        serving = [p for p in sound if p.phase == "serving"]
        for process in doubtful[: max(0, len(serving) + len(doubtful) - wanted)]:
            self._end(process)
        missing = wanted - len(sound) + self._bounds.spares - len(waiting)
        if missing > 0 and monotonic() >= self._not_before:
            for _ in range(min(missing, self._settings.slots - len(self._processes))):
                self._spawn()

    def _end(self, process: Process) -> None:
        self._replaced += 1
        if process.replace == "reload":
            _log.info("worker %d ends, another one has its place", process.pid)
        else:
            self._pause(process)
            _log.warning("worker %d was replaced: %s", process.pid, process.replace)
        if process.replace == "hung":
            process.kill()  # it could not hear anything else
        else:
            process.stop()

    def _spawn(self) -> None:
        taken = {process.slot for process in self._processes}
        slot = min(set(range(self._settings.slots)) - taken)
        self._shared.clear(slot)
        process = Process(slot, self._runtime, self._listening.fileno(), self._memory)
        self._processes.append(process)

    def _look(self) -> None:
        """Find those that ended, hang, or have grown too big."""
        now = monotonic()
        if now - self._looked > _LATE:
            # It was this process that did not run, and the others perhaps no more than it.
            self._patient_until = now + self._bounds.hang_timeout
        self._looked = now
        self._reap()
        weigh = self._bounds.max_rss is not None and now - self._measured >= 0.5
        if weigh:
            self._measured = now
        for process in self._processes:
            if process.phase == "stopping":
                if process.stopped and now - process.stopped > self._settings.drain + _LAST_WORDS:
                    process.kill()
            elif not process.replace:
                process.replace = self._complaint(process, now, weigh=weigh)
                if process.replace and process.phase != "serving":
                    self._end(process)
            elif process.replace == "reload" and self._complaint(process, now, weigh=False):
                process.replace = "hung"

    def _complaint(self, process: Process, now: float, *, weigh: bool) -> str:
        beat = self._shared.last_beat(process.slot)
        limit = self._bounds.hang_timeout if beat else _START
        if now - (beat or process.born) > limit and now >= self._patient_until:
            return "hung"
        if weigh and self._bounds.max_rss is not None and process.phase == "serving":
            size = resident_bytes(process.pid)
            if size > self._bounds.max_rss:
                return f"{size} bytes of memory, more than {self._bounds.max_rss}"
        return ""

    def _reap(self) -> int:
        """Forget processes that ended; returns how many are left."""
        for process in [p for p in self._processes if p.status is not None]:
            self._processes.remove(process)
            self._shared.pool.release(process.slot)
            if process.phase != "stopping" and not self._stopping:
                self._ended(process)
        return len(self._processes)

    def _ended(self, process: Process) -> None:
        self._replaced += 1
        pause = self._pause(process)
        _log.error(
            "worker %d ended with status %d; the next one starts in %g s",
            process.pid,
            process.status,
            pause,
        )

    def _pause(self, process: Process) -> float:
        """Return for how long no process is started, now that this one has failed."""
        now = monotonic()
        self._failures = self._failures + 1 if now - process.born < _YOUNG else 1
        pause = 0.0
        if self._failures > 1:
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (self._failures - 2))
        self._not_before = now + pause
        return pause

    def _count(self, phase: str) -> int:
        return sum(process.phase == phase for process in self._processes)

    async def reload(self) -> None:
        """Replace every process, one after the other; requests are answered all the while.

        Raises:
            Conflict: It goes on already.
        """
        if self._reloading.locked():
            raise Conflict("the workers are being reloaded already")
        async with self._reloading:
            for process in [p for p in self._processes if p.phase in ("starting", "loaded")]:
                process.stop()
            for process in [p for p in self._processes if p.phase in ("promoted", "serving")]:
                process.replace = process.replace or "reload"
                while process in self._processes and process.phase != "stopping":
                    await self._wait_for_news(_TICK)

    # ------------------------------------------------------------------ messages

    async def _tell_news(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _wait_for_news(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        process: Process | None = None
        try:
            while (message := await receive(reader)) is not None:
                if "hello" in message:
                    process = self._welcome(message, writer)
                elif "event" in message and process is not None:
                    self._hear(process, message)
                    await self._tell_news()
                elif "call" in message:
                    self._spawn_task(self._answer(message, writer))
        except ValueError as error:
            _log.warning("a control connection was closed: %s", error)
        finally:
            writer.close()
            await self._tell_news()

    def _welcome(self, message: Message, writer: asyncio.StreamWriter) -> Process | None:
        for process in self._processes:
            if process.slot == message["hello"] and process.pid == message.get("pid"):
                process.connect(writer)
                process.tell({"settings": self._settings.encoded()})
                return process
        return None

    def _hear(self, process: Process, message: Message) -> None:
        event = message["event"]
        if event == "loaded":
            if process.phase == "starting":
                process.phase = "loaded"
            if self.infos is None:
                self.infos = [_info(info) for info in message["infos"]]
        elif event == "serving" and process.phase == "promoted":
            process.phase = "serving"
        if "generation" in message:
            process.followed = message["generation"]
            outcome = self._outcomes.get(process.followed)
            if outcome is not None:
                outcome[process.pid] = message["models"]

    async def _answer(self, message: Message, writer: asyncio.StreamWriter) -> None:
        answer: Message
        try:
            answer = {"result": await self._do(message)}
        except (ServeError, OSError) as error:
            answer = encode_error(error)
        except (KeyError, TypeError, ValueError) as error:
            _log.warning("a control call was malformed: %r", error)
            answer = encode_error(Unsupported("no such control call"))
        if not writer.is_closing():
            writer.write(encode({**answer, "id": message.get("id", 0)}))

    async def _do(self, message: Message) -> Any:
        call = message["call"]
        if call == "status":
            return self._status()
        if call == "reload":
            return await self.reload()
        model = str(message["model"])
        async with self._changing:
            if call == "load":
                return await self._load_model(model, str(message["version"]))
            if call == "unload":
                state = self._state(model).unloading(str(message["version"]))
                await self._change({model: state})
                return None
            if call == "route":
                state = replace(self._state(model), route=str(message["route"]))
                await self._change({model: state}, must="" if state.route else None)
                return None
            if call == "rollback":
                return await self._roll_back(model)
            if call == "label":
                changes = {str(k): v for k, v in message["changes"].items()}
                return await self._label(model, changes, str(message.get("version", "")))
        raise Unsupported(f'there is no control call "{call}"')

    def _status(self) -> Message:
        workers = [
            {"pid": p.pid, "phase": p.phase, "generation": p.followed} for p in self._processes
        ]
        return {
            "generation": self._desired.generation,
            "workers": workers,
            "replaced": self._replaced,
        }

    # ------------------------------------------------------------------ what is served

    def _first_states(self) -> dict[str, ModelState]:
        stored = self._store.models()
        for name in self._load or ():
            if name not in stored:
                raise ModelNotFound(f'the store has no model "{name}"')
        names = stored if self._load is None else self._load
        return {name: ModelState().seen_in(self._store, name) for name in names}

    def _state(self, model: str) -> ModelState:
        return self._desired.models.get(model) or ModelState(enabled=False)

    async def _seen(self, model: str) -> ModelState:
        """Return a model's state over what the store has now."""
        return await asyncio.to_thread(self._state(model).seen_in, self._store, model)

    async def _load_model(self, model: str, version: str) -> str:
        state = await self._seen(model)
        if not state.available or (version and version not in state.available):
            what = f' version "{version}"' if version else ""
            raise ModelNotFound(f'the store has no model "{model}"{what}')
        answering = await self._change({model: state.loading(version)}, must=version)
        return version or answering[model]

    async def _label(self, model: str, changes: Mapping[str, Any], version: str) -> Any:
        """Have all workers load what will be labelled (and a version just stored), then label."""
        before = self._state(model)
        state = await self._seen(model)
        targets = {v for v in changes.values() if v is not None} | ({version} - {""})
        for number in targets:
            if number not in state.available:
                raise ModelNotFound(f'model "{model}" has no version "{number}"')
        if version or before.enabled:
            for number in sorted(targets, key=int):
                state = state.loading(number)
                await self._change({model: state}, must=number)
        try:
            if changes:
                await asyncio.to_thread(self._store.label, model, changes)
        except BaseException:
            await self._change({model: before})
            raise
        enabled = bool(version) or before.enabled
        explicit = before.explicit
        after = replace(await self._seen(model), enabled=enabled, explicit=explicit)
        await self._change({model: after})
        return dict(after.labels)

    async def _roll_back(self, model: str) -> str:
        state = await self._seen(model)
        labels, versions = state.labels, state.available
        if not versions:
            raise ModelNotFound(f'the store has no model "{model}"')
        labelled = set(labels.values())
        newest = [v for v in versions if v not in labelled] or [*versions]
        current = labels.get(STABLE, newest[-1])
        earlier = [v for v in versions if int(v) < int(current)]
        if not earlier:
            raise ModelNotFound(f'model "{model}" has no version before {current}')
        await self._label(model, {STABLE: earlier[-1]}, "")
        return earlier[-1]

    async def _change(
        self, models: Mapping[str, ModelState], *, must: str | None = None
    ) -> dict[str, str]:
        """Have all workers follow a change, or else return to the state before it.

        Args:
            models: The new states.
            must: Version without which the change has failed; empty: the one that answers.

        Returns:
            The versions that answer, by model.

        Raises:
            LoadError: A worker could not load it.
        """
        before = self._desired
        outcomes = await self._spread(before.changed(models))
        answering: dict[str, str] = {}
        reasons: dict[str, str] = {}
        for found in outcomes.values():
            for model, outcome in found.items():
                answering[model] = outcome["answering"]
                failed = outcome["failed"]
                reason = failed.get("", failed.get(must or outcome["answering"]))
                if reason is not None and model in models:
                    reasons[model] = reason
        for model, reason in reasons.items():
            _log.error("model %s could not be changed: %s", model, reason)
        if must is None or not reasons:
            return answering
        undone = {m: before.models.get(m, replace(models[m], enabled=False)) for m in models}
        await self._spread(self._desired.changed(undone))
        raise LoadError(next(iter(reasons.values())))

    async def _spread(self, desired: Desired) -> dict[int, dict[str, Message]]:
        """Make a state the desired one; returns what each worker said when it had followed."""
        await asyncio.to_thread(desired.write, self._state_file)
        outcomes = self._outcomes[desired.generation] = {}
        self._desired = desired
        self._shared.generation = desired.generation
        try:
            while any(
                p.followed < desired.generation
                for p in self._processes
                if p.phase in ("loaded", "promoted", "serving") and p.status is None
            ):
                await self._wait_for_news(_TICK)
        finally:
            del self._outcomes[desired.generation]
        _log.info("generation %d is served by all workers", desired.generation)
        return outcomes

    async def _follow_store(self, names: Iterable[str]) -> None:
        async with self._changing:
            changed: dict[str, ModelState] = {}
            for name in names:
                try:
                    known = name in self._desired.models
                    if not known and self._load is not None:
                        continue
                    state = self._state(name) if known else ModelState()
                    seen = await asyncio.to_thread(state.seen_in, self._store, name)
                except (ServeError, OSError) as error:
                    _log.error("model %s could not follow the store: %s", name, error)
                    continue
                if (known or seen.available) and seen != self._desired.models.get(name):
                    changed[name] = seen
            if changed:
                await self._change(changed)


class _Watched:
    """What a `Watcher` sees of a supervisor, from its thread."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self.store = supervisor._store

    @property
    def entries(self) -> Mapping[str, ModelState]:
        return self._supervisor._desired.models

    def follow(self, names: Iterable[str]) -> None:
        work = self._supervisor._follow_store(tuple(names))
        asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _info(found: Sequence[Any]) -> VersionInfo:
    model, version, state, reason, labels, batching = found
    return VersionInfo(model, version, state, reason, labels=tuple(labels), batching=batching)
