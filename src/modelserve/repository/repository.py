"""`ModelRepository`: the one stateful root. It answers requests, describes models, changes them.

What is served changes make-before-break: the new version is loaded and warm before the first
request goes to it, and the old one answers what it has before it is closed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, Self

from modelserve.errors import Conflict, ModelNotFound, ModelNotReady
from modelserve.messages import ModelStatistics, Parameters
from modelserve.observe.logs import LogSettings
from modelserve.observe.metrics import Metrics
from modelserve.observe.recorder import Recorder
from modelserve.observe.tracing import TraceSettings
from modelserve.protocols import ModelConfig, Observer, Policy, Store, VersionInfo
from modelserve.repository.answering import Answering
from modelserve.repository.control import DRAIN, Control, checked_keep, checked_number
from modelserve.repository.models import ModelEntry, VersionPolicy, wanted_versions
from modelserve.repository.store import STABLE, LocalStore
from modelserve.repository.versions import VersionOptions
from modelserve.repository.watcher import Watcher
from modelserve.routing.versions import Pinned
from modelserve.tensors import Tensor

__all__ = ["ModelRepository"]

_NONE: Final[Parameters] = {}


class ModelRepository(Answering):
    """Models with versions, in this process: add or load them, predict, publish, roll back.

    Requests may come from any thread and any number of event loops. Every control verb has a
    coroutine form (`aload` beside `load`); one that may have to wait for requests under way refuses
    to run on an event loop's thread, where those requests could not end.

    Args:
        store: Directory of stored versions (``<store>/<model>/<version>/model.onnx``), or a
            `Store`; without one the repository holds only what is added to it.
        load: Which stored models to load now: all, none, or these.
        watch: Follow changes in the store, with a thread that looks every `watch_interval` seconds.
        watch_interval: Seconds between two looks.
        keep: Which versions of a stored model are loaded where its own configuration does not say:
            the newest so many, ``"all"``, or a list.
        providers: Execution providers for ONNX models; None takes the best available.
        instances: Instances of a stored model where its own configuration does not say.
        observers: Get all closed exchanges, beside `metrics`.

    Raises:
        ModelNotFound: A model named in `load` is not in the store.

    A stored model that cannot be loaded does not keep the others from serving: its state says why,
    and `ready` is false.

    Example:
        >>> repo = ModelRepository()
        >>> repo.add("iris", "iris.onnx")
        '1'
        >>> repo.predict("iris", {"x": [[5.1, 3.5, 1.4, 0.2]]})["y"].shape
        (1, 3)
        >>> repo.close()
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Store | None = None,
        *,
        load: Literal["all", "none"] | Iterable[str] = "all",
        watch: bool = False,
        watch_interval: float = 1.0,
        keep: VersionPolicy = 1,
        providers: Sequence[Any] | None = None,
        instances: int = 1,
        observers: Iterable[Observer] = (),
    ) -> None:
        self.store: Store | None = (
            LocalStore(store) if isinstance(store, str | os.PathLike) else store
        )
        if watch and not hasattr(self.store, "fingerprint"):
            raise ValueError("watch=True needs a store with a fingerprint() to watch")
        self.metrics = Metrics()
        self._recorder = Recorder([self.metrics, *observers])
        self.record = self._recorder.record
        self.record_all = self._recorder.record_all
        self.log_settings = LogSettings(self._recorder)
        """What is logged: levels, and a line per request."""
        self.trace_settings = TraceSettings(self._recorder)
        """Which requests leave a trace."""
        self._control = Control(
            self.store,
            options=VersionOptions(
                providers=None if providers is None else tuple(providers), instances=instances
            ),
            keep=keep,
            metrics=self.metrics,
            recorder=self._recorder,
        )
        self._entries = self._control.entries
        if self.store is not None:
            self._control.load_first(load)
        self._watcher = Watcher(self._control, watch_interval) if watch else None

    def __repr__(self) -> str:
        return f"<ModelRepository {', '.join(self._entries) or 'empty'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # ------------------------------------------------------------------ catalog

    def check(self, model: str, version: str = "") -> None:
        """Return when a request for this may be answered; cheap, so ask before decoding a body.

        Raises:
            ModelNotFound: No such model or version.
            ModelNotReady: It is not loaded.
        """
        entry = self._entries.get(model)
        if entry is None:
            raise self._control.unknown(model)
        if version or entry.policy is None:
            entry.find(version)  # otherwise the policy may send the request elsewhere

    async def index(self) -> Sequence[VersionInfo]:
        """List every version of every model, loaded or not."""
        if self.store is None:
            return self._control.index()
        return await asyncio.to_thread(self._control.index)

    async def describe(self, model: str, version: str = "") -> VersionInfo:
        """Describe a loaded version; without a number or label the one that answers by default.

        Raises:
            ModelNotFound: No such model or version is known.
            ModelNotReady: It is known and not loaded.
        """
        entry = await self._entry(model, version)
        return entry.info(entry.find(version).version)

    async def config(self, model: str, version: str = "") -> ModelConfig:
        """Return the configuration of a loaded version, as Triton would tell it.

        Raises:
            ModelNotFound: No such model or version is known.
            ModelNotReady: It is known and not loaded.
        """
        return (await self._entry(model, version)).config(version)

    async def statistics(self, model: str = "", version: str = "") -> Sequence[ModelStatistics]:
        """Return what loaded versions have done since they were loaded.

        Of several processes that share their counts each tells those of all; what another one has
        just counted is missing for a moment.

        Args:
            model: Name of the model; empty for all.
            version: Version number or label; empty for all versions of the model.

        Raises:
            ModelNotFound: No such model or version is known.
            ModelNotReady: It is known and not loaded.
        """
        if model:
            entry = await self._entry(model, version)
            found = entry.find(version)
            versions = [(model, v) for v in ([found.version] if version else entry.versions)]
        else:
            entries = sorted(self._entries.items())
            versions = [(name, number) for name, entry in entries for number in entry.versions]
        return await asyncio.to_thread(self.metrics.statistics, versions)

    async def _entry(self, model: str, version: str) -> ModelEntry:
        try:
            return self._control.entry(model)
        except ModelNotFound:
            await self._refuse_unloaded(model, version)
            raise

    async def _refuse_unloaded(self, model: str, version: str) -> None:
        """Raise `ModelNotReady` for a model that is in the store and not loaded."""
        if self.store is None:
            return
        versions = await asyncio.to_thread(self.store.versions, model)
        if version in versions or (versions and not version):
            raise ModelNotReady(f'model "{model}" is not loaded')

    async def ready(self, model: str = "", version: str = "") -> bool:
        """Tell whether a model can answer; without a name, whether all that should be loaded can.

        Raises:
            ModelNotFound: No such model or version is known.
        """
        if not model:
            return not self._control.closed and all(
                entry.complete for entry in list(self._entries.values()) if entry.enabled
            )
        try:
            await self.describe(model, version)
        except ModelNotReady:
            return False
        return True

    # ------------------------------------------------------------------ control

    def add(
        self,
        name: Any,
        source: Any = None,
        *,
        version: str | int = "",
        max_batch_size: int | None = None,
        instances: int | None = None,
        max_queue_size: int = 1024,
        max_queue_bytes: int = 1 << 30,
        max_queue_delay: float | None = None,
        max_batch_cost: int | None = None,
        cost: Callable[[Mapping[str, Tensor]], float] | None = None,
        batcher: Literal["adaptive", "simple"] | None = None,
        providers: Sequence[Any] | None = None,
        keep: VersionPolicy | None = None,
        warm_up: bool = True,
        drain: float = DRAIN,
    ) -> str:
        """Serve a model that is not in the store; returns its version number.

        Adding a name again adds its next version, which answers from then on; where a version is
        labelled ``stable``, that one still does.

        Args:
            name: Name of the model; or a model made by `modelserve.model`, under its own name.
            source: Path or bytes of an ONNX model, a `Backend` such as an `InferenceSession` (which
                then belongs to the repository), a model made by `modelserve.model`, or a function
                that makes the backend for an instance, given the instance's number.
            version: Number to use; empty for the next one.
            max_batch_size: Most rows of a batch; 0 runs each request alone. None batches an ONNX
                model if loading it proves that rows may share a run.
            instances: How many instances run at once.
            max_queue_size: Most requests that may wait.
            max_queue_bytes: Most bytes of input that may wait.
            max_queue_delay: Seconds a request may be held for others to join its batch (0).
            max_batch_cost: Most units of `cost` in a batch, beside `max_batch_size`.
            cost: Tells the units of a request from its inputs: tokens, pixels. The costs of a
                batch's requests add up.
            batcher: ``"adaptive"`` learns sizes, waits and finishes from what runs took;
                ``"simple"`` runs full batches of what waits and learns nothing.
            providers: Execution providers, for a path or bytes.
            keep: Which versions stay loaded: the newest so many (1), ``"all"``, or a list.
            warm_up: Whether an ONNX model is run once before it is ready.
            drain: Seconds an older version gets to answer what it has.

        Raises:
            Conflict: The version is there already, or the name belongs to a stored model.
            LoadError: The model cannot be loaded.
        """
        if source is None and hasattr(name, "model_options"):
            name, source = name.name, name
        if not isinstance(name, str) or not name or source is None:
            raise TypeError("add takes a name and a source, or a model made by modelserve.model")
        declared: Mapping[str, Any] = getattr(source, "model_options", {})
        batching: dict[str, Any] = {
            "max_queue_delay": max_queue_delay,
            "max_batch_cost": max_batch_cost,
            "cost": cost,
            "batcher": batcher,
        }
        said = {key: declared.get(key) if here is None else here for key, here in batching.items()}
        options = VersionOptions(
            max_batch_size=declared.get("max_batch_size")
            if max_batch_size is None
            else max_batch_size,
            instances=declared.get("instances", self._control.options.instances)
            if instances is None
            else instances,
            max_queue_size=max_queue_size,
            max_queue_bytes=max_queue_bytes,
            providers=self._control.options.providers if providers is None else tuple(providers),
            warm_up=warm_up,
            **{key: value for key, value in said.items() if value is not None},
        )
        if self.store is not None and name in self.store.models():
            raise Conflict(f'there is a model "{name}" in the store; use publish')
        known = self._entries.get(name)
        if known is not None and known.outstanding:
            _refuse_event_loop("add", "aadd")
        with self._control.changing(name, stored=False) as entry:
            number = checked_number(version) or _following(entry.versions)
            if number in entry.versions:
                raise Conflict(f'model "{name}" has a version {number} already')
            source = source.backend if declared else source
            if keep is not None:
                entry.keep = checked_keep(keep)
            loaded = self._control.load_version(entry, number, source, options)
            everything = {**entry.versions, number: loaded}
            numbers = sorted(everything, key=int)
            kept = set(wanted_versions(entry, numbers, entry.labels)) | {number}
            self._control.switch(entry, everything, kept, drain)
        return number

    def load(
        self,
        model: str,
        version: str | int = "",
        *,
        config: str | Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
        drain: float = DRAIN,
    ) -> str:
        """Load a stored model, or one version of it; returns the version that answers by default.

        With `config`, all of the model is loaded anew under that configuration, and with `files`
        from those files, which need not be of a model in the store. The store stays as it is. This
        holds until the model is loaded without them, or unloaded; new versions in the store are
        followed under the configuration, and not while files are served.

        Args:
            model: Name of the model.
            version: Version number, or empty for what labels and `keep` want.
            config: Triton's model configuration in JSON, its text or the object, to be used
                instead of the stored `config.pbtxt`; what it does not say has its default.
            files: Contents by name relative to the model's directory (``1/model.onnx``), all the
                versions there are to be; at most 1000. Needs `config`, which may be ``{}``. They
                are unpacked into a temporary directory, which is gone when this returns.
            drain: Seconds that what served until now gets to answer what it has.

        Raises:
            ModelNotFound: The store has no such model or version.
            InvalidInput: `config` or `files` are malformed, or cannot be served.
            LoadError: It cannot be loaded, or unpacked; what was serving still is.
            IntegrityError: Its files are not the ones that were published.
        """
        _refuse_event_loop("load", "aload")
        return self._control.load(model, checked_number(version), drain, config, files)

    def unload(self, model: str, version: str | int = "", *, drain: float = DRAIN) -> None:
        """Stop sending requests to a version (without a number: to all), then close it.

        Args:
            model: Name of the model.
            version: Version number, or empty for the whole model.
            drain: Seconds its requests get to end; what still waits then gets `ModelNotReady`.

        Raises:
            ModelNotFound: No such model or version is loaded.
        """
        _refuse_event_loop("unload", "aunload")
        self._control.unload(model, checked_number(version), drain)

    def publish(
        self,
        model: str,
        source: str | os.PathLike[str] | bytes,
        *,
        version: str | int = "",
        label: str | None = STABLE,
        metadata: Mapping[str, Any] = _NONE,
        drain: float = DRAIN,
        progress: Callable[[int, int], None] | None = None,
    ) -> str:
        """Put a model into the store as a new version and serve it; returns its number.

        The file is loaded first to see that it works. If the new version cannot be served it is
        taken out of the store again, and what was serving still is.

        Args:
            model: Name of the model.
            source: ONNX file (its external data goes along), directory with a `model.onnx`, or the
                bytes of a model.
            version: Number to use; empty for the next one.
            label: Label that moves to the new version: ``"stable"`` makes it the one that answers,
                another label (``"canary"``) only those who ask for it; None moves none.
            metadata: JSON values to record with it.
            drain: Seconds the old version gets to answer what it has.
            progress: Called with bytes copied and bytes in all.

        Raises:
            LoadError: The source is no model that can be served, or could not be written.
            Conflict: The version exists already.
        """
        _refuse_event_loop("publish", "apublish")
        return self._control.publish(
            model, source, checked_number(version), label, metadata, drain, progress
        )

    def label(
        self, model: str, changes: Mapping[str, str | int | None], *, drain: float = DRAIN
    ) -> Mapping[str, str]:
        """Move, add or (None) remove labels in one step; returns all labels of the model.

        Versions labelled are loaded first, and those no longer wanted closed afterwards.

        Raises:
            ModelNotFound: No such model or version.
        """
        _refuse_event_loop("label", "alabel")
        return self._control.label(model, changes, drain)

    def rollback(self, model: str, *, drain: float = DRAIN) -> str:
        """Let the version before the one that answers now answer again; returns its number.

        Raises:
            ModelNotFound: There is no version before it.
            LoadError: That one cannot be loaded; what was serving still is.
        """
        _refuse_event_loop("rollback", "arollback")
        return self._control.rollback(model, drain)

    def route(self, model: str, policy: Policy | str | None) -> None:
        """Set how versions are chosen for requests that name none; in force at once.

        Args:
            model: Name of the model.
            policy: A `Policy`, a version number or label, or None for the default: the version
                labelled ``stable``, else the newest.
        """
        entry = self._control.entry(model)
        if isinstance(policy, str):
            entry.find(policy)
            policy = Pinned(policy)
        if policy is not None and not hasattr(policy, "choose"):
            raise TypeError(f"a policy has a method choose; got {type(policy).__name__}")
        entry.policy = policy

    def collect(self, model: str, keep: int) -> tuple[str, ...]:
        """Delete old versions from the store; returns which.

        Args:
            model: Name of the model.
            keep: How many of the newest stay. Loaded and labelled versions stay in any case.
        """
        return self._control.collect(model, keep)

    def close(self, *, drain: float = DRAIN) -> None:
        """Stop watching, answer what is under way, close every version. May be called twice."""
        if any(entry.outstanding for entry in self._entries.values()):
            _refuse_event_loop("close", "aclose")
        self._end(drain)

    def _end(self, drain: float) -> None:
        if self._watcher is not None:
            self._watcher.stop()
        self._control.close(drain)
        self.trace_settings.flush()

    # coroutine forms

    async def aadd(self, name: Any, source: Any = None, **options: Any) -> str:
        """Do as `add` without blocking the event loop."""
        return await asyncio.to_thread(self.add, name, source, **options)

    async def aload(
        self,
        model: str,
        version: str | int = "",
        *,
        config: str | Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
        drain: float = DRAIN,
    ) -> str:
        """Do as `load` without blocking the event loop."""
        return await asyncio.to_thread(
            self._control.load, model, checked_number(version), drain, config, files
        )

    async def aunload(self, model: str, version: str | int = "", *, drain: float = DRAIN) -> None:
        """Do as `unload` without blocking the event loop."""
        await asyncio.to_thread(self._control.unload, model, checked_number(version), drain)

    async def apublish(
        self,
        model: str,
        source: str | os.PathLike[str] | bytes,
        *,
        version: str | int = "",
        label: str | None = STABLE,
        metadata: Mapping[str, Any] = _NONE,
        drain: float = DRAIN,
        progress: Callable[[int, int], None] | None = None,
    ) -> str:
        """Do as `publish` without blocking the event loop."""
        return await asyncio.to_thread(
            self._control.publish,
            model,
            source,
            checked_number(version),
            label,
            metadata,
            drain,
            progress,
        )

    async def alabel(
        self, model: str, changes: Mapping[str, str | int | None], *, drain: float = DRAIN
    ) -> Mapping[str, str]:
        """Do as `label` without blocking the event loop."""
        return await asyncio.to_thread(self._control.label, model, changes, drain)

    async def arollback(self, model: str, *, drain: float = DRAIN) -> str:
        """Do as `rollback` without blocking the event loop."""
        return await asyncio.to_thread(self._control.rollback, model, drain)

    async def acollect(self, model: str, keep: int) -> tuple[str, ...]:
        """Do as `collect` without blocking the event loop."""
        return await asyncio.to_thread(self._control.collect, model, keep)

    async def aroute(self, model: str, policy: Policy | str | None) -> None:
        """Do as `route`, which never blocks."""
        self.route(model, policy)

    async def aclose(self, *, drain: float = DRAIN) -> None:
        """Do as `close` without blocking the event loop."""
        await asyncio.to_thread(self._end, drain)


def _following(versions: Mapping[str, Any]) -> str:
    return str(max((int(v) for v in versions), default=0) + 1)


def _refuse_event_loop(blocking: str, coroutine: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        f"{blocking}() may wait for requests that need the event loop it was called on; "
        f"await {coroutine}() there"
    )
