"""Changes what a repository serves, make-before-break: load and warm up, switch, drain, close.

The verbs as users call them, with their coroutine forms, are `repository.repository`.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from modelserve.errors import (
    ClientError,
    Conflict,
    LoadError,
    ModelNotFound,
    ModelNotReady,
    ServeError,
    Unsupported,
)
from modelserve.observe.metrics import Metrics
from modelserve.observe.recorder import Recorder
from modelserve.protocols import Store, StoredVersion, VersionInfo
from modelserve.repository.configuration import configured
from modelserve.repository.models import STABLE, ModelEntry, VersionPolicy, wanted_versions
from modelserve.repository.publication import described
from modelserve.repository.versions import ModelVersion, VersionOptions, load_version

__all__ = ["DRAIN", "Control", "checked_keep", "checked_number"]

_log = logging.getLogger("modelserve.repository")

DRAIN: Final = 30.0
"""Seconds a version gets to answer what it has before it is closed."""


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
        self._metrics = metrics
        self._recorder = recorder
        self._making = threading.Lock()
        self._gauges = self._add_gauges()

    def load(self, model: str, version: str, drain: float) -> str:
        """Load a stored model or version; see `ModelRepository.load`."""
        store = self.need_store("load")
        available = store.versions(model)
        if not available or (version and version not in available):
            what = f' version "{version}"' if version else ""
            raise ModelNotFound(f'the store has no model "{model}"{what}')
        entry = self.open_entry(model, stored=True)
        with entry.lock:
            before = (entry.enabled, entry.explicit, entry.excluded)
            entry.enabled = True
            if version:
                entry.explicit |= {version}
                entry.excluded -= {version}
                if not before[0]:  # only this one, of a model that was unloaded
                    entry.excluded = frozenset(available) - {version}
            else:
                entry.excluded = frozenset()
            try:
                self._follow(entry, drain, must=version or None)
            except ServeError:
                entry.enabled, entry.explicit, entry.excluded = before
                raise
        return version or (entry.default.version if entry.default else "")

    def unload(self, model: str, version: str, drain: float) -> None:
        """Close a version, or without a number all of a model; see `ModelRepository.unload`."""
        entry = self.entry(model)
        with entry.lock:
            if version and version not in entry.versions:
                raise ModelNotFound(f'model "{model}" has no version "{version}" loaded')
            if version:
                entry.explicit -= {version}
                entry.excluded |= {version}
            else:
                entry.enabled = False
                entry.explicit = frozenset()
                entry.failed = {}
            kept = {v for v in entry.versions if version and v != version}
            self.switch(entry, entry.versions, kept, drain)
            if not entry.stored:
                self.forget_if_empty(entry)

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
        if known is not None and not known.stored:
            raise Conflict(f'model "{model}" was added by name; publish under another one')
        stored = store.put(
            model,
            source,
            version=version,
            metadata={**described(source), **metadata},
            **({} if progress is None else {"progress": progress}),
        )
        number = stored.version
        entry = self.open_entry(model, stored=True)
        with entry.lock:
            before = (entry.enabled, entry.explicit)
            entry.enabled = True
            entry.explicit |= {number}
            try:
                self._follow(entry, drain, must=number, retire=False)
            except BaseException:
                entry.enabled, entry.explicit = before
                store.delete(model, number)
                entry.failed = {v: why for v, why in entry.failed.items() if v != number}
                self.forget_if_empty(entry)
                raise
            entry.explicit = before[1]
            if label:
                store.label(model, {label: number})
            self._follow(entry, drain)
        return number

    def label(
        self, model: str, changes: Mapping[str, str | int | None], drain: float
    ) -> Mapping[str, str]:
        """Load what will be labelled, move the labels, close the rest; see `ModelRepository`."""
        wanted = {k: None if v is None else checked_number(v) for k, v in changes.items()}
        entry = self.entry(model)
        with entry.lock:
            if not entry.stored:
                for number in wanted.values():
                    if number is not None:
                        entry.find(number)
                merged = {**entry.labels, **wanted}
                entry.update(labels={k: v for k, v in merged.items() if v is not None})
                return entry.labels
            store = self.need_store("label")
            before = entry.explicit
            targets = {number for number in wanted.values() if number is not None}
            for number in targets:
                if number not in store.versions(model):
                    raise ModelNotFound(f'model "{model}" has no version "{number}"')
            entry.explicit |= targets
            try:
                for number in sorted(targets, key=int):
                    self._follow(entry, drain, must=number, retire=False)
            finally:
                entry.explicit = before
            store.label(model, wanted)
            self._follow(entry, drain)
            return entry.labels

    def rollback(self, model: str, drain: float) -> str:
        """Label the version before the default one stable; see `ModelRepository.rollback`."""
        entry = self.entry(model)
        with entry.lock:
            if entry.default is None:
                raise ModelNotReady(f'model "{model}" is not ready')
            current = int(entry.default.version)
            numbers: Iterable[str] = entry.versions
            if entry.stored:
                numbers = self.need_store("rollback").versions(model)
            earlier = [v for v in numbers if int(v) < current]
            if not earlier:
                raise ModelNotFound(f'model "{model}" has no version before {current}')
            number = max(earlier, key=int)
            entry.excluded -= {number}
            self.label(model, {STABLE: number}, drain)
        return number

    def close(self, drain: float) -> None:
        """Close every version; nothing is admitted any more."""
        with self._making:
            self.closed = True
        for entry in list(self.entries.values()):
            with entry.lock:
                entry.enabled = False
                self.switch(entry, entry.versions, set(), drain)
        self.entries.clear()
        for remove in self._gauges:
            remove()
        self._recorder.flush()

    def _follow(
        self, entry: ModelEntry, drain: float, *, must: str | None = "", retire: bool = True
    ) -> None:
        """Load what is wanted and not there, then switch; under the entry's lock.

        Args:
            entry: The model.
            drain: Seconds for versions no longer wanted.
            must: Version whose failure is raised; None: any default version; empty: none.
            retire: Whether versions no longer wanted are closed now.
        """
        store = self.need_store("load")
        available = store.versions(entry.name)
        labels = store.labels(entry.name)
        try:
            self._configure(entry, store)
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
        entry.failed = {number: _reason(error) for number, error in failures.items()}
        entry.update(labels=labels)
        # Whatever could not be loaded, what answers now goes on answering.
        kept = set(wanted) if retire and not failures else set(loaded)
        self.switch(entry, loaded, kept, drain)
        if failures and (must in failures or (must is None and entry.default is None)):
            raise failures[must] if must in failures else next(iter(failures.values()))

    def _load_stored(self, entry: ModelEntry, store: Store, number: str) -> ModelVersion:
        stored: StoredVersion = store.open(entry.name, number)
        return self.load_version(entry, number, stored.path, entry.options)

    def _configure(self, entry: ModelEntry, store: Store) -> None:
        """Read the model's own configuration, if the store keeps one."""
        find = getattr(store, "config", None)
        path: Path | None = find(entry.name) if find is not None else None
        entry.options, keep = configured(entry.name, path, self.options)
        entry.keep = self._keep if keep is None else keep

    def load_version(
        self, entry: ModelEntry, number: str, source: Any, options: VersionOptions
    ) -> ModelVersion:
        """Load a version and make it known to the metrics; raises as `versions.load_version`."""
        entry.loading |= {number}
        try:
            version = load_version(entry.name, number, source, options)
        except Exception as error:
            _log.error("model %s version %s could not be loaded: %s", entry.name, number, error)
            raise
        finally:
            entry.loading -= {number}
        self._metrics.declare(entry.name, number)
        return version

    def switch(
        self,
        entry: ModelEntry,
        versions: Mapping[str, ModelVersion],
        kept: Iterable[str],
        drain: float,
    ) -> None:
        """Send requests to the kept versions from now on, then drain and close the others."""
        kept = set(kept)
        labels = None
        if not entry.stored:
            labels = {k: v for k, v in entry.labels.items() if v in kept}
        entry.update({v: version for v, version in versions.items() if v in kept}, labels)
        for number, version in versions.items():
            if number not in kept:
                if not version.close(drain=drain):
                    _log.warning(
                        "model %s version %s was closed with requests unanswered after %g s",
                        entry.name,
                        number,
                        drain,
                    )
                self._recorder.flush()
                self._metrics.forget(entry.name, number)

    def load_first(self, load: Literal["all", "none"] | Iterable[str]) -> None:
        """Load what a new repository should hold."""
        if load == "none":
            return
        if load == "all":
            self.all_stored = True
            self.follow()
            return
        if isinstance(load, str):
            raise ValueError(f'load is "all", "none" or a list of names; got {load!r}')
        for name in load:
            self.load(name, "", DRAIN)

    def entry(self, name: str) -> ModelEntry:
        """Return a model."""
        entry = self.entries.get(name)
        if entry is None:
            raise self.unknown(name)
        return entry

    def unknown(self, name: str) -> ModelNotFound | ModelNotReady:
        """Return the error for a name there is no model of."""
        if self.closed:
            return ModelNotReady("the repository is closed")
        return ModelNotFound(f'there is no model "{name}"')

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

    def forget_if_empty(self, entry: ModelEntry) -> None:
        """Drop a model that has no version."""
        with self._making:
            if not entry.versions and self.entries.get(entry.name) is entry:
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
        add = self._metrics.add_gauge
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
            self._metrics.before_collect(self._recorder.flush),
        ]

    def follow(self) -> None:
        """Bring what is loaded in line with the store: new versions, labels, models. Never raises.

        `watch=True` calls it when the store has changed.
        """
        if self.store is None or self.closed:
            return
        names = set(self.store.models()) if self.all_stored else set()
        names |= {name for name, entry in self.entries.items() if entry.stored}
        for name in sorted(names):
            try:
                entry = self.open_entry(name, stored=True)
                with entry.lock:
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
        ValueError: It is no whole number from 1 on.
    """
    number = str(version)
    if number and not (number.isascii() and number.isdigit() and int(number) > 0):
        raise ValueError(f"a version is a whole number from 1 on, got {version!r}")
    return number


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
    public = isinstance(error, ClientError | LoadError)
    return str(error) if public else f"{type(error).__name__}: {error}"
