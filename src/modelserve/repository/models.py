"""A model by name: its loaded versions, its labels, and which version answers a request.

Loading is `repository.versions`; when to load what is `repository.repository`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from modelserve.errors import ModelNotFound, ModelNotReady
from modelserve.messages import InferRequest
from modelserve.protocols import Choice, Policy, State, VersionInfo
from modelserve.repository.versions import ModelVersion, VersionOptions

__all__ = ["STABLE", "ModelEntry", "wanted_versions"]

STABLE = "stable"
"""The label of the version that answers when a request names none."""

VersionPolicy = int | str | Sequence[str]


class ModelEntry:
    """What a repository knows of one model.

    Readers take no lock: `versions` and `labels` are replaced, never changed, and `default` is
    set last. Writers hold `lock`.

    Args:
        name: Name of the model.
        stored: Whether its versions come from the store.
        options: How its versions are run.
        keep: Which versions are loaded: the newest so many, ``"all"``, or just these.
    """

    def __init__(
        self, name: str, *, stored: bool, options: VersionOptions, keep: VersionPolicy = 1
    ) -> None:
        self.name = name
        self.stored = stored
        self.options = options
        self.keep = keep
        self.lock = threading.RLock()
        self.versions: Mapping[str, ModelVersion] = {}
        self.labels: Mapping[str, str] = {}
        self.policy: Policy | None = None
        self.default: ModelVersion | None = None
        self.enabled = True
        """Whether its versions should be loaded; False after an unload of the whole model."""
        self.explicit: frozenset[str] = frozenset()
        """Versions loaded by name, whatever the policy says."""
        self.excluded: frozenset[str] = frozenset()
        """Versions unloaded by name, whatever the policy says."""
        self.failed: Mapping[str, str] = {}
        """Why versions that should be there are not."""
        self.loading: frozenset[str] = frozenset()
        self._numbers: tuple[str, ...] = ()

    def update(
        self,
        versions: Mapping[str, ModelVersion] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Replace versions or labels and choose the default again; readers see it at once."""
        if versions is not None:
            self.versions = {v: versions[v] for v in sorted(versions, key=int)}
        if labels is not None:
            self.labels = dict(labels)
        self._numbers = tuple(self.versions)
        # A stable version that could not be loaded is no reason to stop serving.
        newest = next(reversed(list(self.versions.values())), None)
        stable = self.versions.get(self.labels.get(STABLE, ""))
        self.default = stable or newest

    def choose(self, request: InferRequest) -> tuple[ModelVersion | None, str]:
        """Choose the version for a request.

        Returns:
            The version, or None and the other model that the policy sends the request to.

        Raises:
            ModelNotFound: The request names a version or label that does not exist.
            ModelNotReady: What it should go to is not loaded.
        """
        wanted = request.version
        if not wanted:
            if self.policy is not None:
                choice: Choice = self.policy.choose(request, self._numbers)
                if choice.model and choice.model != self.name:
                    return None, choice.model
                wanted = choice.version
            if not wanted:
                if self.default is None:
                    raise self._not_ready("")
                return self.default, ""
        return self.find(wanted), ""

    def find(self, version: str) -> ModelVersion:
        """Return a loaded version by number or label; without either the default one.

        Raises:
            ModelNotFound: There is no such version.
            ModelNotReady: It is not loaded.
        """
        found = self.versions.get(self.labels.get(version, version)) if version else self.default
        if found is None:
            raise self._not_ready(version)
        return found

    def _not_ready(self, version: str) -> ModelNotFound | ModelNotReady:
        number = self.labels.get(version, version)
        if not version or number in self.failed or number in self.loading or version in self.labels:
            what = f' version "{version}"' if version else ""
            state = "is loading" if number in self.loading or self.loading else "is not ready"
            return ModelNotReady(f'model "{self.name}"{what} {state}')
        return ModelNotFound(
            f'model "{self.name}" has no version "{version}"; loaded are '
            f"{', '.join(self._numbers) or 'none'}"
        )

    def infos(self, stored: Sequence[str] = ()) -> list[VersionInfo]:
        """Describe all versions: loaded, failed and those only in the store."""
        numbers = {*stored, *self.versions, *self.failed, *self.loading}
        return [self.info(number) for number in sorted(numbers, key=int)]

    def info(self, number: str) -> VersionInfo:
        """Describe one version, loaded or not."""
        labels = tuple(sorted(label for label, v in self.labels.items() if v == number))
        loaded = self.versions.get(number)
        if loaded is not None:
            return loaded.info(labels, self._numbers)
        state: State = "UNAVAILABLE"
        reason = self.failed.get(number, "not loaded")
        if number in self.loading:
            state, reason = "LOADING", ""
        return VersionInfo(self.name, number, state, reason, labels=labels, versions=self._numbers)

    @property
    def outstanding(self) -> int:
        """Requests under way in any version."""
        return sum(version.outstanding for version in self.versions.values())


def wanted_versions(
    entry: ModelEntry, available: Sequence[str], labels: Mapping[str, str]
) -> tuple[str, ...]:
    """Return which of the available versions should be loaded.

    Where labels are set and the model keeps the newest only, the labels decide: a version that was
    published as a canary must not become everyone's by being the newest.

    Args:
        entry: The model.
        available: Its versions, ascending.
        labels: Versions by label.
    """
    if not entry.enabled:
        return ()
    keep: Any = entry.keep
    wanted: set[str]
    if keep == "all":
        wanted = set(available)
    elif isinstance(keep, int):
        wanted = set() if labels and keep == 1 else set(available[-keep:])
    else:
        wanted = {str(version) for version in keep}
    wanted |= set(labels.values()) | entry.explicit
    return tuple(v for v in available if v in wanted - entry.excluded)
