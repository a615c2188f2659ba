"""A simulator of one batcher with a clock of its own: seeded, so the same every time.

It drives the real `Pacing`, or another policy for comparison, with a queue in order of priority and
arrival. A model is a function from batch size to seconds, disturbed by noise. Nothing sleeps.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, pairwise
from typing import Protocol

from modelserve.execution.pacing import BatchBounds, Pacing

Model = Callable[[int], float]

MOST = 64


def affine(fixed: float, row: float) -> Model:
    return lambda n: fixed + row * n


def minilm(n: int) -> float:
    """A sentence encoder whose activations leave the cache beyond 8 rows."""
    known = ((1, 5.0), (2, 9.3), (4, 17.4), (8, 32.4), (16, 68.0), (32, 143.5), (64, 300.0))
    for (below, low), (above, high) in pairwise(known):
        if n <= above:
            return 1e-3 * (low + (high - low) * (n - below) / (above - below))
    return 0.3 * n / 64


MODELS: dict[str, Model] = {
    "wide": affine(1.75e-3, 0.2e-3),
    "mid": affine(0.3e-3, 0.1e-3),
    "M1": affine(3.8e-6, 0.35e-6),
    "M2": minilm,
    "conv": affine(0.0, 1.0e-3),
}


def capacity(model: Model, most: int = MOST) -> float:
    """Return the rows a second at the best batch size."""
    return max(n / model(n) for n in range(1, most + 1))


class Policy(Protocol):
    """What decides: a batch's size, whether to wait, whom to admit."""

    def limit(self, waiting: int) -> int: ...

    def hold(self, now: float, waiting: int, oldest: float) -> float: ...

    def target(self) -> int: ...

    def arrived(self, now: float, rows: int) -> None: ...

    def admits(self, now: float, left: float, ahead: int, rows: int) -> bool: ...

    def lead(self, rows: int) -> float: ...

    def started(self, now: float, rows: int) -> object: ...

    def finished(self, run: object, now: float, rows: int, seconds: float) -> None: ...


class Natural:
    """What waits is sent when a lane is free, up to `most` rows, after `window` seconds."""

    def __init__(self, most: int = MOST, window: float = 0.0) -> None:
        self.most = most
        self.window = window

    def limit(self, waiting: int) -> int:
        return self.most

    def hold(self, now: float, waiting: int, oldest: float) -> float:
        until = oldest + self.window
        return until if waiting < self.most and until > now else 0.0

    def target(self) -> int:
        return self.most

    def arrived(self, now: float, rows: int) -> None:
        return

    def admits(self, now: float, left: float, ahead: int, rows: int) -> bool:
        return True

    def lead(self, rows: int) -> float:
        return 0.0

    def started(self, now: float, rows: int) -> object:
        return None

    def finished(self, run: object, now: float, rows: int, seconds: float) -> None:
        return


class Aimd(Natural):
    """Clipper's: one more row while a batch is within the objective, a tenth less when not."""

    def __init__(self, objective: float, most: int = MOST) -> None:
        super().__init__(1)
        self.objective = objective
        self.bound = most
        self.size = 1.0

    def finished(self, run: object, now: float, rows: int, seconds: float) -> None:
        if seconds > self.objective:
            self.size = max(1.0, 0.9 * self.size)
        elif rows >= self.most:
            self.size = min(float(self.bound), self.size + 1)
        self.most = int(self.size)


class Ours:
    """The real one."""

    def __init__(self, most: int = MOST, lanes: int = 1, max_queue_delay: float = 0.0) -> None:
        self.pacing = Pacing(BatchBounds(most), lanes=lanes, max_queue_delay=max_queue_delay)

    def limit(self, waiting: int) -> int:
        return self.pacing.limit(waiting)

    def hold(self, now: float, waiting: int, oldest: float) -> float:
        return self.pacing.hold(now, waiting, oldest) if self.pacing.holds else 0.0

    def target(self) -> int:
        return self.pacing.target

    def arrived(self, now: float, rows: int) -> None:
        if self.pacing.watching:
            self.pacing.arrived(now, rows)

    def admits(self, now: float, left: float, ahead: int, rows: int) -> bool:
        return self.pacing.admits(now, left, ahead, rows)

    def lead(self, rows: int) -> float:
        return self.pacing.lead(rows)

    def started(self, now: float, rows: int) -> object:
        return self.pacing.start(now, rows, rows)

    def finished(self, run: object, now: float, rows: int, seconds: float) -> None:
        self.pacing.finish(run, now, seconds)  # type: ignore[arg-type] # what `started` returned


class Request:
    """One request of a simulation, and what became of it."""

    __slots__ = ("arrived", "caller", "deadline", "finished", "priority", "rejected", "rows")

    def __init__(
        self,
        arrived: float,
        rows: int = 1,
        priority: int = 0,
        deadline: float | None = None,
        caller: int = -1,
    ) -> None:
        self.arrived = arrived
        self.rows = rows
        self.priority = priority
        self.deadline = deadline
        self.caller = caller
        self.finished: float | None = None
        self.rejected = False


@dataclass(slots=True)
class Run:
    """A batch that was sent."""

    at: float
    requests: list[Request]
    rows: int
    seconds: float
    lane: int


@dataclass(slots=True)
class Outcome:
    """What a simulation saw."""

    requests: list[Request]
    runs: list[Run]
    holds: list[tuple[float, float, float]] = field(default_factory=list)
    """Begin, end, and the end that was announced, of every hold."""
    unasked: float = 0.0
    """Seconds in which a lane was idle, something waited, and no hold was on."""
    ended: float = 0.0

    def percentile(self, percent: float, skip: int = 0) -> float:
        times = sorted(
            r.finished - r.arrived for r in self.requests[skip:] if r.finished is not None
        )
        return times[min(len(times) - 1, int(len(times) * percent / 100))]

    def throughput(self, skip: int = 0) -> float:
        """Return rows a second from the run number `skip` on."""
        runs = self.runs[skip:]
        return sum(run.rows for run in runs) / (runs[-1].at + runs[-1].seconds - runs[0].at)

    def goodput(self, since: float = 0.0) -> float:
        """Return rows a second answered in time, of the requests that came from `since` on."""
        good = [
            r.rows
            for r in self.requests
            if r.arrived >= since
            and r.finished is not None
            and (r.deadline is None or r.finished <= r.deadline)
        ]
        return sum(good) / (max(r.arrived for r in self.requests) - since)


def poisson(
    rate: float, requests: int, seed: int, *, timeout: float | None = None
) -> list[Request]:
    rng = random.Random(seed)
    now = 0.0
    made = []
    for _ in range(requests):
        now += rng.expovariate(rate)
        made.append(Request(now, deadline=None if timeout is None else now + timeout))
    return made


def noise(seed: int, spread: float = 0.05, outliers: float = 0.01) -> Iterator[float]:
    """Yield factors of a run's time: a little spread, and now and then a run thrice as long."""
    rng = random.Random(seed)
    while True:
        factor = rng.lognormvariate(0.0, spread)
        yield 3.0 * factor if rng.random() < outliers else factor


class Simulation:
    """One batcher, its callers and its model.

    Args:
        policy: What decides.
        model: Seconds by batch size.
        arrivals: Requests of callers that wait for nobody, by time of arrival.
        callers: Callers that ask again `think` seconds after their answer.
        think: Seconds; drawn anew for each request.
        requests: When to stop the callers.
        lanes: Batches that run at a time.
        seed: Of the noise and of the callers.
        undisturbed: No noise.
    """

    def __init__(
        self,
        policy: Policy,
        model: Model,
        *,
        arrivals: Sequence[Request] = (),
        callers: int = 0,
        think: Callable[[random.Random], float] = lambda rng: 0.0,
        requests: int = 0,
        lanes: int = 1,
        seed: int = 0,
        undisturbed: bool = False,
    ) -> None:
        self.policy = policy
        self.model = model
        self.think = think
        self.requests = requests
        self.now = 0.0
        self.outcome = Outcome(list(arrivals), [])
        self._arrivals = deque(arrivals)
        self._rng = random.Random(seed + 1_000_003)
        self._noise = noise(seed, 0.0, 0.0) if undisturbed else noise(seed)
        self._queues: dict[int, deque[Request]] = {}
        self._rows: dict[int, int] = {}
        self._waiting = 0
        self._idle = list(range(lanes))
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._held_until = 0.0
        self._held_since = 0.0
        for caller in range(callers):
            self._return(caller)

    def run(self) -> Outcome:
        while self._events or self._arrivals:
            arrivals = self._arrivals
            if arrivals and (not self._events or arrivals[0].arrived <= self._events[0][0]):
                request = arrivals.popleft()
                self._pass_to(request.arrived)
                self._enter(request)
            else:
                at, _, event = heapq.heappop(self._events)
                self._pass_to(at)
                event()
        assert not self._waiting, "something was left waiting"
        self.outcome.ended = self.now
        return self.outcome

    def _pass_to(self, at: float) -> None:
        if self._idle and self._waiting and at > self.now:
            covered = min(at, self._held_until)
            self.outcome.unasked += at - max(self.now, covered)
        self.now = at

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), event))

    def _return(self, caller: int) -> None:
        if len(self.outcome.requests) < self.requests:
            request = Request(self.now + self.think(self._rng), caller=caller)
            self.outcome.requests.append(request)
            self._at(request.arrived, lambda: self._enter(request))

    def _enter(self, request: Request) -> None:
        if request.deadline is not None:
            ahead = sum(
                rows for priority, rows in self._rows.items() if priority <= request.priority
            )
            if not self.policy.admits(self.now, request.deadline - self.now, ahead, request.rows):
                request.rejected = True
                return
        self._queues.setdefault(request.priority, deque()).append(request)
        self._rows[request.priority] = self._rows.get(request.priority, 0) + request.rows
        self._waiting += request.rows
        self.policy.arrived(self.now, request.rows)
        if self._idle and (self.now >= self._held_until or self._waiting >= self.policy.target()):
            self._send()

    def _send(self, contended: bool = False) -> None:
        """Give idle lanes what waits, as the policy says."""
        while self._idle and self._waiting:
            oldest = min(queue[0].arrived for queue in self._queues.values())
            until = self.policy.hold(self.now, self._waiting, oldest)
            if self._held_until > self._held_since:
                self.outcome.holds.append((self._held_since, self.now, self._held_until))
            self._held_since = self._held_until = 0.0
            if until > self.now:
                self._held_since, self._held_until = self.now, until
                self._at(until, partial(self._wake, until))
                return
            self._start(contended)

    def _wake(self, until: float) -> None:
        if self._held_until == until:
            self._send()

    def _start(self, contended: bool) -> None:
        taken, rows = self._take(self.policy.limit(self._waiting), contended)
        if not taken:
            return
        seconds = self.model(rows) * next(self._noise)
        lane = self._idle.pop()
        run = Run(self.now, taken, rows, seconds, lane)
        self.outcome.runs.append(run)
        token = self.policy.started(self.now, rows)
        self._at(self.now + seconds, lambda: self._finish(run, token))

    def _take(self, limit: int, contended: bool) -> tuple[list[Request], int]:
        taken: list[Request] = []
        rows = 0
        latest = self.now
        if contended:
            latest += self.policy.lead(min(limit, self._waiting))
        for priority in sorted(self._queues):
            queue = self._queues[priority]
            while queue:
                request = queue[0]
                deadline = request.deadline
                late = deadline is not None and deadline < latest
                if not late and taken and rows + request.rows > limit:
                    return taken, rows
                queue.popleft()
                self._rows[priority] -= request.rows
                self._waiting -= request.rows
                if not late:
                    taken.append(request)
                    rows += request.rows
            del self._queues[priority]
        return taken, rows

    def _finish(self, run: Run, token: object) -> None:
        self.policy.finished(token, self.now, run.rows, run.seconds)
        self._idle.append(run.lane)
        for request in run.requests:
            request.finished = self.now
            if request.caller >= 0:
                self._return(request.caller)
        self._send(contended=True)
