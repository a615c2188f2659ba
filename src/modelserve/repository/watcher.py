"""Follows changes of a store with a thread that looks now and then."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelserve.repository.control import Control

__all__ = ["Watcher"]

_log = logging.getLogger("modelserve.repository")


class Watcher:
    """Looks at the store now and then; holds its control weakly."""

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
    followed: Any = None
    before: Any = None
    while not stop.wait(interval):
        control = reference()
        if control is None:
            return
        try:
            seen = control.store.fingerprint()  # type: ignore[union-attr]  # there is one
            # Twice the same: whoever copies files by hand has finished.
            if seen != followed and seen == before:
                control.follow()
                followed = seen
            before = seen
        except Exception:
            _log.exception("watching the store failed; trying again")
        del control
