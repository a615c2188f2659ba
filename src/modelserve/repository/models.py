"""A model by name: its loaded versions, its labels, and which version answers a request.

Loading is `repository.versions`; when to load what is `repository.repository`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelserve.errors import ModelNotFound, ModelNotReady
from modelserve.messages import InferRequest
from modelserve.protocols import Choice, ModelConfig, Policy, State, VersionInfo
from modelserve.repository.store import STABLE
from modelserve.repository.versions import ModelVersion, VersionOptions

if TYPE_CHECKING:
    from modelserve.repository.overrides import Override

__all__ = ["ModelEntry", "answering_version", "wanted_versions"]

VersionPolicy = int | str | Sequence[str]


@dataclass(frozen=True, slots=True)
class Served:
    """Versions and labels as they hold at one moment; replaced as a whole, so that no request sees
    a label without its version.

    Args:
        versions: Loaded versions by number, ascending.
        labels: Version numbers by label.
        default: The version that answers when a request names none.
        numbers: The numbers of `versions`.
    """

    versions: Mapping[str, ModelVersion] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    default: ModelVersion | None = None
    numbers: tuple[str, ...] = ()


class ModelEntry:
    """What a repository knows of one model.

    Readers take no lock: what is served is one object, replaced and never changed. Writers hold
    `lock`.

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
        self.policy: Policy | None = None
        self.enabled = True
        """Whether its versions should be loaded; False after an unload of the whole model."""
        self.explicit: frozenset[str] = frozenset()
        """Versions loaded by name, whatever the policy says."""
        self.excluded: frozenset[str] = frozenset()
        """Versions unloaded by name, whatever the policy says."""
        self.failed: Mapping[str, str] = {}
        """Why versions that should be there are not."""
        self.loading: frozenset[str] = frozenset()
        self.changes = 0
        """How many changes the holder of the lock is in, one inside the other."""
        self.override: Override | None = None
        """What the last load brought along, instead of what is stored."""
        self._leaving: tuple[ModelVersion, ...] = ()
        self._to_close: list[tuple[ModelVersion, float]] = []
        self.available: tuple[str, ...] = ()
        """Versions in the store when it was last looked at."""
        self.served = Served()
        """What is served now; replaced and never changed."""

    @property
    def versions(self) -> Mapping[str, ModelVersion]:
        """Loaded versions by number, ascending."""
        return self.served.versions

    @property
    def labels(self) -> Mapping[str, str]:
        """Version numbers by label."""
        return self.served.labels

    @property
    def default(self) -> ModelVersion | None:
        """The version that answers when a request names none."""
        return self.served.default

    @property
    def leaving(self) -> Mapping[str, ModelVersion]:
        """Versions that get no more requests and answer those they have, by number."""
        return {version.version: version for version in self._leaving}

    def update(
        self,
        versions: Mapping[str, ModelVersion] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Replace versions or labels and choose the default again, in one step for readers."""
        versions = self.versions if versions is None else versions
        labels = self.labels if labels is None else labels
        ordered = {v: versions[v] for v in sorted(versions, key=int)}
        numbers = tuple(ordered)
        default = ordered.get(answering_version(numbers, labels))
        self.served = Served(ordered, dict(labels), default, numbers)

    def leave(self, versions: Iterable[ModelVersion], end: float) -> None:
        """Note, under the lock, versions that get no more requests; they may answer until `end`."""
        for version in versions:
            version.state = "UNLOADING"
            self._leaving = (*self._leaving, version)
            self._to_close.append((version, end))

    def take_leaving(self) -> list[tuple[ModelVersion, float]]:
        """Return the versions to close with the end of their time; each is returned once."""
        with self.lock:
            taken, self._to_close = self._to_close, []
        return taken

    def left(self, version: ModelVersion) -> None:
        """Forget a version that was closed."""
        with self.lock:
            self._leaving = tuple(known for known in self._leaving if known is not version)

    def choose(
        self, request: InferRequest, wanted: str = ""
    ) -> tuple[ModelVersion | None, Choice | None]:
        """Choose the version for a request.

        Args:
            request: The request.
            wanted: Version number or label; empty leaves it to the policy.

        Returns:
            The version; or None and the choice of another model that the policy made.

        Raises:
            ModelNotFound: The request names a version or label that does not exist.
            ModelNotReady: What it should go to is not loaded.
        """
        if not wanted and self.policy is not None:
            choice = self.policy.choose(request, self.served.numbers)
            if choice.model and choice.model != self.name:
                return None, choice
            wanted = choice.version
        return self.find(wanted), None

    def find(self, version: str) -> ModelVersion:
        """Return a loaded version by number or label; without either the default one.

        Raises:
            ModelNotFound: There is no such version.
            ModelNotReady: It is not loaded.
        """
        served = self.served
        if not version:
            found = served.default
        else:
            found = served.versions.get(served.labels.get(version, version))
        if found is None:
            raise self._not_ready(version)
        return found

    def _not_ready(self, version: str) -> ModelNotFound | ModelNotReady:
        number = self.labels.get(version, version)
        known = {*self.available, *self.failed, *self.loading, *self.leaving}
        if version and version not in self.labels and number not in known:
            return ModelNotFound(
                f'model "{self.name}" has no version "{version}"; loaded are '
                f"{', '.join(self.versions) or 'none'}"
            )
        what = f' version "{version}"' if version else ""
        loading = number in self.loading if version else bool(self.loading)
        return ModelNotReady(
            f'model "{self.name}"{what} {"is loading" if loading else "is not ready"}'
        )

    def infos(self, stored: Sequence[str] = ()) -> list[VersionInfo]:
        """Describe all versions: loaded, failed and those only in the store."""
        numbers = {*stored, *self.versions, *self.failed, *self.loading, *self.leaving}
        return [self.info(number) for number in sorted(numbers, key=int)]

    def info(self, number: str) -> VersionInfo:
        """Describe one version, loaded or not."""
        served = self.served
        labels = tuple(sorted(label for label, v in served.labels.items() if v == number))
        loaded = served.versions.get(number) or self.leaving.get(number)
        if loaded is not None:
            return loaded.info(labels, served.numbers)
        state: State = "UNAVAILABLE"
        unloaded = number in self.excluded or not self.enabled
        reason = self.failed.get(number, "unloaded" if unloaded else "not loaded")
        if number in self.loading:
            state, reason = "LOADING", ""
        return VersionInfo(self.name, number, state, reason, labels=labels, versions=served.numbers)

    def config(self, version: str) -> ModelConfig:
        """Return the configuration of a loaded version; raises as `find`."""
        from modelserve.repository.model_config import model_config  # seldom asked for

        return model_config(self.find(version), self.keep)

    @property
    def complete(self) -> bool:
        """Whether a version answers by default and none that should be loaded failed."""
        wanted = wanted_versions(self, self.available, self.labels) if self.failed else ()
        return self.default is not None and self.failed.keys().isdisjoint(wanted)

    @property
    def outstanding(self) -> int:
        """Requests under way in any version."""
        return sum(version.outstanding for version in (*self.versions.values(), *self._leaving))


def answering_version(numbers: Sequence[str], labels: Mapping[str, str]) -> str:
    """Return which of the versions answers when a request names none; empty for none.

    It is the stable one, else the newest without a label: a canary is for those who ask for it.
    A stable version that is not there is no reason to stop serving.

    Args:
        numbers: The versions, ascending.
        labels: Version numbers by label.
    """
    stable = labels.get(STABLE, "")
    if stable in numbers:
        return stable
    labelled = set(labels.values())
    unlabelled = [number for number in numbers if number not in labelled]
    return (unlabelled or [*numbers] or [""])[-1]


def wanted_versions(
    entry: ModelEntry, available: Sequence[str], labels: Mapping[str, str]
) -> tuple[str, ...]:
    """Return which of the available versions should be loaded.

    Labelled versions are, always. Where the model keeps the newest only, a stable version is that
    one, and a version labelled otherwise does not count: one that was published as a canary must
    not become everyone's by being the newest.

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
    elif keep == 1:
        wanted = {answering_version(available, labels)}
    elif isinstance(keep, int):
        wanted = {*available[-keep:], answering_version(available, labels)}
    else:
        wanted = {str(version) for version in keep}
    wanted |= set(labels.values()) | entry.explicit
    return tuple(v for v in available if v in wanted - entry.excluded)
