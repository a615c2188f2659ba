"""Backends, clocks and waiting under a test's control: nothing here depends on how fast it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from modelserve.protocols import Traits
from modelserve.tensors import Signature, TensorSpec

DEADLOCK = 10.0
"""Seconds after which a wait is taken for a hang."""

PLAIN = Traits()

Arrays = Mapping[str, Any]


def double(inputs: Arrays) -> dict[str, Any]:
    """Compute y = 2 x."""
    return {"y": inputs["x"] * 2}


def rows(*numbers: float) -> dict[str, Any]:
    """Inputs with one row for each number."""
    return {"x": np.array(numbers, np.float32).reshape(-1, 1)}


class GatedBackend:
    """Doubles column "x", or does what `function` does; can be held, and keeps a record.

    Args:
        function: Takes the inputs (and the context where `traits.context`).
        traits: What the batcher may do with it.
        shape: Shape of "x".
        datatype: Datatype of "x".
    """

    def __init__(
        self,
        function: Callable[..., Any] = double,
        traits: Traits = PLAIN,
        shape: tuple[int, ...] | None = (-1, 1),
        datatype: Any = "FP32",
    ) -> None:
        self.function = function
        self.traits = traits
        self.signature = Signature([TensorSpec("x", datatype, shape)])
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.runs: list[list[Any]] = []
        """Column "x" of every batch."""
        self.threads: list[int] = []
        self.closed = 0
        self.inside = 0
        self.most_inside = 0
        self.run_after_close = False
        self._lock = threading.Lock()

    def hold(self) -> None:
        """Keep every run from here on inside."""
        self.gate.clear()

    def release(self) -> None:
        """Let the runs go."""
        self.gate.set()

    def wait_inside(self) -> None:
        """Wait until one more run has begun."""
        assert self.entered.acquire(timeout=DEADLOCK), "no run began"

    @property
    def sizes(self) -> list[int]:
        """Rows of every batch."""
        return [len(run) for run in self.runs]

    def run(self, inputs: Arrays, *context: Any) -> Any:
        """Run one batch."""
        with self._lock:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
            self.run_after_close |= self.closed > 0
            self.runs.append(inputs["x"].ravel().tolist())
            self.threads.append(threading.get_ident())
        try:
            self.entered.release()
            assert self.gate.wait(DEADLOCK), "the gate was never opened"
            return self.function(inputs, *context)
        finally:
            with self._lock:
                self.inside -= 1

    def close(self) -> None:
        """Count, and note a run that was still inside."""
        self.closed += 1
        self.run_after_close |= self.inside > 0


class ManualClock:
    """A clock that stands until it is advanced."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Go forward."""
        self.now += seconds


def wait_until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Poll until a condition holds."""
    end = time.monotonic() + DEADLOCK
    while not condition():
        assert time.monotonic() < end, f"{what} never came"
        time.sleep(0.001)
