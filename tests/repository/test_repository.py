"""The repository's verbs as users call them."""

import asyncio
import contextlib
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelserve.errors import (
    Conflict,
    IntegrityError,
    InvalidInput,
    LoadError,
    ModelNotFound,
    ModelNotReady,
    Unsupported,
)
from modelserve.messages import Exchange, InferRequest
from modelserve.protocols import Choice, Traits
from modelserve.repository.decorator import model
from modelserve.repository.repository import ModelRepository
from modelserve.repository.store import LocalStore
from modelserve.routing.versions import Latest, Pinned
from modelserve.tensors import Signature, TensorSpec
from onnx_models import save_external
from versioned_models import ROWS, added, adds, answer, described, request, states, tree, wait_until

SPEC = TensorSpec("x", "FP32", (-1, 4))


def index(repository: ModelRepository) -> Any:
    return asyncio.run(repository.index())


class Gated:
    """A backend that adds a number, and holds each run until it is let go."""

    traits = Traits()
    signature = Signature([SPEC], [TensorSpec("y", "FP32", (-1, 4))])

    def __init__(self, number: float) -> None:
        self.number = number
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.closed = threading.Event()

    def run(self, inputs: Any) -> Any:
        self.entered.release()
        assert self.gate.wait(10)
        assert not self.closed.is_set()
        return {"y": inputs["x"] + np.float32(self.number)}

    def close(self) -> None:
        self.closed.set()


class Background:
    """A call on a thread; `result` gives what came of it."""

    def __init__(self, call: Any, *args: Any, **options: Any) -> None:
        self._outcome: list[Any] = []
        self._error: list[BaseException] = []

        def run() -> None:
            try:
                self._outcome.append(call(*args, **options))
            except BaseException as error:
                self._error.append(error)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(10)
        assert not self._thread.is_alive()
        if self._error:
            raise self._error[0]
        return self._outcome[0]


@contextlib.contextmanager
def held(repository: ModelRepository, name: str = "m") -> Iterator[tuple[Gated, Background]]:
    """Add a gated model with one request running in it."""
    backend = Gated(1)
    repository.add(name, backend)
    asked = Background(answer, repository, name)
    assert backend.entered.acquire(timeout=10)
    try:
        yield backend, asked
    finally:
        backend.gate.set()


# ---------------------------------------------------------------------- add


def test_a_model_in_memory_needs_no_store() -> None:
    with ModelRepository() as repository:
        assert repository.add("m", adds(1)) == "1"
        assert answer(repository) == 1


def test_adding_a_name_again_switches_to_the_next_version_and_drops_the_old() -> None:
    with ModelRepository() as repository:
        repository.add("m", adds(1))
        assert repository.add("m", adds(2)) == "2"
        assert answer(repository) == 2
        with pytest.raises(ModelNotFound):
            answer(repository, version="1")


def test_adding_keeps_as_many_versions_as_told() -> None:
    with ModelRepository() as repository:
        for number in (1, 2, 3):
            repository.add("m", adds(number), keep=2)
        assert states(index(repository)) == {"2": "READY", "3": "READY"}
        assert answer(repository, version="2") == 2


def test_adding_a_version_twice_is_a_conflict_and_changes_nothing() -> None:
    with ModelRepository() as repository:
        repository.add("m", adds(1), version=7)
        with pytest.raises(Conflict, match="version 7 already"):
            repository.add("m", adds(2), version="07")
        assert answer(repository) == 1


def test_a_failed_add_leaves_the_old_version_serving() -> None:
    with ModelRepository() as repository:
        repository.add("m", adds(1))
        with pytest.raises(LoadError):
            repository.add("m", b"no model")
        assert answer(repository) == 1


def test_a_failed_first_add_leaves_no_model_behind() -> None:
    with ModelRepository() as repository:
        with pytest.raises(LoadError):
            repository.add("m", b"no model")
        assert index(repository) == []


def test_a_factory_that_fails_is_a_load_error_with_its_cause() -> None:
    def factory(instance: int) -> Any:
        raise ZeroDivisionError("no device")

    with ModelRepository() as repository, pytest.raises(LoadError, match="no device") as caught:
        repository.add("m", factory)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_no_instances_are_refused() -> None:
    with ModelRepository() as repository, pytest.raises(ValueError, match="instances"):
        repository.add("m", adds(1), instances=0)


def test_a_stored_model_cannot_be_shadowed_by_add(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1}})
    with ModelRepository(tmp_path, load="none") as repository:
        with pytest.raises(Conflict, match="in the store"):
            repository.add("m", adds(2))
        repository.load("m")
        assert answer(repository) == 1


def test_adding_on_an_event_loop_with_its_requests_under_way_is_refused() -> None:
    async def main() -> None:
        async with ModelRepository() as repository:
            backend = Gated(1)
            repository.add("m", backend)
            asked = asyncio.create_task(repository.infer(request()))
            assert await asyncio.to_thread(backend.entered.acquire, timeout=10)
            with pytest.raises(RuntimeError, match=r"await aadd\(\)"):
                repository.add("m", adds(2))
            following = asyncio.create_task(repository.aadd("m", adds(2)))
            backend.gate.set()
            assert added((await asked).outputs) == 1
            assert await following == "2"
            assert added((await repository.infer(request())).outputs) == 2

    asyncio.run(main())


# ---------------------------------------------------------------------- load


def test_all_stored_models_are_loaded_at_first(tmp_path: Path) -> None:
    tree(tmp_path, {"a": {"1": 1, "2": 2}, "b": {"3": 3}})
    with ModelRepository(tmp_path) as repository:
        assert (answer(repository, "a"), answer(repository, "b")) == (2, 3)
        assert asyncio.run(repository.ready())


def test_only_the_named_models_are_loaded(tmp_path: Path) -> None:
    tree(tmp_path, {"a": {"1": 1}, "b": {"1": 2}})
    with ModelRepository(tmp_path, load=["b"]) as repository:
        assert answer(repository, "b") == 2
        with pytest.raises(ModelNotFound):
            answer(repository, "a")
        assert states(index(repository), "a") == {"1": "UNAVAILABLE"}


def test_a_name_that_is_not_stored_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    tree(tmp_path, {"a": {"1": 1}})
    with pytest.raises(ModelNotFound, match='"b"'):
        ModelRepository(tmp_path, load=["a", "b"])


def test_a_broken_model_does_not_keep_named_others_from_serving(tmp_path: Path) -> None:
    tree(tmp_path, {"good": {"1": 1}, "broken": {"1": 1}})
    (tmp_path / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    with ModelRepository(tmp_path, load=["broken", "good"]) as repository:
        assert answer(repository, "good") == 1
        assert described(index(repository), "1", "broken").state == "UNAVAILABLE"
        assert not asyncio.run(repository.ready())


def test_loading_picks_up_what_came_into_the_store(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1}})
    with ModelRepository(tmp_path) as repository:
        tree(tmp_path, {"m": {"2": 2}})
        assert answer(repository) == 1
        assert repository.load("m") == "2"
        assert answer(repository) == 2
        assert states(index(repository)) == {"1": "UNAVAILABLE", "2": "READY"}


def test_loading_one_version_of_an_unloaded_model_loads_only_that(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2}})
    with ModelRepository(tmp_path, load="none") as repository:
        assert repository.load("m", 1) == "1"
        assert answer(repository) == 1
        assert states(index(repository)) == {"1": "READY", "2": "UNAVAILABLE"}


def test_loading_an_older_version_beside_the_newest(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2}})
    with ModelRepository(tmp_path) as repository:
        repository.load("m", "1")
        assert (answer(repository), answer(repository, version="1")) == (2, 1)


def test_a_load_that_fails_leaves_the_old_version_serving_and_says_why(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1}})
    with ModelRepository(tmp_path) as repository:
        (tmp_path / "m" / "2").mkdir()
        (tmp_path / "m" / "2" / "model.onnx").write_bytes(b"no model")
        with pytest.raises(LoadError):
            repository.load("m")
        assert answer(repository) == 1
        broken = described(index(repository), "2")
        assert (broken.state, str(tmp_path) in broken.reason) == ("UNAVAILABLE", False)
        assert broken.reason


def test_a_version_that_fails_when_asked_for_by_number_is_not_tried_again(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "3": 3}})
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(b"no model")
    with ModelRepository(tmp_path) as repository:
        with pytest.raises(LoadError):
            repository.load("m", 1)
        assert asyncio.run(repository.ready())
        assert repository.load("m") == "3"


def test_a_failed_load_of_an_unloaded_model_leaves_it_unloaded(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2}})
    (tmp_path / "m" / "2" / "model.onnx").write_bytes(b"no model")
    with ModelRepository(tmp_path, keep="all") as repository:
        assert answer(repository) == 1
        repository.unload("m")
        with pytest.raises(LoadError):
            repository.load("m")
        assert set(states(index(repository)).values()) == {"UNAVAILABLE"}
        assert asyncio.run(repository.ready())
        assert repository.load("m", 1) == "1"


def test_a_broken_newest_version_keeps_only_the_answering_one_beyond_the_policy(
    tmp_path: Path,
) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2}})
    with ModelRepository(tmp_path, keep=2) as repository:
        tree(tmp_path, {"m": {"3": 3}})
        (tmp_path / "m" / "3" / "model.onnx").write_bytes(b"no model")
        with pytest.raises(LoadError):
            repository.load("m")
        assert answer(repository) == 2
        found = states(index(repository))
        assert found == {"1": "UNAVAILABLE", "2": "READY", "3": "UNAVAILABLE"}


def test_a_label_whose_version_was_deleted_by_hand_is_no_label(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2}})
    LocalStore(tmp_path).label("m", {"stable": "2"})
    shutil.rmtree(tmp_path / "m" / "2")
    with ModelRepository(tmp_path) as repository:
        assert answer(repository) == 1
        with pytest.raises(ModelNotFound):
            answer(repository, version="stable")


@pytest.mark.parametrize("keep", [0, -1, "newest", ["1", "x"]])
def test_a_version_policy_that_is_none_is_refused(keep: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"keep|whole number"):
        ModelRepository(tmp_path, keep=keep)
    with ModelRepository() as repository, pytest.raises(ValueError, match=r"keep|whole number"):
        repository.add("m", adds(1), keep=keep)


def test_a_list_of_versions_is_what_is_loaded(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2, "3": 3}})
    with ModelRepository(tmp_path, keep=["01", "2"]) as repository:
        assert answer(repository) == 2
        assert [v for v, state in states(index(repository)).items() if state == "READY"] == [
            "1",
            "2",
        ]


def test_what_to_load_is_all_none_or_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='"all", "none" or a list'):
        ModelRepository(tmp_path, load="iris")  # type: ignore[arg-type]


def test_what_the_system_says_of_a_file_reaches_the_index_without_its_path(tmp_path: Path) -> None:
    class Locked(LocalStore):
        def open(self, model: str, version: str) -> Any:
            raise PermissionError(13, "Permission denied", str(self.path / model / version))

    tree(tmp_path, {"m": {"1": 1}})
    with ModelRepository(Locked(tmp_path)) as repository:
        reason = described(index(repository), "1").reason
        assert reason == "PermissionError: Permission denied"


def test_loading_what_is_not_stored(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1}})
    with ModelRepository(tmp_path) as repository:
        with pytest.raises(ModelNotFound, match='"other"'):
            repository.load("other")
        with pytest.raises(ModelNotFound, match='version "9"'):
            repository.load("m", 9)


def test_check_refuses_what_a_request_would_be_refused_for(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1}})
    with ModelRepository(tmp_path) as repository:
        repository.check("m")
        repository.check("m", "1")
        with pytest.raises(ModelNotFound, match='"other"'):
            repository.check("other")
        with pytest.raises(ModelNotFound, match='version "9"'):
            repository.check("m", "9")
        repository.unload("m")
        with pytest.raises(ModelNotReady):
            repository.check("m")
        # A policy may send its requests to another model.
        repository.route("m", Pinned("1"))
        repository.check("m")
    with pytest.raises(ModelNotReady, match="closed"):
        repository.check("m")


def test_verbs_of_the_store_need_one() -> None:
    with ModelRepository() as repository:
        with pytest.raises(Unsupported, match=r"ModelRepository\(directory\)"):
            repository.publish("m", adds(1))
        with pytest.raises(Unsupported):
            repository.load("m")
        with pytest.raises(Unsupported):
            repository.collect("m", 1)


def test_a_tampered_file_makes_its_version_unavailable_and_no_other(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for name in ("m", "n"):
        store.put(name, adds(1))
    content = bytearray((tmp_path / "m" / "1" / "model.onnx").read_bytes())
    content[-1] ^= 1
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(content)
    with ModelRepository(tmp_path) as repository:
        assert answer(repository, "n") == 1
        with pytest.raises(ModelNotReady):
            answer(repository, "m")
        assert "sha256" in described(index(repository), "1").reason
        with pytest.raises(IntegrityError):
            repository.load("m")


def test_external_data_is_loaded_published_and_verified(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    source = save_external(tmp_path / "made")
    with ModelRepository(tmp_path / "store") as repository:
        repository.publish("m", source)
        source.unlink()
        outputs = repository.predict("m", np.zeros((1, 512), np.float32))
        assert np.array_equal(outputs["y"][0], np.arange(512))
    (tmp_path / "store" / "m" / "1" / "weights.bin").write_bytes(bytes(2048))
    with ModelRepository(tmp_path / "store") as repository:
        assert "weights.bin" in described(index(repository), "1").reason


# ---------------------------------------------------------------------- unload


def test_unloading_a_version_lets_its_requests_end_and_then_closes_it() -> None:
    with ModelRepository() as repository, held(repository) as (backend, asked):
        unloading = Background(repository.unload, "m")
        wait_until(lambda: states(index(repository)) == {"1": "UNLOADING"})
        with pytest.raises(ModelNotReady):
            answer(repository)
        assert not backend.closed.is_set()
        backend.gate.set()
        assert asked.result() == 1
        unloading.result()
        assert backend.closed.is_set()


def test_a_draining_version_keeps_no_other_change_waiting() -> None:
    with ModelRepository() as repository, held(repository) as (backend, asked):
        replacing = Background(repository.add, "m", Gated(2))
        wait_until(lambda: states(index(repository)) == {"1": "UNLOADING", "2": "READY"})
        third = Gated(3)
        third.gate.set()
        assert repository.add("m", third) == "3"
        assert answer(repository) == 3
        assert not backend.closed.is_set()
        backend.gate.set()
        assert asked.result() == 1
        assert replacing.result() == "2"
        assert backend.closed.is_set()


def test_what_waits_when_the_drain_is_over_gets_model_not_ready() -> None:
    with ModelRepository() as repository, held(repository) as (backend, asked):
        waiting = Background(answer, repository)
        version = repository._control.entries["m"].default
        assert version is not None
        wait_until(lambda: version.batcher.queue_depth == 1)
        repository.unload("m", drain=0.01)
        with pytest.raises(ModelNotReady, match="unloaded"):
            waiting.result()
        backend.gate.set()
        assert asked.result() == 1  # it ran already, and ends by itself
        assert backend.closed.wait(10)


def test_an_unloaded_stored_version_stays_unloaded(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2}})
    with ModelRepository(tmp_path, keep="all") as repository:
        repository.unload("m", 2)
        tree(tmp_path, {"m": {"3": 3}})
        repository.load("m", 1)
        assert states(index(repository)) == {"1": "READY", "2": "UNAVAILABLE", "3": "READY"}
        assert described(index(repository), "2").reason == "unloaded"
        with pytest.raises(ModelNotReady):
            answer(repository, version="2")
        repository.load("m")
        assert answer(repository, version="2") == 2


def test_an_unloaded_model_does_not_count_as_failing(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1}, "n": {"1": 1}})
    with ModelRepository(tmp_path) as repository:
        repository.unload("m")
        with pytest.raises(ModelNotReady):
            answer(repository)
        assert asyncio.run(repository.ready())
        assert not asyncio.run(repository.ready("m"))


def test_unloading_what_is_not_loaded(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2}})
    with ModelRepository(tmp_path) as repository:
        with pytest.raises(ModelNotFound):
            repository.unload("m", 1)
        with pytest.raises(ModelNotFound):
            repository.unload("other")


# ---------------------------------------------------------------------- labels and policies


def test_the_label_stable_decides_who_answers(tmp_path: Path) -> None:
    with ModelRepository(tmp_path) as repository:
        repository.publish("m", adds(1))
        assert repository.publish("m", adds(2), label="canary") == "2"
        assert answer(repository) == 1
        assert answer(repository, version="canary") == 2
        assert repository.label("m", {"stable": 2, "canary": None}) == {"stable": "2"}
        assert answer(repository) == 2
        with pytest.raises(ModelNotFound):
            answer(repository, version="canary")
        assert states(index(repository)) == {"1": "UNAVAILABLE", "2": "READY"}


def test_a_canary_does_not_become_the_default_where_nothing_is_stable(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1}})
    with ModelRepository(tmp_path) as repository:
        repository.publish("m", adds(2), label="canary")
        assert (answer(repository), answer(repository, version="canary")) == (1, 2)
    with ModelRepository(tmp_path) as repository:
        assert (answer(repository), answer(repository, version="canary")) == (1, 2)


def test_labels_are_found_again_by_the_next_repository(tmp_path: Path) -> None:
    with ModelRepository(tmp_path) as repository:
        for number in (1, 2, 3):
            repository.publish("m", adds(number))
        repository.label("m", {"stable": 2})
    with ModelRepository(tmp_path) as repository:
        assert answer(repository) == 2


def test_a_label_cannot_move_to_a_version_that_does_not_load(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"2": 2}})
    with ModelRepository(tmp_path) as repository:
        repository.publish("m", adds(3))
        (tmp_path / "m" / "1").mkdir()
        (tmp_path / "m" / "1" / "model.onnx").write_bytes(b"no model")
        with pytest.raises(LoadError):
            repository.label("m", {"stable": 1, "old": 2})
        assert LocalStore(tmp_path).labels("m") == {"stable": "3"}
        assert answer(repository) == 3
        assert states(index(repository))["2"] == "UNAVAILABLE"
        with pytest.raises(ModelNotFound):
            repository.label("m", {"stable": 9})


def test_labelling_brings_an_unloaded_version_back(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2}})
    with ModelRepository(tmp_path, keep="all") as repository:
        repository.unload("m", 1)
        repository.label("m", {"old": 1})
        assert answer(repository, version="old") == 1


def test_a_model_that_is_not_served_can_be_labelled(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2}})
    with ModelRepository(tmp_path, load="none") as repository:
        assert repository.label("m", {"stable": 1}) == {"stable": "1"}
        assert repository.load("m") == "1"


def test_labels_of_a_model_in_memory() -> None:
    with ModelRepository() as repository:
        repository.add("m", adds(1))
        repository.label("m", {"stable": 1})
        repository.add("m", adds(2))
        assert answer(repository) == 1
        with pytest.raises(InvalidInput, match="label"):
            repository.label("m", {"1": 2})
        repository.label("m", {"stable": 2})
        assert answer(repository) == 2


def test_rolling_back_loads_the_version_before_and_moves_the_label(tmp_path: Path) -> None:
    with ModelRepository(tmp_path) as repository:
        repository.publish("m", adds(1))
        repository.publish("m", adds(2))
        assert repository.rollback("m") == "1"
        assert answer(repository) == 1
        assert LocalStore(tmp_path).labels("m") == {"stable": "1"}
        with pytest.raises(ModelNotFound, match="before 1"):
            repository.rollback("m")


def test_a_rollback_to_a_broken_version_changes_nothing(tmp_path: Path) -> None:
    with ModelRepository(tmp_path) as repository:
        repository.publish("m", adds(1))
        repository.publish("m", adds(2))
        (tmp_path / "m" / "1" / "model.onnx").write_bytes(b"tampered")
        with pytest.raises(IntegrityError):
            repository.rollback("m")
        assert answer(repository) == 2
        assert LocalStore(tmp_path).labels("m") == {"stable": "2"}


def test_routing_to_a_number_a_label_and_back(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2, "3": 3}})
    with ModelRepository(tmp_path, keep="all") as repository:
        repository.route("m", "1")
        assert answer(repository) == 1
        repository.label("m", {"blue": 2})
        repository.route("m", "blue")
        assert answer(repository) == 2
        repository.label("m", {"blue": 3})
        assert answer(repository) == 3
        repository.label("m", {"stable": 1})
        repository.route("m", Latest())
        assert answer(repository) == 3
        repository.route("m", None)
        assert answer(repository) == 1


def test_a_version_in_the_request_overrules_the_policy(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2}})
    with ModelRepository(tmp_path, keep="all") as repository:
        repository.route("m", Pinned("2"))
        assert answer(repository, version="1") == 1


def test_routing_to_what_is_not_there_is_refused() -> None:
    with ModelRepository() as repository:
        repository.add("m", adds(1))
        with pytest.raises(ModelNotFound):
            repository.route("m", "2")
        with pytest.raises(TypeError, match="choose"):
            repository.route("m", object())  # type: ignore[arg-type]
        with pytest.raises(ModelNotFound):
            repository.route("other", None)


class SendsTo:
    """A policy of a user's own."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.seen: list[tuple[str, ...]] = []

    def choose(self, request: InferRequest, versions: Any) -> Choice:
        self.seen.append(tuple(versions))
        return self.choice


def test_a_policy_may_choose_another_model_and_its_version() -> None:
    with ModelRepository() as repository:
        repository.add("m", adds(1))
        repository.add("n", adds(2), keep="all")
        repository.add("n", adds(3))
        policy = SendsTo(Choice(model="n"))
        repository.route("m", policy)
        assert answer(repository) == 3
        assert policy.seen == [("1",)]
        repository.route("m", SendsTo(Choice(model="n", version="1")))
        response = asyncio.run(repository.infer(request()))
        assert (response.model, response.version, added(response.outputs)) == ("n", "1", 2)


def test_policies_in_a_circle_are_an_error() -> None:
    with ModelRepository() as repository:
        repository.add("m", adds(1))
        repository.add("n", adds(2))
        repository.route("m", SendsTo(Choice(model="n")))
        repository.route("n", SendsTo(Choice(model="m")))
        with pytest.raises(LoadError, match="circle"):
            answer(repository)
        assert answer(repository, version="1") == 1


# ---------------------------------------------------------------------- collect


def test_collecting_spares_loaded_and_labelled_versions(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {str(number): number for number in range(1, 7)}})
    LocalStore(tmp_path).label("m", {"old": "2"})
    with ModelRepository(tmp_path) as repository:
        repository.load("m", 3)
        assert repository.collect("m", 1) == ("1", "4", "5")
        assert LocalStore(tmp_path).versions("m") == ("2", "3", "6")
        assert [answer(repository, version=v) for v in ("old", "3", "6")] == [2, 3, 6]
        assert asyncio.run(repository.acollect("m", 0)) == ()


def test_collecting_spares_a_version_that_still_answers(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2}})
    with ModelRepository(tmp_path, load="none") as repository:
        entry = repository._control.open_entry("m", stored=True)
        entry.loading = frozenset("1")
        assert repository.collect("m", 0) == ("2",)


# ---------------------------------------------------------------------- event loops


def test_blocking_forms_refuse_to_run_on_an_event_loop(tmp_path: Path) -> None:
    async def main() -> None:
        async with ModelRepository(tmp_path) as repository:
            for call in (
                lambda: repository.load("m"),
                lambda: repository.unload("m"),
                lambda: repository.publish("m", adds(1)),
                lambda: repository.label("m", {}),
                lambda: repository.rollback("m"),
            ):
                with pytest.raises(RuntimeError, match=r"await a\w+\(\) there"):
                    call()

    asyncio.run(main())


def test_every_verb_has_a_coroutine_form(tmp_path: Path) -> None:
    async def main() -> None:
        async with ModelRepository(tmp_path) as repository:
            assert await repository.apublish("m", adds(1)) == "1"
            assert await repository.apublish("m", adds(2), metadata={"by": "me"}) == "2"
            assert added((await repository.infer(request())).outputs) == 2
            assert await repository.arollback("m") == "1"
            assert await repository.alabel("m", {"stable": 2}) == {"stable": "2"}
            assert await repository.aload("m", 1) == "1"
            await repository.aroute("m", "1")
            assert added((await repository.infer(request())).outputs) == 1
            await repository.aunload("m", 1)
            assert await repository.acollect("m", 1) == ("1",)
            assert await repository.aadd("n", adds(5)) == "1"
            assert added((await repository.infer(request("n"))).outputs) == 5

    asyncio.run(main())


def test_closing_on_an_event_loop_is_refused_while_its_requests_are_under_way() -> None:
    async def main() -> None:
        repository = ModelRepository()
        backend = Gated(1)
        repository.add("m", backend)
        asked = asyncio.create_task(repository.infer(request()))
        assert await asyncio.to_thread(backend.entered.acquire, timeout=10)
        with pytest.raises(RuntimeError, match=r"await aclose\(\)"):
            repository.close()
        closing = asyncio.create_task(repository.aclose())
        backend.gate.set()
        assert added((await asked).outputs) == 1
        await closing

    asyncio.run(main())


def test_an_idle_repository_may_be_closed_on_an_event_loop() -> None:
    async def main() -> None:
        with ModelRepository() as repository:
            repository.add("m", adds(1))
            assert added((await repository.infer(request())).outputs) == 1

    asyncio.run(main())


# ---------------------------------------------------------------------- close


def test_closing_answers_what_is_under_way() -> None:
    repository = ModelRepository()
    with held(repository) as (backend, asked):
        closing = Background(repository.close)
        wait_until(lambda: repository._control.closed)
        with pytest.raises(ModelNotReady, match="closed"):
            answer(repository)
        assert closing.running
        backend.gate.set()
        assert asked.result() == 1
        closing.result()
        assert backend.closed.is_set()


def test_a_slow_model_takes_no_other_ones_time_to_drain() -> None:
    repository = ModelRepository()
    with held(repository, "a") as (slow, first), held(repository, "b") as (quick, second):
        quick.gate.set()
        assert second.result() == 1
        repository.close(drain=0.2)
        assert quick.closed.is_set()
        assert not slow.closed.is_set()
        slow.gate.set()
        assert first.result() == 1
        assert slow.closed.wait(10)


def test_closing_twice_does_no_harm() -> None:
    repository = ModelRepository()
    repository.add("m", adds(1))
    repository.close()
    repository.close()
    assert index(repository) == []


def test_a_closed_repository_takes_no_model(tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path)
    repository.publish("m", adds(1))
    repository.close()
    for call in (
        lambda: repository.add("n", adds(1)),
        lambda: repository.load("m"),
        lambda: repository.publish("m", adds(2)),
        lambda: repository.publish("n", adds(2)),
        lambda: repository.unload("m"),
        lambda: answer(repository),
    ):
        with pytest.raises(ModelNotReady, match="closed"):
            call()
    assert LocalStore(tmp_path).versions("m") == ("1",)
    assert not asyncio.run(repository.ready())


class Announced:
    """A model's lock that tells when somebody wants it."""

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self.lock = threading.RLock()

    def __enter__(self) -> None:
        self.wanted.set()
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


@contextlib.contextmanager
def adding_waits(repository: ModelRepository) -> Iterator[Background]:
    """Have somebody wait to add version 2 of a model until the block ends."""
    repository.add("m", adds(1))
    announced: Any = Announced()
    repository._control.entries["m"].lock = announced
    with announced.lock:
        adding = Background(repository.add, "m", adds(2))
        assert announced.wanted.wait(10)
        yield adding


def test_a_change_that_waited_finds_the_repository_closed() -> None:
    repository = ModelRepository()
    with adding_waits(repository) as adding:
        closing = Background(repository.close)
        wait_until(lambda: repository._control.closed)
    closing.result()
    with pytest.raises(ModelNotReady, match="closed"):
        adding.result()


def test_a_change_that_waited_finds_the_model_gone_and_makes_it_again() -> None:
    with ModelRepository() as repository:
        with adding_waits(repository) as adding:
            repository.unload("m")
        assert adding.result() == "1"
        assert answer(repository) == 2


# ---------------------------------------------------------------------- several repositories


def test_two_repositories_with_equal_names_know_nothing_of_each_other() -> None:
    with ModelRepository() as one, ModelRepository() as other:
        one.add("m", adds(1))
        other.add("m", adds(2))
        assert (answer(one), answer(other)) == (1, 2)
        one.unload("m")
        assert answer(other) == 2


def test_two_repositories_share_a_directory(tmp_path: Path) -> None:
    with ModelRepository(tmp_path) as one, ModelRepository(tmp_path) as other:
        one.publish("m", adds(1))
        assert other.load("m") == "1"
        assert other.publish("m", adds(2)) == "2"
        assert (answer(one), answer(other)) == (1, 2)
        assert one.load("m") == "2"
        assert answer(one) == 2


def test_no_thread_is_started_before_the_first_request(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1}})

    @model(inputs=[SPEC], max_batch_size=4)
    def double(x: Any) -> Any:
        return {"y": x * 2}

    before = set(threading.enumerate())
    with ModelRepository(tmp_path, instances=2) as repository:
        repository.add(double)
        repository.publish("m", adds(2))
        assert set(threading.enumerate()) == before


# ---------------------------------------------------------------------- catalog


def test_describing_a_version_by_number_and_label(tmp_path: Path) -> None:
    with ModelRepository(tmp_path) as repository:
        repository.publish("m", adds(1))
        info = asyncio.run(repository.describe("m", "stable"))
        assert (info.version, info.state, info.labels) == ("1", "READY", ("stable",))
        assert info.signature is not None
        assert info.signature.inputs == (SPEC,)
        assert info.platform == "onnxruntime_onnx"
        assert info.max_batch_size == 64
        assert info.batching.startswith("proven")


def test_a_model_that_is_stored_and_not_loaded_is_not_ready(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1, "2": 2}})
    with ModelRepository(tmp_path, load="none") as repository:
        with pytest.raises(ModelNotReady):
            asyncio.run(repository.describe("m"))
        assert not asyncio.run(repository.ready("m", "2"))
        with pytest.raises(ModelNotFound):
            asyncio.run(repository.ready("m", "9"))
        with pytest.raises(ModelNotFound):
            asyncio.run(repository.ready("other"))
        repository.load("m")
        assert asyncio.run(repository.ready("m", "2"))
        assert not asyncio.run(repository.ready("m", "1"))


def test_a_version_is_loading_until_it_can_answer() -> None:
    begun, go = threading.Event(), threading.Event()

    def factory(instance: int) -> Gated:
        begun.set()
        assert go.wait(10)
        return Gated(1)

    with ModelRepository() as repository:
        adding = Background(repository.add, "m", factory)
        assert begun.wait(10)
        assert states(index(repository)) == {"1": "LOADING"}
        with pytest.raises(ModelNotReady, match="loading"):
            answer(repository)
        go.set()
        assert adding.result() == "1"
        assert states(index(repository)) == {"1": "READY"}
        repository.unload("m")
        assert index(repository) == []


# ---------------------------------------------------------------------- requests and streams


def test_predict_takes_the_one_input_bare_and_as_a_list() -> None:
    with ModelRepository() as repository:
        repository.add("m", adds(1))
        assert added(repository.predict("m", ROWS)) == 1
        assert repository.predict("m", [[1, 2, 3, 4]])["y"].tolist() == [[2, 3, 4, 5]]


class HeldUp:
    """Chooses as a caller does that was held up until the version it chose was closed."""

    def __init__(self, repository: ModelRepository) -> None:
        self.entry = repository._control.entries["m"]
        self.old = self.entry.find("")
        repository.add("m", adds(2))
        self.new = self.entry.find("")
        self.entry.update({"1": self.old})
        self.calls = 0

    def choose(self, request: InferRequest, versions: Any) -> Choice:
        self.calls += 1
        if self.calls == 2:
            self.entry.update({"2": self.new})
        return Choice()


@pytest.mark.parametrize("how", ["predict", "infer", "stream"])
def test_a_closed_version_sends_a_request_on_to_its_successor(how: str) -> None:
    async def ask(repository: ModelRepository) -> float:
        if how == "infer":
            return added((await repository.infer(request())).outputs)
        (response,) = [response async for response in repository.stream(request())]
        return added(response.outputs)

    with ModelRepository() as repository:
        repository.add("m", adds(1))
        policy = HeldUp(repository)
        repository.route("m", policy)
        asked = answer(repository) if how == "predict" else asyncio.run(ask(repository))
        assert (asked, policy.calls) == (2, 2)


def test_a_stream_fills_in_the_exchange_of_its_transport() -> None:
    async def main() -> Exchange:
        async with ModelRepository() as repository:
            repository.add("m", adds(1), version=3)
            asked = request()
            exchange = asked.exchange = Exchange("http", "m")
            assert [r.version async for r in repository.stream(asked)] == ["3"]
            return exchange

    exchange = asyncio.run(main())
    assert (exchange.model, exchange.version, exchange.code) == ("m", "3", "OK")


def test_a_stream_of_requests_follows_a_swap() -> None:
    async def main() -> None:
        async with ModelRepository() as repository:
            repository.add("m", adds(1))
            swapped = asyncio.Event()

            async def requests() -> AsyncIterator[InferRequest]:
                yield request(id="a")
                await swapped.wait()
                yield request(id="b")

            responses = repository.stream(requests())
            first = await anext(responses)
            await repository.aadd("m", adds(2))
            swapped.set()
            second = await anext(responses)
            assert [(r.id, r.version, added(r.outputs)) for r in (first, second)] == [
                ("a", "1", 1),
                ("b", "2", 2),
            ]
            assert [r async for r in responses] == []

    asyncio.run(main())


def test_a_stream_that_waits_for_its_turn_goes_to_the_successor() -> None:
    @model(name="m", inputs=[TensorSpec("n", "INT64", (1,))], concurrency=1)
    def one(n: Any) -> Iterator[Any]:
        yield {"v": np.array([1])}
        yield {"v": np.array([1])}

    @model(name="m", inputs=[TensorSpec("n", "INT64", (1,))], concurrency=1)
    def two(n: Any) -> Iterator[Any]:
        yield {"v": np.array([2])}

    def ask() -> InferRequest:
        return InferRequest("m", {"n": np.array([1])})

    async def main() -> None:
        async with ModelRepository() as repository:
            repository.add(one)
            first = repository.stream(ask())
            assert (await anext(first)).version == "1"

            async def all_of_it() -> list[int]:
                return [int(r.outputs["v"][0]) async for r in repository.stream(ask())]

            waiting = asyncio.create_task(all_of_it())
            await asyncio.sleep(0)
            swapping = asyncio.create_task(repository.aadd(two))
            assert await waiting == [2]
            assert [r.version async for r in first] == ["1"]
            assert await swapping == "2"

    asyncio.run(main())
