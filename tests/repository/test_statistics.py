"""What a repository says its versions have done, and the classes it answers with."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import pytest

import modelserve as ms
import onnx_models
from modelserve.errors import InvalidInput, LoadError, ModelNotFound, ModelNotReady
from modelserve.messages import InferRequest, InferResponse, ModelStatistics
from modelserve.repository.repository import ModelRepository
from modelserve.testing import StubModel
from versioned_models import ROWS, tree

X = np.array([[0.5, 0.25, 2.0, -1.0], [4.0, 3.0, 2.0, 1.0]], np.float32)


def told(servable: Any, model: str = "", version: str = "") -> list[ModelStatistics]:
    return list(asyncio.run(servable.statistics(model, version)))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[ModelRepository]:
    root = tree(tmp_path / "models", {"m": {"1": 1.0, "2": 2.0}, "n": {"1": 5.0}})
    with ModelRepository(root, keep="all") as made:
        yield made


def test_requests_in_this_process_count(repository: ModelRepository) -> None:
    before = time() * 1e3 - 1
    for _ in range(3):
        repository.predict("m", {"x": ROWS})
    asyncio.run(repository.infer(InferRequest("m", {"x": ROWS[:1]})))
    with pytest.raises(InvalidInput):
        repository.predict("m", {"x": ROWS[:, :1]})
    (found,) = told(repository, "m", "2")
    assert (found.model, found.version) == ("m", "2")
    assert (found.inference_count, found.execution_count) == (7, 4)
    assert (found.success.count, found.fail.count) == (4, 1)
    assert [(b.batch_size, b.compute_infer.count) for b in found.batches] == [(1, 1), (2, 3)]
    assert found.success.ns > found.compute_infer.ns > 0
    assert found.fail.ns > 0
    assert sum(b.compute_infer.ns for b in found.batches) == pytest.approx(
        found.compute_infer.ns, abs=2
    )
    assert before <= found.last_inference <= time() * 1e3 + 1


def test_threads_are_counted_to_the_last_request(repository: ModelRepository) -> None:
    def ask() -> None:
        for _ in range(200):
            repository.predict("m", {"x": ROWS})

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (found,) = told(repository, "m", "2")
    assert (found.success.count, found.inference_count) == (1200, 2400)
    assert sum(b.batch_size * b.compute_infer.count for b in found.batches) == 2400
    assert sum(b.compute_infer.count for b in found.batches) == found.execution_count <= 1200


def test_all_versions_a_model_s_or_one_are_told(repository: ModelRepository) -> None:
    def names(*asked: str) -> list[tuple[str, str]]:
        return [(found.model, found.version) for found in told(repository, *asked)]

    assert names() == [("m", "1"), ("m", "2"), ("n", "1")]
    assert names("m") == [("m", "1"), ("m", "2")]
    assert names("m", "1") == [("m", "1")]
    repository.label("m", {"canary": "1"})
    assert names("m", "canary") == [("m", "1")]


def test_what_is_not_there_has_no_statistics(repository: ModelRepository) -> None:
    for model, version in (("other", ""), ("m", "9")):
        with pytest.raises(ModelNotFound):
            told(repository, model, version)
    repository.unload("n")
    with pytest.raises(ModelNotReady):
        told(repository, "n")
    assert [found.model for found in told(repository)] == ["m", "m"]


def test_an_unloaded_version_begins_anew(repository: ModelRepository) -> None:
    repository.predict("n", {"x": ROWS})
    assert told(repository, "n")[0].success.count == 1
    repository.unload("n")
    repository.load("n")
    assert told(repository, "n") == [ModelStatistics("n", "1")]


def test_a_model_of_its_own_has_statistics() -> None:
    @ms.model(inputs=[ms.TensorSpec("x", "FP32", (-1, 2))], max_batch_size=8)
    def twice(x: Any) -> Any:
        return {"y": x * 2}

    twice.predict({"x": np.zeros((3, 2), np.float32)})
    (found,) = told(twice)
    twice.close()
    assert (found.model, found.inference_count) == ("twice", 3)


def test_requests_that_joined_say_what_joining_took() -> None:
    gate = threading.Event()
    began = threading.Event()

    @ms.model(inputs=[ms.TensorSpec("x", "FP32", (-1, 2))], max_batch_size=8)
    def waits(x: Any) -> Any:
        began.set()
        gate.wait(10)
        return {"y": x}

    def ask(rows: int) -> None:
        waits.predict({"x": np.zeros((rows, 2), np.float32)})

    threads = [threading.Thread(target=ask, args=(rows,)) for rows in (1, 2, 3)]
    threads[0].start()
    assert began.wait(10)
    for thread in threads[1:]:
        thread.start()
    batcher = waits._own()._entries["waits"].default.batcher  # type: ignore[union-attr]  # loaded
    while batcher.queue_depth < 2:
        threading.Event().wait(0.001)
    gate.set()
    for thread in threads:
        thread.join()
    (found,) = told(waits)
    waits.close()
    assert [(b.batch_size, b.compute_infer.count) for b in found.batches] == [(1, 1), (5, 1)]
    alone, together = found.batches
    assert alone.compute_input.ns == alone.compute_output.ns == 0
    assert together.compute_input.ns > 0
    assert together.compute_output.ns > 0
    assert found.compute_input.ns == pytest.approx(2 * together.compute_input.ns, abs=4)
    assert found.queue.ns > 0


def test_a_stub_counts_what_it_answers() -> None:
    stub = StubModel(fail_every=3)

    async def main() -> None:
        for _ in range(6):
            try:
                await stub.infer(InferRequest("stub", {"x": X}))
            except ms.BackendError:
                continue

    asyncio.run(main())
    (found,) = told(stub, "stub")
    assert (found.success.count, found.fail.count, found.inference_count) == (4, 2, 4)
    stub.state = "UNAVAILABLE"
    assert told(stub) == []
    with pytest.raises(ModelNotReady):
        told(stub, "stub")


# Classes


@pytest.fixture
def classifier(tmp_path: Path) -> Iterator[ModelRepository]:
    root = tmp_path / "models"
    (root / "c" / "1").mkdir(parents=True)
    (root / "c" / "1" / "model.onnx").write_bytes(onnx_models.identity(shape=("batch", 4)))
    (root / "c" / "labels.txt").write_text("cat\ndog\nbird\nfish\n")
    with ModelRepository(root) as made:
        yield made


def asking(count: Any, name: str = "c", output: str = "y", **options: Any) -> InferRequest:
    parameters = {output: {"classification": count}}
    return InferRequest(name, {"x": X}, outputs=[output], output_parameters=parameters, **options)


async def begun(repository: Any, request: InferRequest) -> InferResponse:
    """Ask as a transport does, without a coroutine."""
    future: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()

    def done(response: InferResponse | None, error: BaseException | None) -> None:
        if response is None:
            assert error is not None
            future.set_exception(error)
        else:
            future.set_result(response)

    repository.begin(request, done)
    return await future


def inferred(repository: Any, request: InferRequest) -> InferResponse:
    return asyncio.run(repository.infer(request))


def awaited(repository: Any, request: InferRequest) -> InferResponse:
    return asyncio.run(begun(repository, request))


def streamed(repository: Any, request: InferRequest) -> InferResponse:
    async def main() -> InferResponse:
        (found,) = [response async for response in repository.stream(request)]
        return found

    return asyncio.run(main())


Ask = Callable[[Any, InferRequest], InferResponse]
WAYS = pytest.mark.parametrize("ask", [inferred, awaited, streamed])


@WAYS
def test_classes_come_with_the_names_in_the_model_s_file(
    classifier: ModelRepository, ask: Ask
) -> None:
    response = ask(classifier, asking(2, id="mine"))
    assert response.outputs["y"].tolist() == [
        [b"2.000000:2:bird", b"0.500000:0:cat"],
        [b"4.000000:0:cat", b"3.000000:1:dog"],
    ]
    assert (response.model, response.version, response.id) == ("c", "1", "mine")


@WAYS
@pytest.mark.parametrize("count", [0, -1, "2", 1.5, True])
def test_a_wrong_number_of_classes_costs_no_run(
    classifier: ModelRepository, ask: Ask, count: Any
) -> None:
    with pytest.raises(InvalidInput, match=r"outputs\[0\]\.parameters\.classification: expected"):
        ask(classifier, asking(count))
    assert told(classifier, "c")[0].execution_count == 0


@WAYS
def test_an_output_of_texts_has_no_classes(ask: Ask) -> None:
    @ms.model(inputs=[ms.TensorSpec("x", "FP32", (-1, 4))], max_batch_size=8)
    def words(x: Any) -> Any:
        return {"y": np.array([b"a"] * len(x), np.object_)}

    with pytest.raises(InvalidInput, match=r'"y" is BYTES and has no classes'):
        ask(words, asking(1, "words"))
    words.close()


def test_the_file_a_configuration_names_goes_before_others(
    classifier: ModelRepository, tmp_path: Path
) -> None:
    directory = tmp_path / "models" / "c"
    (directory / "own.txt").write_text("one\ntwo\n")
    (directory / "config.pbtxt").write_text(
        'max_batch_size: 4 output { name: "y" data_type: TYPE_FP32 dims: 4 '
        'label_filename: "own.txt" }'
    )
    classifier.unload("c")
    classifier.load("c")
    assert inferred(classifier, asking(2)).outputs["y"].tolist()[1] == [
        b"4.000000:0:one",
        b"3.000000:1:two",
    ]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("gone.txt", None, 'label_filename "gone.txt" cannot be read'),
        ("own.txt", b"\xff", 'label_filename "own.txt" is no list'),
        ("../c/labels.txt", b"", "expected a relative file name"),
    ],
)
def test_a_named_file_that_is_no_list_keeps_the_model_from_loading(
    classifier: ModelRepository, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    directory = tmp_path / "models" / "c"
    if content:
        (directory / file).write_bytes(content)
    (directory / "config.pbtxt").write_text(
        f'max_batch_size: 4 output {{ name: "y" data_type: TYPE_FP32 label_filename: "{file}" }}'
    )
    classifier.unload("c")
    with pytest.raises(LoadError, match=message):
        classifier.load("c")


def test_requests_with_and_without_classes_share_a_batch() -> None:
    gate, began = threading.Event(), threading.Event()

    @ms.model(
        inputs=[ms.TensorSpec("x", "FP32", (-1, 4))],
        outputs=[ms.TensorSpec("y", "FP32", (-1, 4))],
        max_batch_size=16,
    )
    def echo(x: Any) -> Any:
        began.set()
        gate.wait(10)
        return {"y": x * 1}

    async def main() -> list[InferResponse]:
        first = asyncio.ensure_future(echo.infer(InferRequest("echo", {"x": X})))
        await asyncio.to_thread(began.wait, 10)
        plain = InferRequest("echo", {"x": X}, outputs=["y"])
        rest = [echo.infer(asking(1, "echo")), echo.infer(plain), echo.infer(asking(3, "echo"))]
        tasks = [asyncio.ensure_future(one) for one in rest]
        batcher = echo._own()._entries["echo"].default.batcher  # type: ignore[union-attr]  # loaded
        while batcher.queue_depth < 3:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.001)
        gate.set()
        return [await task for task in (first, *tasks)]

    _, one, plain, three = asyncio.run(main())
    (found,) = told(echo)
    echo.close()
    assert [(b.batch_size, b.compute_infer.count) for b in found.batches] == [(2, 1), (6, 1)]
    assert one.outputs["y"].tolist() == [[b"2.000000:2"], [b"4.000000:0"]]
    assert np.array_equal(plain.outputs["y"], X)
    assert three.outputs["y"].shape == (2, 3)


def test_a_generator_yields_classes() -> None:
    @ms.model(inputs=[ms.TensorSpec("x", "FP32", (2, 4))])
    def counts(x: Any) -> Iterator[Any]:
        yield {"y": x}
        yield {"y": -x}

    async def main() -> list[Any]:
        request = asking(1, "counts")
        return [r.outputs["y"].tolist() async for r in counts.stream(request)]

    found = asyncio.run(main())
    counts.close()
    assert found == [[[b"2.000000:2"], [b"4.000000:0"]], [[b"1.000000:3"], [b"-1.000000:3"]]]
