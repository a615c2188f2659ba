"""What all workers are to serve: one value, in one file that is replaced as a whole.

Who decides what it should be is `supervisor`; who brings a process in line with it, `following`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from modelserve.protocols import Store
from modelserve.repository.staging import sync_directory

__all__ = ["Desired", "ModelState"]


@dataclass(frozen=True, slots=True)
class ModelState:
    """One model: what was asked for, and what the store had when it was looked at.

    Args:
        enabled: Whether its versions should be loaded.
        explicit: Versions loaded by number, whatever the model's own policy says.
        excluded: Versions unloaded by number, whatever it says.
        available: Versions in the store, ascending.
        labels: Version numbers by label.
        route: Version or label that answers when a request names none; empty for the default.
    """

    enabled: bool = True
    explicit: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    available: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    route: str = ""

    def seen_in(self, store: Store, name: str) -> ModelState:
        """Return the same wishes over what the store has now."""
        available = tuple(store.versions(name))
        labels = {k: v for k, v in store.labels(name).items() if v in available}
        return replace(self, available=available, labels=labels)

    def loading(self, version: str) -> ModelState:
        """Return the state after a load of a version; empty: of the model."""
        if not version:
            return replace(self, enabled=True, excluded=())
        excluded = set(self.excluded)
        if not self.enabled:  # only this one, of a model that is not loaded
            excluded = set(self.available)
        return replace(
            self,
            enabled=True,
            explicit=_with(self.explicit, version),
            excluded=tuple(sorted(excluded - {version}, key=int)),
        )

    def unloading(self, version: str) -> ModelState:
        """Return the state after an unload of a version; empty: of the model."""
        if not version:
            return replace(self, enabled=False, explicit=())
        return replace(
            self,
            explicit=tuple(v for v in self.explicit if v != version),
            excluded=_with(self.excluded, version),
        )


def _with(versions: tuple[str, ...], version: str) -> tuple[str, ...]:
    return tuple(sorted({*versions, version}, key=int))


@dataclass(frozen=True, slots=True)
class Desired:
    """The state of all models.

    Args:
        generation: Grows with every change.
        models: States by name. A model that is not in it is not loaded.
    """

    generation: int = 0
    models: Mapping[str, ModelState] = field(default_factory=dict)

    def changed(self, models: Mapping[str, ModelState]) -> Desired:
        """Return the next generation, with these models' states replaced."""
        # Of a model that has left the store every worker was told; then it is forgotten.
        kept = {name: state for name, state in self.models.items() if state.available}
        return Desired(self.generation + 1, {**kept, **models})

    def write(self, path: Path) -> None:
        """Replace the file; whoever reads it finds the state before or this one.

        Raises:
            OSError: It cannot be written; then it holds the state before.
        """
        sibling = path.with_suffix(f".{self.generation}")
        models = {name: asdict(state) for name, state in self.models.items()}
        text = json.dumps({"format": 1, "generation": self.generation, "models": models})
        try:
            with open(sibling, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(sibling, path)
            sync_directory(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                sibling.unlink(missing_ok=True)
            raise

    @classmethod
    def read(cls, path: Path) -> Desired:
        """Return what the file holds.

        Raises:
            ValueError: It is no such file.
            OSError: It cannot be read.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            models = {name: _state(state) for name, state in found["models"].items()}
            return cls(int(found["generation"]), models)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the file of the desired state is damaged: {error!r}") from error


def _state(found: Mapping[str, Any]) -> ModelState:
    return ModelState(
        enabled=bool(found["enabled"]),
        explicit=tuple(found["explicit"]),
        excluded=tuple(found["excluded"]),
        available=tuple(found["available"]),
        labels=dict(found["labels"]),
        route=str(found["route"]),
    )
