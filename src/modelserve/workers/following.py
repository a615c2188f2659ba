"""A worker's repository: it follows the desired state, and asks the supervisor for changes."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NoReturn

from modelserve.errors import ModelNotFound, ServeError, Unsupported
from modelserve.observe.logs import LogSettings
from modelserve.observe.tracing import TraceSettings
from modelserve.protocols import Policy, StoredVersion
from modelserve.repository.control import DRAIN, checked_number
from modelserve.repository.models import ModelEntry, answering_version, wanted_versions
from modelserve.repository.publication import described
from modelserve.repository.repository import ModelRepository
from modelserve.repository.store import STABLE, LocalStore
from modelserve.routing.versions import Pinned
from modelserve.workers.desired import Desired, ModelState
from modelserve.workers.wire import Message

__all__ = ["FollowedStore", "FollowingRepository"]

Ask = Callable[[Message], Awaitable[Any]]

_NOTHING: Final[Mapping[str, Any]] = {}
_EACH_ITS_OWN: Final = (
    "several processes have settings of their own, and this request reached one of them: what is "
    "logged and traced is changed where one process serves"
)


class FollowedStore(LocalStore):
    """The directory of models as the desired state has it: no worker looks for itself what is new.

    Args:
        path: The directory.
    """

    __slots__ = ("states",)

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.states: Mapping[str, ModelState] = {}
        """What the supervisor saw; replaced as a whole."""

    def versions(self, model: str) -> tuple[str, ...]:
        """Return the versions the supervisor saw; of a model it serves not, those there are."""
        state = self.states.get(model)
        return super().versions(model) if state is None else state.available

    def labels(self, model: str) -> dict[str, str]:
        """Return the labels the supervisor saw; of a model it serves not, those there are."""
        state = self.states.get(model)
        return super().labels(model) if state is None else dict(state.labels)


class FollowingRepository(ModelRepository):
    """A repository whose control verbs change all workers, its own process among them.

    The coroutine forms return when every worker has followed; versions that were replaced answer
    what they have after that. The blocking forms are refused: they would change one process.

    Args:
        directory: Directory of the models.
        ask: Sends a control call to the supervisor and returns its answer, or raises its error.
        instances: Instances of a model where its own configuration does not say.
    """

    def __init__(self, directory: str | os.PathLike[str], ask: Ask, *, instances: int = 1) -> None:
        self._followed = FollowedStore(directory)
        self._ask = ask
        self._states: dict[str, ModelState] = {}
        super().__init__(self._followed, load="none", instances=instances)
        self.log_settings = LogSettings(self._recorder, fixed=_EACH_ITS_OWN)
        self.trace_settings = TraceSettings(self._recorder, fixed=_EACH_ITS_OWN)

    # ------------------------------------------------------------------ following

    async def follow(self, desired: Desired) -> dict[str, Message]:
        """Load and close what the desired state says; returns when the new versions answer.

        Returns:
            For each model that changed, reasons by version of what could not be loaded
            (``failed``), and the version that should answer (``answering``).
        """
        changed = {
            name: state for name, state in desired.models.items() if self._states.get(name) != state
        }
        self._followed.states = desired.models
        self._states = dict(desired.models)
        loop = asyncio.get_running_loop()
        outcomes: dict[str, asyncio.Future[Message]] = {}
        for name, state in changed.items():
            outcome = outcomes[name] = loop.create_future()
            thread = threading.Thread(
                target=self._follow_model, args=(name, state, loop, outcome), daemon=True
            )
            thread.start()
        return {name: await outcome for name, outcome in outcomes.items()}

    def _follow_model(
        self,
        name: str,
        state: ModelState,
        loop: asyncio.AbstractEventLoop,
        outcome: asyncio.Future[Message],
    ) -> None:
        """Change one model, on a thread of its own; told before what was replaced has drained."""
        try:
            with self._control.changing(name, stored=True) as entry:
                entry.enabled = state.enabled
                entry.explicit = frozenset(state.explicit)
                entry.excluded = frozenset(state.excluded)
                self._control.follow([name])
                # A version with a label stays loaded, unless it was unloaded by name.
                kept = set(entry.versions) - entry.excluded if state.enabled else set()
                if kept != set(entry.versions):
                    self._control.switch(entry, entry.versions, kept, DRAIN)
                failed = dict(entry.failed)
                policy = Pinned(state.route) if state.route else None
                if policy is not None and policy != entry.policy:
                    failed |= _unroutable(entry, state.route)
                entry.policy = policy
                wanted = wanted_versions(entry, entry.available, entry.labels)
                found: Message = {
                    "failed": failed,
                    "answering": answering_version(wanted, entry.labels),
                }
                loop.call_soon_threadsafe(outcome.set_result, found)
        except Exception as error:
            if loop.is_closed():
                return
            reason = {"failed": {"": f"{type(error).__name__}: {error}"}, "answering": ""}
            loop.call_soon_threadsafe(_unless_done, outcome, reason)

    # ------------------------------------------------------------------ control

    async def aload(
        self,
        model: str,
        version: str | int = "",
        *,
        config: str | Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
        drain: float = DRAIN,
    ) -> str:
        """Load a stored model, or one version of it, in all workers.

        Raises:
            Unsupported: A configuration or files came along, which one process alone would have.
        """
        if config is not None or files is not None:
            raise Unsupported(
                "several processes serve what is in the store; publish the version, or put its "
                "configuration there"
            )
        number = checked_number(version)
        return str(await self._ask({"call": "load", "model": model, "version": number}))

    async def aunload(self, model: str, version: str | int = "", *, drain: float = DRAIN) -> None:
        """Stop sending requests to a version (without a number: to all) in all workers."""
        number = checked_number(version)
        entry = self._control.entry(model)
        if number and number not in entry.versions:
            raise ModelNotFound(f'model "{model}" has no version "{number}" loaded')
        await self._ask({"call": "unload", "model": model, "version": number})

    async def aroute(self, model: str, policy: Policy | str | None) -> None:
        """Set which version or label answers requests that name none, in all workers.

        Raises:
            Unsupported: The policy is an object, which stays in its process.
        """
        if policy is not None and not isinstance(policy, str):
            raise Unsupported("several processes are routed by a version or a label, not an object")
        if policy:
            self._control.entry(model).find(policy)
        await self._ask({"call": "route", "model": model, "route": policy or ""})

    async def alabel(
        self, model: str, changes: Mapping[str, str | int | None], *, drain: float = DRAIN
    ) -> Mapping[str, str]:
        """Move, add or (None) remove labels, when all workers have loaded what they name."""
        wanted = {k: None if v is None else checked_number(v) for k, v in changes.items()}
        labels: Mapping[str, str] = await self._ask(
            {"call": "label", "model": model, "changes": wanted}
        )
        return labels

    async def arollback(self, model: str, *, drain: float = DRAIN) -> str:
        """Let the version before the one that answers now answer again, in all workers."""
        return str(await self._ask({"call": "rollback", "model": model}))

    async def apublish(
        self,
        model: str,
        source: str | os.PathLike[str] | bytes,
        *,
        version: str | int = "",
        label: str | None = STABLE,
        metadata: Mapping[str, Any] = _NOTHING,
        drain: float = DRAIN,
        progress: Callable[[int, int], None] | None = None,
    ) -> str:
        """Put a model into the store as a new version and serve it from all workers."""
        recorded = await asyncio.to_thread(described, source)
        stored: StoredVersion = await asyncio.to_thread(
            self._followed.put,
            model,
            source,
            version=checked_number(version),
            label="" if label in (None, STABLE) else label,
            metadata={**recorded, **metadata},
            progress=progress,
        )
        number = stored.version
        moved = {} if label is None else {label: number}
        try:
            await self._ask({"call": "label", "model": model, "changes": moved, "version": number})
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self._take_out, model, number, label))
            raise
        return number

    def _take_out(self, model: str, number: str, label: str | None) -> None:
        if label not in (None, STABLE):
            self._followed.label(model, {label: None})
        self._followed.delete(model, number)

    async def aadd(self, name: Any, source: Any = None, **options: Any) -> NoReturn:
        """Refuse: what is only in memory is in one process."""
        raise Unsupported("several processes serve what is in the store; use publish")

    def load(self, model: str, version: str | int = "", **options: Any) -> NoReturn:
        """Refuse; await `aload`."""
        raise _one_process("load")

    def unload(self, model: str, version: str | int = "", *, drain: float = DRAIN) -> NoReturn:
        """Refuse; await `aunload`."""
        raise _one_process("unload")

    def route(self, model: str, policy: Policy | str | None) -> NoReturn:
        """Refuse; await `aroute`."""
        raise _one_process("route")

    def label(
        self, model: str, changes: Mapping[str, str | int | None], *, drain: float = DRAIN
    ) -> NoReturn:
        """Refuse; await `alabel`."""
        raise _one_process("label")

    def rollback(self, model: str, *, drain: float = DRAIN) -> NoReturn:
        """Refuse; await `arollback`."""
        raise _one_process("rollback")

    def publish(self, model: str, source: Any, **options: Any) -> NoReturn:
        """Refuse; await `apublish`."""
        raise _one_process("publish")

    def add(self, name: Any, source: Any = None, **options: Any) -> NoReturn:
        """Refuse: what is only in memory is in one process."""
        raise Unsupported("several processes serve what is in the store; use publish")


def _unroutable(entry: ModelEntry, route: str) -> dict[str, str]:
    try:
        entry.find(route)
    except ServeError as error:
        return {"": str(error)}
    return {}


def _unless_done(outcome: asyncio.Future[Message], found: Message) -> None:
    if not outcome.done():
        outcome.set_result(found)


def _one_process(verb: str) -> RuntimeError:
    return RuntimeError(f"{verb}() would change one of several processes; await a{verb}()")
