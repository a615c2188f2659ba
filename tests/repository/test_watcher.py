"""Following a store that others change."""

import asyncio
import gc
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelserve.errors import IntegrityError, ModelNotFound
from modelserve.repository.repository import ModelRepository
from modelserve.repository.store import LocalStore
from onnx_models import external
from versioned_models import adds, answer, described, states, tree, wait_until


class Stepped(LocalStore):
    """A local store that is looked at when the test says so."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._looks = threading.Semaphore(0)
        self._asked = threading.Semaphore(0)
        self.failing: Exception | None = None

    def fingerprint(self) -> Any:
        self._asked.release()
        self._looks.acquire()
        if self.failing is not None:
            raise self.failing
        return super().fingerprint()

    def look(self, times: int = 2) -> None:
        """Let the watcher look, and wait until it has done what follows from that."""
        for _ in range(times):
            self._looks.release()
            assert self._asked.acquire(timeout=10)

    @contextmanager
    def watched(self, **options: Any) -> Iterator[ModelRepository]:
        repository = ModelRepository(self, watch=True, watch_interval=0.001, **options)
        try:
            assert self._asked.acquire(timeout=10)
            yield repository
        finally:
            for _ in range(100):
                self._looks.release()
            repository.close()


def index(repository: ModelRepository) -> Any:
    return asyncio.run(repository.index())


def copy_half(directory: Path, content: bytes) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(content[: len(content) // 2])


def test_a_new_version_is_picked_up_from_a_plain_directory(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1}})
    with ModelRepository(tmp_path, watch=True, watch_interval=0.01) as repository:
        tree(tmp_path, {"m": {"2": 2}})
        wait_until(lambda: answer(repository) == 2)


def test_a_publication_of_another_process_is_picked_up(tmp_path: Path) -> None:
    store = Stepped(tmp_path)
    with store.watched() as repository:
        LocalStore(tmp_path).put("m", adds(1))
        store.look()
        assert answer(repository) == 1
        LocalStore(tmp_path).put("m", adds(2))
        store.look()
        assert answer(repository) == 2


def test_what_came_while_the_first_versions_were_loaded_is_picked_up(tmp_path: Path) -> None:
    class Late(Stepped):
        late = True

        def labels(self, model: str) -> dict[str, str]:
            if self.late:
                self.late = False
                tree(self.path, {"m": {"2": 2}})
            return super().labels(model)

    store = Late(tree(tmp_path, {"m": {"1": 1}}))
    with store.watched() as repository:
        assert answer(repository) == 1
        store.look()
        assert answer(repository) == 2


def test_a_moved_label_is_followed(tmp_path: Path) -> None:
    store = Stepped(tree(tmp_path, {"m": {"1": 1, "2": 2}}))
    with store.watched() as repository:
        assert answer(repository) == 2
        LocalStore(tmp_path).label("m", {"stable": "1", "canary": "2"})
        store.look()
        assert (answer(repository), answer(repository, version="canary")) == (1, 2)
        LocalStore(tmp_path).label("m", {"canary": None})
        store.look()
        assert states(index(repository)) == {"1": "READY", "2": "UNAVAILABLE"}


def test_a_removed_version_is_closed_and_the_one_before_answers(tmp_path: Path) -> None:
    store = Stepped(tree(tmp_path, {"m": {"1": 1, "2": 2}}))
    with store.watched() as repository:
        LocalStore(tmp_path).delete("m", "2")
        store.look()
        assert answer(repository) == 1
        assert states(index(repository)) == {"1": "READY"}


def test_a_removed_model_is_forgotten_and_may_come_back(tmp_path: Path) -> None:
    store = Stepped(tree(tmp_path, {"m": {"1": 1}, "n": {"1": 5}}))
    with store.watched() as repository:
        LocalStore(tmp_path).delete("m", "1")
        store.look()
        with pytest.raises(ModelNotFound):
            answer(repository)
        assert asyncio.run(repository.ready())
        assert answer(repository, "n") == 5
        LocalStore(tmp_path).put("m", adds(3))
        store.look()
        assert answer(repository) == 3


def test_a_model_removed_before_the_first_look_is_forgotten(tmp_path: Path) -> None:
    store = Stepped(tree(tmp_path, {"m": {"1": 1}}))
    with store.watched() as repository:
        LocalStore(tmp_path).delete("m", "1")
        store.look()
        assert index(repository) == []


def test_a_file_that_still_grows_is_not_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Stepped(tree(tmp_path, {"m": {"1": 1}}))
    with store.watched() as repository, caplog.at_level(logging.ERROR):
        store.look()
        copy_half(tmp_path / "m" / "2", adds(2))
        store.look(1)
        (tmp_path / "m" / "2" / "model.onnx").write_bytes(adds(2))
        store.look(1)
        assert answer(repository) == 1
        store.look(1)
        assert answer(repository) == 2
        assert caplog.records == []


def test_a_copy_that_stalled_is_loaded_when_it_is_whole(tmp_path: Path) -> None:
    store = Stepped(tree(tmp_path, {"m": {"1": 1}}))
    with store.watched() as repository:
        copy_half(tmp_path / "m" / "2", adds(2))
        store.look()
        assert answer(repository) == 1
        assert states(index(repository)) == {"1": "READY", "2": "UNAVAILABLE"}
        assert not asyncio.run(repository.ready())
        (tmp_path / "m" / "2" / "model.onnx").write_bytes(adds(2))
        store.look()
        assert answer(repository) == 2
        assert asyncio.run(repository.ready())


def test_external_data_that_came_late_is_noticed(tmp_path: Path) -> None:
    proto, content = external()
    store = Stepped(tmp_path)
    with store.watched() as repository:
        directory = tmp_path / "m" / "1"
        directory.mkdir(parents=True)
        (directory / "model.onnx").write_bytes(proto)
        (directory / "weights.bin").write_bytes(content[:100])
        store.look()
        assert states(index(repository)) == {"1": "UNAVAILABLE"}
        (directory / "weights.bin").write_bytes(content)
        store.look()
        outputs = repository.predict("m", np.zeros((1, 512), np.float32))
        assert np.array_equal(outputs["y"][0], np.arange(512))


def test_a_long_copy_keeps_no_other_model_waiting(tmp_path: Path) -> None:
    store = Stepped(tree(tmp_path, {"m": {"1": 1}, "n": {"1": 1}}))
    with store.watched() as repository:
        store.look()
        tree(tmp_path, {"n": {"2": 2}})
        for size in range(1, 4):
            copy_half(tmp_path / "m" / "2", adds(2)[: 2 * size])
            store.look(1)
        assert answer(repository, "n") == 2
        assert answer(repository, "m") == 1


def test_a_broken_version_leaves_the_old_one_serving(tmp_path: Path) -> None:
    store = Stepped(tree(tmp_path, {"m": {"1": 1}, "n": {"1": 5}}))
    LocalStore(tmp_path).label("m", {"stable": "1"})
    with store.watched() as repository:
        tree(tmp_path, {"m": {"2": 2, "3": 3}})
        (tmp_path / "m" / "3" / "model.onnx").write_bytes(b"no model")
        LocalStore(tmp_path).label("m", {"stable": "3", "canary": "2"})
        store.look()
        assert (answer(repository), answer(repository, version="stable")) == (1, 1)
        assert answer(repository, version="canary") == 2
        assert described(index(repository), "3").state == "UNAVAILABLE"
        LocalStore(tmp_path).label("m", {"stable": "2"})
        store.look()
        assert answer(repository) == 2
        assert states(index(repository))["1"] == "UNAVAILABLE"


def test_a_broken_label_keeps_no_old_versions_loaded(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2}})
    (tmp_path / "m" / "2" / "model.onnx").write_bytes(b"no model")
    LocalStore(tmp_path).label("m", {"stable": "1", "canary": "2"})
    with ModelRepository(tmp_path) as repository:
        repository.publish("m", adds(3))
        repository.publish("m", adds(4))
        loaded = [v for v, state in states(index(repository)).items() if state == "READY"]
        assert loaded == ["4"]


def test_only_named_models_are_followed(tmp_path: Path) -> None:
    store = Stepped(tree(tmp_path, {"m": {"1": 1}, "n": {"1": 1}}))
    with store.watched(load=["m"]) as repository:
        tree(tmp_path, {"m": {"2": 2}, "n": {"2": 2}})
        store.look()
        assert answer(repository, "m") == 2
        with pytest.raises(ModelNotFound):
            answer(repository, "n")


def test_an_unloaded_version_does_not_come_back_by_itself(tmp_path: Path) -> None:
    store = Stepped(tree(tmp_path, {"m": {"1": 1, "2": 2}, "n": {"1": 1}}))
    with store.watched(keep="all") as repository:
        repository.unload("m", 1)
        repository.unload("n")
        tree(tmp_path, {"m": {"3": 3}, "n": {"2": 2}})
        store.look()
        assert states(index(repository)) == {"1": "UNAVAILABLE", "2": "READY", "3": "READY"}
        assert set(states(index(repository), "n").values()) == {"UNAVAILABLE"}


def test_a_store_that_fails_for_a_while_is_followed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Stepped(tree(tmp_path, {"m": {"1": 1}}))
    with store.watched() as repository:
        store.look()
        store.failing = OSError("the network file system is away")
        with caplog.at_level(logging.ERROR):
            store.look()
        assert "watching the store failed" in caplog.text
        store.failing = None
        tree(tmp_path, {"m": {"2": 2}})
        store.look()
        assert answer(repository) == 2


def test_damaged_labels_leave_what_is_loaded_serving(tmp_path: Path) -> None:
    store = Stepped(tree(tmp_path, {"m": {"1": 1}}))
    with store.watched() as repository:
        (tmp_path / "m" / ".labels.json").write_bytes(b"{")
        store.look()
        assert answer(repository) == 1
        assert not asyncio.run(repository.ready())
        with pytest.raises(IntegrityError):
            repository.load("m")


def test_watching_needs_a_store_that_can_be_looked_at(tmp_path: Path) -> None:
    class Foreign:
        def models(self) -> list[str]:
            return []

    for store in (None, Foreign()):
        with pytest.raises(ValueError, match="fingerprint"):
            ModelRepository(store, watch=True)  # type: ignore[arg-type]


def test_the_thread_ends_with_close(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    repository = ModelRepository(tmp_path, watch=True, watch_interval=60)
    (started,) = set(threading.enumerate()) - before
    assert started.daemon
    repository.close()
    assert not started.is_alive()


def test_the_thread_ends_with_a_repository_nobody_closed(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    repository = ModelRepository(tmp_path, watch=True, watch_interval=0.005)
    (started,) = set(threading.enumerate()) - before
    del repository
    gc.collect()
    wait_until(lambda: not started.is_alive())


def test_changes_from_all_sides_come_to_rest_in_the_state_of_the_store(tmp_path: Path) -> None:
    with (
        ModelRepository(tmp_path, watch=True, watch_interval=0.002) as one,
        ModelRepository(tmp_path, watch=True, watch_interval=0.003) as other,
    ):
        for number in range(1, 11):
            publisher, collector = (one, other) if number % 2 else (other, one)
            publisher.publish("m", adds(number))
            collector.collect("m", 2)
        wait_until(lambda: answer(one) == answer(other) == 10)
