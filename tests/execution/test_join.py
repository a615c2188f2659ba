"""Plain requests that join the loop's next turn without a lock: the same laws as for all others."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gated import DEADLOCK, GatedBackend, double, rows
from modelserve import ModelRepository
from modelserve.errors import BackendError, QueueFull
from modelserve.execution.batcher import AdaptiveBatcher, BatcherClosed
from modelserve.execution.waiting import Joined
from modelserve.messages import Exchange, InferRequest
from modelserve.observe.recorder import Recorder
from modelserve.protocols import Traits

SHORT = Traits(inline=True, shared=True, repeatable=True)

Make = Callable[..., AdaptiveBatcher]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[tuple[AdaptiveBatcher, GatedBackend]] = []

    def make(backend: GatedBackend, **options: Any) -> AdaptiveBatcher:
        options.setdefault("max_batch_size", 8)
        batcher = AdaptiveBatcher([backend], model="m", version="1", **options)
        for size in (1, options["max_batch_size"]) * 20:
            batcher.pacing.learn(size, 2e-6)
        assert batcher.pacing.tiny
        made.append((batcher, backend))
        return batcher

    yield make
    for batcher, backend in made:
        backend.release()
        batcher.close(drain=DEADLOCK)


def ask(number: float, **options: Any) -> InferRequest:
    return InferRequest("m", rows(number), **options)


def run(main: Callable[[], Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(main(), DEADLOCK)

    return asyncio.run(bounded())


async def known(batcher: AdaptiveBatcher) -> None:
    """Let the batcher know the running loop, and that several come."""
    inputs = [ask(0), ask(0)]
    await asyncio.gather(*(batcher.submit(one, one.inputs, 1) for one in inputs))


def join(batcher: AdaptiveBatcher, number: float, **options: Any) -> Joined:
    joined = batcher.join(ask(number, **options))
    assert isinstance(joined, Joined)
    return joined


async def answer(joined: Any) -> float:
    return float((await joined.future)["y"][0, 0])


def test_those_of_a_turn_share_a_batch(make):
    batcher = make(backend := GatedBackend(traits=SHORT))

    async def main() -> list[float]:
        await known(batcher)
        joined = [join(batcher, number) for number in (1, 2, 3)]
        assert batcher.queue_depth == 3
        return [await answer(one) for one in joined]

    assert run(main) == [2, 4, 6]
    assert backend.runs[1:] == [[1, 2, 3]]
    assert batcher.queue_depth == 0


def test_more_than_a_batch_holds_go_in_order(make):
    batcher = make(backend := GatedBackend(traits=SHORT), max_batch_size=2)

    async def main() -> list[float]:
        await known(batcher)
        joined = [join(batcher, number) for number in range(5)]
        return [await answer(one) for one in joined]

    assert run(main) == [0, 2, 4, 6, 8]
    assert backend.runs[1:] == [[0, 1], [2, 3], [4]]


UNUSUAL = {
    "deadline": ask(1, timeout=5),
    "priority": ask(1, priority=1),
    "parameters": ask(1, parameters={"a": 1}),
    "outputs": ask(1, outputs=["y"]),
    "long id": ask(1, id="x" * 65),
    "two rows": InferRequest("m", rows(1, 2)),
    "no rows": InferRequest("m", rows()),
    "datatype": InferRequest("m", {"x": np.zeros((1, 1), np.float64)}),
    "list": InferRequest("m", {"x": [[1.0]]}),
    "no input": InferRequest("m", {}),
    "an input too many": InferRequest("m", {**rows(1), "z": np.zeros((1, 1), np.float32)}),
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_what_is_not_plain_goes_the_usual_way(make, what):
    batcher = make(GatedBackend(traits=SHORT))

    async def main() -> None:
        await known(batcher)
        assert batcher.join(UNUSUAL[what]) is None
        assert batcher.queue_depth == 0

    run(main)


@pytest.mark.parametrize("traits", [Traits(), Traits(inline=True, shared=True, context=True)])
def test_models_that_may_not_hold_the_loop_up_are_not_joined(traits):
    batcher = AdaptiveBatcher([GatedBackend(traits=traits)], max_batch_size=8)
    for size in (1, 8) * 20:
        batcher.pacing.learn(size, 2e-6)

    async def main() -> None:
        await batcher.submit(ask(0), rows(0), 1)
        assert batcher.join(ask(1)) is None

    function = GatedBackend(traits=traits)
    function.function = lambda inputs, *context: double(inputs)
    batcher.lanes[0].backend = function
    run(main)
    assert batcher.close()


def test_what_came_before_goes_before(make):
    batcher = make(backend := GatedBackend(traits=SHORT), max_batch_size=2)

    async def main() -> None:
        await known(batcher)
        first = [join(batcher, 1), join(batcher, 2)]
        two = InferRequest("m", rows(3, 4))
        second = batcher.enqueue(two, two.inputs, 2)
        third = batcher.enqueue(ask(5), rows(5), 1)
        for one in (*first, second, third):
            await one.future

    run(main)
    assert backend.runs[1:] == [[1, 2], [3, 4], [5]]


def test_a_higher_priority_goes_before_those_who_joined(make):
    batcher = make(backend := GatedBackend(traits=SHORT), max_batch_size=2)

    async def main() -> None:
        await known(batcher)
        joined = [join(batcher, 1), join(batcher, 2)]
        urgent = ask(3, priority=1)
        entry = batcher.enqueue(urgent, urgent.inputs, 1)
        for one in (*joined, entry):
            await one.future

    run(main)
    assert backend.runs[1:] == [[3, 1], [2]]


def test_a_full_queue_refuses_as_ever(make):
    batcher = make(backend := GatedBackend(traits=SHORT), max_queue_size=4)

    async def main() -> int:
        await known(batcher)
        entries = []
        for number in range(4):
            request = ask(number)
            entries.append(batcher.join(request) or batcher.enqueue(request, request.inputs, 1))
        assert batcher.join(ask(4)) is None
        with pytest.raises(QueueFull, match="4 requests wait already"):
            batcher.enqueue(ask(4), rows(4), 1)
        assert batcher.queue_depth == 4
        for entry in entries:
            await entry.future
        return sum(entry.__class__ is Joined for entry in entries)

    assert run(main) == 2
    assert backend.runs[1:] == [[0, 1, 2, 3]]


def test_bytes_are_bounded_too(make):
    batcher = make(GatedBackend(traits=SHORT), max_queue_bytes=2 * (4 + 64) - 1)

    async def main() -> None:
        await known(batcher)
        assert batcher.join(ask(1)) is None  # half of the bound is less than one

    run(main)


def test_one_cancelled_before_its_turn_costs_no_compute(make):
    batcher = make(backend := GatedBackend(traits=SHORT))

    async def main() -> Exchange:
        await known(batcher)
        request = ask(1)
        exchange = request.exchange = Exchange("inprocess", "m")
        joined = batcher.join(request)
        kept = join(batcher, 2)
        joined.future.cancel()
        assert await answer(kept) == 4
        joined.leave()
        return exchange

    exchange = run(main)
    assert backend.runs[1:] == [[2]]
    assert (exchange.rows, exchange.batch_rows) == (1, 0)
    assert exchange.enqueued > 0


def test_one_that_leaves_before_its_turn_is_out_of_the_queue(make):
    batcher = make(backend := GatedBackend(traits=SHORT))

    async def main() -> None:
        await known(batcher)
        joined, kept = join(batcher, 1), join(batcher, 2)
        joined.leave()
        assert batcher.queue_depth == 1
        assert await answer(kept) == 4
        assert not joined.future.done()

    run(main)
    assert backend.runs[1:] == [[2]]


def test_close_answers_those_who_joined(make):
    batcher = make(GatedBackend(traits=SHORT))

    async def main() -> list[float]:
        await known(batcher)
        joined = [join(batcher, number) for number in (1, 2)]
        assert await asyncio.to_thread(batcher.close)
        with pytest.raises(BatcherClosed):
            batcher.join(ask(3))
        return [await answer(one) for one in joined]

    assert run(main) == [2, 4]


def test_close_does_not_wait_for_a_loop_that_ended(make):
    batcher = make(backend := GatedBackend(traits=SHORT))

    async def main() -> None:
        await known(batcher)
        join(batcher, 1)  # and the loop has no other turn

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    assert batcher.close(drain=DEADLOCK)
    loop.close()
    assert backend.runs[1:] in ([], [[1]])


def test_a_thread_takes_those_who_joined_before_it_along(make):
    batcher = make(backend := GatedBackend(traits=SHORT))

    async def main() -> float:
        await known(batcher)
        joined = join(batcher, 1)
        thread = threading.Thread(target=batcher.submit_blocking, args=(ask(2), rows(2), 1))
        thread.start()
        thread.join(DEADLOCK)
        return await answer(joined)

    assert run(main) == 2
    assert backend.runs[1:] == [[1, 2]]


def test_a_failure_is_told_to_its_own_caller(make):
    def picky(inputs: Any) -> Any:
        if 3 in inputs["x"]:
            raise ValueError("no threes")
        return double(inputs)

    batcher = make(GatedBackend(picky, traits=SHORT))

    async def main() -> list[Any]:
        await known(batcher)
        joined = [join(batcher, number) for number in (1, 2, 3, 4)]
        return await asyncio.gather(*map(answer, joined), return_exceptions=True)

    one, two, three, four = run(main)
    assert (one, two, four) == (2, 4, 8)
    assert isinstance(three, BackendError)


class Kept:
    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    def observe(self, exchanges: Any) -> None:
        self.exchanges += exchanges


def test_exchanges_are_closed_once_before_their_callers_go_on(make):
    batcher = make(GatedBackend(traits=SHORT))
    recorder = Recorder([kept := Kept()])

    async def main() -> None:
        await known(batcher)
        joined = []
        for number in (1, 2):
            request = ask(number)
            request.exchange = Exchange("inprocess", "m")
            joined.append(batcher.join(request, None, recorder.record_all))
        other = ask(3)
        other.exchange = Exchange("http", "m")
        joined.append(batcher.join(other))
        await joined[0].future
        recorder.flush()
        assert [exchange.protocol for exchange in kept.exchanges] == ["inprocess"] * 2
        assert all(exchange.batch_rows == 3 for exchange in kept.exchanges)
        assert all(exchange.total > 0 for exchange in kept.exchanges)
        assert joined[0].record is None

    run(main)


@pytest.fixture
def repository() -> Iterator[tuple[ModelRepository, Kept]]:
    def picky(inputs: Any) -> Any:
        if 3 in inputs["x"]:
            raise ValueError("no threes")
        return double(inputs)

    kept = Kept()
    with ModelRepository(observers=[kept]) as repository:
        repository.add("m", GatedBackend(picky, traits=SHORT), max_batch_size=8, warm_up=False)
        for size in (1, 8) * 20:
            repository._entries["m"].default.batcher.pacing.learn(size, 2e-6)
        yield repository, kept


def codes(repository: ModelRepository, kept: Kept) -> list[str]:
    repository.metrics.render()  # which has all that was recorded folded
    return sorted(exchange.code for exchange in kept.exchanges)


def test_every_request_of_a_repository_is_recorded_once(repository):
    repo, kept = repository

    async def main() -> None:
        for _ in range(3):
            numbers = (1, 2, 3, 4)
            await asyncio.gather(*(repo.infer(ask(n)) for n in numbers), return_exceptions=True)

    run(main)
    assert codes(repo, kept) == ["INTERNAL"] * 3 + ["OK"] * 9
    assert all(exchange.rows == 1 for exchange in kept.exchanges)


def test_an_eager_observer_sees_each_request_once_as_it_ends(repository):
    repo, kept = repository
    repo._recorder.add(eager := Kept(), eager=True)

    async def caller(number: float) -> None:
        request = ask(number, id=str(number))
        await repo.infer(request)
        assert [exchange.id for exchange in eager.exchanges].count(str(number)) == 1

    run(lambda: asyncio.gather(*map(caller, (1, 2, 4))))
    assert codes(repo, kept) == ["OK"] * 3
    assert len(eager.exchanges) == 3


def test_it_is_recorded_when_the_caller_goes_on(repository):
    repo, kept = repository

    async def caller(number: float, before: int) -> None:
        await repo.infer(ask(number))
        assert len(codes(repo, kept)) > before

    async def main() -> None:
        await asyncio.gather(*(caller(n, 0) for n in (1, 2)))
        await asyncio.gather(*(caller(n, 2) for n in (1, 2)))

    run(main)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_one_cancelled_at_any_moment_is_recorded_as_that(repository, turns):
    repo, kept = repository

    async def main() -> bool:
        await asyncio.gather(*(repo.infer(ask(n)) for n in (1, 2)))
        kept.exchanges.clear()
        tasks = [asyncio.create_task(repo.infer(ask(n))) for n in (1, 2)]
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled = tasks[0].cancel()
        (ended, _) = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError) == cancelled
        return cancelled

    cancelled = run(main)
    codes(repo, kept)
    found = [exchange.code for exchange in kept.exchanges if exchange.model == "m"]
    expected = ["CANCELLED", "OK"] if cancelled and turns else ["OK"] * (1 if cancelled else 2)
    assert sorted(found[-len(expected) :]) == expected
