"""Changes what a repository serves, make-before-break: load and warm up, switch, drain, close.

The verbs as users call them, with their coroutine forms, are `repository.repository`.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Final, Literal, NamedTuple

from modelserve.errors import (
    ClientError,
    Conflict,
    InvalidInput,
    LoadError,
    ModelNotFound,
    ModelNotReady,
    ServeError,
    Unsupported,
)
from modelserve.observe.metrics import Metrics
from modelserve.observe.recorder import Recorder
from modelserve.protocols import Store, StoredVersion, VersionInfo
from modelserve.repository.class_names import read_class_names
from modelserve.repository.configuration import configured
from modelserve.repository.models import (
    ModelEntry,
    VersionPolicy,
    answering_version,
    wanted_versions,
)
from modelserve.repository.overrides import Config, Files, Override
from modelserve.repository.publication import described
from modelserve.repository.reloading import load_anew, overridden
from modelserve.repository.store import STABLE
from modelserve.repository.versions import ModelVersion, VersionOptions, load_version

__all__ = ["DRAIN", "Control", "checked_keep", "checked_number"]

_log = logging.getLogger("modelserve.repository")

DRAIN: Final = 30.0
"""Seconds a version gets to answer what it has before it is closed."""


class _Move(NamedTuple):
    """The label that moves with a publication, and the version it stood at before."""

    label: str
    before: str | None


class Control:
    """The models of one repository, and every change to them.

    Each model is changed by one thread at a time; requests never wait for a change.

    Args:
        store: Where stored versions are, or None.
        options: How stored models are run where their own configuration does not say.
        keep: Which versions of them are loaded where it does not say.
        metrics: Told which versions there are.
        recorder: Flushed before a version's counts are dropped.
    """

    def __init__(
        self,
        store: Store | None,
        *,
        options: VersionOptions,
        keep: VersionPolicy,
        metrics: Metrics,
        recorder: Recorder,
    ) -> None:
        self.store = store
        self.options = options
        self.entries: dict[str, ModelEntry] = {}
        self.closed = False
        self.all_stored = False
        """Whether every model of the store should be loaded."""
        self._keep = checked_keep(keep)
        self.metrics = metrics
        self._recorder = recorder
        self._making = threading.Lock()
        self._publications: list[tuple[str, int]] = []
        """Models being published, each with the version that its new one comes after."""
        self._gauges = self._add_gauges()

    def load(
        self,
        model: str,
        version: str,
        drain: float,
        config: Config | None = None,
        files: Files | None = None,
    ) -> str:
        """Load a stored model or version, or what came along; see `ModelRepository.load`."""
        store = self.need_store("load")
        override = Override.of(config, files)
        available = store.versions(model)
        if override is not None and override.versions:
            available = override.versions
        if not available or (version and version not in available):
            what = f' version "{version}"' if version else ""
            where = "the store has" if files is None else "among the files there is"
            raise ModelNotFound(f'{where} no model "{model}"{what}')
        with self.changing(model, stored=True) as entry:
            if override is not None or entry.override is not None:
                load_anew(self, entry, store, override, files, version, drain)
                return version or (entry.default.version if entry.default else "")
            fresh = not entry.available
            before = (entry.enabled and not (fresh and version), entry.explicit, entry.excluded)
            if not version:
                entry.excluded = frozenset()
            elif before[0]:
                entry.excluded -= {version}
            else:  # only this one, of a model that is not loaded
                entry.excluded = frozenset(available) - {version}
            entry.enabled = True
            entry.explicit |= {version} if version else frozenset()
            try:
                self._follow(entry, drain, must=version or None)
            except BaseException:
                entry.enabled, entry.explicit, entry.excluded = before
                if not entry.enabled:
                    self.switch(entry, entry.versions, (), drain)
                raise
            return version or (entry.default.version if entry.default else "")

    def unload(self, model: str, version: str, drain: float) -> None:
        """Close a version, or without a number all of a model; see `ModelRepository.unload`."""
        with self.changing(model) as entry:
            if version and version not in entry.versions:
                raise ModelNotFound(f'model "{model}" has no version "{version}" loaded')
            if version:
                entry.explicit -= {version}
                entry.excluded |= {version}
            else:
                self._forget_override(entry)
                entry.enabled = False
                entry.explicit = frozenset()
                entry.failed = {}
            kept = {v for v in entry.versions if version and v != version}
            self.switch(entry, entry.versions, kept, drain)

    def _forget_override(self, entry: ModelEntry) -> None:
        """Return to what is stored, for the next load."""
        if entry.override is not None and entry.override.versions:
            entry.available = tuple(self.need_store("unload").versions(entry.name))
            entry.excluded = frozenset()
        entry.override = None

    def publish(
        self,
        model: str,
        source: Any,
        version: str,
        label: str | None,
        metadata: Mapping[str, Any],
        drain: float,
        progress: Callable[[int, int], None] | None,
    ) -> str:
        """Store, load, label, switch; see `ModelRepository.publish`."""
        store = self.need_store("publish")
        known = self.entries.get(model)
        if self.closed:
            raise self.unknown(model)
        if known is not None and not known.stored:
            raise Conflict(f'model "{model}" was added by name; publish under another one')
        if known is not None:
            _refuse_uploaded(known)
        newest = max(map(int, store.versions(model)), default=0)
        move = _Move(label or "", store.labels(model).get(label or ""))
        publication = (model, min(newest, int(version) - 1) if version else newest)
        with self._making:
            self._publications.append(publication)
        try:
            number = store.put(
                model,
                source,
                version=version,
                # A version not loaded here yet is not for everyone; a canary must not look so.
                label="" if move.label == STABLE else move.label,
                metadata={**described(source), **metadata},
                **({} if progress is None else {"progress": progress}),
            ).version
            self._serve_stored(model, store, number, move, drain)
        finally:
            with self._making:
                self._publications.remove(publication)
        return number

    def _serve_stored(
        self, model: str, store: Store, number: str, move: _Move, drain: float
    ) -> None:
        held = False
        try:
            with self.changing(model, stored=True) as entry:
                held = True
                self._serve_published(entry, store, number, move, drain)
        except BaseException:
            if not held:
                _take_out(store, model, number, move)
            raise

    def _serve_published(
        self, entry: ModelEntry, store: Store, number: str, move: _Move, drain: float
    ) -> None:
        """Load and label a version that was just stored; or take it out of the store again."""
        before = (entry.enabled, entry.explicit, entry.excluded)
        fresh = not entry.available
        entry.enabled = True
        entry.explicit |= {number}
        entry.excluded -= {number}
        try:
            self._follow(entry, drain, must=number, retire=False)
            if move.label == STABLE:
                store.label(entry.name, {STABLE: number})
        except BaseException:
            entry.enabled, entry.explicit, entry.excluded = before
            _take_out(store, entry.name, number, move)
            entry.failed = {v: why for v, why in entry.failed.items() if v != number}
            entry.available = tuple(v for v in entry.available if v != number)
            kept = () if fresh or not entry.enabled else set(entry.versions) - {number}
            self.switch(entry, entry.versions, kept, drain)
            raise
        entry.explicit = before[1]
        self._follow(entry, drain)

    def label(
        self, model: str, changes: Mapping[str, str | int | None], drain: float
    ) -> Mapping[str, str]:
        """Load what will be labelled, move the labels, close the rest; see `ModelRepository`."""
        wanted = {k: None if v is None else checked_number(v) for k, v in changes.items()}
        if model not in self.entries and self.store is not None and self.store.versions(model):
            return self.store.label(model, wanted)  # it is not served here
        with self.changing(model) as entry:
            if entry.stored:
                return self._label_stored(entry, wanted, drain)
            for name, number in wanted.items():
                if not name or name.isdigit():
                    raise InvalidInput(f"{name!r} is not a label; expected a word")
                if number is not None:
                    entry.find(number)
            merged = {**entry.labels, **wanted}
            entry.update(labels={k: v for k, v in merged.items() if v is not None})
            return entry.labels

    def _label_stored(
        self, entry: ModelEntry, wanted: Mapping[str, str | None], drain: float
    ) -> Mapping[str, str]:
        _refuse_uploaded(entry)
        store = self.need_store("label")
        targets = {number for number in wanted.values() if number is not None}
        available = store.versions(entry.name)
        for number in targets:
            if number not in available:
                raise ModelNotFound(f'model "{entry.name}" has no version "{number}"')
        before = (entry.explicit, entry.excluded)
        serving = frozenset(entry.versions)
        entry.explicit |= targets
        entry.excluded -= targets
        try:
            for number in sorted(targets, key=int):
                self._follow(entry, drain, must=number, retire=False)
            store.label(entry.name, wanted)
        except BaseException:
            entry.explicit, entry.excluded = before
            self.switch(entry, entry.versions, serving, drain)
            raise
        entry.explicit = before[0]
        self._follow(entry, drain)
        return entry.labels

    def rollback(self, model: str, drain: float) -> str:
        """Label the version before the default one stable; see `ModelRepository.rollback`."""
        if model not in self.entries and self.store is not None:
            # It is not served here: whoever follows the store follows the label.
            versions, labels = self.store.versions(model), self.store.labels(model)
            if not versions:
                raise ModelNotFound(f'the store has no model "{model}"')
            number = _before(model, answering_version(versions, labels), versions)
            self.store.label(model, {STABLE: number})
            return number
        with self.changing(model) as entry:
            _refuse_uploaded(entry)
            if entry.default is None:
                raise ModelNotReady(f'model "{model}" is not ready')
            numbers: Iterable[str] = entry.versions
            if entry.stored:
                numbers = self.need_store("rollback").versions(model)
            number = _before(model, entry.default.version, numbers)
            self.label(model, {STABLE: number}, drain)
        return number

    def collect(self, model: str, keep: int) -> tuple[str, ...]:
        """Delete old versions from the store; see `ModelRepository.collect`."""
        store: Any = self.need_store("collect")
        if not hasattr(store, "collect"):
            raise Unsupported(f"{type(store).__name__} cannot delete old versions")
        with self._making:
            after = [number for name, number in self._publications if name == model]
        # A version is in the store before it is loaded.
        protect = {v for v in store.versions(model) if after and int(v) > min(after)}
        entry = self.entries.get(model)
        if entry is not None:
            protect |= {*entry.versions, *entry.loading, *entry.leaving, *entry.labels.values()}
        return tuple(store.collect(model, keep, protect=protect))

    def close(self, drain: float) -> None:
        """Close every version; nothing is admitted any more."""
        with self._making:
            self.closed = True
        entries = list(self.entries.values())
        end = monotonic() + drain
        for entry in entries:  # all at once, so that one slow model takes no other's time to drain
            with entry.lock:
                entry.enabled = False
                entry.leave(entry.versions.values(), end)
                entry.update({})
        self.entries.clear()
        for entry in entries:
            self._close_leaving(entry)
        for remove in self._gauges:
            remove()
        self._gauges = []
        self._recorder.flush()

    def _follow(
        self, entry: ModelEntry, drain: float, *, must: str | None = "", retire: bool = True
    ) -> None:
        """Load what is wanted and not there, then switch; under the entry's lock.

        Args:
            entry: The model.
            drain: Seconds for versions no longer wanted.
            must: Version whose failure is raised; None: the one that should answer by default;
                empty: none.
            retire: Whether versions no longer wanted are closed now.
        """
        if entry.override is not None and entry.override.versions:
            if must == "":
                return  # it is not served from the store
            _refuse_uploaded(entry)
        store = self.need_store("load")
        available = entry.available = tuple(store.versions(entry.name))
        try:
            labels = {k: v for k, v in store.labels(entry.name).items() if v in available}
            entry.options, entry.keep = self.options_of(entry.name, entry.override, store)
        except LoadError as error:
            entry.failed = {available[-1]: str(error)} if available else {}
            raise
        wanted = wanted_versions(entry, available, labels)
        loaded: dict[str, ModelVersion] = dict(entry.versions)
        failures: dict[str, Exception] = {}
        for number in wanted:
            if number not in loaded:
                try:
                    loaded[number] = self._load_stored(entry, store, number)
                except (ServeError, ImportError, ValueError, TypeError, OSError) as error:
                    failures[number] = error
        # Of a version that was not tried this time, the last reason still tells most.
        reasons = {**entry.failed, **{v: _reason(error) for v, error in failures.items()}}
        entry.failed = {v: reasons[v] for v in available if v in reasons and v not in loaded}
        answering = answering_version(wanted, labels)
        kept = set(wanted) if retire else set(loaded)
        # What could not be loaded takes nobody's place: the old version keeps label and requests.
        for name, number in labels.items():
            if number in failures and entry.labels.get(name) in loaded:
                labels[name] = entry.labels[name]
        kept |= set(labels.values())
        if answering in failures and entry.default is not None:
            kept.add(entry.default.version)
        self.switch(entry, loaded, kept, drain, labels)
        failure = failures.get(answering if must is None else must)
        if failure is not None:
            raise failure

    def _load_stored(self, entry: ModelEntry, store: Store, number: str) -> ModelVersion:
        entry.loading |= {number}
        try:
            stored: StoredVersion = store.open(entry.name, number)
            loaded = self.load_version(entry, number, stored.path, entry.options)
            loaded.class_names = read_class_names(stored.path)
            return loaded
        except Exception as error:
            _log.error("model %s version %s could not be loaded: %s", entry.name, number, error)
            raise
        finally:
            entry.loading -= {number}

    def options_of(
        self, model: str, override: Override | None, store: Store
    ) -> tuple[VersionOptions, VersionPolicy]:
        """Return how a stored model is run, and which versions it keeps loaded.

        Args:
            model: Name of the model.
            override: What the last load brought along, instead of the model's own configuration.
            store: What may keep one.

        Raises:
            LoadError: Its own configuration is malformed, or for another model or runtime.
            InvalidInput: The one that came along is.
        """
        find = getattr(store, "config", None)
        path: Path | None = find(model) if find is not None else None
        if override is not None:
            return overridden(model, override, path.parent if path else None, self.options)
        options, keep = configured(model, path, self.options)
        return options, self._keep if keep is None else keep

    def load_version(
        self, entry: ModelEntry, number: str, source: Any, options: VersionOptions
    ) -> ModelVersion:
        """Load a version and make it known to the metrics; raises as `versions.load_version`."""
        entry.loading |= {number}
        try:
            version = load_version(entry.name, number, source, options)
        finally:
            entry.loading -= {number}
        self.metrics.declare(entry.name, number)
        return version

    def switch(
        self,
        entry: ModelEntry,
        versions: Mapping[str, ModelVersion],
        kept: Collection[str],
        drain: float,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Send requests to the kept versions from now on; the others close when `changing` ends."""
        if not entry.stored:
            labels = {k: v for k, v in entry.labels.items() if v in kept}
        leaving = [version for number, version in versions.items() if number not in kept]
        entry.leave(leaving, monotonic() + drain)
        before = entry.default
        entry.update({v: version for v, version in versions.items() if v in kept}, labels)
        self._say_changes(entry, before, versions, kept)

    def _say_changes(
        self,
        entry: ModelEntry,
        before: ModelVersion | None,
        versions: Mapping[str, ModelVersion],
        kept: Collection[str],
    ) -> None:
        now = entry.default
        if now is not None and now is not before:
            _log.info("model %s: version %s answers now", entry.name, now.version)
        for number in versions:
            if number not in kept:
                _log.info("model %s: version %s is being closed", entry.name, number)

    def _close_leaving(self, entry: ModelEntry) -> None:
        """Close the versions that get no more requests, when they have answered those they have."""
        for version, end in entry.take_leaving():
            if not version.close(drain=max(0.0, end - monotonic())):
                _log.warning(
                    "model %s version %s was closed with requests unanswered",
                    entry.name,
                    version.version,
                )
            entry.left(version)
            self._recorder.flush()
            if version.version not in entry.versions:
                self.metrics.forget(entry.name, version.version)

    def load_first(self, load: Literal["all", "none"] | Iterable[str]) -> None:
        """Load what a new repository should hold; what cannot be loaded says why in its state."""
        if load == "none":
            return
        if load == "all":
            self.all_stored = True
            self.follow()
            return
        if isinstance(load, str):
            raise ValueError(f'load is "all", "none" or a list of names; got {load!r}')
        names = tuple(load)
        stored = self.need_store("load").models()
        for name in names:
            if name not in stored:
                raise ModelNotFound(f'the store has no model "{name}"')
        for name in names:
            self._follow_one(name)

    def entry(self, name: str) -> ModelEntry:
        """Return a model."""
        entry = self.entries.get(name)
        if entry is None or self.closed:
            raise self.unknown(name)
        return entry

    @contextmanager
    def changing(self, name: str, *, stored: bool | None = None) -> Iterator[ModelEntry]:
        """Hold a model while it is changed.

        Args:
            name: Its name.
            stored: Given, the model is made if there is none, and its versions come from the store
                or do not.
        """
        while True:
            entry = self.entry(name) if stored is None else self.open_entry(name, stored=stored)
            ended = False
            try:
                with entry.lock:
                    # Whoever held it before may have dropped it, or closed the repository.
                    if self.entries.get(name) is entry and not self.closed:
                        entry.changes += 1
                        try:
                            yield entry
                            return
                        finally:
                            entry.changes -= 1
                            ended = not entry.changes
            finally:
                # Not under the lock: a rollback must not wait until an old version has drained.
                if ended:
                    self._close_leaving(entry)
                    self._forget_if_empty(entry)

    def unknown(self, name: str) -> ModelNotFound | ModelNotReady:
        """Return the error for a name there is no model of."""
        if self.closed:
            return ModelNotReady("the repository is closed")
        # Whether the store has it is not looked up: this may be an event loop, and the disk slow.
        loaded = "" if self.store is None else " loaded"
        return ModelNotFound(f'there is no model "{name}"{loaded}')

    def open_entry(self, name: str, *, stored: bool) -> ModelEntry:
        """Return a model, made now if there is none of the name."""
        with self._making:
            if self.closed:
                raise ModelNotReady("the repository is closed")
            entry = self.entries.get(name)
            if entry is None:
                entry = ModelEntry(
                    name, stored=stored, options=self.options, keep=self._keep if stored else 1
                )
                self.entries[name] = entry
            elif entry.stored != stored:
                where = "in the store" if entry.stored else "added by name"
                raise Conflict(f'there is a model "{name}" already, {where}')
            return entry

    def _forget_if_empty(self, entry: ModelEntry) -> None:
        """Drop a model that has no version, here or in the store."""
        with entry.lock, self._making:
            empty = not (entry.versions or entry.leaving or entry.available)
            if empty and self.entries.get(entry.name) is entry:
                del self.entries[entry.name]

    def need_store(self, verb: str) -> Store:
        """Return the store, or say what to do without one."""
        if self.store is None:
            raise Unsupported(
                f"{verb} needs a store: ModelRepository(directory); a model that is only in "
                "memory is added with add"
            )
        return self.store

    def _add_gauges(self) -> list[Callable[[], None]]:
        me = weakref.ref(self)

        def sample(
            read: Callable[[ModelVersion], int],
        ) -> Callable[[], list[tuple[tuple[str, str], float]]]:
            def samples() -> list[tuple[tuple[str, str], float]]:
                control = me()
                entries = list(control.entries.values()) if control is not None else []
                return [
                    ((entry.name, number), float(read(version)))
                    for entry in entries
                    for number, version in entry.versions.items()
                ]

            return samples

        labels = ("model", "version")
        add = self.metrics.add_gauge
        return [
            add(
                "modelserve_queue_depth",
                "Requests waiting for an instance.",
                labels,
                sample(lambda v: v.batcher.queue_depth),
            ),
            add(
                "modelserve_batches_in_flight",
                "Batches running.",
                labels,
                sample(lambda v: v.batcher.in_flight),
            ),
            add(
                "nv_inference_pending_request_count",
                "Requests waiting for an instance, as Triton calls them.",
                labels,
                sample(lambda v: v.batcher.queue_depth),
            ),
            self.metrics.before_collect(self._recorder.flush),
        ]

    def follow(self, names: Collection[str] | None = None) -> None:
        """Bring what is loaded in line with the store: new versions, labels, models. Never raises.

        Args:
            names: Models that may have changed; None for all.
        """
        if self.store is None or self.closed:
            return
        known = set(self.store.models()) if self.all_stored else set()
        known |= {name for name, entry in list(self.entries.items()) if entry.stored}
        for name in sorted(known if names is None else known.intersection(names)):
            self._follow_one(name)

    def _follow_one(self, name: str) -> None:
        try:
            with self.changing(name, stored=True) as entry:
                self._follow(entry, DRAIN)
        except (ServeError, OSError) as error:
            _log.error("model %s could not follow the store: %s", name, error)

    def index(self) -> list[VersionInfo]:
        """Describe all versions of all models, stored and loaded."""
        stored: dict[str, Sequence[str]] = {}
        if self.store is not None:
            stored = {name: self.store.versions(name) for name in self.store.models()}
        infos: list[VersionInfo] = []
        for name in sorted({*stored, *self.entries}):
            entry = self.entries.get(name)
            if entry is None:
                entry = ModelEntry(name, stored=True, options=self.options)
            infos += entry.infos(stored.get(name, ()))
        return infos


def checked_number(version: str | int) -> str:
    """Return a version number as text; empty stays empty.

    Raises:
        ValueError: It is no whole number from 0 on.
    """
    number = str(version)
    if not number:
        return ""
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"a version is a whole number from 0 on, got {version!r}")
    return str(int(number))


def checked_keep(keep: VersionPolicy) -> VersionPolicy:
    """Return which versions to keep loaded, checked.

    Raises:
        ValueError: It is neither a number from 1 on, nor "all", nor a list of versions.
    """
    if isinstance(keep, str):
        if keep != "all":
            raise ValueError(f'keep is a number, "all" or a list of versions; got {keep!r}')
        return keep
    if isinstance(keep, int):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        return keep
    return tuple(checked_number(version) for version in keep)


def _reason(error: Exception) -> str:
    if isinstance(error, ClientError | LoadError):
        return str(error)
    # The text of an OSError names paths of this machine.
    text = error.strerror if isinstance(error, OSError) else error
    return f"{type(error).__name__}: {text}"


def _refuse_uploaded(entry: ModelEntry) -> None:
    """Raise where what is stored would not be served."""
    if entry.override is not None and entry.override.versions:
        raise Conflict(
            f'model "{entry.name}" is served from files that a load brought along; load it '
            "without them, or unload it, first"
        )


def _before(model: str, current: str, versions: Iterable[str]) -> str:
    earlier = [version for version in versions if int(version) < int(current)]
    if not earlier:
        raise ModelNotFound(f'model "{model}" has no version before {current}')
    return max(earlier, key=int)


def _take_out(store: Store, model: str, number: str, move: _Move) -> None:
    """Remove a version that cannot be served after all; its label goes back to where it was."""
    try:
        if move.label and store.labels(model).get(move.label) == number:
            store.label(model, {move.label: move.before})
        store.delete(model, number)
    except (ServeError, OSError) as error:
        _log.error("model %s version %s stays in the store: %s", model, number, error)
