"""Telling event loops from threads: everyone is told once, and a thread waits only so long."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gated import DEADLOCK, GatedBackend, rows, wait_until
from modelserve.execution.batcher import AdaptiveBatcher
from modelserve.execution.ports import LoopPort, hand_over
from modelserve.execution.waiting import Awaited, Blocked
from modelserve.messages import InferRequest

LONG = 60.0


class Loop:
    """An event loop in a thread."""

    def __init__(self, batcher: AdaptiveBatcher) -> None:
        self.loop = asyncio.new_event_loop()
        self.port = LoopPort(batcher, self.loop)
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def entry(self) -> Awaited:
        pending = Awaited(InferRequest("m", rows(1)), rows(1), 1, None, 0.0)
        pending.timer = None
        pending.port = self.port
        pending.future = self.loop.create_future()
        pending.outputs = rows(2)
        return pending

    def call(self, function: Callable[[], Any]) -> None:
        self.loop.call_soon_threadsafe(function)

    def close(self) -> None:
        if not self.loop.is_closed():
            self.call(self.loop.stop)
            self.thread.join(DEADLOCK)
            self.loop.close()


@pytest.fixture
def loops() -> Iterator[tuple[Loop, Loop]]:
    batcher = AdaptiveBatcher([GatedBackend()], max_batch_size=8)
    made = (Loop(batcher), Loop(batcher))
    yield made
    for each in made:
        each.close()
    assert batcher.close()


def blocked() -> Blocked:
    pending = Blocked(InferRequest("m", rows(1)), rows(1), 1, None, 0.0)
    pending.gate = threading.Lock()
    pending.gate.acquire()
    return pending


def test_a_thread_goes_on_when_the_loop_told_everyone(loops):
    entries = [loops[0].entry() for _ in range(3)]
    hand_over(entries, LONG)
    assert all(entry.future.done() for entry in entries)


def test_a_thread_waits_no_longer_than_it_should_for_a_loop_that_is_held_up(loops):
    held, entered = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        held.wait(DEADLOCK)

    loops[0].call(hold)
    assert entered.wait(DEADLOCK)
    entry = loops[0].entry()
    hand_over([entry], 0.001)
    assert not entry.future.done()
    held.set()
    wait_until(entry.future.done)


def test_a_loop_that_was_closed_keeps_no_thread_waiting(loops):
    entry = loops[0].entry()
    loops[0].close()
    started = time.monotonic()
    hand_over([entry], LONG)
    assert time.monotonic() - started < LONG / 2


def test_a_failure_to_tell_keeps_no_thread_waiting(loops):
    entry = loops[0].entry()
    entry.error = "no exception"
    loops[0].loop.set_exception_handler(lambda *_: None)
    started = time.monotonic()
    hand_over([entry], LONG)
    assert time.monotonic() - started < LONG / 2


def test_threads_and_several_loops_are_told_without_a_wait(loops):
    entries = [loops[0].entry(), loops[1].entry(), gated := blocked()]
    hand_over(entries, LONG)
    assert gated.gate.acquire(timeout=DEADLOCK)
    wait_until(lambda: entries[0].future.done() and entries[1].future.done())
    hand_over([gated], LONG)
    assert gated.gate.acquire(timeout=DEADLOCK)


@pytest.mark.parametrize("way", ["adaptive", "simple"])
def test_a_long_run_with_others_behind_it_is_answered_and_learned_from(way):
    backend = GatedBackend()
    batcher = AdaptiveBatcher([backend], max_batch_size=1, batcher=way)
    backend.hold()

    async def ask(number: float) -> float:
        request = InferRequest("m", rows(number))
        return float((await batcher.submit(request, request.inputs, 1))["y"][0, 0])

    async def main() -> list[float]:
        asked = [asyncio.create_task(ask(number)) for number in (1, 2, 3)]
        await asyncio.to_thread(backend.wait_inside)
        assert batcher.queue_depth == 2
        await asyncio.sleep(0.002)  # the run is a long one
        backend.release()
        return await asyncio.gather(*asked)

    assert asyncio.run(asyncio.wait_for(main(), DEADLOCK)) == [2, 4, 6]
    assert backend.runs == [[1], [2], [3]]
    wait_until(lambda: not batcher.in_flight and not batcher.pacing._running)
    assert (batcher.pacing.expected(1) is not None) == (way == "adaptive")
    assert batcher.close()
