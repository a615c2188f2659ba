"""Streams: back-pressure, leaving, errors, streams in, and the slots that bound them."""

import asyncio
import gc
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from gated import DEADLOCK, wait_until
from modelserve.errors import BackendError, Cancelled, InvalidInput, ModelNotReady
from modelserve.execution.lanes import LoopThread
from modelserve.execution.streams import StreamSlots, open_stream
from modelserve.protocols import Traits


class Source:
    """A streaming backend around a generator function; counts what it gave and when it ended."""

    def __init__(self, function: Callable[..., Any], *, asynchronous: bool, takes: bool = False):
        self.function = function
        self.traits = Traits(streams=True, asynchronous=asynchronous, takes_stream=takes)
        self.stream = self._astream if asynchronous else self._stream
        self.given = 0
        self.ended = threading.Event()
        self.thread = ""

    def _stream(self, inputs: Any) -> Iterator[Any]:
        self.thread = threading.current_thread().name
        try:
            for item in self.function(inputs):
                self.given += 1
                yield item
        finally:
            self.ended.set()

    async def _astream(self, inputs: Any) -> AsyncIterator[Any]:
        self.thread = threading.current_thread().name
        try:
            async for item in self.function(inputs):
                self.given += 1
                yield item
        finally:
            self.ended.set()


def count_to(number: int, last: BaseException | None = None) -> Callable[..., Any]:
    def function(_: Any) -> Iterator[Any]:
        for i in range(number):
            yield {"y": i}
        if last is not None:
            raise last

    return function


def acount_to(number: int, last: BaseException | None = None) -> Callable[..., Any]:
    async def function(_: Any) -> AsyncIterator[Any]:
        for i in range(number):
            await asyncio.sleep(0)
            yield {"y": i}
        if last is not None:
            raise last

    return function


@pytest.fixture
def loop_thread() -> Iterator[LoopThread]:
    thread = LoopThread("stream-loop")
    yield thread
    thread.stop()
    wait_until(lambda: all(t.name != "stream-loop" for t in threading.enumerate()))


KINDS = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def source(asynchronous: bool, number: int, last: BaseException | None = None) -> Source:
    function = (acount_to if asynchronous else count_to)(number, last)
    return Source(function, asynchronous=asynchronous)


async def read(
    backend: Any, inputs: Any, loop_thread: LoopThread | None, slots: StreamSlots | None = None
) -> AsyncGenerator[Any, None]:
    slots = StreamSlots(1, model="m") if slots is None else slots
    await slots.acquire()
    stream = open_stream(backend, backend.traits, inputs, None, loop_thread, slots)
    try:
        async for item in stream:
            yield item
    finally:
        await stream.aclose()


def bounded(coroutine: Any) -> Any:
    async def main() -> Any:
        return await asyncio.wait_for(coroutine, DEADLOCK)

    return asyncio.run(main())


@KINDS
def test_every_item_comes_in_order_and_the_generator_ends(asynchronous, loop_thread):
    backend = source(asynchronous, 5)

    async def main() -> list[int]:
        return [item["y"] async for item in read(backend, {}, loop_thread)]

    assert bounded(main()) == [0, 1, 2, 3, 4]
    assert backend.ended.wait(DEADLOCK)
    assert backend.thread == ("stream-loop" if asynchronous else "modelserve-stream")


@KINDS
def test_a_generator_is_advanced_only_when_the_next_item_is_wanted(asynchronous, loop_thread):
    backend = source(asynchronous, 1000)

    async def main() -> None:
        stream = read(backend, {}, loop_thread)
        for wanted in range(1, 4):
            await anext(stream)
            for _ in range(20):
                await asyncio.sleep(0)
            assert backend.given == wanted
        await stream.aclose()

    bounded(main())


@KINDS
def test_a_reader_that_leaves_ends_the_generator(asynchronous, loop_thread):
    backend = source(asynchronous, 1000)

    async def main() -> None:
        stream = read(backend, {}, loop_thread)
        async for item in stream:
            if item["y"] == 2:
                break
        await stream.aclose()

    bounded(main())
    assert backend.ended.wait(DEADLOCK)
    assert backend.given == 3


def test_a_reader_cancelled_while_it_waits_ends_an_asynchronous_generator(loop_thread):
    waiting = threading.Event()

    async def function(_: Any) -> AsyncIterator[Any]:
        yield {"y": 0}
        waiting.set()
        await asyncio.Event().wait()

    backend = Source(function, asynchronous=True)

    async def main() -> None:
        async def consume() -> None:
            async for _ in read(backend, {}, loop_thread):
                pass

        task = asyncio.create_task(consume())
        assert await asyncio.to_thread(waiting.wait, DEADLOCK)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    bounded(main())
    assert backend.ended.wait(DEADLOCK)


def test_a_reader_cancelled_while_it_waits_ends_a_generator_after_its_step(loop_thread):
    inside, go = threading.Event(), threading.Event()

    def function(_: Any) -> Iterator[Any]:
        yield {"y": 0}
        inside.set()
        assert go.wait(DEADLOCK)
        yield {"y": 1}
        yield {"y": 2}

    backend = Source(function, asynchronous=False)

    async def main() -> None:
        async def consume() -> None:
            async for _ in read(backend, {}, loop_thread):
                pass

        task = asyncio.create_task(consume())
        assert await asyncio.to_thread(inside.wait, DEADLOCK)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    bounded(main())
    assert not backend.ended.is_set()
    go.set()
    assert backend.ended.wait(DEADLOCK)
    assert backend.given == 2


@KINDS
@pytest.mark.parametrize(
    "error",
    [ValueError("no"), SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_after_the_items_before_it(asynchronous, error, loop_thread):
    backend = source(asynchronous, 2, error)

    async def main() -> list[int]:
        stream = read(backend, {}, loop_thread)
        items = [(await anext(stream))["y"], (await anext(stream))["y"]]
        with pytest.raises(BackendError) as caught:
            await anext(stream)
        assert caught.value.__cause__ is error
        return items

    assert bounded(main()) == [0, 1]
    assert backend.ended.wait(DEADLOCK)


@KINDS
def test_an_error_for_the_caller_stays_what_it_is(asynchronous, loop_thread):
    refusal = InvalidInput("too long")
    backend = source(asynchronous, 1, refusal)

    async def main() -> None:
        with pytest.raises(InvalidInput) as caught:
            async for _ in read(backend, {}, loop_thread):
                pass
        assert caught.value is refusal

    bounded(main())


def test_a_backend_that_cannot_even_begin_fails_the_stream(loop_thread):
    class Broken:
        traits = Traits(streams=True)

        def stream(self, inputs: Any) -> Any:
            raise ValueError("no")

    async def main() -> None:
        with pytest.raises(BackendError, match="ValueError: no"):
            async for _ in read(Broken(), {}, None):
                pass

    bounded(main())


@KINDS
def test_a_generator_that_fails_when_closed_is_logged_and_hurts_nobody(
    asynchronous, loop_thread, caplog
):
    def function(_: Any) -> Iterator[Any]:
        try:
            yield {"y": 0}
        finally:
            raise OSError("stuck")

    async def afunction(_: Any) -> AsyncIterator[Any]:
        try:
            yield {"y": 0}
        finally:
            raise OSError("stuck")

    class Direct:
        traits = Traits(streams=True, asynchronous=asynchronous)
        stream = staticmethod(afunction if asynchronous else function)

    async def main() -> None:
        stream = read(Direct(), {}, loop_thread)
        assert await anext(stream) == {"y": 0}
        await stream.aclose()

    bounded(main())
    wait_until(lambda: "failed when it was closed" in caplog.text)


@KINDS
def test_a_stream_in_is_read_as_the_generator_asks(asynchronous, loop_thread):
    asked = []

    async def requests() -> AsyncIterator[Any]:
        for i in range(4):
            asked.append(i)
            yield {"x": i}

    def function(inputs: Any) -> Iterator[Any]:
        for tensors in inputs:
            yield {"y": tensors["x"] * 2}

    async def afunction(inputs: Any) -> AsyncIterator[Any]:
        async for tensors in inputs:
            yield {"y": tensors["x"] * 2}

    backend = Source(afunction if asynchronous else function, asynchronous=asynchronous, takes=True)

    async def main() -> list[int]:
        items = []
        async for item in read(backend, requests(), loop_thread):
            items.append(item["y"])
            assert len(asked) == len(items)
        return items

    assert bounded(main()) == [0, 2, 4, 6]


@KINDS
def test_a_reader_that_leaves_frees_a_generator_that_waits_for_the_next_request(
    asynchronous, loop_thread
):
    waiting = threading.Event()
    seen: list[BaseException] = []

    async def requests() -> AsyncIterator[Any]:
        yield {"x": 1}
        waiting.set()
        await asyncio.Event().wait()

    def function(inputs: Any) -> Iterator[Any]:
        try:
            yield from inputs
        except BaseException as error:
            seen.append(error)
            raise

    async def afunction(inputs: Any) -> AsyncIterator[Any]:
        try:
            async for tensors in inputs:
                yield tensors
        except BaseException as error:
            seen.append(error)
            raise

    backend = Source(afunction if asynchronous else function, asynchronous=asynchronous, takes=True)

    async def main() -> None:
        async def consume() -> None:
            async for _ in read(backend, requests(), loop_thread):
                pass

        task = asyncio.create_task(consume())
        assert await asyncio.to_thread(waiting.wait, DEADLOCK)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(backend.ended.wait, DEADLOCK)

    bounded(main())
    assert isinstance(seen[0], asyncio.CancelledError if asynchronous else Cancelled)


@KINDS
def test_an_error_of_the_incoming_stream_reaches_the_generator(asynchronous, loop_thread):
    async def requests() -> AsyncIterator[Any]:
        yield {"x": 1}
        raise InvalidInput("second request")

    def function(inputs: Any) -> Iterator[Any]:
        yield from inputs

    async def afunction(inputs: Any) -> AsyncIterator[Any]:
        async for tensors in inputs:
            yield tensors

    backend = Source(afunction if asynchronous else function, asynchronous=asynchronous, takes=True)

    async def main() -> None:
        stream = read(backend, requests(), loop_thread)
        assert await anext(stream) == {"x": 1}
        with pytest.raises(InvalidInput, match="second request"):
            await anext(stream)

    bounded(main())


def test_unloading_ends_a_stream_of_its_loop_with_a_clear_error():
    thread = LoopThread("unloaded-loop")
    waiting = threading.Event()

    async def function(_: Any) -> AsyncIterator[Any]:
        yield {"y": 0}
        waiting.set()
        await asyncio.Event().wait()

    backend = Source(function, asynchronous=True)

    async def main() -> None:
        async def consume() -> None:
            async for _ in read(backend, {}, thread):
                pass

        task = asyncio.create_task(consume())
        assert await asyncio.to_thread(waiting.wait, DEADLOCK)
        thread.stop()
        with pytest.raises(ModelNotReady, match="unloaded during the stream"):
            await task

    bounded(main())
    assert backend.ended.wait(DEADLOCK)
    wait_until(lambda: all(t.name != "unloaded-loop" for t in threading.enumerate()))


def test_the_thread_of_a_stream_ends_with_it(loop_thread):
    async def main() -> None:
        async for _ in read(source(False, 3), {}, loop_thread):
            pass

    bounded(main())
    wait_until(lambda: all(t.name != "modelserve-stream" for t in threading.enumerate()))


def test_an_iterator_dropped_halfway_leaves_no_thread(loop_thread):
    backend = source(False, 1000)

    async def main() -> None:
        stream = read(backend, {}, loop_thread)
        await anext(stream)
        del stream
        gc.collect()
        await asyncio.sleep(0)

    bounded(main())
    assert backend.ended.wait(DEADLOCK)


# ---------------------------------------------------------------------- slots


def test_slots_are_given_in_order_of_arrival():
    slots = StreamSlots(1, model="m")
    order: list[int] = []

    async def stream(number: int) -> None:
        await slots.acquire()
        order.append(number)
        await asyncio.sleep(0)
        slots.release()

    async def main() -> None:
        await asyncio.gather(*(stream(i) for i in range(5)))

    bounded(main())
    assert order == [0, 1, 2, 3, 4]
    assert slots.active == 0


def test_no_more_than_the_slots_are_under_way():
    slots = StreamSlots(2, model="m")
    most = 0

    async def stream() -> None:
        nonlocal most
        await slots.acquire()
        most = max(most, slots.active)
        await asyncio.sleep(0)
        slots.release()

    async def main() -> None:
        await asyncio.gather(*(stream() for _ in range(10)))

    bounded(main())
    assert most == 2
    assert slots.active == 0


def test_a_caller_that_leaves_the_line_is_passed_over():
    slots = StreamSlots(1, model="m")

    async def main() -> None:
        await slots.acquire()
        leaving, staying = (asyncio.create_task(slots.acquire()) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        slots.release()
        await staying
        slots.release()

    bounded(main())
    assert slots.active == 0


def test_a_slot_granted_to_a_caller_that_leaves_in_the_same_turn_is_given_on():
    slots = StreamSlots(1, model="m")

    async def main() -> None:
        await slots.acquire()
        leaving, staying = (asyncio.create_task(slots.acquire()) for _ in range(2))
        await asyncio.sleep(0)
        slots.release()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await staying
        assert slots.active == 1
        slots.release()

    bounded(main())
    assert slots.active == 0
    assert slots.close(0.0)


def test_a_line_on_another_loop_is_served():
    slots = StreamSlots(1, model="m")
    waiting = threading.Event()

    async def other() -> None:
        waiting.set()
        await slots.acquire()
        slots.release()

    async def main() -> None:
        await slots.acquire()
        thread = asyncio.create_task(asyncio.to_thread(asyncio.run, other()))
        assert await asyncio.to_thread(waiting.wait, DEADLOCK)
        slots.release()
        await thread

    bounded(main())
    assert slots.active == 0


def test_who_waited_on_a_loop_that_ended_is_passed_over():
    slots = StreamSlots(1, model="m")
    dead = asyncio.new_event_loop()
    bounded(slots.acquire())
    task = dead.create_task(slots.acquire())
    dead.run_until_complete(asyncio.sleep(0))
    dead.close()

    async def main() -> None:
        alive = asyncio.create_task(slots.acquire())
        await asyncio.sleep(0)
        slots.release()
        await alive
        slots.release()

    bounded(main())
    assert slots.active == 0
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # pending for ever, as meant


def test_close_refuses_who_waits_and_who_comes_and_waits_for_who_is_there():
    slots = StreamSlots(1, model="m")

    async def main() -> bool:
        await slots.acquire()
        waiting = asyncio.create_task(slots.acquire())
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(slots.close, DEADLOCK))
        with pytest.raises(ModelNotReady, match="being unloaded"):
            await waiting
        with pytest.raises(ModelNotReady):
            await slots.acquire()
        assert not closing.done()
        slots.release()
        return await closing

    assert bounded(main()) is True
    assert slots.active == 0


def test_close_tells_when_streams_did_not_end_in_time():
    slots = StreamSlots(1, model="m")
    bounded(slots.acquire())
    assert slots.close(0.0) is False
    slots.release()
    assert slots.close(0.0) is True


# ---------------------------------------------------------------------- slots of streams


async def leave(stream: AsyncGenerator[Any, None], inside: threading.Event) -> None:
    """Ask for the next item, and go away while the generator is at it."""
    step = asyncio.ensure_future(anext(stream))
    assert await asyncio.to_thread(inside.wait, DEADLOCK)
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step


def stuck(asynchronous: bool) -> tuple[Source, threading.Event, threading.Event]:
    """Return a source that does not end before it may, and the events for inside and may end."""
    inside, go = threading.Event(), threading.Event()

    def function(_: Any) -> Iterator[Any]:
        inside.set()
        assert go.wait(DEADLOCK)
        yield {"y": 0}

    async def afunction(_: Any) -> AsyncIterator[Any]:
        try:
            inside.set()
            await asyncio.Event().wait()
            yield {"y": 0}
        finally:
            await asyncio.to_thread(go.wait, DEADLOCK)

    return Source(afunction if asynchronous else function, asynchronous=asynchronous), inside, go


@KINDS
def test_a_slot_is_taken_until_the_generator_of_a_reader_that_left_has_ended(
    asynchronous, loop_thread
):
    slots = StreamSlots(1, model="m")
    backend, inside, go = stuck(asynchronous)

    async def main() -> None:
        step = asyncio.ensure_future(anext(read(backend, {}, loop_thread, slots)))
        assert await asyncio.to_thread(inside.wait, DEADLOCK)
        step.cancel()
        waiting = asyncio.create_task(slots.acquire())
        for _ in range(20):
            await asyncio.sleep(0)
        assert slots.active == 1
        assert not waiting.done()
        assert not backend.ended.is_set()
        go.set()
        await waiting
        assert backend.ended.is_set()
        with pytest.raises(asyncio.CancelledError):
            await step

    bounded(main())


def test_a_reader_that_is_cancelled_twice_leaves_the_clean_up_of_its_generator_whole(loop_thread):
    slots = StreamSlots(1, model="m")
    backend, inside, go = stuck(True)

    async def main() -> None:
        step = asyncio.ensure_future(anext(read(backend, {}, loop_thread, slots)))
        assert await asyncio.to_thread(inside.wait, DEADLOCK)
        step.cancel()
        await asyncio.sleep(0)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        assert slots.active == 1
        assert not backend.ended.is_set()
        go.set()
        await slots.acquire()
        assert backend.ended.is_set()

    bounded(main())


@KINDS
@pytest.mark.parametrize("last", [None, ValueError("no")], ids=["end", "error"])
def test_a_slot_is_free_when_the_reader_is_told_of_the_end(asynchronous, last, loop_thread):
    slots = StreamSlots(1, model="m")
    backend = source(asynchronous, 2, last)

    async def main() -> None:
        try:
            async for _ in read(backend, {}, loop_thread, slots):
                assert slots.active == 1
        except BackendError:
            assert last is not None
        assert slots.active == 0

    bounded(main())


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_stream_that_cannot_begin_gives_its_slot_back(asynchronous, loop_thread):
    slots = StreamSlots(1, model="m")

    class Broken:
        traits = Traits(streams=True, asynchronous=asynchronous)

        def stream(self, inputs: Any) -> Any:
            raise InvalidInput("no")

    async def main() -> None:
        with pytest.raises(InvalidInput):
            await anext(read(Broken(), {}, loop_thread, slots))

    bounded(main())
    assert slots.close(0.0)


def test_closing_waits_for_a_generator_whose_reader_left(loop_thread):
    slots = StreamSlots(1, model="m")
    backend, inside, go = stuck(False)

    async def main() -> bool:
        await leave(read(backend, {}, loop_thread, slots), inside)
        closing = asyncio.create_task(asyncio.to_thread(slots.close, DEADLOCK))
        await asyncio.sleep(0)
        assert not closing.done()
        go.set()
        return await closing

    assert bounded(main()) is True
    assert backend.ended.is_set()


@KINDS
def test_an_idle_stream_is_cut_when_the_slots_were_closed_long_enough(asynchronous, loop_thread):
    slots = StreamSlots(1, model="m")
    backend = source(asynchronous, 1000)

    async def main() -> None:
        stream = read(backend, {}, loop_thread, slots)
        await anext(stream)
        assert slots.close(0.0) is False
        assert await asyncio.to_thread(backend.ended.wait, DEADLOCK)
        with pytest.raises(ModelNotReady, match="unloaded during the stream"):
            await anext(stream)

    bounded(main())
    assert backend.given == 1
    assert slots.close(0.0) is True


@KINDS
def test_a_stream_that_waits_for_requests_is_cut_with_a_clear_error(asynchronous, loop_thread):
    slots = StreamSlots(1, model="m")
    waiting = threading.Event()

    async def requests() -> AsyncIterator[Any]:
        waiting.set()
        await asyncio.Event().wait()
        yield {}

    def function(inputs: Any) -> Iterator[Any]:
        yield from inputs

    async def afunction(inputs: Any) -> AsyncIterator[Any]:
        async for tensors in inputs:
            yield tensors

    backend = Source(afunction if asynchronous else function, asynchronous=asynchronous, takes=True)

    async def main() -> None:
        step = asyncio.ensure_future(anext(read(backend, requests(), loop_thread, slots)))
        assert await asyncio.to_thread(waiting.wait, DEADLOCK)
        assert slots.close(0.0) is False
        with pytest.raises(ModelNotReady, match="unloaded during the stream"):
            await step

    bounded(main())
    assert slots.active == 0


@KINDS
def test_what_comes_afterwards_waits_for_the_last_generator(asynchronous, loop_thread):
    slots = StreamSlots(1, model="m")
    backend, inside, go = stuck(asynchronous)
    ended: list[bool] = []
    done = threading.Event()

    def afterwards() -> None:
        ended.append(backend.ended.is_set())
        done.set()

    async def main() -> None:
        step = asyncio.ensure_future(anext(read(backend, {}, loop_thread, slots)))
        assert await asyncio.to_thread(inside.wait, DEADLOCK)
        assert slots.close(0.0) is False
        slots.afterwards(afterwards)
        assert ended == []
        go.set()
        assert await asyncio.to_thread(done.wait, DEADLOCK)
        await asyncio.wait([step])
        assert asynchronous == (step.exception() is not None)

    bounded(main())
    assert ended == [True]


def test_closing_may_wait_for_ever():
    slots = StreamSlots(1, model="m")

    async def main() -> bool:
        await slots.acquire()
        closing = asyncio.create_task(asyncio.to_thread(slots.close, float("inf")))
        await asyncio.sleep(0)
        slots.release()
        return await closing

    assert bounded(main()) is True
