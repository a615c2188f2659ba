"""Threads and loops of lanes: when they start, that they end, and what they survive."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gated import DEADLOCK, GatedBackend, rows, wait_until
from modelserve.execution.batcher import AdaptiveBatcher
from modelserve.execution.lanes import LoopThread, WorkerThread
from modelserve.messages import InferRequest
from modelserve.protocols import Traits


class AsyncBackend(GatedBackend):
    """Doubles on a loop."""

    def __init__(self) -> None:
        super().__init__(traits=Traits(asynchronous=True, concurrency=4))

    async def run(self, inputs: Any) -> Any:  # type: ignore[override]
        await asyncio.sleep(0)
        return {"y": inputs["x"] * 2}


BACKENDS = pytest.mark.parametrize("backend", [GatedBackend, AsyncBackend], ids=["sync", "async"])


def named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if name in thread.name]


def predict(batcher: AdaptiveBatcher, number: float) -> float:
    inputs = rows(number)
    outputs = batcher.submit_blocking(InferRequest("m", inputs), inputs, 1)
    return float(outputs["y"][0, 0])


async def infer(batcher: AdaptiveBatcher, number: float) -> float:
    inputs = rows(number)
    outputs = await batcher.submit(InferRequest("m", inputs), inputs, 1)
    return float(outputs["y"][0, 0])


# ---------------------------------------------------------------------- life of threads


@BACKENDS
def test_no_thread_before_the_first_request_and_none_after_close(backend):
    batcher = AdaptiveBatcher([backend(), backend()], max_batch_size=8, model="life")
    batcher.open()
    assert named("modelserve-life") == []
    assert predict(batcher, 1) == 2
    assert len(named("modelserve-life")) == 1
    batcher.close()
    wait_until(lambda: not named("modelserve-life"), "the end of the thread")


def test_closing_what_never_ran_starts_no_thread():
    batcher = AdaptiveBatcher([GatedBackend()], model="unused")
    before = threading.active_count()
    assert batcher.close()
    assert threading.active_count() == before


@BACKENDS
def test_an_abandoned_batcher_is_collected_and_its_threads_end(backend):
    batcher = AdaptiveBatcher([backend()], max_batch_size=8, model="abandoned")
    assert asyncio.run(infer(batcher, 1)) == 2
    assert predict(batcher, 1) == 2
    gone = weakref.ref(batcher)
    assert named("modelserve-abandoned")
    del batcher

    def collected() -> bool:
        gc.collect()
        return gone() is None and not named("modelserve-abandoned")

    wait_until(collected, "the end of the batcher and its threads")


# ---------------------------------------------------------------------- loops that come and go


@BACKENDS
def test_asyncio_run_after_asyncio_run(backend):
    batcher = AdaptiveBatcher([backend()], max_batch_size=8)
    for number in range(5):
        assert asyncio.run(infer(batcher, number)) == 2 * number
    assert len(batcher._ports) <= 2, "ports of closed loops are kept"
    batcher.close()


def test_a_loop_that_ends_with_requests_queued_strands_nobody():
    backend = GatedBackend()
    batcher = AdaptiveBatcher([backend], max_batch_size=8)
    backend.hold()

    async def leave() -> None:
        tasks = [asyncio.create_task(infer(batcher, number)) for number in (1, 2)]
        await asyncio.to_thread(backend.wait_inside)
        tasks += [asyncio.create_task(infer(batcher, number)) for number in (3, 4)]
        await asyncio.sleep(0)
        assert batcher.queue_depth == 2

    asyncio.run(leave())
    assert batcher.queue_depth == 0
    answers: list[float] = []
    other = threading.Thread(target=lambda: answers.append(predict(batcher, 5)))
    other.start()
    wait_until(lambda: batcher.queue_depth == 1)
    backend.release()
    other.join(DEADLOCK)
    assert answers == [10]
    assert backend.runs == [[1, 2], [5]]
    assert batcher.close()


def test_a_loop_closed_without_telling_its_requests_strands_nobody():
    backend = GatedBackend()
    batcher = AdaptiveBatcher([backend], max_batch_size=8)
    backend.hold()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    first = loop.create_task(infer(batcher, 1))
    loop.run_until_complete(_begun(backend))
    second = loop.create_task(infer(batcher, 2))
    loop.run_until_complete(asyncio.sleep(0))
    assert batcher.queue_depth == 1
    loop.close()
    backend.release()
    assert predict(batcher, 3) == 6
    assert [2] not in backend.runs
    assert batcher.close()
    assert not first.done()
    assert not second.done()
    for task in (first, second):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # pending for ever, as meant


async def _begun(backend: GatedBackend) -> None:
    await asyncio.to_thread(backend.wait_inside)


def test_uvloop_serves_too():
    uvloop = pytest.importorskip("uvloop")
    batcher = AdaptiveBatcher([GatedBackend()], max_batch_size=8)

    async def main() -> list[float]:
        return await asyncio.gather(*(infer(batcher, number) for number in range(4)))

    for _ in range(2):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            assert runner.run(main()) == [0, 2, 4, 6]
    assert predict(batcher, 1) == 2
    batcher.close()


FORKED = """
import asyncio, os, sys, threading, warnings
sys.path[:0] = {paths!r}
from test_lanes import AdaptiveBatcher, AsyncBackend, GatedBackend, infer, predict
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks with threads
backend = {backend}()
batcher = AdaptiveBatcher([backend], max_batch_size=8)
assert predict(batcher, 1) == 2
assert asyncio.run(infer(batcher, 2)) == 4
{before}
child = os.fork()
if child == 0:
    backend.release()
    ok = predict(batcher, 3) == 6 and asyncio.run(infer(batcher, 4)) == 8
    os._exit(0 if ok and batcher.close() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
backend.release()
assert predict(batcher, 5) == 10
assert batcher.close()
print("both")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX only")
@pytest.mark.parametrize(
    ("backend", "before"),
    [
        ("GatedBackend", ""),
        ("AsyncBackend", ""),
        (
            "GatedBackend",
            "backend.hold()\nthreading.Thread(target=predict, args=(batcher, 6)).start()\n"
            "backend.entered.acquire()\nbackend.entered.acquire()\nbackend.wait_inside()",
        ),
    ],
    ids=["sync", "async", "busy"],
)
def test_a_forked_child_serves_after_its_parent_did(backend, before, environment):
    # In an interpreter of its own: this one may have threads that would make a fork unsafe.
    tests = Path(__file__).parent
    paths = [str(tests.parent), str(tests)]
    code = FORKED.format(paths=paths, backend=backend, before=before)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=15
    )
    assert (done.returncode, done.stdout) == (0, "both\n"), done.stderr


# ---------------------------------------------------------------------- what they survive


def test_a_worker_returns_and_raises_what_the_call_does():
    worker = WorkerThread("calls")
    assert worker.call(lambda: threading.current_thread().name) == "calls"
    with pytest.raises(SystemExit):
        worker.call(lambda: sys.exit(3))
    assert worker.call(lambda: 5) == 5
    worker.stop()
    wait_until(lambda: not named("calls"))


def test_a_worker_never_started_stops_without_a_thread():
    worker = WorkerThread("idle")
    worker.stop()
    assert not worker.started


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_task_of_the_users_that_exits_does_not_end_the_loop(error, caplog):
    thread = LoopThread("survivor")

    async def misbehave() -> None:
        async def leave() -> None:
            raise error

        task = asyncio.get_running_loop().create_task(leave())
        await asyncio.wait([task])
        with pytest.raises(error):
            task.result()

    async def fine() -> str:
        return threading.current_thread().name

    thread.call(misbehave)
    assert thread.call(fine) == "survivor"
    assert "tried to end the process" in caplog.text
    thread.stop()
    wait_until(lambda: not named("survivor"))


def test_stopping_a_loop_cancels_what_runs_and_waits_for_its_clean_up():
    thread = LoopThread("stopped")
    steps: list[str] = []
    begun = threading.Event()

    async def run() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            steps.append("clean")

    thread.submit(run)
    assert begun.wait(DEADLOCK)
    thread.stop()
    wait_until(lambda: not named("stopped"))
    assert steps == ["clean"]


def test_a_stopped_loop_can_be_started_again():
    thread = LoopThread("again")

    async def fine() -> int:
        return 1

    assert thread.call(fine) == 1
    thread.stop()
    assert thread.call(fine) == 1
    thread.stop()
    wait_until(lambda: not named("again"))


def test_a_loop_stopped_at_once_ends():
    for _ in range(20):
        thread = LoopThread("brief")
        thread.loop()
        thread.stop()
    wait_until(lambda: not named("brief"))


@pytest.mark.parametrize("make", [WorkerThread, LoopThread])
def test_a_thread_nobody_refers_to_ends(make: Callable[[str], Any]):
    thread = make("forgotten")
    if isinstance(thread, WorkerThread):
        thread.call(lambda: None)
    else:
        thread.loop()
    assert named("forgotten")
    del thread
    gc.collect()
    wait_until(lambda: not named("forgotten"))
