"""What the batcher does with its judgement: refusals, sizes, waits, costs; the plain fallback."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from gated import DEADLOCK, GatedBackend, rows, wait_until
from modelserve.errors import BackendError, InvalidInput, Overloaded
from modelserve.execution.batcher import AdaptiveBatcher
from modelserve.messages import Exchange, InferRequest
from modelserve.protocols import Traits

INLINE = Traits(inline=True, shared=True)


@pytest.fixture
def make() -> Iterator[Callable[..., AdaptiveBatcher]]:
    made: list[tuple[AdaptiveBatcher, Any]] = []

    def build(backend: Any, **options: Any) -> AdaptiveBatcher:
        options.setdefault("max_batch_size", 8)
        batcher = AdaptiveBatcher([backend], model="m", version="1", **options)
        made.append((batcher, backend))
        return batcher

    yield build
    for batcher, backend in made:
        backend.release()
        assert batcher.close(drain=DEADLOCK)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def predict(batcher: AdaptiveBatcher, *numbers: float, **options: Any) -> list[float]:
    request = InferRequest("m", rows(*numbers), **options)
    return batcher.submit_blocking(request, rows(*numbers), len(numbers))["y"].ravel().tolist()


async def explained(batcher: AdaptiveBatcher, number: float) -> tuple[str, int]:
    """Why the batch of a request was sent, and of how many rows."""
    request = InferRequest("m", rows(number))
    exchange = request.exchange = Exchange("inprocess", "m")
    outputs = await batcher.submit(request, rows(number), 1)
    assert outputs["y"].ravel().tolist() == [2 * number]
    return exchange.reason, exchange.batch_rows


def held(
    batcher: AdaptiveBatcher, backend: GatedBackend, pool: ThreadPoolExecutor
) -> Future[list[float]]:
    backend.hold()
    first = pool.submit(predict, batcher, 0)
    backend.wait_inside()
    return first


def queue_up(
    batcher: AdaptiveBatcher, pool: ThreadPoolExecutor, *numbers: float, **options: Any
) -> Future[list[float]]:
    depth = batcher.queue_depth
    future = pool.submit(predict, batcher, *numbers, **options)
    wait_until(lambda: batcher.queue_depth == depth + 1)
    return future


# ---------------------------------------------------------------------- admission


def test_a_request_that_cannot_be_answered_in_time_is_refused_on_arrival(make, pool):
    batcher = make(backend := GatedBackend())
    batcher.pacing.learn(1, 100.0)
    first = held(batcher, backend, pool)
    with pytest.raises(Overloaded, match=r"the answer would take .* s, and the deadline") as caught:
        predict(batcher, 1, timeout=50.0)
    assert caught.value.retry_after > 50.0
    backend.release()
    assert first.result(DEADLOCK) == [0]
    assert backend.runs == [[0]]


def test_a_coroutine_is_refused_like_a_thread(make, pool):
    batcher = make(backend := GatedBackend())
    batcher.pacing.learn(1, 100.0)
    held(batcher, backend, pool)

    async def main() -> None:
        request = InferRequest("m", rows(1), timeout=50.0)
        with pytest.raises(Overloaded):
            await batcher.submit(request, rows(1), 1)

    asyncio.run(main())
    assert batcher.queue_depth == 0


def test_while_nothing_was_measured_everyone_is_let_in(make, pool):
    batcher = make(backend := GatedBackend())
    held(batcher, backend, pool)
    later = queue_up(batcher, pool, 1, timeout=50.0)
    backend.release()
    assert later.result(DEADLOCK) == [2]


def test_a_free_lane_tries_what_was_learned_to_be_too_long(make):
    batcher = make(GatedBackend())
    batcher.pacing.learn(1, 100.0)
    assert predict(batcher, 1, timeout=50.0) == [2]


def test_what_waits_with_a_lower_priority_does_not_count_for_admission(make, pool):
    batcher = make(backend := GatedBackend())
    batcher.pacing.learn(8, 100.0)
    first = held(batcher, backend, pool)
    waiting = [queue_up(batcher, pool, *range(8), priority=5) for _ in range(3)]
    with pytest.raises(Overloaded):
        predict(batcher, 1, timeout=300.0, priority=9)
    urgent = queue_up(batcher, pool, 1, timeout=300.0, priority=1)
    backend.release()
    assert urgent.result(DEADLOCK) == [2]
    assert first.result(DEADLOCK) == [0]
    assert all(one.result(DEADLOCK) for one in waiting)


def test_a_low_priority_waits_as_long_as_higher_ones_come(make, pool):
    batcher = make(backend := GatedBackend(), max_batch_size=1)
    held(batcher, backend, pool)
    low = queue_up(batcher, pool, 9, priority=7)
    high = [queue_up(batcher, pool, number, priority=6) for number in (1, 2, 3)]
    backend.release()
    assert [one.result(DEADLOCK) for one in (*high, low)] == [[2], [4], [6], [18]]
    assert backend.runs == [[0], [1], [2], [3], [9]]


# ---------------------------------------------------------------------- sizes and waits


def test_a_model_that_gains_nothing_by_batches_gets_small_ones(make, pool):
    batcher = make(backend := GatedBackend())
    for _ in range(20):
        for size in (1, 2, 4, 8):
            batcher.pacing.learn(size, 0.1 * size)
    held(batcher, backend, pool)
    waiting = [queue_up(batcher, pool, number) for number in (1, 2, 3)]
    backend.release()
    assert [one.result(DEADLOCK) for one in waiting] == [[2], [4], [6]]
    assert backend.sizes == [1, 1, 1, 1]


def test_a_batch_of_the_learned_size_says_so(make):
    batcher = make(GatedBackend())
    for _ in range(20):
        for size in (1, 2, 4, 8):
            batcher.pacing.learn(size, 0.1 * size)

    async def main() -> list[tuple[str, int]]:
        return await asyncio.gather(*(explained(batcher, number) for number in range(3)))

    assert asyncio.run(main()) == [("best", 1), ("best", 1), ("next", 1)]


@pytest.mark.parametrize("traits", [Traits(), INLINE, Traits(asynchronous=True, concurrency=1)])
@pytest.mark.parametrize("way", ["adaptive", "simple"])
def test_a_delay_ends_when_the_batch_is_full(make, way, traits):
    backend = GatedBackend(traits=traits)
    if traits.asynchronous:
        run = backend.run

        async def arun(inputs: Any) -> Any:
            return run(inputs)

        backend.run = arun  # type: ignore[method-assign]
    batcher = make(backend, max_batch_size=3, max_queue_delay=60.0, batcher=way)

    async def main() -> list[tuple[str, int]]:
        first = asyncio.create_task(explained(batcher, 1))
        await asyncio.sleep(0.01)
        assert backend.runs == []
        return await asyncio.gather(first, explained(batcher, 2), explained(batcher, 3))

    assert asyncio.run(main()) == [("full", 3)] * 3


def test_a_delay_that_runs_out_sends_what_there_is(make):
    batcher = make(GatedBackend(), max_queue_delay=0.01)
    assert asyncio.run(explained(batcher, 1)) == ("delay", 1)


def test_threads_wait_for_each_other_within_the_delay(make, pool):
    batcher = make(backend := GatedBackend(traits=INLINE), max_batch_size=2, max_queue_delay=60.0)
    answers = [pool.submit(predict, batcher, number) for number in (1, 2)]
    assert [one.result(DEADLOCK) for one in answers] == [[2], [4]]
    assert backend.sizes == [2]


@pytest.mark.parametrize("way", ["adaptive", "simple"])
def test_a_delay_ends_before_a_deadline(make, way):
    batcher = make(GatedBackend(), max_queue_delay=60.0, batcher=way)

    async def main() -> list[list[float]]:
        async def ask(number: float, seconds: float) -> list[float]:
            request = InferRequest("m", rows(number), timeout=seconds)
            return (await batcher.submit(request, rows(number), 1))["y"].ravel().tolist()

        # The second comes into a hold that for the first alone would last a minute.
        first = asyncio.create_task(ask(1, 120.0))
        await asyncio.sleep(0.01)
        return await asyncio.gather(first, ask(2, 1.0))

    assert asyncio.run(main()) == [[2], [4]]


def test_closing_ends_a_delay(make, pool):
    batcher = make(backend := GatedBackend(), max_queue_delay=60.0)
    waiting = queue_up(batcher, pool, 1)
    assert batcher.close(drain=DEADLOCK)
    assert waiting.result(DEADLOCK) == [2]
    assert backend.sizes == [1]


def test_a_request_cancelled_within_the_delay_costs_nothing(make):
    batcher = make(backend := GatedBackend(), max_queue_delay=0.02)

    async def main() -> None:
        waiting = asyncio.create_task(explained(batcher, 1))
        await asyncio.sleep(0)
        waiting.cancel()
        assert await explained(batcher, 2) == ("delay", 1)

    asyncio.run(main())
    assert backend.runs == [[2]]


# ---------------------------------------------------------------------- cost


def total(inputs: Any) -> float:
    return float(inputs["x"].sum())


def test_the_users_cost_bounds_a_batch(make, pool):
    batcher = make(backend := GatedBackend(), max_batch_cost=10, cost=total)
    held(batcher, backend, pool)
    waiting = [queue_up(batcher, pool, number) for number in (4, 5, 3)]
    backend.release()
    assert [one.result(DEADLOCK) for one in waiting] == [[8], [10], [6]]
    assert backend.runs == [[0], [4, 5], [3]]


def test_max_batch_size_holds_beside_the_cost(make, pool):
    batcher = make(backend := GatedBackend(), max_batch_size=2, max_batch_cost=100, cost=total)
    held(batcher, backend, pool)
    waiting = [queue_up(batcher, pool, number) for number in (1, 2, 3)]
    backend.release()
    assert [one.result(DEADLOCK) for one in waiting] == [[2], [4], [6]]
    assert backend.runs == [[0], [1, 2], [3]]


def test_a_request_that_costs_more_than_a_batch_may_is_refused(make):
    batcher = make(GatedBackend(traits=INLINE), max_batch_cost=10, cost=total)
    with pytest.raises(InvalidInput, match="costs 11, more than max_batch_cost 10"):
        predict(batcher, 11)


def test_a_cost_function_that_fails_is_the_models_failure(make):
    batcher = make(GatedBackend(), max_batch_cost=10, cost=lambda inputs: inputs["tokens"])
    with pytest.raises(BackendError, match="cost failed: KeyError: 'tokens'") as caught:
        predict(batcher, 1)
    assert isinstance(caught.value.__cause__, KeyError)


# ---------------------------------------------------------------------- simple


def test_the_simple_batcher_never_runs_on_the_event_loop(make):
    batcher = make(backend := GatedBackend(traits=INLINE), batcher="simple")
    batcher.pacing.learn(1, 20e-6)

    async def main() -> None:
        for number in range(20):
            await explained(batcher, number)

    asyncio.run(main())
    assert threading.get_ident() not in backend.threads


def test_the_simple_batcher_refuses_nobody_for_what_it_knows(make, pool):
    batcher = make(backend := GatedBackend(), batcher="simple")
    batcher.pacing.learn(1, 100.0)
    held(batcher, backend, pool)
    later = queue_up(batcher, pool, 1, timeout=50.0)
    backend.release()
    assert later.result(DEADLOCK) == [2]


def test_the_simple_batcher_takes_all_that_fits(make, pool):
    batcher = make(backend := GatedBackend(), batcher="simple")
    for _ in range(20):
        for size in (1, 2, 4, 8):
            batcher.pacing.learn(size, 0.1 * size)
    held(batcher, backend, pool)
    waiting = [queue_up(batcher, pool, number) for number in range(12)]
    backend.release()
    assert [one.result(DEADLOCK) for one in waiting] == [[2 * number] for number in range(12)]
    assert backend.sizes == [1, 8, 4]


def test_another_way_of_batching_is_refused(make):
    with pytest.raises(ValueError, match=r"batcher must be .adaptive. or .simple., got 'fast'"):
        make(GatedBackend(), batcher="fast")
