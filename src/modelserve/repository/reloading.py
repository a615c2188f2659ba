"""Loads a model anew under another configuration or from other files: all of it, or nothing.

What the configuration and the files may be is `overrides`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from modelserve.errors import IntegrityError, InvalidInput, LoadError
from modelserve.protocols import Store
from modelserve.repository.configuration import applied
from modelserve.repository.models import ModelEntry, VersionPolicy, wanted_versions
from modelserve.repository.overrides import Files, Override, unpacked
from modelserve.repository.versions import (
    DeclarationError,
    ModelVersion,
    VersionOptions,
    load_version,
)

if TYPE_CHECKING:
    from modelserve.repository.control import Control

__all__ = ["load_anew", "overridden"]

_log = logging.getLogger("modelserve.repository")


class _Plan(NamedTuple):
    """What a model is to become.

    Args:
        override: What came along; None for what is stored.
        available: Versions to choose from, ascending.
        labels: Versions by label.
        draft: A model that wants the right versions and says how they are run.
    """

    override: Override | None
    available: tuple[str, ...]
    labels: Mapping[str, str]
    draft: ModelEntry


def overridden(
    model: str, override: Override, directory: Path | None, defaults: VersionOptions
) -> tuple[VersionOptions, VersionPolicy]:
    """Return how a model is run, and which versions it keeps, by what a load brought along.

    Args:
        model: Name of the model.
        override: What came along.
        directory: Its directory, for warm-up data; None where there is none.
        defaults: What holds where the configuration says nothing.

    Raises:
        InvalidInput: The configuration is for another model or runtime.
    """
    try:
        return applied(model, override.config, defaults, name="config", directory=directory)
    except LoadError as error:
        raise InvalidInput(str(error)) from error


def load_anew(
    control: Control,
    entry: ModelEntry,
    store: Store,
    override: Override | None,
    files: Files | None,
    version: str,
    drain: float,
) -> None:
    """Load what is wanted beside what serves, then switch; under the entry's lock.

    Args:
        control: The repository's.
        entry: The model.
        store: Where its stored versions are.
        override: What came along; None to return to what is stored.
        files: The files that came along.
        version: Version that has to be among the loaded ones, or empty.
        drain: Seconds for what served until now.

    Raises:
        InvalidInput: What came along cannot be served.
        LoadError: What is stored cannot be served, or the disk is full.

    Whatever it raises, what was serving still is.
    """
    with unpacked(entry.name, files) if files else nullcontext() as root:
        plan = _planned(control, entry, store, override, version, root)
        wanted = wanted_versions(plan.draft, plan.available, plan.labels)
        if not wanted:
            raise InvalidInput(
                f"none of the versions there are ({', '.join(plan.available)}) is to be loaded",
                path="config.version_policy",
            )
        loaded: dict[str, ModelVersion] = {}
        try:
            for number in wanted:
                loaded[number] = _load(control, entry, store, plan, number, root)
        except BaseException:
            for number, made in loaded.items():
                made.close(drain=0.0)
                if number not in entry.versions:
                    control.metrics.forget(entry.name, number)
            raise
    _switch(entry, plan, loaded, drain)


def _planned(
    control: Control,
    entry: ModelEntry,
    store: Store,
    override: Override | None,
    version: str,
    root: Path | None,
) -> _Plan:
    labels: Mapping[str, str] = {}
    if override is not None and root is not None:
        available = override.versions
        options, keep = overridden(entry.name, override, root, control.options)
    else:
        available = tuple(store.versions(entry.name))
        labels = {k: v for k, v in store.labels(entry.name).items() if v in available}
        options, keep = control.options_of(entry.name, override, store)
    draft = ModelEntry(entry.name, stored=True, options=options, keep=keep)
    # Numbers of another directory's versions say nothing of this one's.
    uploaded = entry.override is not None and bool(entry.override.versions)
    same = entry.enabled and bool(entry.available) and not uploaded and root is None
    if same:
        draft.explicit = entry.explicit
    if version:
        draft.explicit |= {version}
        others = entry.excluded if same else frozenset(available)
        draft.excluded = others - {version}
    return _Plan(override, available, labels, draft)


def _load(
    control: Control,
    entry: ModelEntry,
    store: Store,
    plan: _Plan,
    number: str,
    root: Path | None,
) -> ModelVersion:
    brought = plan.override is not None
    entry.loading |= {number}
    try:
        path = store.open(entry.name, number).path if root is None else root / number
        version = load_version(entry.name, number, path, plan.draft.options)
    except Exception as error:
        _log.error("model %s version %s could not be loaded: %s", entry.name, number, error)
        # Who sent what cannot be loaded can mend it: not so what is stored.
        mine = isinstance(error, DeclarationError) or root is not None
        if brought and mine and isinstance(error, LoadError) and type(error) is not IntegrityError:
            raise InvalidInput(f"version {number} cannot be loaded: {error}") from error
        raise
    finally:
        entry.loading -= {number}
    control.metrics.declare(entry.name, number)
    return version


def _switch(
    entry: ModelEntry, plan: _Plan, loaded: Mapping[str, ModelVersion], drain: float
) -> None:
    draft = plan.draft
    entry.override = plan.override
    entry.options, entry.keep = draft.options, draft.keep
    entry.explicit, entry.excluded, entry.enabled = draft.explicit, draft.excluded, True
    entry.available, entry.failed = plan.available, {}
    entry.leave(entry.versions.values(), monotonic() + drain)
    entry.update(loaded, plan.labels)
    answering = "" if entry.default is None else entry.default.version
    what = "what is stored" if plan.override is None else "the configuration that came along"
    if plan.override is not None and plan.override.versions:
        what = "files that came along"
    _log.info("model %s: version %s answers now, by %s", entry.name, answering, what)
