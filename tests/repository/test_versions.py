"""One version: how it is loaded, what it says of itself, how it ends."""

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from modelserve.backends.onnxruntime import InferenceSession
from modelserve.backends.python import PythonBackend
from modelserve.errors import InvalidInput, LoadError, Unsupported
from modelserve.messages import InferRequest
from modelserve.protocols import Traits
from modelserve.repository.versions import ModelVersion, VersionOptions, load_version
from modelserve.tensors import Signature, TensorSpec
from onnx_models import fixed_batch, int8_dynamic, mlp, reduce_over_batch
from versioned_models import ROWS, adds

SPEC = TensorSpec("x", "FP32", (-1, 4))


class Counted:
    """A backend that counts what is done to it."""

    signature = Signature([SPEC], [TensorSpec("y", "FP32", (-1, 4))])

    def __init__(self, *, shared: bool = False) -> None:
        self.traits = Traits(shared=shared)
        self.runs = 0
        self.closed = 0

    def run(self, inputs: Any) -> Any:
        self.runs += 1
        return {"y": inputs["x"] + 1}

    def close(self) -> None:
        self.closed += 1


def load(source: Any, **options: Any) -> ModelVersion:
    return load_version("m", "1", source, VersionOptions(**options))


def ask(version: ModelVersion, x: Any = ROWS, **options: Any) -> Any:
    return version.infer_blocking(InferRequest("m", {"x": x}, **options))


def test_a_loaded_version_is_ready_and_answers() -> None:
    version = load(adds(1))
    assert version.info().state == "READY"
    assert np.array_equal(ask(version)["y"], ROWS + 1)
    assert version.close(drain=1)
    assert version.info().state == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("source", "options", "size", "said"),
    [
        (mlp(), {}, 64, "proven"),
        (mlp(), {"max_batch_size": 7}, 7, "declared: up to 7 rows"),
        (mlp(), {"max_batch_size": 0}, 0, "off: declared"),
        (fixed_batch(), {}, 0, "off: "),
        (reduce_over_batch(), {}, 0, "off: "),
        (int8_dynamic(), {}, 0, "off: "),
        (Counted(), {}, 0, "off: max_batch_size is not declared"),
        (Counted(), {"max_batch_size": 5}, 5, "declared: up to 5 rows"),
    ],
)
def test_why_rows_are_batched_or_not_is_said(
    source: Any, options: dict[str, Any], size: int, said: str
) -> None:
    version = load(source, **options)
    assert version.info().max_batch_size == size
    assert version.batching.startswith(said)
    version.close(drain=1)


def test_a_backend_of_a_user_is_not_run_to_see_what_it_does() -> None:
    backend = Counted()
    load(backend).close(drain=1)
    assert (backend.runs, backend.closed) == (0, 1)


def test_a_factory_makes_one_backend_an_instance_and_each_is_closed_once() -> None:
    made: list[Counted] = []

    def factory(instance: int) -> Counted:
        assert instance == len(made)
        made.append(Counted())
        return made[-1]

    load(factory, instances=3).close(drain=1)
    assert [backend.closed for backend in made] == [1, 1, 1]


def test_one_object_is_not_run_twice_at_once() -> None:
    with pytest.raises(ValueError, match="a function that makes one for each instance"):
        load(Counted(), instances=2)
    shared = Counted(shared=True)
    load(shared, instances=2).close(drain=1)
    assert shared.closed == 1


def test_backends_made_for_a_load_that_fails_are_closed() -> None:
    backend = Counted()
    declared = Signature([TensorSpec("z", "FP32", (-1, 4))], [])
    with pytest.raises(LoadError, match='declares input "z"'):
        load(lambda instance: backend, declared=declared)
    assert backend.closed == 1


def test_a_users_own_backend_stays_open_when_the_load_fails() -> None:
    backend = Counted()
    with pytest.raises(LoadError):
        load(backend, declared=Signature([TensorSpec("z", "FP32", None)], []))
    assert backend.closed == 0


def test_a_function_with_retry_is_not_run_on_made_up_rows() -> None:
    seen = []

    def double(x: Any) -> Any:
        seen.append(len(x))
        return {"y": x * 2}

    version = load(PythonBackend(double, inputs=[SPEC], retry=True))
    assert version.batcher.max_batch_size == 0
    assert not seen
    version.close(drain=1.0)


def test_a_predict_function_is_not_taken_for_a_factory() -> None:
    def predict(x: Any) -> int:
        return 3

    with pytest.raises(TypeError, match=r"predict\(0\).* returned int; .*model\(predict"):
        load(predict)


def test_a_factory_that_fails_is_named() -> None:
    def predict(x: Any) -> Any:
        raise ValueError("Expected 2D array")

    with pytest.raises(LoadError, match=r"predict\(0\).* raised ValueError: Expected 2D array; to"):
        load(predict)


def test_a_model_is_one_of_four_things() -> None:
    with pytest.raises(TypeError, match="a path, bytes, a backend, or a function"):
        load(3)


@pytest.mark.parametrize("options", [{"instances": 0}, {"max_batch_size": -1}])
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        VersionOptions(**options)


def test_rows_are_bounded_by_the_batch_size() -> None:
    version = load(adds(1), max_batch_size=2)
    for rows in (0, 3):
        with pytest.raises(InvalidInput, match=rf"expected 1 to 2 rows .*, got {rows}"):
            ask(version, np.zeros((rows, 4), np.float32))
    version.close(drain=1)


def test_an_output_that_is_not_there_is_refused_with_its_place() -> None:
    version = load(adds(1))
    with pytest.raises(InvalidInput, match=r'outputs\[1\] "z": unknown output; the model gives y'):
        ask(version, outputs=["y", "z"])
    version.close(drain=1)


def test_metadata_of_an_onnx_model_is_described() -> None:
    version = load(mlp())
    assert version.info().metadata == InferenceSession(mlp()).metadata
    assert version.info().metadata
    version.close(drain=1)


def test_metadata_of_a_version_closed_before_anybody_asked_is_empty() -> None:
    version = load(mlp())
    version.close(drain=1)
    assert version.info().metadata == {}


@pytest.mark.parametrize("found", [None, "text", ["a"]])
def test_metadata_that_is_no_mapping_is_not_shown(found: Any) -> None:
    backend = Counted()
    backend.metadata = found  # type: ignore[attr-defined]  # a backend may carry it
    version = load(backend)
    assert version.info().metadata == {}
    version.close(drain=1)


def test_a_stream_is_not_asked_for_one_answer() -> None:
    def count(x: Any) -> Any:
        yield {"y": x}

    version = load(PythonBackend(count, inputs=[SPEC]))
    assert version.batching == "off: streams are not batched"
    with pytest.raises(Unsupported, match=r"call stream\(\), or over HTTP generate_stream"):
        ask(version)
    version.close(drain=1)


def test_an_example_that_fails_is_a_load_error() -> None:
    def broken(x: Any) -> Any:
        raise KeyError("weights")

    backend = PythonBackend(broken, example=np.zeros((1, 4), np.float32))
    with pytest.raises(LoadError, match="fails on its example"):
        load(backend)


def test_an_inference_session_belongs_to_the_version() -> None:
    session = InferenceSession(adds(1))
    version = load(session)
    assert version.platform == "onnxruntime_onnx"
    assert np.array_equal(ask(version)["y"], ROWS + 1)
    version.close(drain=1)
    with pytest.raises(Exception, match="closed"):
        session.run({"x": ROWS})


def test_closing_waits_for_the_run_under_way() -> None:
    entered, gate = threading.Event(), threading.Event()

    class Slow(Counted):
        def run(self, inputs: Any) -> Any:
            entered.set()
            assert gate.wait(10)
            return super().run(inputs)

    backend = Slow()
    version = load(backend)
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(ask(version)))
    asking.start()
    assert entered.wait(10)
    assert version.outstanding == 1
    assert not version.close(drain=0.01)
    assert backend.closed == 0
    gate.set()
    asking.join(10)
    assert np.array_equal(answers[0]["y"], ROWS + 1)


def test_no_backend_is_closed_under_a_generator_whose_reader_left() -> None:
    inside, gate, closed = threading.Event(), threading.Event(), threading.Event()
    ended: list[bool] = []

    class Stuck:
        traits = Traits(streams=True)
        signature = Signature([SPEC])

        def stream(self, inputs: Any) -> Any:
            inside.set()
            assert gate.wait(10)
            ended.append(closed.is_set())
            yield {"y": ROWS}

        def close(self) -> None:
            closed.set()

    version = load(Stuck())

    async def leave() -> None:
        step = asyncio.ensure_future(anext(version.stream(InferRequest("m", {"x": ROWS}))))
        assert await asyncio.to_thread(inside.wait, 10)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step

    asyncio.run(leave())
    assert version.outstanding == 1
    assert not version.close(drain=0.01)
    assert not closed.is_set()
    gate.set()
    assert closed.wait(10)
    assert ended == [False]
