"""Models whose versions tell themselves apart, and what tests of repositories ask of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from modelserve.messages import InferRequest
from modelserve.protocols import VersionInfo
from onnx_models import model, value

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def adds(number: float) -> bytes:
    """Compute y = x + number in FP32 (batch, 4)."""
    constant = numpy_helper.from_array(np.array([number], np.float32), "number")
    return model(
        [helper.make_node("Add", ["x", "number"], ["y"])], [value("x")], [value("y")], [constant]
    )


def tree(root: Path, models: Mapping[str, Mapping[str, float]]) -> Path:
    """Write a directory as somebody makes it by hand: model, version, number it adds."""
    for name, versions in models.items():
        for version, number in versions.items():
            directory = root / name / version
            directory.mkdir(parents=True)
            (directory / "model.onnx").write_bytes(adds(number))
    return root


def request(name: str = "m", *, version: str = "", **options: Any) -> InferRequest:
    """One request of two rows."""
    return InferRequest(name, {"x": ROWS}, version=version, **options)


def added(outputs: Mapping[str, Any]) -> float:
    """Return the number that the version which answered has added."""
    difference = np.unique(outputs["y"] - ROWS)
    assert len(difference) == 1
    return float(difference[0])


def answer(repository: Any, name: str = "m", version: str = "") -> float:
    """Ask a model; return the number its version adds."""
    return added(repository.predict(name, {"x": ROWS}, version=version))


def states(infos: Any, name: str = "m") -> dict[str, str]:
    """Return the states of a model's versions."""
    return {info.version: info.state for info in infos if info.model == name}


def described(infos: Any, version: str, name: str = "m") -> VersionInfo:
    """Return one version's description."""
    (found,) = [info for info in infos if (info.model, info.version) == (name, version)]
    return found


def wait_until(condition: Callable[[], bool], *, timeout: float = 10.0) -> None:
    """Poll a condition; fail when it does not come true."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.005)


class Traffic:
    """Requests from threads and coroutines; version n of the model has to add n to each.

    Args:
        repository: Whom to ask.
        names: Models to ask, in turn.
        version: Version or label to ask for.
        timeout: Seconds each request is given, or None.
        ascending: Whether the versions one caller sees never go back.
        expected: Errors that count as an answer.
    """

    def __init__(
        self,
        repository: Any,
        *,
        names: tuple[str, ...] = ("m",),
        version: str = "",
        timeout: float | None = None,
        ascending: bool = True,
        expected: tuple[type[Exception], ...] = (),
    ) -> None:
        self._repository = repository
        self._names = names
        self._options: dict[str, Any] = {"version": version, "timeout": timeout}
        self._ascending = ascending
        self._expected = expected
        self._stopping = threading.Event()
        self._callers: list[Counter[int]] = []
        self.refused = 0
        self.failed: list[BaseException] = []
        self.wrong: list[str] = []

    @property
    def answered(self) -> int:
        """Requests that got an answer, right or wrong."""
        return sum(caller.total() for caller in list(self._callers))

    @property
    def versions(self) -> Counter[int]:
        """Answers by version."""
        return sum(self._callers, Counter())

    @contextmanager
    def flowing(self, *, threads: int = 4, tasks: int = 16) -> Iterator[Traffic]:
        """Send requests until the block ends."""
        running = [threading.Thread(target=self._ask, args=(n,)) for n in range(threads)]
        running.append(threading.Thread(target=lambda: asyncio.run(self._ask_all(tasks))))
        for thread in running:
            thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            for thread in running:
                thread.join()

    def more(self, count: int) -> None:
        """Wait until this many further requests were answered, or one failed."""
        goal = self.answered + count
        wait_until(lambda: self.answered >= goal or bool(self.failed or self.wrong), timeout=60)

    def _requests(self, seed: int) -> Iterator[tuple[str, Any]]:
        number = seed * 1000
        while not self._stopping.is_set() and not self.failed:
            number += 1
            # Whole numbers that float32 holds exactly, and no two requests alike.
            yield self._names[number % len(self._names)], ROWS + np.float32(8 * (number % 99_999))

    def _ask(self, seed: int) -> None:
        seen = self._caller()
        for name, x in self._requests(seed):
            try:
                outputs = self._repository.predict(name, {"x": x}, **self._options)
            except self._expected:
                self.refused += 1
                self._stopping.wait(0.001)  # who spins keeps the model from being loaded
            except BaseException as error:
                self.failed.append(error)
            else:
                self._check(seen, x, outputs["y"], "")

    async def _ask_all(self, tasks: int) -> None:
        await asyncio.gather(*(self._ask_on(100 + n) for n in range(tasks)))

    async def _ask_on(self, seed: int) -> None:
        seen = self._caller()
        for name, x in self._requests(seed):
            asked = InferRequest(name, {"x": x}, **self._options)
            try:
                response = await self._repository.infer(asked)
            except self._expected:
                self.refused += 1
                await asyncio.sleep(0.001)
            except BaseException as error:
                self.failed.append(error)
            else:
                self._check(seen, x, response.outputs["y"], response.version)

    def _caller(self) -> Counter[int]:
        seen: Counter[int] = Counter()
        self._callers.append(seen)
        return seen

    def _check(self, seen: Counter[int], x: Any, y: Any, version: str) -> None:
        number = int(y[0, 0] - x[0, 0])
        if not np.array_equal(y, x + np.float32(number)) or version not in ("", str(number)):
            self.wrong.append(f"version {version or '?'} answered {x} with {y}")
        if self._ascending and seen and number < max(seen):
            self.wrong.append(f"version {number} answered after version {max(seen)}")
        seen[number] += 1
