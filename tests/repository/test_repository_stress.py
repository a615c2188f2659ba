"""Requests without a pause while versions come and go: none fails, none is answered wrongly."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelserve.errors import ModelNotFound, ModelNotReady
from modelserve.execution.batcher import BatcherClosed
from modelserve.messages import InferRequest
from modelserve.repository.decorator import model
from modelserve.repository.repository import ModelRepository
from modelserve.repository.store import LocalStore
from modelserve.tensors import TensorSpec
from versioned_models import ROWS, Traffic, adds, answer, tree

pytestmark = pytest.mark.stress

CYCLES = 12
PER_CYCLE = 100
"""Requests answered in each cycle, at least."""


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Any:
    """No error of any library: asyncio logs exceptions that reach nobody."""
    with caplog.at_level(logging.WARNING):
        yield
    assert [record.getMessage() for record in caplog.records] == []


def check(traffic: Traffic, versions: set[int]) -> None:
    assert traffic.failed == []
    assert traffic.wrong == []
    assert set(traffic.versions) == versions
    assert traffic.answered >= CYCLES * PER_CYCLE


def test_publishing_swaps_versions_under_load(tmp_path: Path) -> None:
    with ModelRepository(tmp_path) as repository:
        repository.publish("m", adds(1))
        with Traffic(repository).flowing() as traffic:
            for number in range(2, CYCLES + 2):
                traffic.more(PER_CYCLE)
                repository.publish("m", adds(number))
            traffic.more(PER_CYCLE)
    check(traffic, set(range(1, CYCLES + 2)))


def test_publishing_and_unloading_under_load_with_several_instances(tmp_path: Path) -> None:
    with ModelRepository(tmp_path, keep="all", instances=3) as repository:
        repository.publish("m", adds(1))
        with Traffic(repository, timeout=60).flowing() as traffic:
            for number in range(2, CYCLES + 2):
                traffic.more(PER_CYCLE)
                repository.publish("m", adds(number))
                repository.unload("m", number - 1)
            traffic.more(PER_CYCLE)
    check(traffic, set(range(1, CYCLES + 2)))


def test_labels_move_under_load(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2, "3": 3}})
    LocalStore(tmp_path).label("m", {"stable": "1", "canary": "2"})
    with ModelRepository(tmp_path) as repository:
        asked = Traffic(repository, version="canary", ascending=False)
        with asked.flowing(threads=2, tasks=8) as traffic:
            for cycle in range(CYCLES):
                traffic.more(PER_CYCLE)
                repository.label("m", {"canary": 2 + (cycle + 1) % 2})
            traffic.more(PER_CYCLE)
    check(traffic, {2, 3})


def test_rolling_back_and_forth_under_load(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2}})
    with (
        ModelRepository(tmp_path) as repository,
        Traffic(repository, ascending=False).flowing() as traffic,
    ):
        for _ in range(CYCLES // 2):
            traffic.more(PER_CYCLE)
            repository.rollback("m")
            traffic.more(PER_CYCLE)
            repository.label("m", {"stable": 2})
        traffic.more(PER_CYCLE)
    check(traffic, {1, 2})


def test_functions_are_swapped_under_load() -> None:
    def adding(number: int) -> Any:
        @model(name="m", inputs=[TensorSpec("x", "FP32", (-1, 4))], max_batch_size=16)
        def add(x: Any) -> Any:
            return {"y": x + np.float32(number)}

        return add

    with ModelRepository() as repository:
        repository.add(adding(1))
        with Traffic(repository).flowing() as traffic:
            for number in range(2, CYCLES + 2):
                traffic.more(PER_CYCLE)
                repository.add(adding(number))
            traffic.more(PER_CYCLE)
    check(traffic, set(range(1, CYCLES + 2)))


def test_streams_are_whole_while_their_model_is_swapped() -> None:
    def counting(number: int) -> Any:
        @model(name="m", inputs=[TensorSpec("n", "INT64", (1,))], concurrency=2)
        def count(n: Any) -> Iterator[Any]:
            for step in range(3):
                yield {"v": np.array([number, int(n[0]), step])}

        return count

    async def read(repository: ModelRepository, seed: int, until: asyncio.Event) -> list[int]:
        seen: list[int] = []
        while not until.is_set():
            asked = InferRequest("m", {"n": np.array([seed + len(seen)])})
            got = [r.outputs["v"].tolist() async for r in repository.stream(asked)]
            number = got[0][0]
            assert got == [[number, seed + len(seen), step] for step in range(3)]
            seen.append(number)
        return seen

    async def main() -> list[list[int]]:
        async with ModelRepository() as repository:
            repository.add(counting(1))
            until = asyncio.Event()
            readers = [asyncio.create_task(read(repository, 1000 * n, until)) for n in range(8)]
            for number in range(2, CYCLES + 2):
                asked = InferRequest("m", {"n": np.array([0])})
                versions = [response.version async for response in repository.stream(asked)]
                assert versions == [str(number - 1)] * 3
                await repository.aadd(counting(number))
            until.set()
            return await asyncio.gather(*readers)

    for seen in asyncio.run(main()):
        assert seen == sorted(seen)
        assert len(set(seen)) > 1


def test_unloading_the_only_version_under_load_is_said_and_nothing_else(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1}})
    with ModelRepository(tmp_path) as repository:
        asked = Traffic(repository, expected=(ModelNotReady,))
        with asked.flowing() as traffic:
            for _ in range(CYCLES):
                traffic.more(PER_CYCLE)
                repository.unload("m")
                repository.load("m")
            traffic.more(PER_CYCLE)
    check(traffic, {1})
    assert traffic.refused > 0
    assert not issubclass(BatcherClosed, ModelNotReady)


def test_closing_under_load_answers_or_refuses_everyone() -> None:
    repository = ModelRepository()
    repository.add("m", adds(1))
    with Traffic(repository, expected=(ModelNotReady,)).flowing() as traffic:
        traffic.more(CYCLES * PER_CYCLE)
        repository.close()
    check(traffic, {1})


def test_changes_from_many_threads_leave_one_version_and_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    errors: list[BaseException] = []
    with ModelRepository(tmp_path, watch=True, watch_interval=0.002) as repository:
        repository.publish("m", adds(1))

        def change(name: str) -> None:
            try:
                for _ in range(4):
                    number = float(len(LocalStore(tmp_path).versions("m")))
                    repository.publish("m", adds(number))
                    with suppress(ModelNotFound):  # the others may have rolled back to the first
                        repository.rollback("m")
                    repository.publish("n", adds(5), label=name)
                    repository.label("m", {name: "1"})
                    repository.collect("n", 3)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=change, args=(name,)) for name in ("a", "b", "c")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert answer(repository, "n", version="a") == 5
        stable = LocalStore(tmp_path).labels("m")["stable"]
        asked = repository.predict("m", {"x": ROWS})
        pinned = repository.predict("m", {"x": ROWS}, version=stable)
        assert np.array_equal(asked["y"], pinned["y"])
    assert set(threading.enumerate()) == before
