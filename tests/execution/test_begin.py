"""Requests that are begun with a function to call: what transports may rely on."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from gated import DEADLOCK, GatedBackend, ManualClock, rows, wait_until
from modelserve.errors import (
    BackendError,
    DeadlineExceeded,
    InvalidInput,
    ModelNotReady,
    QueueFull,
)
from modelserve.execution.batcher import AdaptiveBatcher, BatcherClosed
from modelserve.execution.waiting import Called, TaskTicket
from modelserve.messages import Exchange, InferRequest, InferResponse
from modelserve.protocols import Traits

SHORT = Traits(inline=True, shared=True)


class Answer:
    """Takes one answer, and notes where and how often it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[InferResponse | None, BaseException | None]] = []
        self.threads: list[int] = []
        self.come = asyncio.Event()

    def __call__(self, response: InferResponse | None, error: BaseException | None) -> None:
        self.calls.append((response, error))
        self.threads.append(threading.get_ident())
        self.come.set()

    async def wait(self) -> Any:
        """Return column y of the answer, or the error."""
        await asyncio.wait_for(self.come.wait(), DEADLOCK)
        ((response, error),) = self.calls
        assert (response is None) != (error is None)
        return error if response is None else response.outputs["y"].ravel().tolist()


def begin(batcher: AdaptiveBatcher, done: Any, *numbers: float, **options: Any) -> Called:
    inputs = rows(*numbers)
    request = InferRequest("m", inputs, **options)
    request.exchange = Exchange("http", "m")
    return batcher.begin(request, inputs, len(numbers), done)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def served(
    backend: GatedBackend, use: Callable[[AdaptiveBatcher], Awaitable[Any]], **options: Any
) -> Any:
    options.setdefault("max_batch_size", 8)
    batcher = AdaptiveBatcher([backend], model="m", version="1", **options)

    async def main() -> Any:
        return await asyncio.wait_for(use(batcher), DEADLOCK)

    try:
        return asyncio.run(main())
    finally:
        backend.release()
        assert batcher.close(drain=DEADLOCK)


@pytest.mark.parametrize("traits", [Traits(), SHORT])
def test_the_answer_comes_once_on_the_loops_thread(traits):
    backend = GatedBackend(traits=traits)

    async def use(batcher: AdaptiveBatcher) -> None:
        batcher.pacing.learn(1, 20e-6)
        for number in range(20):
            answer = Answer()
            begin(batcher, answer, number)
            assert answer.calls == []
            assert await answer.wait() == [2 * number]
            assert answer.threads == [threading.get_ident()]

    served(backend, use)


def test_a_begun_request_is_never_answered_within_begin_even_where_a_coroutine_would_be():
    backend = GatedBackend(traits=SHORT)

    async def use(batcher: AdaptiveBatcher) -> None:
        batcher.pacing.learn(1, 20e-6)
        request = InferRequest("m", rows(1))
        await batcher.submit(request, rows(1), 1)
        runs = len(backend.runs)
        answer = Answer()
        begin(batcher, answer, 2)
        assert (answer.calls, len(backend.runs)) == ([], runs)
        assert await answer.wait() == [4]

    served(backend, use)


def test_the_response_names_the_model_the_version_and_the_request():
    async def use(batcher: AdaptiveBatcher) -> None:
        answer = Answer()
        begin(batcher, answer, 1, id="a")
        await answer.wait()
        response, _ = answer.calls[0]
        assert response is not None
        assert (response.model, response.version, response.id) == ("m", "1", "a")

    served(GatedBackend(), use)


def test_a_begun_request_a_coroutine_and_a_thread_share_one_batch(pool):
    backend = GatedBackend()

    async def use(batcher: AdaptiveBatcher) -> None:
        backend.hold()
        first, second = Answer(), Answer()
        begin(batcher, first, 0)
        await asyncio.to_thread(backend.wait_inside)
        ticket = begin(batcher, second, 1)
        awaited = asyncio.create_task(
            batcher.submit(InferRequest("m", rows(2)), rows(2), 1)  # type: ignore[arg-type]
        )
        blocked = pool.submit(batcher.submit_blocking, InferRequest("m", rows(3)), rows(3), 1)
        await asyncio.to_thread(wait_until, lambda: batcher.queue_depth == 3)
        backend.release()
        assert await first.wait() == [0]
        assert await second.wait() == [2]
        assert (await awaited)["y"].tolist() == [[4]]
        assert (await asyncio.wrap_future(blocked))["y"].tolist() == [[6]]
        exchange = ticket.request.exchange
        assert exchange is not None
        assert (exchange.code, exchange.rows, exchange.batch_requests) == ("OK", 1, 3)

    served(backend, use)
    assert backend.sizes == [1, 3]


def test_a_request_cancelled_while_it_waits_costs_no_compute():
    backend = GatedBackend()

    async def use(batcher: AdaptiveBatcher) -> None:
        backend.hold()
        first, leaving, staying = Answer(), Answer(), Answer()
        begin(batcher, first, 0)
        await asyncio.to_thread(backend.wait_inside)
        ticket = begin(batcher, leaving, 1)
        begin(batcher, staying, 2)
        ticket.cancel()
        ticket.cancel()
        assert batcher.queue_depth == 1
        assert ticket.request.exchange is not None
        assert ticket.request.exchange.code == "CANCELLED"
        backend.release()
        assert await staying.wait() == [4]
        assert leaving.calls == []

    served(backend, use)
    assert backend.runs == [[0], [2]]


def test_a_request_cancelled_while_it_runs_is_not_answered():
    backend = GatedBackend()

    async def use(batcher: AdaptiveBatcher) -> None:
        backend.hold()
        leaving, following = Answer(), Answer()
        ticket = begin(batcher, leaving, 1)
        await asyncio.to_thread(backend.wait_inside)
        ticket.cancel()
        begin(batcher, following, 2)
        backend.release()
        assert await following.wait() == [4]
        assert leaving.calls == []

    served(backend, use)


def test_a_request_cancelled_in_the_turn_it_came_in_never_runs():
    backend = GatedBackend(traits=SHORT)

    async def use(batcher: AdaptiveBatcher) -> None:
        batcher.pacing.learn(1, 20e-6)
        leaving, staying = Answer(), Answer()
        begin(batcher, leaving, 1).cancel()
        begin(batcher, staying, 2)
        assert await staying.wait() == [4]
        assert leaving.calls == []

    served(backend, use)
    assert backend.runs == [[2]]


def test_cancelling_after_the_answer_does_nothing():
    async def use(batcher: AdaptiveBatcher) -> None:
        answer = Answer()
        ticket = begin(batcher, answer, 1)
        assert await answer.wait() == [2]
        ticket.cancel()
        assert ticket.request.exchange is not None
        assert ticket.request.exchange.code == "OK"

    served(GatedBackend(), use)


def test_a_failed_run_is_told_with_its_code():
    def fail(inputs: Any) -> Any:
        raise ValueError("no")

    async def use(batcher: AdaptiveBatcher) -> None:
        answer = Answer()
        ticket = begin(batcher, answer, 1)
        assert isinstance(await answer.wait(), BackendError)
        assert ticket.request.exchange is not None
        assert ticket.request.exchange.code == "INTERNAL"

    served(GatedBackend(fail), use)


def test_what_is_refused_at_once_is_raised():
    backend = GatedBackend()

    async def use(batcher: AdaptiveBatcher) -> None:
        backend.hold()
        held, waiting, refused = Answer(), Answer(), Answer()
        begin(batcher, held, 0)
        await asyncio.to_thread(backend.wait_inside)
        begin(batcher, waiting, 1)
        with pytest.raises(QueueFull):
            begin(batcher, refused, 2)
        with pytest.raises(DeadlineExceeded):
            begin(batcher, refused, 2, timeout=-1.0)
        backend.release()
        assert await waiting.wait() == [2]
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await closing
        with pytest.raises(BatcherClosed):
            begin(batcher, refused, 2)
        assert refused.calls == []

    served(backend, use, max_queue_size=1)


def test_a_request_whose_deadline_passes_in_the_queue_is_told_and_costs_no_compute():
    backend = GatedBackend()

    async def use(batcher: AdaptiveBatcher) -> None:
        backend.hold()
        held, late = Answer(), Answer()
        begin(batcher, held, 0)
        await asyncio.to_thread(backend.wait_inside)
        ticket = begin(batcher, late, 1, timeout=0.02)
        assert isinstance(await late.wait(), DeadlineExceeded)
        assert late.threads == [threading.get_ident()]
        assert batcher.queue_depth == 0
        assert ticket.request.exchange is not None
        assert ticket.request.exchange.code == "DEADLINE_EXCEEDED"
        backend.release()
        assert await held.wait() == [0]
        assert len(late.calls) == 1

    served(backend, use)
    assert backend.runs == [[0]]


def test_requests_answered_in_the_next_turn_set_no_timers():
    backend = GatedBackend(traits=SHORT)
    timers: list[float] = []

    class Loop(asyncio.SelectorEventLoop):
        def call_later(self, delay: float, callback: Any, *args: Any, **options: Any) -> Any:
            if getattr(callback, "__name__", "") == "expire":
                timers.append(delay)
            return super().call_later(delay, callback, *args, **options)

    batcher = AdaptiveBatcher([backend], max_batch_size=8, model="m", version="1")
    for size in (1, 2, 4):
        batcher.pacing.learn(size, 20e-6)

    async def main() -> None:
        for _ in range(3):
            answers = [Answer() for _ in range(3)]
            for number, answer in enumerate(answers):
                begin(batcher, answer, number, timeout=60.0)
            assert [await answer.wait() for answer in answers] == [[0], [2], [4]]
        loop_timers = len(timers)
        for _ in range(5):
            assert await batcher.submit(InferRequest("m", rows(1), timeout=60.0), rows(1), 1)
        assert (loop_timers, len(timers)) == (0, 0)

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())
    assert backend.sizes[:3] == [3, 3, 3]
    assert batcher.close()


def test_requests_begun_within_an_answer_leave_nothing_behind():
    backend = GatedBackend(traits=SHORT)

    async def use(batcher: AdaptiveBatcher) -> None:
        batcher.pacing.learn(1, 20e-6)
        finished = asyncio.get_running_loop().create_future()
        kept: list[int] = []
        left = 50

        def again(response: Any, error: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                finished.set_result(None)
                return
            begin(batcher, again, left, timeout=60.0)
            kept.append(len(next(iter(batcher._ports.values())).timed))

        begin(batcher, again, left, timeout=60.0)
        await finished
        assert max(kept) == 1

    served(backend, use)


def test_a_deadline_that_passes_while_the_request_runs_is_told_once():
    backend = GatedBackend()

    async def use(batcher: AdaptiveBatcher) -> None:
        backend.hold()
        late, following = Answer(), Answer()
        begin(batcher, late, 1, timeout=0.02)
        assert isinstance(await late.wait(), DeadlineExceeded)
        begin(batcher, following, 2)
        backend.release()
        assert await following.wait() == [4]
        assert len(late.calls) == 1

    served(backend, use)


def test_expired_requests_found_when_a_batch_is_taken_are_told():
    backend, clock = GatedBackend(), ManualClock()

    async def use(batcher: AdaptiveBatcher) -> None:
        backend.hold()
        held, late, alive = Answer(), Answer(), Answer()
        begin(batcher, held, 0)
        await asyncio.to_thread(backend.wait_inside)
        begin(batcher, late, 1, deadline=clock.now + 1000)
        begin(batcher, alive, 2, deadline=clock.now + 2000)
        clock.advance(1500)
        backend.release()
        assert isinstance(await late.wait(), DeadlineExceeded)
        assert await alive.wait() == [4]

    served(backend, use, clock=clock)
    assert backend.runs == [[0], [2]]


def test_a_function_that_raises_is_logged_once_and_its_neighbours_are_answered(caplog):
    backend = GatedBackend(traits=SHORT)

    def broken(response: Any, error: Any) -> None:
        raise OSError("the connection is gone")

    async def use(batcher: AdaptiveBatcher) -> None:
        batcher.pacing.learn(4, 20e-6)
        before, after = Answer(), Answer()
        begin(batcher, before, 1)
        begin(batcher, broken, 2)
        begin(batcher, after, 3)
        assert (await before.wait(), await after.wait()) == ([2], [6])

    served(backend, use)
    assert caplog.text.count("OSError: the connection is gone") == 1
    assert backend.sizes == [3]


def test_a_function_that_ends_the_loop_does_not_strand_its_neighbours():
    backend = GatedBackend(traits=SHORT)
    batcher = AdaptiveBatcher([backend], max_batch_size=8, model="m", version="1")
    batcher.pacing.learn(2, 20e-6)

    def interrupt(response: Any, error: Any) -> None:
        raise KeyboardInterrupt

    loop = asyncio.new_event_loop()
    answers: list[Answer] = []

    def start() -> None:
        answers.append(Answer())
        begin(batcher, interrupt, 1)
        begin(batcher, answers[0], 2)

    loop.call_soon(start)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    try:
        assert loop.run_until_complete(answers[0].wait()) == [4]
    finally:
        loop.close()
        batcher.close()


def test_a_loop_that_ended_with_begun_requests_costs_no_compute():
    backend = GatedBackend()
    batcher = AdaptiveBatcher([backend], max_batch_size=8, model="m", version="1")
    lost: list[Answer] = []

    async def leave() -> None:
        backend.hold()
        lost.extend(Answer() for _ in range(2))
        begin(batcher, lost[0], 0)
        await asyncio.to_thread(backend.wait_inside)
        begin(batcher, lost[1], 1)

    asyncio.run(leave())
    backend.release()
    wait_until(lambda: batcher.in_flight == 0, "the end of the run")
    assert backend.runs == [[0]]
    assert [answer.calls for answer in lost] == [[], []]
    assert batcher.close()


def test_requests_begun_before_a_close_are_answered():
    backend = GatedBackend()

    async def use(batcher: AdaptiveBatcher) -> None:
        answer = Answer()
        begin(batcher, answer, 1)
        await asyncio.to_thread(batcher.close)
        assert await answer.wait() == [2]

    served(backend, use)


def test_what_still_waits_when_the_drain_ends_is_told():
    backend = GatedBackend()

    async def use(batcher: AdaptiveBatcher) -> None:
        backend.hold()
        held, waiting = Answer(), Answer()
        begin(batcher, held, 0)
        await asyncio.to_thread(backend.wait_inside)
        begin(batcher, waiting, 1)
        assert await asyncio.to_thread(batcher.close, drain=0.0) is False
        assert isinstance(await waiting.wait(), ModelNotReady)
        backend.release()
        assert await held.wait() == [0]

    served(backend, use)


def test_requests_of_two_loops_are_answered_each_on_its_own(pool):
    backend = GatedBackend()
    batcher = AdaptiveBatcher([backend], max_batch_size=8, model="m", version="1")
    backend.hold()

    async def ask(number: float) -> Any:
        answer = Answer()
        begin(batcher, answer, number)
        result = await answer.wait()
        assert answer.threads == [threading.get_ident()]
        return result

    held = pool.submit(asyncio.run, ask(0))
    backend.wait_inside()
    others = [pool.submit(asyncio.run, ask(number)) for number in (1, 2)]
    wait_until(lambda: batcher.queue_depth == 2)
    backend.release()
    assert [one.result(DEADLOCK) for one in (held, *others)] == [[0], [2], [4]]
    assert backend.sizes == [1, 2]
    assert batcher.close()


# ---------------------------------------------------------------------- by way of a task


def test_a_task_tells_what_its_coroutine_answers():
    async def main() -> None:
        done = Answer()
        request = InferRequest("m", rows(1))
        response = InferResponse("m", "1", {"y": np.ones(1)})

        async def answer() -> InferResponse:
            return response

        TaskTicket(answer(), request, done)
        assert done.calls == []
        assert await done.wait() == [1]
        assert done.calls == [(response, None)]

    asyncio.run(main())


def test_a_task_tells_its_error_and_records_the_code():
    async def main() -> None:
        done = Answer()
        request = InferRequest("m", rows(1))
        exchange = request.exchange = Exchange("http", "m")

        async def answer() -> InferResponse:
            raise InvalidInput("no", path="inputs")

        TaskTicket(answer(), request, done)
        assert isinstance(await done.wait(), InvalidInput)
        assert exchange.code == "INVALID_ARGUMENT"

    asyncio.run(main())


def test_a_cancelled_task_ends_and_tells_nobody():
    async def main() -> None:
        done, ended = Answer(), asyncio.Event()
        request = InferRequest("m", rows(1))
        exchange = request.exchange = Exchange("http", "m")

        async def answer() -> InferResponse:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            raise AssertionError

        ticket = TaskTicket(answer(), request, done)
        await asyncio.sleep(0)
        ticket.cancel()
        ticket.cancel()
        await asyncio.wait_for(ended.wait(), DEADLOCK)
        await asyncio.sleep(0)
        assert (done.calls, exchange.code) == ([], "CANCELLED")

    asyncio.run(main())


def test_a_task_that_others_cancelled_is_told():
    async def main() -> None:
        done = Answer()

        async def answer() -> InferResponse:
            raise asyncio.CancelledError

        TaskTicket(answer(), InferRequest("m", rows(1)), done)
        assert isinstance(await done.wait(), asyncio.CancelledError)

    asyncio.run(main())
