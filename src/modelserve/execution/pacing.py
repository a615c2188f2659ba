"""The batcher's judgement: how large a batch, where it runs, whether to wait, when it is done.

Everything here is arithmetic on times handed in: no clock, lock, thread or queue. The batcher calls
it under its lock. What a batch takes is learned in `service_time`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Final, NamedTuple

from modelserve.errors import InvalidInput
from modelserve.execution.service_time import ServiceTime
from modelserve.tensors import Tensor

__all__ = ["BatchBounds", "BatchSize", "Finish", "Pacing", "Started"]

# An event loop is blocked by an inline run for no longer than about this; two bounds, so that a
# model near one does not change sides with every batch.
_INLINE_BELOW: Final = 100e-6
_INLINE_UNTIL: Final = 200e-6
_FIRST_RUNS: Final = 32

# What a batch costs besides its run, about: a turn of the loop, being taken, split, told of.
_PER_BATCH: Final = 30e-6

# No size is preferred before so many runs: a handful says little.
_FEW: Final = 12
# The smallest size within 3 % of the best throughput is taken, and kept while within 5 %. Where
# lanes idle much of the time, throughput is not scarce, and a small batch is answered sooner.
_NEAR: Final = 0.97
_HYSTERESIS: Final = 0.01
_BUSY: Final = 0.6
_GIVEN_AWAY: Final = 0.8
# Runs shorter than this are not worth it: their callers, on the same cores, are what takes time.
_BRIEF: Final = 1e-3
# A remainder is taken along where its own batch would cost this share more.
_REMAINDER: Final = 0.03
_REVIEW_EVERY: Final = 16
# Sizes that lost are tried again after so many runs; twice as many each time they lose again.
_FIRST_TRIAL_AGAIN: Final = 64
_MOST_DOUBLINGS: Final = 6
# A size seen within so many runs needs no trial.
_FRESH: Final = 256
_TRIALS_ABOVE: Final = 6
_TRIALS_BELOW: Final = 3
# One seen twice that costs so much more a row is out of the question.
_CLEARLY: Final = 1.1
_EVIDENCE: Final = 3

# Callers are waited for only in this part of a run's time after it. Arrivals that know nothing of
# the run (Poisson) fill at most the same share of a batch in it, far from what is asked below.
_WINDOW: Final = 0.25
_RETURNING: Final = 0.5
# A join must save so many times the wait.
_WORTH: Final = 1.5

_AVERAGE: Final = 0.05
_MOST_KEYS: Final = 64


@dataclass(frozen=True, slots=True)
class BatchBounds:
    """What a batch may hold: rows, and units of cost where the user counts them.

    Args:
        max_batch_size: Most rows of a batch; 0 runs each request by itself.
        max_batch_cost: Most units of cost in a batch; 0 where only rows count.
        cost: Tells the cost of a request from its inputs: tokens, pixels. The costs of a batch's
            requests add up.

    Example:
        >>> import numpy as np
        >>> bounds = BatchBounds(32, 4096, lambda inputs: inputs["ids"].size)
        >>> bounds.measure({"ids": np.zeros((2, 64), np.int64)}, 2), bounds.most
        (128, 4096)
    """

    max_batch_size: int = 0
    max_batch_cost: int = 0
    cost: Callable[[Mapping[str, Tensor]], float] | None = None

    def __post_init__(self) -> None:
        """Check that a bound on cost comes with a way to tell it."""
        if self.max_batch_size < 0:
            raise ValueError(f"max_batch_size must be at least 0, got {self.max_batch_size}")
        if self.max_batch_cost < 0:
            raise ValueError(f"max_batch_cost must be at least 0, got {self.max_batch_cost}")
        if (self.cost is None) != (self.max_batch_cost == 0):
            raise ValueError("max_batch_cost and cost go together: give both or neither")

    @property
    def most(self) -> int:
        """The largest size of a batch, in the unit of `measure`."""
        return self.max_batch_cost or self.max_batch_size or 1

    def measure(self, inputs: Mapping[str, Tensor], rows: int) -> int:
        """Return the size of a request: its rows or, where the user counts it, its cost.

        Raises:
            InvalidInput: The request costs more than a batch may.
            ValueError: The user's function returned no cost.
        """
        if self.cost is None:
            return rows
        cost = self.cost(inputs)
        if not isfinite(cost) or cost < 0:
            raise ValueError(f"cost must return a number that is not negative, got {cost!r}")
        if cost > self.max_batch_cost:
            raise InvalidInput(
                f"the request costs {cost:g}, more than max_batch_cost {self.max_batch_cost}"
            )
        return max(1, ceil(cost))

    def fits(self, rows: int, size: int, limit: int) -> bool:
        """Tell whether a batch of so many rows and this size is within the bounds and `limit`."""
        return size <= limit and (self.cost is None or rows <= (self.max_batch_size or rows))


class BatchSize:
    """The batch size that serves best, learned for batches of one shape.

    The smallest size whose throughput is near the best one's; before some runs are known, the
    largest allowed, as long as nothing measured says that more is no better. Sizes a doubling away
    from what is in use are tried a few times, and then ever more rarely.

    Args:
        most: The largest size allowed.

    Example:
        >>> size = BatchSize(64)
        >>> for _ in range(8):
        ...     for rows in (1, 2, 4, 8, 16):
        ...         size.learn(rows, 0.001 * rows)  # nothing is gained by batching
        >>> size.value
        1
    """

    __slots__ = ("_due", "_most", "_review", "_trials", "times", "value")

    def __init__(self, most: int) -> None:
        self._most = most
        self.times = ServiceTime()
        self.value = most
        self._review = _FEW
        self._due: dict[int, int] = {}
        """By size: the run from which on it is tried again."""
        self._trials: dict[int, int] = {}

    def limit(self, waiting: int) -> int:
        """Return the size to take of what waits; any size up to it is in order."""
        value = self.value
        runs = self.times.runs
        if waiting <= 1 or runs < _FEW:
            return self._most
        size = waiting if waiting < value else value
        # The next doubling below; the next above where as much waits.
        below = 1 << (3 * size // 4).bit_length() - 1 if size > 1 else 0
        if below and not self._loses(below, size) and self._is_due(below, runs, _TRIALS_BELOW):
            return below
        if waiting <= value:
            return value
        for above in (min(2 * value, self._most), min(4 * value, self._most)):
            if waiting >= above > value and self._is_due(above, runs, _TRIALS_ABOVE):
                return above
        return self._with_remainder(waiting, value)

    @property
    def reach(self) -> int:
        """The size up to which waiting for others may pay: one not tried yet included."""
        above = min(2 * self.value, self._most)
        return above if self.times.count(above) < _TRIALS_ABOVE else self.value

    def _with_remainder(self, waiting: int, value: int) -> int:
        """Take all that waits where a small batch left behind would cost more than it is worth."""
        rest = waiting - value
        if rest >= value or waiting > self._most:
            return value
        together = self.times.predict(waiting) or 0.0
        apart = (self.times.predict(value) or 0.0) + (self.times.predict(rest) or 0.0)
        return waiting if apart - together > _REMAINDER * together else value

    def learn(self, size: int, seconds: float, busy: float = 1.0) -> None:
        """Take note of one run, and of the share of the time in which lanes are busy."""
        times = self.times
        times.update(size, seconds)
        if times.runs >= self._review:
            self._review = times.runs + _REVIEW_EVERY
            self._choose(_NEAR - _GIVEN_AWAY * max(0.0, _BUSY - busy))

    def _loses(self, below: int, size: int) -> bool:
        times = self.times
        known = times.known(below)
        if known is None or times.count(below) < 2:
            return False
        return known * size > _CLEARLY * (times.predict(size) or 0.0) * below

    def _is_due(self, size: int, runs: int, wanted: int) -> bool:
        """Tell whether a size is to be tried, and take note that it is."""
        if runs < self._due.get(size, 0):
            return False
        # What comes of it need not have this very size, so trials are counted and not its runs.
        trials = self._trials[size] = self._trials.get(size, 0) + 1
        known = self.times.count(size) >= wanted
        if known or trials >= wanted:
            again = _FIRST_TRIAL_AGAIN << min(max(0, trials - wanted), _MOST_DOUBLINGS)
            self._due[size] = runs + again
        if known and self.times.age(size) < _FRESH:
            return False
        self._review = runs + 1
        return True

    def _choose(self, near: float) -> None:
        """Prefer the smallest of the sizes near the best throughput."""
        most = self._most
        sizes = self.times.surely  # noise makes one that was seen seldom look best
        rates = {min(rows, most): rows / (seconds + _PER_BATCH) for rows, seconds, _ in sizes}
        best = max(rates.values())
        chosen = next(rows for rows, rate in rates.items() if rate >= near * best)
        beyond = sum(count for rows, _, count in sizes if 2 * rows >= 3 * chosen)
        if beyond < _EVIDENCE:
            chosen = most  # nothing says yet that larger ones are no better
        value = self.value
        if chosen == value:
            return
        lost = rates.get(value, 0.0) < (near - _HYSTERESIS) * best
        much_smaller = 2 * chosen <= value
        if lost or much_smaller or (chosen < value and rates[chosen] >= 0.99 * best):
            self.value = chosen
            self._trials.clear()  # its neighbours are other ones; those that lost wait as before


def _saved(times: ServiceTime, one: int, other: int) -> float:
    """Return the seconds that one batch of both saves against two."""
    apart = (times.predict(one) or 0.0) + (times.predict(other) or 0.0)
    if one + other > times.largest:
        return 0.25 * apart  # never seen: as if it were so much, until it is tried
    return apart - times.hopeful(one + other)


class Started:
    """A batch that runs: since when, and until when it is expected to."""

    __slots__ = ("at", "due", "key", "rows", "size")

    def __init__(self, at: float, size: int, rows: int, key: Hashable, due: float) -> None:
        self.at = at
        self.size = size
        self.rows = rows
        self.key = key
        self.due = due


class Finish(NamedTuple):
    """Seconds until an answer is expected: as a rule, and in nine of ten cases at most."""

    expected: float
    upper: float


class Pacing:
    """Judges for one batcher: sizes, waits, finishes. Learns from the runs it is told of.

    Sizes are in the unit of `BatchBounds.measure`; rows, as a rule. Times are seconds of one
    monotonic clock. Not thread-safe: the batcher calls it under its lock.

    Args:
        bounds: What a batch may hold.
        lanes: Batches that may run at a time.
        max_queue_delay: Seconds a request may be held for others to join, as the user allows.
        inline: Whether runs may happen on an event loop at all.
        simple: Judge nothing: full batches of what waits, no waiting, no admission.

    Example:
        >>> pacing = Pacing(BatchBounds(8))
        >>> for n in range(40):
        ...     run = pacing.start(n * 1.0, 8, 8)
        ...     pacing.finish(run, n * 1.0 + 0.5, 0.5)
        >>> pacing.finish_in(100.0, ahead=16, size=8).expected
        1.5
    """

    def __init__(
        self,
        bounds: BatchBounds,
        *,
        lanes: int = 1,
        max_queue_delay: float = 0.0,
        inline: bool = False,
        simple: bool = False,
    ) -> None:
        if max_queue_delay < 0:
            raise ValueError(f"max_queue_delay must be at least 0 s, got {max_queue_delay}")
        self.bounds = bounds
        self.watching = False
        """Whether `arrived` wants to be told of arrivals."""
        self.holds = max_queue_delay > 0
        """Whether `hold` has to be asked before a batch is taken."""
        self.target = 0
        """The size at which the hold last returned is over."""
        self.why = ""
        """What the hold last returned is for: ``"delay"`` or ``"gather"``."""
        self._delay = max_queue_delay
        self._most = bounds.most
        self._lanes = lanes
        self._simple = simple
        self._may_inline = inline and not simple
        self.brief = self._may_inline
        """Whether runs were short of late; cheaper than `inline`, and nothing to rely on."""
        self.tiny = False
        """Whether even the largest batch is short, whatever its shape: no other question pays."""
        self._inline_runs = 0
        self._sizes: dict[Hashable, BatchSize] = {}
        self._any = BatchSize(self._most)
        """Over all shapes: what stands for one not seen yet."""
        self._running: list[Started] = []
        self._overhead = 0.0
        self._typical = 1.0
        self._free_since = -1.0
        self._idle = 0.0
        self._ran = 0.0
        """Seconds lanes are idle before a batch, and seconds it takes: averaged."""
        self._begin_gathering()

    def _begin_gathering(self) -> None:
        # Other lanes would take what comes back while one waits for it.
        self._may_gather = self._lanes == 1 and self._most > 1 and not self._simple
        self._since = 0.0
        self._window_ends = 0.0
        self._answered = 0
        self._came = 0
        self._answers = 0.0
        self._back = 0.0
        """Size answered, and what of it asked again within the window: averaged."""
        self._late = 0.0
        """Seconds after a batch's end within which nine of ten of them have."""

    # ------------------------------------------------------------------ sizes

    def best(self, key: Hashable = None) -> int:
        """Return the learned batch size of a shape."""
        return (self._sizes.get(key) or self._any).value

    def limit(self, waiting: int, key: Hashable = None) -> int:
        """Return the largest size the next batch may have, with so much of its shape waiting."""
        if self._simple:
            return self._most
        size = self._sizes.get(key)
        return self._most if size is None else size.limit(waiting)

    def reason(self, otherwise: str, size: int, limit: int, *, left: bool) -> str:
        """Name why a batch was sent.

        Args:
            otherwise: What it is where its size is not the reason.
            size: Its size.
            limit: What `limit` said.
            left: Whether requests that could have been in it wait still.
        """
        if size >= self._most > 1:
            return "full"
        return "best" if left and limit < self._most else otherwise

    # ------------------------------------------------------------------ runs

    def start(self, now: float, size: int, rows: int, key: Hashable = None) -> Started:
        """Take note that a batch begins; hand the result to `finish`."""
        seconds = (self._sizes.get(key) or self._any).times.predict(size)
        due = now if seconds is None else now + seconds + self._overhead
        idle = now - self._free_since if not self._running and self._free_since >= 0 else 0.0
        self._idle += _AVERAGE * (max(0.0, min(idle, 20 * self._ran)) - self._idle)
        run = Started(now, size, rows, key, due)
        self._running.append(run)
        return run

    def finish(self, run: Started, now: float, seconds: float | None) -> None:
        """Take note that a batch ended.

        Args:
            run: What `start` returned.
            now: When its lane is free again.
            seconds: How long the model ran; None where it failed, the time says nothing, or
                `judge` is told of it later.
        """
        self._running.remove(run)
        self._free_since = now
        self._ran += _AVERAGE * (now - run.at - self._ran)
        size = run.size
        self._typical += 0.1 * (size - self._typical)
        if seconds is not None:
            self.judge(run, now, seconds)
        if self._may_gather:
            self._watch(run, now)

    def judge(self, run: Started, now: float, seconds: float) -> None:
        """Learn from what a batch took; part of `finish`, or after it."""
        self.learn(run.size, seconds, run.key)
        if self._may_inline and seconds < _INLINE_BELOW:
            self.brief = True
        besides = now - run.at - seconds
        besides = 0.0 if besides < 0 else min(besides, seconds + 2 * self._overhead)
        self._overhead += 0.1 * (besides - self._overhead)

    def learn(self, size: int, seconds: float, key: Hashable = None) -> None:
        """Take note of what a run took, one outside of all lanes included."""
        sizes = self._sizes
        learned = sizes.get(key)
        if learned is None:
            learned = BatchSize(self._most)
            if len(sizes) >= _MOST_KEYS:
                del sizes[next(iter(sizes))]
            sizes[key] = learned
            if len(sizes) == 1:
                self._any = learned
            elif len(sizes) == 2:
                self._any = BatchSize(self._most)
        elif len(sizes) > 1:
            sizes[key] = sizes.pop(key)  # the one used last stands last
        ran = self._ran
        busy = ran / (ran + self._idle) if ran > _BRIEF else 1.0
        learned.learn(size, seconds, busy)
        if learned is not self._any:
            self._any.learn(size, seconds, busy)
        if self._may_inline:
            longest = learned.times.predict(self._most) or 0.0
            below = _INLINE_UNTIL if self.tiny else _INLINE_BELOW
            self.tiny = key is None and len(sizes) == 1 and longest < below
            self.brief = self.brief or self.tiny

    def ran_inline(self, size: int, seconds: float, key: Hashable = None) -> None:
        """Take note of a run on an event loop's own thread, instead of `start` and `finish`.

        Once some are known, of every eighth only: these runs cost little more than this.
        """
        self._inline_runs += 1
        if seconds > _INLINE_UNTIL and not self.tiny:
            self.brief = False
        if self._inline_runs < _FIRST_RUNS or not self._inline_runs & 7 or seconds > _INLINE_UNTIL:
            self.learn(size, seconds, key)

    def inline(self, size: int, key: Hashable = None) -> bool:
        """Tell whether a batch is short enough for an event loop's own thread."""
        if not self._may_inline:
            return False
        learned = self._sizes.get(key)
        seconds = None if learned is None else learned.times.shortest(size)
        if seconds is None:
            return False
        self.brief = seconds < (_INLINE_UNTIL if self.brief else _INLINE_BELOW)
        return self.brief

    def expected(self, size: int, key: Hashable = None) -> float | None:
        """Predict the seconds of a run; None while nothing was measured."""
        return (self._sizes.get(key) or self._any).times.predict(size)

    # ------------------------------------------------------------------ waiting for callers

    def arrived(self, now: float, size: int) -> None:
        """Take note of an arrival; only needed while `watching`."""
        if now > self._window_ends:
            self._end_window()
            return
        if self._came >= self._answered:
            return
        self._came += size
        late = self._late
        after = now - self._since
        if after > late:
            self._late = min(after, late + 0.3 * late + 1e-6)
        else:
            self._late = max(after, late - 0.033 * late)

    @property
    def returning(self) -> float:
        """Share of those answered who ask again at once."""
        return self._back / self._answers if self._answers else 0.0

    def _watch(self, run: Started, now: float) -> None:
        """Open the window in which those just answered are expected back."""
        if self.watching:
            self._end_window()
        self.watching = False
        self.holds = self._delay > 0
        if self._may_inline and self.brief:
            return
        window = self._longest_wait(run.size, run.key)
        if window <= 0:
            return
        self.watching = True
        self._since = now
        self._answered = run.size
        self._came = 0
        self._window_ends = now + window
        if not self._late:
            self._late = 0.5 * window
        self.holds = self.holds or self.returning > _RETURNING

    def _end_window(self) -> None:
        self.watching = False
        answered = self._answered
        self._back += 0.15 * (min(self._came, answered) - self._back)
        self._answers += 0.15 * (answered - self._answers)

    def _longest_wait(self, size: int, key: Hashable) -> float:
        """Return the longest wait that could pay after a batch of this size."""
        times = (self._sizes.get(key) or self._any).times
        took = times.predict(size)
        if took is None:
            return 0.0
        half = min(max(size, round(self._typical)), self._most // 2)
        saved = max(_saved(times, half, half), _saved(times, max(1, half // 2), max(1, half // 2)))
        return min(saved, _WINDOW * took)

    def hold(self, now: float, waiting: int, oldest: float, key: Hashable = None) -> float:
        """Return until when an idle lane should wait before it takes what waits.

        The hold is over sooner, once `target` waits. Ask again when it is: the answer is then 0.

        Args:
            now: The time.
            waiting: The size of what waits and could run together.
            oldest: When the first of it came.
            key: Its shape.

        Returns:
            A time after `now`, or 0.0 where the batch is to be sent at once.
        """
        learned = self._sizes.get(key) or self._any
        best = self._most if self._simple else learned.value
        if waiting >= best:
            best = learned.reach
        if not waiting or waiting >= best:
            return 0.0
        until = oldest + self._delay if self._delay else 0.0
        self.target = best
        self.why = "delay"
        if until <= now:
            until = self._gather(now, waiting, best, key)
        return until

    def _gather(self, now: float, waiting: int, best: int, key: Hashable) -> float:
        until = self._since + self._late
        share = self.returning
        if not self._may_gather or share <= _RETURNING or now >= until:
            return 0.0
        learned = self._sizes.get(key) or self._any
        missing = min(round(share * self._answered) - self._came, best - waiting)
        if missing <= 0 or _saved(learned.times, waiting, missing) <= _WORTH * (until - now):
            return 0.0
        self.target = waiting + missing
        self.why = "gather"
        return until

    # ------------------------------------------------------------------ admission

    def finish_in(self, now: float, ahead: int, size: int, key: Hashable = None) -> Finish | None:
        """Predict how long a request that came now would take to be answered.

        Args:
            now: The time.
            ahead: The size of all that waits and goes before it.
            size: Its own.
            key: Its shape.

        Returns:
            Seconds from now; None while nothing was measured.
        """
        learned = self._sizes.get(key) or self._any
        times = learned.times
        full = min(learned.value, self._most)
        each = times.predict(full)
        if each is None:
            return None
        batches = -(-(ahead + size) // full)
        each += self._overhead
        last = each
        if batches == 1:
            # Others join before it starts, as many as usual.
            filled = min(full, max(ahead + size, round(self._typical)))
            last = (times.predict(filled) or 0.0) + self._overhead
        lanes = self._lanes
        turn, rounds = (batches - 1) % lanes, (batches - 1) // lanes
        free = self._free_in(now, turn)
        usual, upper = times.upper_of(rounds + last / each + free / each)
        return Finish(usual * each, upper * each)

    def lead(self, size: int, key: Hashable = None) -> float:
        """Return the seconds before a deadline by which a batch has to start, at least.

        By the time of an undisturbed run: what starts later costs compute for nothing. Only for
        what waited for a lane; on an idle one try, for a wrong estimate is mended only by runs.
        """
        learned = self._sizes.get(key)
        seconds = None if learned is None else learned.times.shortest(size)
        return 0.0 if seconds is None or self._simple else seconds

    def _free_in(self, now: float, turn: int) -> float:
        """Return the seconds until the lane that is free as number `turn` is."""
        running = self._running
        busy = turn - (self._lanes - len(running))
        if busy < 0:
            return 0.0
        if len(running) == 1:
            due = running[0].due
        else:
            due = sorted([run.due for run in running])[busy]
        return due - now if due > now else 0.0

    def admits(self, now: float, left: float, ahead: int, size: int, key: Hashable = None) -> bool:
        """Tell whether a request may still be answered in time.

        Where a lane is free and nobody waits it always may: it hurts no one, and a wrong estimate
        is mended only by runs.

        Args:
            now: The time.
            left: Seconds until its deadline.
            ahead: The size of all that waits and goes before it.
            size: Its own.
            key: Its shape.
        """
        if self._simple or (not ahead and len(self._running) < self._lanes):
            return True
        finish = self.finish_in(now, ahead, size, key)
        # Thrice the margin nine in ten need: admitted in vain costs a run, refused costs little.
        return finish is None or 3 * finish.upper - 2 * finish.expected <= left
