"""Functions as models, as a user meets them: declared, called plainly, served by repositories."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest

import modelserve as ms

X = ms.TensorSpec("x", "FP32", (-1, 4))
ONES = np.ones((2, 4), np.float32)


@pytest.fixture
def repo() -> Iterator[ms.ModelRepository]:
    with ms.ModelRepository() as repository:
        yield repository


def infer_all(repo: ms.ModelRepository, *requests: ms.InferRequest) -> list[Any]:
    """Send requests in one turn of the event loop, which makes one batch of them."""

    async def main() -> list[Any]:
        return await asyncio.gather(*map(repo.infer, requests), return_exceptions=True)

    return asyncio.run(main())


def stream_all(repo: Any, request: Any) -> list[Any]:
    async def main() -> list[Any]:
        return [answer.outputs["output"].tolist() async for answer in repo.stream(request)]

    return asyncio.run(main())


async def requests(model: str, name: str, *values: float) -> AsyncIterator[ms.InferRequest]:
    for value in values:
        yield ms.InferRequest(model, {name: [value]})


# ---------------------------------------------------------------------- the function itself


def plain(x: Any, scale: float = 1.0) -> Any:
    """Sum up each row."""
    return scale * x.sum(axis=1)


total = ms.model(inputs=[X], max_batch_size=8)(plain)


def test_called_plainly_it_is_the_function() -> None:
    assert total(np.ones((3, 4)), scale=2.0).tolist() == [8, 8, 8]


def test_it_looks_like_the_function() -> None:
    assert total.__name__ == "plain"
    assert repr(total) == "<Model plain>"
    assert total.__doc__ == "Sum up each row."
    assert total.__module__ == __name__
    assert total.__wrapped__ is plain  # type: ignore[attr-defined]
    assert inspect.signature(total) == inspect.signature(plain)


def test_plain_call_of_a_coroutine_function_is_awaited() -> None:
    @ms.model
    async def double(x: float) -> float:
        return 2 * x

    assert asyncio.run(double(3.0)) == 6  # type: ignore[arg-type]


def test_plain_call_of_a_generator_function_is_iterated() -> None:
    @ms.model
    def spell(word: str) -> Iterator[str]:
        yield from word

    assert list(spell("ab")) == ["a", "b"]


def test_plain_call_loads_and_changes_nothing() -> None:
    calls: list[int] = []

    @ms.model(inputs=[X], setup=lambda: calls.append(1))
    def predict(state: Any, x: Any) -> Any:
        x[:] = 0
        return x

    mine = np.ones(2)
    assert predict(None, mine) is mine
    assert calls == []


def test_attributes_of_the_function_do_not_hide_the_models() -> None:
    def predict(x: float) -> float:
        return x

    predict.infer = "mine"  # type: ignore[attr-defined]
    assert callable(ms.model(predict).infer)


# ---------------------------------------------------------------------- names


class Scaler:
    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.name = "not a model's name"

    def __call__(self, x: float) -> float:
        return self.factor * x

    def scale(self, x: float) -> float:
        return self.factor * x

    @ms.model
    @staticmethod
    def negate(x: float) -> float:
        return -x

    @staticmethod
    @ms.model
    def halve(x: float) -> float:
        return x / 2


def scaled(x: float, factor: float) -> float:
    return factor * x


@pytest.mark.parametrize(
    ("model", "name", "answer"),
    [
        (ms.model(scaled), "scaled", None),
        (ms.model(functools.partial(scaled, factor=3.0)), "scaled", 3),
        (ms.model(Scaler(3.0)), "Scaler", 3),
        (ms.model(Scaler(3.0).scale), "Scaler", 3),
        (Scaler.negate, "negate", -1),
        (Scaler(3.0).halve, "halve", 0.5),
        (ms.model(lambda x: x, name="same", example=[1.0]), "same", 1),
        (ms.model(Scaler(3.0), name="other"), "other", 3),
    ],
    ids=[
        "function",
        "partial",
        "object",
        "bound method",
        "model of a static method",
        "static method of a model",
        "lambda",
        "named",
    ],
)
def test_every_callable_becomes_a_model_with_a_name(
    repo: ms.ModelRepository, model: Any, name: str, answer: float | None
) -> None:
    assert model.name == name
    repo.add(model)
    if answer is not None:
        assert repo.predict(name, {"x": [1.0]})["output"].tolist() == [answer]
    assert model(x=1.0, **({"factor": 1.0} if answer is None else {})) == (answer or 1)


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "lambda": (lambda: ms.model(lambda x: x, inputs=[X]), "a lambda has no name: give name="),
    "empty name": (lambda: ms.model(plain, inputs=[X], name=""), "name is a non-empty str, got ''"),
    "size": (
        lambda: ms.model(plain, inputs=[X], max_batch_size=-1),
        "plain: max_batch_size is at least 0 and instances at least 1, got -1 and 1",
    ),
    "instances": (lambda: ms.model(plain, inputs=[X], instances=0), "at least 1, got 0 and 0"),
    "row shape": (
        lambda: ms.model(plain, inputs=[ms.TensorSpec("x", "FP32", (4,))], per_row=True),
        r'plain: input "x" has shape \(4,\); with .* axis 0 is the rows, so write \(-1, 4\)',
    ),
    "output shape": (
        lambda: ms.model(
            plain, inputs=[X], outputs=[ms.TensorSpec("y", "FP32", ())], max_batch_size=4
        ),
        r'plain: output "y" has shape \(\); .* so write \(-1,\)',
    ),
    "no inputs": (lambda: ms.model(plain), "plain: nothing tells what parameter x takes"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_wrong_declaration_fails_where_it_stands(case: str) -> None:
    declare, words = REFUSALS[case]
    with pytest.raises(ValueError, match=words):
        declare()


def test_method_in_a_class_body_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\(Object\(\).predict\)"):

        class Predictor:
            @ms.model(inputs=[X])
            def predict(self, x: Any) -> Any:
                return x


# ---------------------------------------------------------------------- in a repository


def test_batch_is_one_call(repo: ms.ModelRepository) -> None:
    sizes = []

    @ms.model(inputs=[X], max_batch_size=8)
    def predict(x: Any) -> Any:
        sizes.append(len(x))
        return {"sum": x.sum(axis=1)}

    repo.add(predict)
    answers = infer_all(repo, *(ms.InferRequest("predict", {"x": n * ONES}) for n in (1, 2, 3)))
    assert sizes == [6]
    assert [answer.outputs["sum"].tolist() for answer in answers] == [[4, 4], [8, 8], [12, 12]]


def test_without_batches_a_request_comes_as_it_is(repo: ms.ModelRepository) -> None:
    @ms.model(inputs=[ms.TensorSpec("a", "FP32", (3,)), ms.TensorSpec("b", "FP32", ())])
    def predict(a: Any, b: Any) -> Any:
        return {"out": a * b, "size": len(a)}

    repo.add(predict)
    outputs = repo.predict("predict", {"a": [1.0, 2.0, 3.0], "b": 2.0})
    assert outputs["out"].tolist() == [2, 4, 6]
    assert outputs["size"].shape == ()


def test_rows_of_all_callers_are_rows(repo: ms.ModelRepository) -> None:
    @ms.model
    def join(a: str, b: str = "!") -> str:
        return a + b

    repo.add(join)
    answers = infer_all(
        repo,
        ms.InferRequest("join", {"a": ["x", "y"], "b": ["1", "2"]}),
        ms.InferRequest("join", {"a": ["z"]}),
        ms.InferRequest("join", {"a": ["w"], "b": ["\0"]}),
    )
    assert [answer.outputs["output"].tolist() for answer in answers] == [
        [b"x1", b"y2"],
        [b"z!"],
        [b"w\0"],
    ]


def test_row_that_fails_leaves_its_neighbours(repo: ms.ModelRepository) -> None:
    @ms.model
    def root(x: float) -> Any:
        if x == 0:
            raise ValueError("zero")
        return ms.InvalidInput("negative") if x < 0 else x**0.5

    repo.add(root)
    values = [[4.0], [-1.0], [9.0, 16.0], [1.0, 0.0]]
    first, second, third, fourth = infer_all(
        repo, *(ms.InferRequest("root", {"x": value}) for value in values)
    )
    assert first.outputs["output"].tolist() == [2]
    assert isinstance(second, ms.InvalidInput)
    assert third.outputs["output"].tolist() == [3, 4]
    assert isinstance(fourth, ms.BackendError)
    assert isinstance(fourth.__cause__, ValueError)


def test_row_that_fails_is_logged_unless_its_caller_is_at_fault(
    repo: ms.ModelRepository, caplog: pytest.LogCaptureFixture
) -> None:
    @ms.model
    def inverse(x: float) -> float:
        if x < 0:
            raise ms.InvalidInput("negative")
        return 1 / x

    repo.add(inverse)
    infer_all(repo, *(ms.InferRequest("inverse", {"x": [value]}) for value in (1.0, -1.0, 0.0)))
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_rows_of_different_length_are_answered_one_by_one(repo: ms.ModelRepository) -> None:
    @ms.model
    def spell(word: str) -> list[str]:
        return list(word)

    repo.add("spell", spell)
    one, two, both = infer_all(
        repo, *(ms.InferRequest("spell", {"word": words}) for words in (["a"], ["bc"], ["d", "ef"]))
    )
    assert one.outputs["output"].tolist() == [[b"a"]]
    assert two.outputs["output"].tolist() == [[b"b", b"c"]]
    assert isinstance(both, ms.BackendError)


def test_answer_of_wrong_size_is_the_models_fault(repo: ms.ModelRepository) -> None:
    repo.add(ms.model(lambda x: x[:1], name="first", inputs=[X], max_batch_size=4))
    with pytest.raises(ms.BackendError, match=r'"output" has 1 rows for a batch of 2; axis 0 of'):
        repo.predict("first", ONES)


def test_serve_error_reaches_the_caller_as_it_is(repo: ms.ModelRepository) -> None:
    error = ms.RateLimited("slow down", retry_after=2.0)

    @ms.model(inputs=[X])
    def predict(x: Any) -> Any:
        raise error

    repo.add(predict)
    with pytest.raises(ms.RateLimited) as caught:
        repo.predict("predict", ONES)
    assert caught.value is error


def test_other_errors_are_chained(
    repo: ms.ModelRepository, caplog: pytest.LogCaptureFixture
) -> None:
    @ms.model(inputs=[X])
    def predict(x: Any) -> Any:
        raise LookupError("no such leaf")

    repo.add(predict)
    with pytest.raises(ms.BackendError, match='"predict" failed: LookupError: no such leaf') as e:
        repo.predict("predict", ONES)
    assert isinstance(e.value.__cause__, LookupError)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("retry", "calls"), [(False, 1), (True, 3)])
def test_function_is_called_again_only_where_that_does_no_harm(
    repo: ms.ModelRepository, retry: bool, calls: int, asynchronous: bool
) -> None:
    sizes = []

    def predict(x: Any) -> Any:
        sizes.append(len(x))
        if x.min() < 0:
            raise ValueError("negative")
        return x

    async def apredict(x: Any) -> Any:
        return predict(x)

    function: Callable[[Any], Any] = apredict if asynchronous else predict
    model = ms.model(function, name="predict", inputs=[X], max_batch_size=8, retry=retry)
    repo.add(model, warm_up=False)
    good, bad = infer_all(
        repo,
        ms.InferRequest("predict", {"x": ONES}),
        ms.InferRequest("predict", {"x": -ONES}),
    )
    assert len(sizes) == calls
    assert isinstance(bad, ms.BackendError)
    assert isinstance(good, ms.InferResponse) is retry


def test_inputs_are_read_only_for_the_function_alone(repo: ms.ModelRepository) -> None:
    @ms.model(inputs=[X])
    def predict(x: Any) -> Any:
        x += 1
        return x

    repo.add(predict)
    mine = ONES.copy()
    with pytest.raises(ms.BackendError, match="read-only"):
        repo.predict("predict", mine)
    assert mine.flags.writeable


def test_function_may_predict_with_another_model_and_with_its_own(
    repo: ms.ModelRepository,
) -> None:
    @ms.model
    def factorial(n: int) -> int:
        if n <= 1:
            return 1
        less = repo.predict("factorial", [n - 1])["output"][0]
        return int(repo.predict("product", {"a": [n], "b": [less]})["output"][0])

    @ms.model
    def product(a: int, b: int) -> int:
        return a * b

    repo.add(factorial)
    repo.add(product)
    assert repo.predict("factorial", [5])["output"].tolist() == [120]


def test_coroutine_may_infer_with_another_model(repo: ms.ModelRepository) -> None:
    @ms.model
    def double(x: float) -> float:
        return 2 * x

    @ms.model
    async def quadruple(x: float) -> float:
        twice = await repo.infer(ms.InferRequest("double", {"x": [x]}))
        again = await repo.infer(ms.InferRequest("double", {"x": twice.outputs["output"]}))
        return float(again.outputs["output"][0])

    repo.add(double)
    repo.add(quadruple)
    assert repo.predict("quadruple", [1.5, 2.0])["output"].tolist() == [6, 8]


def test_context_tells_whose_rows_they_are(repo: ms.ModelRepository) -> None:
    seen: list[ms.Context] = []

    @ms.model(inputs=[X], max_batch_size=8)
    def predict(x: Any, context: ms.Context) -> Any:
        seen.append(context)
        return x

    repo.add("named", predict)
    ada = ms.Principal("ada")
    parameters = {"top": 3}
    infer_all(
        repo,
        ms.InferRequest("named", {"x": ONES}, id="a", principal=ada, parameters=parameters),
        ms.InferRequest("named", {"x": ONES[:1]}, id="b", parameters=parameters),
        ms.InferRequest("named", {"x": ONES[:1]}, id="c", parameters={"top": 4}),
    )
    both, other = seen
    assert (both.model, both.version, both.parameters) == ("named", "1", parameters)
    assert [(info.id, info.start, info.stop) for info in both.requests] == [
        ("a", 0, 2),
        ("b", 2, 3),
    ]
    assert [info.principal for info in both.requests] == [ada, None]
    assert other.parameters == {"top": 4}


def test_one_model_serves_in_two_repositories() -> None:
    states = []

    @ms.model(inputs=[X], setup=lambda: states.append(object()) or len(states))
    def predict(state: int, x: Any) -> Any:
        return [state]

    with ms.ModelRepository() as one, ms.ModelRepository() as two:
        one.add(predict)
        two.add("other", predict, max_batch_size=0)
        assert one.predict("predict", ONES)["output"].tolist() == [1]
        assert two.predict("other", ONES)["output"].tolist() == [2]
        one.unload("predict")
        assert two.predict("other", ONES)["output"].tolist() == [2]


def test_backend_may_be_added_by_itself(repo: ms.ModelRepository) -> None:
    repo.add("sum", ms.PythonBackend(plain, inputs=[X]), max_batch_size=4)
    assert repo.predict("sum", ONES)["output"].tolist() == [4, 4]


# ---------------------------------------------------------------------- example


def test_example_is_run_at_load_and_shows_the_outputs(repo: ms.ModelRepository) -> None:
    @ms.model(example={"x": ONES, "words": ["a", "b"]}, max_batch_size=4)
    def predict(x: Any, words: Any) -> Any:
        return {"sum": x.sum(axis=1), "upper": [word.upper() for word in words]}

    repo.add(predict)
    info = asyncio.run(repo.describe("predict"))
    assert info.signature == ms.Signature(
        [X, ms.TensorSpec("words", "BYTES", (-1,))],
        [ms.TensorSpec("sum", "FP32", (-1,)), ms.TensorSpec("upper", "BYTES", (-1,))],
    )


def test_model_that_fails_on_its_example_is_not_loaded(repo: ms.ModelRepository) -> None:
    with pytest.raises(ms.LoadError, match=r'"broken" fails on its example: .*ZeroDiv'):
        repo.add(ms.model(lambda x: 1 // 0, name="broken", example=ONES))
    with pytest.raises(ms.ModelNotFound):
        repo.predict("broken", ONES)


def test_inputs_are_never_taken_from_traffic(repo: ms.ModelRepository) -> None:
    repo.add(ms.model(lambda x: x, name="same", example=ONES))
    with pytest.raises(ms.InvalidInput, match=r'"x": expected shape \(-1, 4\), got \(1, 5\)'):
        repo.predict("same", np.ones((1, 5), np.float32))
    with pytest.raises(ms.InvalidInput, match="expected FP32, got FP64"):
        repo.predict("same", np.ones((1, 4)))


# ---------------------------------------------------------------------- setup, instances, threads


def test_setup_runs_once_for_each_instance_on_the_thread_of_its_calls(
    repo: ms.ModelRepository,
) -> None:
    log: list[tuple[str, int, int]] = []
    both = threading.Barrier(2, timeout=10)

    def setup(instance: int) -> Iterator[int]:
        log.append(("open", instance, threading.get_ident()))
        yield instance
        log.append(("close", instance, threading.get_ident()))

    @ms.model(inputs=[X], setup=setup, instances=2)
    def predict(instance: int, x: Any) -> Any:
        both.wait()  # passes only if both instances are called at once
        log.append(("call", instance, threading.get_ident()))
        return x

    repo.add(predict)
    infer_all(repo, *[ms.InferRequest("predict", {"x": ONES})] * 2)
    infer_all(repo, *[ms.InferRequest("predict", {"x": ONES})] * 2)
    repo.unload("predict")
    for instance in (0, 1):
        mine = [(what, thread) for what, number, thread in log if number == instance]
        assert [what for what, _ in mine] == ["open", "call", "call", "close"]
        assert len({thread for _, thread in mine}) == 1
        assert mine[0][1] != threading.get_ident()


def test_asynchronous_setup_runs_on_the_loop_of_the_calls(repo: ms.ModelRepository) -> None:
    log: list[str] = []

    async def setup() -> AsyncIterator[asyncio.AbstractEventLoop]:
        yield asyncio.get_running_loop()
        log.append("closed")

    @ms.model(inputs=[X], setup=setup)
    async def predict(loop: asyncio.AbstractEventLoop, x: Any) -> Any:
        return [loop is asyncio.get_running_loop()]

    repo.add(predict)
    for _ in range(2):
        (answer,) = infer_all(repo, ms.InferRequest("predict", {"x": ONES}))
        assert answer.outputs["output"].tolist() == [True]
    assert repo.predict("predict", ONES)["output"].tolist() == [True]
    repo.unload("predict")
    assert log == ["closed"]


def test_failing_setup_is_a_load_error_and_cleans_up(repo: ms.ModelRepository) -> None:
    log: list[str] = []

    def setup(instance: int) -> Iterator[int]:
        if instance:
            raise MemoryError("no room for two")
        thread = threading.get_ident()
        yield instance
        log.append(f"closed where it was opened: {thread == threading.get_ident()}")

    @ms.model(inputs=[X], setup=setup, instances=2)
    def predict(instance: int, x: Any) -> Any:
        return x

    with pytest.raises(ms.LoadError, match="setup of predict failed: MemoryError: no room for two"):
        repo.add(predict)
    assert log == ["closed where it was opened: True"]
    with pytest.raises(ms.ModelNotFound):
        repo.predict("predict", ONES)


def test_failing_asynchronous_setup_cleans_up_on_its_loop(repo: ms.ModelRepository) -> None:
    log: list[bool] = []

    async def setup(instance: int) -> AsyncIterator[int]:
        if instance:
            raise MemoryError("no room for two")
        loop = asyncio.get_running_loop()
        yield instance
        log.append(loop is asyncio.get_running_loop())

    @ms.model(inputs=[X], setup=setup, instances=2)
    async def predict(instance: int, x: Any) -> Any:
        return x

    with pytest.raises(ms.LoadError, match="setup of predict failed: MemoryError: no room for two"):
        repo.add(predict)
    assert log == [True]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_concurrency_lets_calls_overlap(repo: ms.ModelRepository, asynchronous: bool) -> None:
    three = threading.Barrier(3, timeout=10)
    ready: asyncio.Event | None = None
    waiting = 0

    def meet(x: Any) -> Any:
        three.wait()
        return x

    async def ameet(x: Any) -> Any:
        nonlocal ready, waiting
        ready = ready or asyncio.Event()
        waiting += 1
        if waiting == 3:
            ready.set()
        await asyncio.wait_for(ready.wait(), 10)
        return x

    function: Callable[[Any], Any] = ameet if asynchronous else meet
    repo.add(ms.model(function, name="meet", inputs=[X], concurrency=3))
    answers = infer_all(repo, *[ms.InferRequest("meet", {"x": ONES})] * 3)
    assert [answer.outputs["output"].shape for answer in answers] == [(2, 4)] * 3


def test_users_function_never_blocks_the_callers_loop(repo: ms.ModelRepository) -> None:
    gate = threading.Event()

    @ms.model(inputs=[X])
    def predict(x: Any) -> Any:
        return [gate.wait(10)]

    repo.add(predict)

    async def main() -> Any:
        answer = asyncio.create_task(repo.infer(ms.InferRequest("predict", {"x": ONES})))
        await asyncio.sleep(0)
        gate.set()  # reached only because the loop is free
        return (await answer).outputs["output"].tolist()

    assert asyncio.run(main()) == [True]


# ---------------------------------------------------------------------- streams


@ms.model
def countdown(n: int, context: ms.Context) -> Iterator[int]:
    yield from range(n, 0, -context.parameters.get("step", 1))


@ms.model
async def acountdown(n: int, context: ms.Context) -> AsyncIterator[int]:
    for i in range(n, 0, -context.parameters.get("step", 1)):
        yield i


@ms.model
def add_up(values: Iterator[float]) -> float:
    return sum(values)


@ms.model
async def aadd_up(values: AsyncIterator[float]) -> float:
    return sum([value async for value in values])


@ms.model
def run_up(values: Iterator[float]) -> Iterator[float]:
    total = 0.0
    for value in values:
        yield (total := total + value)


@ms.model
async def arun_up(values: AsyncIterator[float]) -> AsyncIterator[float]:
    total = 0.0
    async for value in values:
        yield (total := total + value)


@pytest.mark.parametrize("model", [countdown, acountdown], ids=lambda model: model.name)
def test_generator_is_a_stream(repo: ms.ModelRepository, model: Any) -> None:
    repo.add(model)
    request = ms.InferRequest(model.name, {"n": [5]}, parameters={"step": 2})
    assert stream_all(repo, request) == [[5], [3], [1]]
    assert stream_all(repo, request) == [[5], [3], [1]]


@pytest.mark.parametrize("model", [add_up, aadd_up], ids=lambda model: model.name)
def test_stream_in_gives_one_answer(repo: ms.ModelRepository, model: Any) -> None:
    repo.add(model)
    assert stream_all(repo, requests(model.name, "values", 1, 2, 3)) == [[6]]


@pytest.mark.parametrize("model", [run_up, arun_up], ids=lambda model: model.name)
def test_stream_in_and_out(repo: ms.ModelRepository, model: Any) -> None:
    repo.add(model)
    assert stream_all(repo, requests(model.name, "values", 1, 2, 3)) == [[1], [3], [6]]


@pytest.mark.parametrize("model", [run_up, arun_up], ids=lambda model: model.name)
def test_answers_of_a_stream_come_before_the_next_request(
    repo: ms.ModelRepository, model: Any
) -> None:
    repo.add(model)

    async def main() -> list[float]:
        answers: list[float] = []
        answered = asyncio.Event()

        async def ask() -> AsyncIterator[ms.InferRequest]:
            for value in (1.0, 2.0, 3.0):
                yield ms.InferRequest(model.name, {"values": [value]})
                await asyncio.wait_for(answered.wait(), 10)
                answered.clear()

        async for answer in repo.stream(ask()):
            answers.append(answer.outputs["output"][0])
            answered.set()
        return answers

    assert asyncio.run(main()) == [1, 3, 6]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_error_within_a_stream_is_chained(repo: ms.ModelRepository, asynchronous: bool) -> None:
    def some(n: int) -> Iterator[int]:
        yield n
        raise LookupError("out of words")

    async def asome(n: int) -> AsyncIterator[int]:
        yield n
        raise LookupError("out of words")

    function: Any = asome if asynchronous else some
    repo.add(ms.model(function, name="some"))

    got = []

    async def main() -> None:
        async for answer in repo.stream(ms.InferRequest("some", {"n": [1]})):
            got.append(answer.outputs["output"].tolist())  # noqa: PERF401 - up to the error

    with pytest.raises(ms.BackendError, match="LookupError: out of words") as caught:
        asyncio.run(main())
    assert isinstance(caught.value.__cause__, LookupError)
    assert got == [[1]]


def test_generator_is_not_asked_for_one_answer(repo: ms.ModelRepository) -> None:
    repo.add(countdown)
    with pytest.raises(ms.Unsupported, match='"countdown" answers with a stream'):
        repo.predict("countdown", [1])


def test_plain_function_answers_each_request_of_a_stream(repo: ms.ModelRepository) -> None:
    repo.add(ms.model(Scaler(2.0), name="double"))
    assert stream_all(repo, requests("double", "x", 1, 2)) == [[2], [4]]


# ---------------------------------------------------------------------- by itself


def test_model_serves_itself() -> None:
    model = ms.model(Scaler(2.0), name="double")

    async def main() -> None:
        response = await model.infer(ms.InferRequest("double", {"x": [3.0]}))
        assert response.outputs["output"].tolist() == [6]
        assert [info.model for info in await model.index()] == ["double"]
        assert (await model.describe("double")).signature == model.signature
        assert await model.ready("double")
        with pytest.raises(ms.ModelNotFound):
            await model.infer(ms.InferRequest("other", {"x": [3.0]}))
        await model.aclose()

    asyncio.run(main())
    assert model.predict([4.0])["output"].tolist() == [8]
    model.close()


def test_model_streams_itself() -> None:
    assert stream_all(countdown, ms.InferRequest("countdown", {"n": [2]})) == [[2], [1]]
    assert stream_all(run_up, requests("run_up", "values", 1, 2)) == [[1], [3]]
    countdown.close()
    run_up.close()


def test_own_repository_is_loaded_by_the_first_request_and_once() -> None:
    opened = []

    @ms.model(inputs=[X], setup=lambda: opened.append(1))
    def predict(state: Any, x: Any) -> Any:
        return x

    assert predict.metrics is predict.metrics
    assert callable(predict.record)
    assert opened == []

    async def main() -> None:
        request = ms.InferRequest("predict", {"x": ONES})
        await asyncio.gather(*[predict.infer(request) for _ in range(4)])

    asyncio.run(main())
    assert opened == [1]
    predict.close()


def test_setup_of_the_first_request_does_not_block_the_loop() -> None:
    started, gate = threading.Event(), threading.Event()

    def setup() -> bool:
        started.set()
        return gate.wait(10)

    @ms.model(inputs=[X], setup=setup)
    def predict(passed: bool, x: Any) -> Any:
        return [passed]

    async def main() -> Any:
        answer: Awaitable[Any] = asyncio.create_task(
            predict.infer(ms.InferRequest("predict", {"x": ONES}))
        )
        await asyncio.to_thread(started.wait, 10)
        gate.set()  # reached only because the loop is free
        return (await answer).outputs["output"].tolist()

    assert asyncio.run(main()) == [True]
    predict.close()


# ---------------------------------------------------------------------- real libraries


@pytest.fixture(scope="module")
def flowers() -> tuple[Any, Any]:
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_iris(return_X_y=True)
    return x, y


def estimators() -> list[Any]:
    pytest.importorskip("sklearn")
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return [
        make_pipeline(StandardScaler(), LogisticRegression()),
        RandomForestClassifier(5, random_state=0),
        HistGradientBoostingClassifier(max_iter=5),
        KNeighborsClassifier(),
        SVC(),
    ]


@pytest.mark.parametrize("number", range(5))
def test_estimator_is_served_in_three_lines(
    repo: ms.ModelRepository, flowers: tuple[Any, Any], number: int
) -> None:
    x, y = flowers
    estimator = estimators()[number].fit(x, y)
    repo.add(ms.model(estimator.predict, name="iris", example=x[:1], max_batch_size=64))
    answers = infer_all(
        repo, *(ms.InferRequest("iris", {"X": x[i : i + 30]}) for i in (0, 60, 120))
    )
    for answer, i in zip(answers, (0, 60, 120), strict=True):
        np.testing.assert_array_equal(answer.outputs["output"], estimator.predict(x[i : i + 30]))


def test_probabilities_of_an_estimator(repo: ms.ModelRepository, flowers: tuple[Any, Any]) -> None:
    x, y = flowers
    estimator = estimators()[0].fit(x, y)
    outputs = [ms.TensorSpec("probability", "FP32", (-1, 3))]
    repo.add(ms.model(estimator.predict_proba, example=x[:1], outputs=outputs, max_batch_size=64))
    answer = repo.predict("Pipeline", x[:5])["probability"]
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, estimator.predict_proba(x[:5]), rtol=1e-6)


def test_labels_of_an_estimator_are_text(
    repo: ms.ModelRepository, flowers: tuple[Any, Any]
) -> None:
    x, y = flowers
    names = np.array(["setosa", "versicolor", "virginica"])
    estimator = estimators()[0].fit(x, names[y])
    repo.add(ms.model(estimator.predict, name="iris", example=x[:1], max_batch_size=64))
    assert repo.predict("iris", x[[0, 149]])["output"].tolist() == [b"setosa", b"virginica"]


@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_lightgbm_classifier(
    repo: ms.ModelRepository, flowers: tuple[Any, Any], method: str
) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    x, y = flowers
    classifier = lightgbm.LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1).fit(x, y)
    predict = getattr(classifier, method)
    repo.add(ms.model(predict, name="iris", example=x[:1], max_batch_size=64))
    expected = classifier.booster_.predict(x[:9])
    if method == "predict":
        expected = expected.argmax(axis=1)
    np.testing.assert_array_equal(repo.predict("iris", x[:9])["output"], expected)


def test_lightgbm_booster(repo: ms.ModelRepository, flowers: tuple[Any, Any]) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    x, y = flowers
    settings = {"objective": "multiclass", "num_class": 3, "verbose": -1, "num_threads": 1}
    booster = lightgbm.train(settings, lightgbm.Dataset(x, y), 5)
    repo.add(ms.model(booster.predict, name="iris", example=x[:1], max_batch_size=64))
    np.testing.assert_array_equal(repo.predict("iris", x[:64])["output"], booster.predict(x[:64]))


def test_another_name_is_refused_before_a_request_is_read() -> None:
    @ms.model(inputs=[X])
    def predict(x: Any) -> Any:
        return x

    predict.check("predict")
    for _ in range(2):  # before its repository is there, and after
        with pytest.raises(ms.ModelNotFound, match='there is no model "other"'):
            predict.check("other")
        predict.predict(ONES)
    predict.close()
