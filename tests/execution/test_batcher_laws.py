"""The law of the batcher: whatever happens, each caller gets its own rows or one clear error.

A state machine drives two models, which may ask themselves and each other, from threads and two
event loops; runs are held at gates and deadlines are judged by a clock that stands.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from time import monotonic
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gated import DEADLOCK, ManualClock, wait_until
from modelserve.errors import (
    BackendError,
    DeadlineExceeded,
    ModelNotReady,
    Overloaded,
    QueueFull,
)
from modelserve.execution.batcher import AdaptiveBatcher, BatcherClosed
from modelserve.execution.nested import chain
from modelserve.messages import InferRequest
from modelserve.protocols import Traits
from modelserve.tensors import Signature, TensorSpec

# What a row asks the model to do; its second column.
ANSWER, RAISE, EXIT, INTERRUPT, CANCEL, ROW_FAILS, ASK_ITSELF, ASK_OTHER, ASK_ROUND = range(9)
FATAL = {RAISE: ValueError, EXIT: SystemExit, INTERRUPT: KeyboardInterrupt}
FATAL[CANCEL] = asyncio.CancelledError
ASKS = {ASK_ITSELF, ASK_OTHER, ASK_ROUND}


class RowModel:
    """Doubles the first column and does as the second says."""

    def __init__(self, traits: Traits, gate: threading.Event, nested: Callable[..., Any]) -> None:
        self.traits = traits
        self.signature = Signature([TensorSpec("x", "FP32", (-1, 2))])
        self.nested = nested
        self.gate = gate
        self.lock = threading.Lock()
        self.inside: list[Any] = []
        """For each run that is inside the lane it is on, which one nested in another shares."""
        self.closed = 0
        self.run_after_close = False
        self.runs: list[list[tuple[float, float]]] = []
        if traits.asynchronous:
            self.run = self._arun  # type: ignore[method-assign]

    def _enter(self, inputs: Any) -> tuple[list[tuple[float, float]], Any]:
        rows = [(value, code) for value, code in inputs["x"].tolist()]
        with self.lock:
            runs = chain.get()
            self.inside.append(runs[-1].lane if runs else object())
            self.run_after_close |= self.closed > 0
            self.runs.append(rows)
            return rows, self.inside[-1]

    def _leave(self, lane: Any) -> None:
        with self.lock:
            self.inside.remove(lane)

    def run(self, inputs: Any) -> Any:
        rows, lane = self._enter(inputs)
        try:
            assert self.gate.wait(DEADLOCK), "the gate was never opened"
            return self._answer(rows, [self.nested(*row) for row in rows if row[1] in ASKS])
        finally:
            self._leave(lane)

    async def _arun(self, inputs: Any) -> Any:
        rows, lane = self._enter(inputs)
        try:
            end = monotonic() + DEADLOCK
            while not self.gate.is_set():
                assert monotonic() < end, "the gate was never opened"
                await asyncio.sleep(0.001)
            return self._answer(rows, [await self.nested(*r) for r in rows if r[1] in ASKS])
        finally:
            self._leave(lane)

    def _answer(self, rows: list[tuple[float, float]], asked: list[float]) -> Any:
        for _, code in rows:
            if code in FATAL:
                raise FATAL[int(code)]("as told")
        answers = iter(asked)
        out: list[Any] = []
        for value, code in rows:
            if code == ROW_FAILS:
                out.append(ValueError("this row"))
            else:
                out.append(next(answers) if code in ASKS else 2 * value)
        if any(isinstance(row, Exception) for row in out):
            return {"y": out}
        return {"y": np.array(out, np.float32)}

    def close(self) -> None:
        self.closed += 1
        self.run_after_close |= bool(self.inside)


class Asked:
    """One request and what became of it."""

    def __init__(self, values: list[float], code: int, deadline: float | None) -> None:
        self.values = values
        self.code = code
        self.deadline = deadline
        self.cancelled = False
        self.must_not_run = False
        self.over = threading.Event()
        self.outcome: Future[list[float]] = Future()
        self.task: Future[Any] | None = None

    def note(self, future: Callable[[], list[float]]) -> None:
        try:
            self.outcome.set_result(future())
        except BaseException as error:
            self.outcome.set_exception(error)
        finally:
            self.over.set()


def run_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    if left := asyncio.all_tasks(loop):  # cancelled, and about to end
        loop.run_until_complete(asyncio.wait(left, timeout=DEADLOCK))
    loop.close()


class BatcherMachine(RuleBasedStateMachine):
    """Everything that may happen to two batchers at once."""

    @initialize(
        kind=st.sampled_from(["function", "coroutine", "inline", "repeatable"]),
        instances=st.integers(1, 2),
        max_batch_size=st.sampled_from([0, 1, 4, 8]),
        max_queue_size=st.sampled_from([2, 100]),
        max_queue_bytes=st.sampled_from([64, 1 << 20]),
        held=st.booleans(),
        way=st.sampled_from(["adaptive", "simple"]),
        delay=st.sampled_from([0.0, 0.0, 0.002]),
    )
    def start(
        self, kind, instances, max_batch_size, max_queue_size, max_queue_bytes, held, way, delay
    ):
        self.kind = kind
        self.adaptive = way == "adaptive"
        self.clock = ManualClock()
        self.gate = threading.Event()
        self.counter = 0
        self.asked: list[tuple[str, Asked]] = []
        self.closing: list[threading.Thread] = []
        self.closed: set[str] = set()
        self.max_batch_size = max_batch_size
        self.bounded = max_queue_size < 100 or max_queue_bytes == 64
        traits = {
            "function": Traits(),
            "coroutine": Traits(asynchronous=True, concurrency=2),
            "inline": Traits(inline=True, shared=True),
            "repeatable": Traits(repeatable=True),
        }[kind]
        self.lanes = instances * traits.concurrency
        self.models = {
            name: [RowModel(traits, self.gate, self._nested(name)) for _ in range(instances)]
            for name in "ab"
        }
        if traits.shared:
            self.models = {name: models[:1] * instances for name, models in self.models.items()}
        self.batchers = {
            name: AdaptiveBatcher(
                models,
                max_batch_size=max_batch_size,
                max_queue_size=max_queue_size,
                max_queue_bytes=max_queue_bytes,
                model=name,
                clock=self.clock,
                batcher=way,
                max_queue_delay=delay,
            )
            for name, models in self.models.items()
        }
        self.loops = [asyncio.new_event_loop() for _ in range(2)]
        self.threads = [threading.Thread(target=run_loop, args=(loop,)) for loop in self.loops]
        for thread in self.threads:
            thread.start()
        if not held:
            self.gate.set()

    # ------------------------------------------------------------------ asking

    def _nested(self, name: str) -> Callable[..., Any]:
        """What a model does with a row that asks: it passes the value on, as another request."""

        def target(code: float) -> tuple[str, int]:
            if code == ASK_ITSELF:
                return name, ANSWER
            return ("b", ASK_OTHER) if code == ASK_ROUND else ("ba"[name == "b"], ANSWER)

        def ask(value: float, code: float) -> float:
            other, further = target(code)
            return self._blocking(other, [value], further)[0]

        async def aask(value: float, code: float) -> float:
            other, further = target(code)
            return (await self._awaiting(other, [value], further))[0]

        return aask if self.kind == "coroutine" else ask

    def _request(self, name: str, values: list[float], code: int, **options: Any) -> Any:
        inputs = {"x": np.array([(value, code) for value in values], np.float32)}
        return InferRequest(name, inputs, **options), inputs

    def _blocking(self, name: str, values: list[float], code: int, **options: Any) -> list[float]:
        request, inputs = self._request(name, values, code, **options)
        outputs = self.batchers[name].submit_blocking(request, inputs, len(values))
        found: list[float] = outputs["y"].ravel().tolist()
        return found

    async def _awaiting(
        self, name: str, values: list[float], code: int, **options: Any
    ) -> list[float]:
        request, inputs = self._request(name, values, code, **options)
        outputs = await self.batchers[name].submit(request, inputs, len(values))
        found: list[float] = outputs["y"].ravel().tolist()
        return found

    def _quiet(self, name: str) -> bool:
        """Whether every lane is inside and held, so that nothing leaves the queue."""
        models = {id(model): model for model in self.models[name]}.values()
        inside = {id(lane) for model in models for lane in list(model.inside)}
        return not self.gate.is_set() and len(inside) >= self.lanes

    def _ran(self) -> Counter[float]:
        return Counter(
            value
            for models in self.models.values()
            for model in {id(m): m for m in models}.values()
            for run in list(model.runs)
            for value, _ in run
        )

    @rule(
        burst=st.lists(
            st.tuples(
                st.sampled_from(["thread", 0, 1]),
                st.sampled_from("aab"),
                st.integers(1, 3),
                st.sampled_from([ANSWER] * 8 + [ASK_ROUND] * 2 + list(range(9))),
                st.sampled_from([0, 0, 1, 200]),
                st.sampled_from([None, None, 5.0, 50.0]),
            ),
            min_size=1,
            max_size=6,
        )
    )
    def ask(self, burst):
        for one in burst:
            self._ask(*one)

    def _ask(
        self, where: Any, name: str, count: int, code: int, priority: int, wait: float | None
    ) -> None:
        if code in ASKS and self.kind == "inline":
            code = ANSWER  # a runtime asks nobody
        if self.kind == "inline" and code in FATAL:
            code = RAISE  # a runtime's own code: what ends a process is meant for the host
        if self.max_batch_size:
            count = min(count, self.max_batch_size)
        self.counter += 1
        values = [self.counter * 4.0 + row for row in range(count)]
        deadline = None if wait is None else self.clock.now + wait
        # A thread's wait is real time: far more than the test takes.
        options = {"priority": priority, "deadline": deadline}
        one = Asked(values, code, deadline)
        self.asked.append((name, one))
        if where == "thread":
            job = lambda: one.note(lambda: self._blocking(name, values, code, **options))  # noqa: E731
            threading.Thread(target=job, daemon=True).start()
        else:
            coroutine = self._awaiting(name, values, code, **options)
            one.task = asyncio.run_coroutine_threadsafe(coroutine, self.loops[where])
            one.task.add_done_callback(lambda future: one.note(future.result))

    @precondition(lambda self: self.asked)
    @rule(back=st.integers(0, 9))
    def cancel(self, back):
        name, one = self.asked[-1 - back % len(self.asked)]
        if one.task is None or one.over.is_set():
            return
        quiet = self._quiet(name)
        one.cancelled = True
        one.task.cancel()
        if self.kind == "inline":
            return  # a run held on the event loop holds the cancellation too
        # The task is cancelled in one turn of its loop and ends in one of the next.
        for loop in self.loops * 3:
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(DEADLOCK)
        if quiet and self._quiet(name):
            one.must_not_run = not any(value in self._ran() for value in one.values)

    @rule(seconds=st.sampled_from([1.0, 10.0]))
    def advance(self, seconds):
        quiet = {name: self._quiet(name) for name in "ab"}
        self.clock.advance(seconds)
        ran = self._ran()
        for name, one in self.asked:
            late = one.deadline is not None and one.deadline <= self.clock.now
            if late and quiet[name] and not one.over.is_set():
                one.must_not_run |= not any(value in ran for value in one.values)

    @rule()
    def open_gate(self):
        self.gate.set()

    @rule()
    def close_gate(self):
        self.gate.clear()

    @precondition(lambda self: len(self.asked) > 5)
    @rule(name=st.sampled_from("ab"), drain=st.sampled_from([0.0, 60.0]))
    def close(self, name, drain):
        self.closed.add(name)
        thread = threading.Thread(target=self.batchers[name].close, kwargs={"drain": drain})
        thread.start()
        self.closing.append(thread)

    @invariant()
    def bounds_hold(self):
        for name, batcher in getattr(self, "batchers", {}).items():
            assert 0 <= batcher.in_flight <= self.lanes, name
            assert batcher.queue_depth >= 0, name

    # ------------------------------------------------------------------ the reckoning

    def teardown(self):
        if not hasattr(self, "batchers"):
            return
        self.gate.set()
        try:
            for _, one in self.asked:
                assert one.over.wait(DEADLOCK), f"request {one.values} was never answered"
            for name, batcher in self.batchers.items():
                wait_until(lambda b=batcher: b.in_flight == 0, f"the end of {name}'s runs")
                assert batcher.queue_depth == 0
        finally:
            for loop in self.loops:
                loop.call_soon_threadsafe(loop.stop)
            for batcher in self.batchers.values():
                assert batcher.close(drain=DEADLOCK)
            for thread in (*self.threads, *self.closing):
                thread.join(DEADLOCK)
                assert not thread.is_alive()
        for models in self.models.values():
            for model in {id(m): m for m in models}.values():
                wait_until(lambda m=model: m.closed, "the close of a backend")
                assert model.closed == 1
                assert not model.run_after_close
        ran = self._ran()
        for name, one in self.asked:
            self._judge(name, one, ran)

    def _judge(self, name: str, one: Asked, ran: Counter[float]) -> None:
        times = {ran[value] for value in one.values}
        if one.must_not_run:
            assert times == {0}, "computed for nobody"
        try:
            error = one.outcome.exception()
        except CancelledError as cancelled:
            error = cancelled
        if error is None:
            assert one.outcome.result() == [2 * value for value in one.values]
            assert one.code == ANSWER or one.code in ASKS
            assert times != {0}
            return
        if isinstance(error, CancelledError):
            assert one.cancelled
        elif isinstance(error, BatcherClosed | ModelNotReady):
            asks = one.code in ASKS or self._beside_failure(one)
            assert name in self.closed or (self.closed and asks)
        elif isinstance(error, DeadlineExceeded):
            assert one.deadline is not None
            assert one.deadline <= self.clock.now
        elif isinstance(error, Overloaded):
            assert one.deadline is not None
            assert self.adaptive
            assert times == {0}
        elif isinstance(error, QueueFull):
            assert self.bounded
        else:
            assert isinstance(error, BackendError), error
            assert one.code != ANSWER or self._beside_failure(one)
        if self.kind != "repeatable" and one.code not in ASKS:
            assert times <= {0, 1}, "run again although a function may not be"

    def _beside_failure(self, one: Asked) -> bool:
        """Whether a batch it was in held a row that brings down a batch, or that asks."""
        for models in self.models.values():
            for model in models:
                for run in model.runs:
                    values = {value for value, _ in run}
                    if values & set(one.values) and any(
                        code in FATAL or code in ASKS for _, code in run
                    ):
                        # A repeatable model spares innocent neighbours, within its budget.
                        return self.kind != "repeatable" or len(values) > 1
        return False


BatcherMachine.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestBatcher = BatcherMachine.TestCase
