"""What callers of `AdaptiveBatcher` may rely on, with real threads and event loops."""

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from gated import DEADLOCK, GatedBackend, ManualClock, double, rows, wait_until
from modelserve.errors import (
    BackendError,
    DeadlineExceeded,
    InvalidInput,
    ModelNotReady,
    QueueFull,
    ServeError,
)
from modelserve.execution.batcher import AdaptiveBatcher, BatcherClosed
from modelserve.messages import Exchange, InferRequest
from modelserve.protocols import Traits

CONTEXT = Traits(context=True)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


@pytest.fixture
def make() -> Iterator[Callable[..., AdaptiveBatcher]]:
    made: list[tuple[AdaptiveBatcher, Any]] = []

    def build(*backends: Any, **options: Any) -> AdaptiveBatcher:
        options.setdefault("max_batch_size", 8)
        batcher = AdaptiveBatcher(backends, model="m", version="1", **options)
        made.append((batcher, backends))
        return batcher

    yield build
    for batcher, backends in made:
        for backend in backends:
            if isinstance(backend, GatedBackend):
                backend.release()
        batcher.close(drain=DEADLOCK)


def predict(batcher: AdaptiveBatcher, *numbers: float, **options: Any) -> list[float]:
    inputs = rows(*numbers)
    request = InferRequest("m", inputs, **options)
    return batcher.submit_blocking(request, inputs, len(numbers))["y"].ravel().tolist()


async def infer(batcher: AdaptiveBatcher, *numbers: float, **options: Any) -> list[float]:
    inputs = rows(*numbers)
    outputs = await batcher.submit(InferRequest("m", inputs, **options), inputs, len(numbers))
    return outputs["y"].ravel().tolist()


def hold(
    batcher: AdaptiveBatcher, backend: GatedBackend, pool: ThreadPoolExecutor
) -> Future[list[float]]:
    """Occupy a lane with a request [0] that waits at the backend's gate."""
    backend.hold()
    first = pool.submit(predict, batcher, 0)
    backend.wait_inside()
    return first


def queued(batcher: AdaptiveBatcher, count: int) -> None:
    wait_until(lambda: batcher.queue_depth == count, f"a queue of {count}")


def queue_up(
    batcher: AdaptiveBatcher, pool: ThreadPoolExecutor, *numbers: float, **options: Any
) -> Future[list[float]]:
    depth = batcher.queue_depth
    future = pool.submit(predict, batcher, *numbers, **options)
    queued(batcher, depth + 1)
    return future


# ---------------------------------------------------------------------- what shares a batch


def test_thread_and_coroutines_of_two_loops_queued_behind_a_run_share_one_batch(make, pool):
    batcher = make(backend := GatedBackend())
    first = hold(batcher, backend, pool)
    answers = [
        pool.submit(predict, batcher, 1),
        pool.submit(lambda: asyncio.run(infer(batcher, 2))),
        pool.submit(lambda: asyncio.run(infer(batcher, 3))),
    ]
    queued(batcher, 3)
    backend.release()
    assert [future.result(DEADLOCK) for future in answers] == [[2], [4], [6]]
    assert first.result(DEADLOCK) == [0]
    assert backend.sizes == [1, 3]


def test_coroutines_of_one_turn_share_a_batch_on_an_idle_lane(make):
    batcher = make(backend := GatedBackend())

    async def main() -> list[list[float]]:
        return await asyncio.gather(*(infer(batcher, i) for i in range(5)))

    assert asyncio.run(main()) == [[0], [2], [4], [6], [8]]
    assert backend.sizes == [5]


def test_a_batch_holds_no_more_than_max_batch_size_rows_in_order_of_arrival(make, pool):
    batcher = make(backend := GatedBackend(), max_batch_size=4)
    hold(batcher, backend, pool)
    answers = [queue_up(batcher, pool, i, i + 0.5) for i in range(1, 6)]
    backend.release()
    assert [future.result(DEADLOCK) for future in answers] == [
        [2 * i, 2 * i + 1] for i in range(1, 6)
    ]
    assert backend.runs == [[0], [1, 1.5, 2, 2.5], [3, 3.5, 4, 4.5], [5, 5.5]]


def test_a_request_that_does_not_fit_is_not_overtaken(make, pool):
    batcher = make(backend := GatedBackend(), max_batch_size=3)
    hold(batcher, backend, pool)
    answers = [queue_up(batcher, pool, *numbers) for numbers in ((1, 1), (2, 2), (3,))]
    backend.release()
    for future in answers:
        future.result(DEADLOCK)
    assert backend.runs == [[0], [1, 1], [2, 2, 3]]


def test_without_batching_each_request_runs_alone(make, pool):
    batcher = make(backend := GatedBackend(), max_batch_size=0)
    hold(batcher, backend, pool)
    answers = [queue_up(batcher, pool, i, i) for i in (1, 2)]
    backend.release()
    assert [future.result(DEADLOCK) for future in answers] == [[2, 2], [4, 4]]
    assert backend.runs == [[0], [1, 1], [2, 2]]


def test_lower_priority_numbers_go_first_and_equals_in_order(make, pool):
    batcher = make(backend := GatedBackend(), max_batch_size=1)
    hold(batcher, backend, pool)
    answers = [
        queue_up(batcher, pool, number, priority=priority)
        for number, priority in ((1, 200), (2, 0), (3, 1), (4, 100), (5, 1))
    ]
    backend.release()
    for future in answers:
        future.result(DEADLOCK)
    # Priority 0 stands at 100.
    assert [run[0] for run in backend.runs] == [0, 3, 5, 2, 4, 1]


def test_other_shapes_make_another_batch(make, pool):
    backend = GatedBackend(shape=(-1, -1))
    batcher = make(backend)
    hold(batcher, backend, pool)

    def wide(value: float, columns: int) -> list[float]:
        inputs = {"x": np.full((1, columns), value, np.float32)}
        return batcher.submit_blocking(InferRequest("m", inputs), inputs, 1)["y"].ravel().tolist()

    answers = []
    for depth, (value, columns) in enumerate(((1, 2), (2, 3), (3, 2)), start=1):
        answers.append(pool.submit(wide, value, columns))
        queued(batcher, depth)
    backend.release()
    assert [f.result(DEADLOCK) for f in answers] == [[2, 2], [4, 4, 4], [6, 6]]
    assert backend.runs == [[0], [1, 1, 3, 3], [2, 2, 2]]


def test_other_requested_outputs_make_another_batch(make, pool):
    backend = GatedBackend(lambda inputs: {"y": inputs["x"], "z": -inputs["x"]})
    batcher = make(backend)
    hold(batcher, backend, pool)

    def ask(number: float, outputs: list[str]) -> dict[str, Any]:
        inputs = rows(number)
        return dict(batcher.submit_blocking(InferRequest("m", inputs, outputs=outputs), inputs, 1))

    one = pool.submit(ask, 1, ["z"])
    queued(batcher, 1)
    two = pool.submit(ask, 2, ["y"])
    queued(batcher, 2)
    three = pool.submit(ask, 3, ["z"])
    queued(batcher, 3)
    backend.release()
    assert list(one.result(DEADLOCK)) == ["z"]
    assert list(two.result(DEADLOCK)) == ["y"]
    assert three.result(DEADLOCK)["z"].tolist() == [[-3]]
    assert backend.runs == [[0], [1, 3], [2]]


@pytest.mark.parametrize(
    ("parameters", "batches"),
    [
        (({"t": 1}, {"t": 1}), 1),
        (({"t": 1}, {"t": 2}), 2),
        (({"t": 1}, {"t": True}), 2),
        (({"t": 1}, {"t": 1.0}), 2),
        (({"t": 1}, {}), 2),
        (({"t": [1]}, {"t": [1]}), 2),
    ],
)
def test_a_model_that_reads_parameters_sees_one_set_in_a_batch(make, pool, parameters, batches):
    seen = []

    def function(inputs: Any, context: Any) -> dict[str, Any]:
        seen.append((context.parameters, len(context.requests)))
        return double(inputs)

    backend = GatedBackend(function, CONTEXT)
    batcher = make(backend)
    hold(batcher, backend, pool)
    answers = [
        queue_up(batcher, pool, i, parameters=given) for i, given in enumerate(parameters, start=1)
    ]
    backend.release()
    assert [future.result(DEADLOCK) for future in answers] == [[2], [4]]
    assert len(seen) == 1 + batches
    for given in parameters:
        assert any(
            given is parameters_seen or given == parameters_seen for parameters_seen, _ in seen
        )


def test_parameters_do_not_part_requests_of_a_model_that_does_not_read_them(make, pool):
    batcher = make(backend := GatedBackend())
    hold(batcher, backend, pool)
    answers = [queue_up(batcher, pool, i, parameters={"t": i}) for i in (1, 2)]
    backend.release()
    for future in answers:
        future.result(DEADLOCK)
    assert backend.sizes == [1, 2]


def test_context_tells_which_rows_are_whose(make, pool):
    seen: list[Any] = []

    def function(inputs: Any, context: Any) -> dict[str, Any]:
        seen.append(context)
        return double(inputs)

    backend = GatedBackend(function, CONTEXT)
    batcher = make(backend)
    hold(batcher, backend, pool)
    answers = [
        queue_up(batcher, pool, 1, 1, id="two"),
        queue_up(batcher, pool, 2, id="one", timeout=60.0),
    ]
    backend.release()
    for future in answers:
        future.result(DEADLOCK)
    context = seen[1]
    assert (context.model, context.version) == ("m", "1")
    assert [(r.id, r.start, r.stop) for r in context.requests] == [("two", 0, 2), ("one", 2, 3)]
    assert context.requests[0].deadline is None
    assert context.requests[1].deadline is not None
    assert context.deadline is None


def test_several_instances_run_at_the_same_time(make, pool):
    backends = [GatedBackend(), GatedBackend()]
    batcher = make(*backends)
    answers = []
    for backend in backends:
        backend.hold()
    answers = [pool.submit(predict, batcher, 1), pool.submit(predict, batcher, 2)]
    for backend in backends:
        backend.wait_inside()
    assert batcher.in_flight == 2
    for backend in backends:
        backend.release()
    assert [future.result(DEADLOCK) for future in answers] == [[2], [4]]
    assert [backend.most_inside for backend in backends] == [1, 1]


def test_a_shared_backend_serves_several_lanes_and_is_closed_once(make, pool):
    backend = GatedBackend(traits=Traits(shared=True))
    batcher = make(backend, backend)
    backend.hold()
    answers = [pool.submit(predict, batcher, i) for i in (1, 2)]
    backend.wait_inside()
    backend.wait_inside()
    backend.release()
    assert sorted(future.result(DEADLOCK) for future in answers) == [[2], [4]]
    assert batcher.close()
    assert backend.closed == 1


@pytest.mark.parametrize(("first", "reason"), [(1, "next"), (8, "full")])
def test_exchange_records_why_and_with_whom_a_request_ran(make, pool, first, reason):
    batcher = make(backend := GatedBackend())
    hold(batcher, backend, pool)

    def ask(count: int) -> Exchange:
        inputs = rows(*range(count))
        request = InferRequest("m", inputs)
        exchange = request.exchange = Exchange("inprocess", "m")
        batcher.submit_blocking(request, inputs, count)
        return exchange

    futures = []
    for depth, count in enumerate((first - first // 2, first // 2) if first > 1 else (1,), start=1):
        futures.append(pool.submit(ask, count))
        queued(batcher, depth)
    backend.release()
    exchange = futures[0].result(DEADLOCK)
    assert exchange.reason == reason
    assert (exchange.batch_rows, exchange.batch_requests) == (first, len(futures))
    assert exchange.rows == first - (first // 2 if first > 1 else 0)
    assert exchange.queue > 0
    assert exchange.run > 0


# ---------------------------------------------------------------------- bounds, deadlines, leaving


def test_a_full_queue_refuses_and_keeps_what_it_has(make, pool):
    batcher = make(backend := GatedBackend(), max_queue_size=2)
    hold(batcher, backend, pool)
    answers = [queue_up(batcher, pool, i) for i in (1, 2)]
    with pytest.raises(QueueFull, match="max_queue_size 2"):
        predict(batcher, 3)
    with pytest.raises(QueueFull):
        asyncio.run(infer(batcher, 3))
    backend.release()
    assert [future.result(DEADLOCK) for future in answers] == [[2], [4]]
    assert 3 not in [number for run in backend.runs for number in run]


def test_bytes_that_wait_are_bounded(make, pool):
    batcher = make(backend := GatedBackend(), max_queue_bytes=10)
    hold(batcher, backend, pool)
    answer = queue_up(batcher, pool, 1, 2)
    with pytest.raises(QueueFull, match="max_queue_bytes 10"):
        predict(batcher, 3)
    backend.release()
    assert answer.result(DEADLOCK) == [2, 4]


def test_a_refused_request_with_a_deadline_leaves_no_timer(make, pool):
    batcher = make(backend := GatedBackend(), max_queue_size=1)
    hold(batcher, backend, pool)
    answer = queue_up(batcher, pool, 1)
    complaints: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        with pytest.raises(QueueFull):
            await infer(batcher, 2, timeout=0.001)
        # Timers run in order: when this one is through, the other would have been.
        passed = loop.create_future()
        loop.call_later(0.002, passed.set_result, None)
        await passed

    asyncio.run(main())
    backend.release()
    answer.result(DEADLOCK)
    assert complaints == []


@pytest.mark.parametrize("ask", [predict, lambda *a, **k: asyncio.run(infer(*a, **k))])
@pytest.mark.parametrize("timeout", [1e10, 1e300, float("inf")])
def test_a_timeout_longer_than_any_timer_is_one_that_never_passes(make, ask, pool, timeout):
    batcher = make(backend := GatedBackend())
    first = hold(batcher, backend, pool)
    second = pool.submit(ask, batcher, 1, timeout=timeout)
    queued(batcher, 1)
    backend.release()
    assert first.result(DEADLOCK) == [0]
    assert second.result(DEADLOCK) == [2]


def test_a_timeout_longer_than_any_timer_sets_none_on_the_loop(make, pool):
    batcher = make(backend := GatedBackend())
    first = hold(batcher, backend, pool)

    class Loop(asyncio.SelectorEventLoop):
        def call_later(self, delay: float, *args: Any, **options: Any) -> Any:
            assert delay < 1e9
            return super().call_later(delay, *args, **options)

    async def main() -> list[float]:
        task = asyncio.create_task(infer(batcher, 1, timeout=float("inf")))
        await asyncio.sleep(0)
        backend.release()
        return await task

    with asyncio.Runner(loop_factory=Loop) as runner:
        assert runner.run(main()) == [2]
    assert first.result(DEADLOCK) == [0]


def test_closing_may_wait_for_ever(make):
    assert make(GatedBackend()).close(drain=float("inf")) is True


@pytest.mark.parametrize("ask", [predict, lambda *a, **k: asyncio.run(infer(*a, **k))])
def test_a_request_whose_deadline_passed_before_it_came_is_refused(make, ask):
    clock = ManualClock()
    batcher = make(backend := GatedBackend(), clock=clock)
    with pytest.raises(DeadlineExceeded):
        ask(batcher, 1, deadline=clock.now)
    assert backend.runs == []


@pytest.mark.parametrize("ask", [predict, lambda *a, **k: asyncio.run(infer(*a, **k))])
def test_a_request_that_expires_in_the_queue_costs_no_compute(make, pool, ask):
    clock = ManualClock()
    batcher = make(backend := GatedBackend(), clock=clock)
    hold(batcher, backend, pool)
    late = pool.submit(ask, batcher, 1, deadline=clock.now + 1000)
    queued(batcher, 1)
    other = pool.submit(ask, batcher, 2, deadline=clock.now + 2000)
    queued(batcher, 2)
    clock.advance(1500)
    backend.release()
    with pytest.raises(DeadlineExceeded):
        late.result(DEADLOCK)
    assert other.result(DEADLOCK) == [4]
    assert backend.runs == [[0], [2]]


@pytest.mark.parametrize("ask", [predict, lambda *a, **k: asyncio.run(infer(*a, **k))])
def test_a_caller_is_told_at_its_deadline_while_the_lane_is_busy(make, pool, ask):
    batcher = make(backend := GatedBackend())
    hold(batcher, backend, pool)
    with pytest.raises(DeadlineExceeded):
        ask(batcher, 1, timeout=0.02)
    assert batcher.queue_depth == 0
    backend.release()


def test_the_wait_of_a_request_that_never_ran_is_recorded(make, pool):
    backend = GatedBackend()
    batcher = make(backend)
    first = hold(batcher, backend, pool)
    inputs = rows(1, 2)
    request = InferRequest("m", inputs, timeout=0.01)
    exchange = request.exchange = Exchange("inprocess", "m")
    with pytest.raises(DeadlineExceeded):
        batcher.submit_blocking(request, inputs, 2)
    assert exchange.rows == 2
    assert exchange.queue >= 0.009
    assert exchange.batch_rows == 0
    backend.release()
    assert first.result() == [0]


def test_a_caller_is_told_at_its_deadline_while_its_request_runs(make, pool):
    batcher = make(backend := GatedBackend())
    backend.hold()
    with pytest.raises(DeadlineExceeded):
        predict(batcher, 1, timeout=0.02)
    with pytest.raises(DeadlineExceeded):
        asyncio.run(infer(batcher, 2, timeout=0.02))
    backend.release()
    assert predict(batcher, 3) == [6]


def test_a_cancelled_request_leaves_the_queue(make, pool):
    batcher = make(backend := GatedBackend())
    hold(batcher, backend, pool)

    async def main() -> list[float]:
        leaving = asyncio.create_task(infer(batcher, 1))
        staying = asyncio.create_task(infer(batcher, 2))
        await asyncio.sleep(0)
        assert batcher.queue_depth == 2
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert batcher.queue_depth == 1
        backend.release()
        return await staying

    assert asyncio.run(main()) == [4]
    assert backend.runs == [[0], [2]]


def test_a_request_cancelled_before_the_flush_costs_no_compute(make):
    batcher = make(backend := GatedBackend())

    async def main() -> None:
        task = asyncio.create_task(infer(batcher, 1))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await infer(batcher, 2) == [4]

    asyncio.run(main())
    assert backend.runs == [[2]]


# ---------------------------------------------------------------------- failures


def fail(error: BaseException) -> Callable[..., Any]:
    def function(inputs: Any) -> Any:
        if 13 in inputs["x"]:
            raise error
        return double(inputs)

    return function


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        SystemExit(3),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        GeneratorExit(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("ask", [predict, lambda *a: asyncio.run(infer(*a))], ids=["sync", "async"])
def test_whatever_a_function_raises_is_its_failure_and_the_lane_goes_on(make, error, ask):
    batcher = make(backend := GatedBackend(fail(error)))
    with pytest.raises(BackendError) as caught:
        ask(batcher, 13)
    assert caught.value.__cause__ is error
    assert ask(batcher, 1) == [2]
    wait_until(lambda: batcher.in_flight == 0, "the end of the run")
    assert batcher.queue_depth == 0
    assert len(backend.runs) == 2


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_coroutine_raises_is_its_failure_and_the_loop_goes_on(make, error):
    class Backend(GatedBackend):
        async def run(self, inputs: Any) -> Any:
            await asyncio.sleep(0)
            return fail(error)(inputs)

    batcher = make(Backend(traits=Traits(asynchronous=True)))
    with pytest.raises(BackendError) as caught:
        predict(batcher, 13)
    assert caught.value.__cause__ is error
    with pytest.raises(BackendError):
        asyncio.run(infer(batcher, 13))
    assert predict(batcher, 1) == [2]


@pytest.mark.parametrize("error", [ValueError("no"), InvalidInput("no", path="x")])
def test_each_caller_of_a_failed_batch_gets_an_exception_of_its_own(make, pool, error):
    batcher = make(backend := GatedBackend(fail(error)))
    hold(batcher, backend, pool)
    answers = [queue_up(batcher, pool, number) for number in (1, 13)]
    backend.release()
    errors = [future.exception(DEADLOCK) for future in answers]
    assert errors[0] is not errors[1]
    assert [str(e) for e in errors] == [str(errors[0])] * 2
    assert all(type(e) is type(errors[0]) and isinstance(e, ServeError) for e in errors)


def test_a_function_without_retry_is_called_once(make, pool):
    batcher = make(backend := GatedBackend(fail(ValueError("no"))))
    hold(batcher, backend, pool)
    answers = [queue_up(batcher, pool, number) for number in (1, 13, 2)]
    backend.release()
    for future in answers:
        assert isinstance(future.exception(DEADLOCK), BackendError)
    assert backend.runs == [[0], [1, 13, 2]]


def test_the_neighbours_of_guilty_rows_survive_where_the_backend_is_repeatable(make, pool):
    backend = GatedBackend(fail(ValueError("no")), Traits(repeatable=True))
    batcher = make(backend)
    hold(batcher, backend, pool)
    numbers = (1, 2, 13, 3, 4, 5)
    answers = [queue_up(batcher, pool, number) for number in numbers]
    backend.release()
    for number, future in zip(numbers, answers, strict=True):
        if number == 13:
            assert isinstance(future.exception(DEADLOCK), BackendError)
        else:
            assert future.result(DEADLOCK) == [2 * number]


def test_a_single_failing_request_is_not_run_again(make):
    backend = GatedBackend(fail(ValueError("no")), Traits(repeatable=True))
    with pytest.raises(BackendError):
        predict(make(backend), 13)
    assert backend.runs == [[13]]


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        ([1, 2], "expected a mapping"),
        ({"y": np.zeros((3, 1))}, "3 rows for a batch of 1"),
        ({"y": np.float32(0)}, "no rows for a batch of 1"),
        ({"y": np.array([1 + 2j])}, "no datatype"),
        ({"y": np.array([object()])}, 'output "y"'),
    ],
)
def test_outputs_that_cannot_be_split_are_the_models_failure(make, returned, text):
    batcher = make(GatedBackend(lambda _: returned))
    with pytest.raises(BackendError, match=text):
        predict(batcher, 1)


def test_an_unknown_output_is_the_callers_failure(make):
    batcher = make(GatedBackend())
    with pytest.raises(InvalidInput, match="unknown output 'q'; the model gives y"):
        predict(batcher, 1, outputs=["q"])


class SlowToPost(asyncio.SelectorEventLoop):
    """A loop whose other threads are held after they woke it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def call_soon_threadsafe(self, *args: Any, **options: Any) -> asyncio.Handle:
        handle = super().call_soon_threadsafe(*args, **options)
        self.gate.wait(DEADLOCK)
        return handle


async def adouble(inputs: Any) -> dict[str, Any]:
    return double(inputs)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["thread", "loop"])
def test_what_is_answered_is_not_under_way_any_more(make, asynchronous):
    backend: Any = GatedBackend()
    if asynchronous:
        backend.traits = Traits(asynchronous=True)
        backend.run = adouble
    batcher = make(backend)

    async def main(loop: SlowToPost) -> None:
        assert await infer(batcher, 1) == [2]
        try:
            assert (batcher.queue_depth, batcher.in_flight) == (0, 0)
        finally:
            loop.gate.set()

    with asyncio.Runner(loop_factory=SlowToPost) as runner:
        runner.run(main(runner.get_loop()))


# ---------------------------------------------------------------------- nested calls


def nesting(inner: Callable[[list[float]], list[float]]) -> Callable[[Any], Any]:
    """A function that asks `inner` about numbers above 0, one less, and adds one to the answer."""

    def function(inputs: Any) -> dict[str, Any]:
        out = [[inner([n - 1])[0] + 1] if n > 0 else [0.0] for n in inputs["x"].ravel().tolist()]
        return {"y": np.array(out, np.float32)}

    return function


NESTED = [
    lambda batcher, number: predict(batcher, number),
    lambda batcher, number: asyncio.run(infer(batcher, number)),
]


@pytest.mark.parametrize("ask", NESTED, ids=["predict", "infer"])
@pytest.mark.parametrize("instances", [1, 2])
def test_a_function_may_ask_its_own_model(make, ask, instances):
    batchers: list[AdaptiveBatcher] = []
    backends = [GatedBackend(nesting(lambda n: ask(batchers[0], *n))) for _ in range(instances)]
    batchers.append(make(*backends))
    assert predict(batchers[0], 3) == [3]
    assert asyncio.run(infer(batchers[0], 3)) == [3]
    wait_until(lambda: batchers[0].in_flight == 0, "the end of the run")
    assert batchers[0].queue_depth == 0


@pytest.mark.parametrize("ask", NESTED, ids=["predict", "infer"])
def test_two_models_may_ask_each_other(make, ask):
    batchers: dict[str, AdaptiveBatcher] = {}
    batchers["a"] = make(GatedBackend(nesting(lambda n: ask(batchers["b"], *n))))
    batchers["b"] = make(GatedBackend(nesting(lambda n: ask(batchers["a"], *n))))
    assert predict(batchers["a"], 5) == [5]
    assert asyncio.run(infer(batchers["b"], 4)) == [4]


@pytest.mark.parametrize("ask", NESTED, ids=["predict", "infer"])
@pytest.mark.parametrize("names", ["ab", "abc"])
def test_models_that_ask_each_other_in_a_circle_at_once_do_not_wait_for_ever(
    make, pool, ask, names
):
    batchers: dict[str, AdaptiveBatcher] = {}
    backends = {}
    for name, following in zip(names, names[1:] + names[0], strict=True):
        inner = nesting(lambda n, following=following: ask(batchers[following], *n))
        backends[name] = GatedBackend(inner)
        batchers[name] = make(backends[name])
        backends[name].hold()
    answers = [pool.submit(predict, batchers[name], 4) for name in names]
    for backend in backends.values():
        backend.wait_inside()
    for backend in backends.values():
        backend.release()
    assert [future.result(DEADLOCK) for future in answers] == [[4]] * len(names)
    for batcher in batchers.values():
        wait_until(lambda b=batcher: b.in_flight == 0, "the end of the runs")
        assert batcher.queue_depth == 0


def test_a_nested_call_runs_on_the_instance_that_waits_for_it(make, pool):
    batchers: list[AdaptiveBatcher] = []
    inner = threading.Event()

    def recursive(inputs: Any) -> dict[str, Any]:
        if 9 in inputs["x"]:
            assert inner.wait(DEADLOCK)
            return {"y": inputs["x"] + predict(batchers[0], 1)[0]}
        return double(inputs)

    backends = [GatedBackend(recursive), GatedBackend(recursive)]
    batchers.append(make(*backends))
    outer = pool.submit(predict, batchers[0], 9)
    wait_until(lambda: sum(b.inside for b in backends) == 1)
    calling = next(b for b in backends if b.inside)
    other = next(b for b in backends if not b.inside)
    other.hold()
    busy = pool.submit(predict, batchers[0], 5)
    other.wait_inside()
    inner.set()
    assert outer.result(DEADLOCK) == [11]
    assert calling.runs == [[9], [1]]
    assert other.most_inside == 1
    other.release()
    assert busy.result(DEADLOCK) == [10]


def test_a_nested_call_that_exits_fails_the_request_and_not_the_thread(make):
    batchers: list[AdaptiveBatcher] = []

    def function(inputs: Any) -> dict[str, Any]:
        if inputs["x"][0, 0] == 0:
            raise SystemExit(1)
        return {"y": np.array([predict(batchers[0], 0)], np.float32)}

    batchers.append(make(GatedBackend(function)))
    with pytest.raises(BackendError):
        predict(batchers[0], 1)


class AsyncBackend(GatedBackend):
    """Awaits its function."""

    def __init__(self, function: Callable[..., Any], concurrency: int = 1) -> None:
        super().__init__(function, Traits(asynchronous=True, concurrency=concurrency))
        self.loops: list[asyncio.AbstractEventLoop] = []

    async def run(self, inputs: Any) -> Any:  # type: ignore[override]
        self.loops.append(asyncio.get_running_loop())
        return await self.function(inputs)


def test_a_coroutine_may_await_its_own_model(make):
    batchers: list[AdaptiveBatcher] = []

    async def function(inputs: Any) -> dict[str, Any]:
        number = float(inputs["x"][0, 0])
        answer = (await infer(batchers[0], number - 1))[0] + 1 if number else 0.0
        return {"y": np.array([[answer]], np.float32)}

    batchers.append(make(AsyncBackend(function)))
    assert predict(batchers[0], 4) == [4]


def test_a_coroutine_reached_again_through_a_function_stays_on_its_loop(make):
    batchers: dict[str, AdaptiveBatcher] = {}

    async def function(inputs: Any) -> dict[str, Any]:
        number = float(inputs["x"][0, 0])
        answer = (await infer(batchers["b"], number - 1))[0] + 1 if number > 0 else 0.0
        return {"y": np.array([[answer]], np.float32)}

    backend = AsyncBackend(function)
    batchers["a"] = make(backend)
    batchers["b"] = make(GatedBackend(nesting(lambda n: predict(batchers["a"], *n))))
    assert predict(batchers["a"], 4) == [4]
    assert asyncio.run(infer(batchers["b"], 5)) == [5]
    assert len(set(backend.loops)) == 1


def test_a_coroutine_that_blocks_on_predict_is_told_to_await(make):
    batchers: list[AdaptiveBatcher] = []

    async def function(inputs: Any) -> dict[str, Any]:
        return {"y": np.array([predict(batchers[0], 0)], np.float32)}

    batchers.append(make(AsyncBackend(function, concurrency=4)))
    with pytest.raises(BackendError, match="await infer instead"):
        predict(batchers[0], 1)


def test_a_task_left_behind_waits_like_everyone_else(make, pool):
    batchers: list[AdaptiveBatcher] = []
    started, go = threading.Event(), threading.Event()
    late: list[Future[Any]] = []

    def function(inputs: Any) -> dict[str, Any]:
        if inputs["x"][0, 0] == 7:
            context = contextvars.copy_context()

            def ask() -> list[float]:
                started.set()
                assert go.wait(DEADLOCK)
                return context.run(predict, batchers[0], 1)

            late.append(pool.submit(ask))
        return double(inputs)

    backend = GatedBackend(function)
    batchers.append(make(backend))
    assert predict(batchers[0], 7) == [14]
    hold(batchers[0], backend, pool)
    go.set()
    queued(batchers[0], 1)
    backend.release()
    assert late[0].result(DEADLOCK) == [2]
    assert backend.most_inside == 1


# ---------------------------------------------------------------------- where it runs


def test_a_function_never_runs_on_the_callers_thread(make):
    batcher = make(backend := GatedBackend())
    asyncio.run(infer(batcher, 1))
    predict(batcher, 2)
    assert threading.get_ident() not in backend.threads
    assert len(set(backend.threads)) == 1


def test_an_inline_backend_known_to_be_short_runs_on_the_event_loop(make):
    backend = GatedBackend(traits=Traits(inline=True, shared=True))
    batcher = make(backend)
    batcher.pacing.learn(1, 20e-6)
    assert asyncio.run(infer(batcher, 1)) == [2]
    assert backend.threads == [threading.get_ident()]


def test_an_inline_backend_known_to_be_long_leaves_the_event_loop(make):
    backend = GatedBackend(traits=Traits(inline=True, shared=True))
    batcher = make(backend)
    batcher.pacing.learn(1, 0.1)
    assert asyncio.run(infer(batcher, 1)) == [2]
    assert threading.get_ident() not in backend.threads


def test_an_inline_backend_runs_on_the_thread_that_waits_for_it(make):
    backend = GatedBackend(traits=Traits(inline=True, shared=True))
    assert predict(make(backend), 1) == [2]
    assert backend.threads == [threading.get_ident()]


def test_what_queued_behind_an_inline_run_on_a_loop_does_not_need_that_loop_again(make, pool):
    backend = GatedBackend(traits=Traits(inline=True, shared=True))
    batcher = make(backend)
    batcher.pacing.learn(1, 20e-6)
    backend.hold()
    first = pool.submit(lambda: asyncio.run(infer(batcher, 1)))
    backend.wait_inside()
    second = queue_up(batcher, pool, 2)
    third = pool.submit(lambda: asyncio.run(infer(batcher, 3)))
    queued(batcher, 2)
    backend.release()
    assert [f.result(DEADLOCK) for f in (first, second, third)] == [[2], [4], [6]]


class Turns:
    """Counts the turns of the running loop."""

    def __init__(self) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self.count += 1
        self._loop.call_soon(self._turn)


def alone(make: Any, seconds: float = 20e-6) -> tuple[AdaptiveBatcher, GatedBackend]:
    """A batcher whose runs are known to be short."""
    backend = GatedBackend(traits=Traits(inline=True, shared=True))
    batcher = make(backend)
    for rows_of in (1, 2):
        batcher.pacing.learn(rows_of, seconds)
    return batcher, backend


def test_a_coroutine_that_is_alone_runs_its_request_without_a_turn_of_the_loop(make):
    batcher, backend = alone(make)

    async def main() -> None:
        assert await infer(batcher, 1) == [2]
        turns = Turns()
        assert await infer(batcher, 2) == [4]
        assert await infer(batcher, 3) == [6]
        assert turns.count == 0

    asyncio.run(main())
    assert backend.sizes == [1, 1, 1]


def test_a_coroutine_that_never_pauses_leaves_others_their_turns(make):
    batcher, _ = alone(make)

    async def main() -> None:
        turns = Turns()
        for number in range(500):
            assert await infer(batcher, number) == [2 * number]
        assert turns.count >= 4

    asyncio.run(main())


def test_coroutines_that_come_together_share_batches_after_one_was_alone(make):
    batcher, backend = alone(make)

    async def several() -> None:
        for number in range(150):
            assert await infer(batcher, number) == [2 * number]

    async def main() -> None:
        await infer(batcher, 0)
        await asyncio.gather(*(several() for _ in range(4)))

    asyncio.run(main())
    assert max(backend.sizes) == 4
    assert backend.sizes.count(4) > 50


def test_a_run_that_is_not_short_is_not_made_where_it_is_asked_for(make):
    batcher, backend = alone(make)

    async def main() -> None:
        await infer(batcher, 1)
        for _ in range(200):
            batcher.pacing.learn(1, 0.5)
        assert await infer(batcher, 2) == [4]

    asyncio.run(main())
    assert backend.threads[0] == threading.get_ident()
    assert backend.threads[1] != threading.get_ident()


def test_a_failure_of_a_request_that_is_alone_is_its_own(make):
    batcher, backend = alone(make)

    async def main() -> None:
        await infer(batcher, 1)
        backend.function = fail(ValueError("no"))
        with pytest.raises(BackendError, match="no"):
            await infer(batcher, 13)
        backend.function = double
        assert await infer(batcher, 3) == [6]

    asyncio.run(main())
    assert batcher.in_flight == 0


def test_a_closed_batcher_refuses_a_coroutine_that_was_alone(make):
    batcher, _ = alone(make)

    async def main() -> None:
        await infer(batcher, 1)
        await asyncio.to_thread(batcher.close)
        with pytest.raises(BatcherClosed):
            await infer(batcher, 2)

    asyncio.run(main())


# ---------------------------------------------------------------------- the end


def test_close_waits_for_everything_and_closes_after_the_last_run(make, pool):
    batcher = make(backend := GatedBackend())
    first = hold(batcher, backend, pool)
    second = queue_up(batcher, pool, 1)
    closing = pool.submit(batcher.close)
    wait_until(lambda: batcher._closed, "the close")
    with pytest.raises(BatcherClosed):
        predict(batcher, 2)
    with pytest.raises(BatcherClosed):
        asyncio.run(infer(batcher, 2))
    assert backend.closed == 0
    backend.release()
    assert closing.result(DEADLOCK) is True
    assert (first.result(DEADLOCK), second.result(DEADLOCK)) == ([0], [2])
    assert backend.closed == 1
    assert not backend.run_after_close


def test_what_still_waits_when_the_drain_ends_is_told_and_the_run_is_left_to_end(make, pool):
    batcher = make(backend := GatedBackend())
    first = hold(batcher, backend, pool)
    second = queue_up(batcher, pool, 1)
    assert batcher.close(drain=0.0) is False
    with pytest.raises(ModelNotReady):
        second.result(DEADLOCK)
    assert backend.closed == 0
    backend.release()
    assert first.result(DEADLOCK) == [0]
    wait_until(lambda: backend.closed == 1, "the close of the backend")
    assert not backend.run_after_close


def test_closing_again_and_from_many_threads_closes_each_backend_once(make, pool):
    backends = [GatedBackend(), GatedBackend()]
    batcher = make(*backends)
    predict(batcher, 1)
    closing = [pool.submit(batcher.close) for _ in range(8)]
    assert [future.result(DEADLOCK) for future in closing] == [True] * 8
    assert batcher.close()
    wait_until(lambda: all(backend.closed for backend in backends))
    assert [backend.closed for backend in backends] == [1, 1]


def test_close_runs_what_waited_for_the_next_turn_of_a_loop(make):
    batcher = make(backend := GatedBackend())

    async def main() -> list[float]:
        task = asyncio.create_task(infer(batcher, 1))
        await asyncio.sleep(0)
        assert batcher.queue_depth == 1
        await asyncio.to_thread(batcher.close)
        return await task

    assert asyncio.run(main()) == [2]
    assert backend.closed == 1


def test_a_backend_whose_close_fails_does_not_keep_the_others_open(make, caplog):
    class Stubborn(GatedBackend):
        def close(self) -> None:
            super().close()
            raise OSError("stuck")

    backends = [Stubborn(), GatedBackend()]
    batcher = make(*backends)
    assert batcher.close()
    assert [backend.closed for backend in backends] == [1, 1]
    assert "close failed" in caplog.text


def test_a_backend_is_opened_run_and_closed_on_one_thread(make):
    class Bound(GatedBackend):
        def __init__(self) -> None:
            super().__init__(traits=Traits(opens=True))
            self.life: list[int] = []

        def open(self) -> None:
            self.life.append(threading.get_ident())

        def close(self) -> None:
            super().close()
            self.life.append(threading.get_ident())

    batcher = make(backend := Bound())
    batcher.open()
    inputs = rows(1)
    batcher.run_at_load(InferRequest("m", inputs), inputs, 1)
    predict(batcher, 2)
    batcher.close()
    assert len({*backend.life, *backend.threads}) == 1
    assert len(backend.life) == 2


def test_a_failure_at_load_is_raised_and_not_logged(make, caplog):
    batcher = make(GatedBackend(fail(ValueError("no"))))
    inputs = rows(13)
    with pytest.raises(BackendError):
        batcher.run_at_load(InferRequest("m", inputs), inputs, 1)
    assert caplog.text == ""


def test_a_process_that_can_start_no_thread_says_so_to_every_caller(make, monkeypatch):
    batcher = make(GatedBackend())

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> list[Any]:
        return await asyncio.gather(*(infer(batcher, i) for i in range(3)), return_exceptions=True)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(BackendError, match="can't start new thread"):
            predict(batcher, 1)
        assert all(isinstance(answer, BackendError) for answer in asyncio.run(main()))
    assert predict(batcher, 1) == [2]


@pytest.mark.parametrize(
    "options", [{"max_batch_size": -1}, {"max_queue_size": 0}, {"max_queue_bytes": 0}]
)
def test_wrong_bounds_are_refused(options):
    with pytest.raises(ValueError, match="must be at least"):
        AdaptiveBatcher([GatedBackend()], **options)


def test_no_backend_is_refused():
    with pytest.raises(ValueError, match="at least one backend"):
        AdaptiveBatcher([])
