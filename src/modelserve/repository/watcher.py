"""Follows changes of a store with a thread that looks now and then."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from modelserve.repository.control import Control

__all__ = ["Watcher"]

_log = logging.getLogger("modelserve.repository")

_NEVER: Final = object()


class Watcher:
    """Looks at the store now and then, and has what changed followed; holds its control weakly.

    A model is followed when two looks found it the same, so a copy made by hand is not read before
    it is whole, and one that takes long keeps no other model waiting.
    """

    def __init__(self, control: Control, interval: float) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_watch,
            args=(weakref.ref(control), self._stop, interval),
            name="modelserve-watch",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop looking and wait for the thread to end."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()


def _watch(reference: weakref.ref[Control], stop: threading.Event, interval: float) -> None:
    followed: dict[str, Any] = {}
    before: Mapping[str, Any] = {}
    while not stop.wait(interval):
        control = reference()
        if control is None:
            return
        try:
            seen: Mapping[str, Any] = control.store.fingerprint()  # type: ignore[union-attr]  # any
            # Twice the same: whoever copies files by hand has finished.
            changed = {
                name: seen.get(name)
                for name in {*seen, *followed, *control.entries}
                if seen.get(name) == before.get(name) != followed.get(name, _NEVER)
            }
            before = seen
            control.follow(changed)
            followed |= changed
        except Exception:
            _log.exception("watching the store failed; trying again")
        del control
