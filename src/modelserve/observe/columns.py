"""The numbers kept for a pair of model and version, and how exchanges add to them.

Where they are kept, and how several processes share them, is `observe.ledger`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

__all__ = [
    "GROUP",
    "MORE",
    "MOST_REASONS",
    "MOST_REQUEST_LABELS",
    "MOST_SIZES",
    "SIZE_EDGES",
    "BatchSums",
    "Columns",
    "Directory",
    "Floats",
    "Integers",
    "Log",
    "Sums",
    "kind_of",
    "placed",
]

MOST_REQUEST_LABELS: Final = 128
MOST_REASONS: Final = 16
MOST_SIZES: Final = 256
"""Batch sizes that are told apart to the row, of all models together; the last is all others'."""
SIZE_EDGES: Final = np.array([1 << i for i in range(15)], np.float64)
"""Batch sizes are counted up to 1, 2, 4, ... 2**14 rows, and over."""

GROUP: Final = 7
"""Numbers of a group of exchanges in a log; see `Log`."""
_COUNT, _STARTED, _RUN, _REQUEST, _ROWS, _BATCHES, _KIND = range(GROUP)
MORE: Final = 5
"""Numbers of a group of which there is more to say."""
_INFERENCES, _DECODE, _ENCODE, _JOIN, _SPLIT = range(MORE)

_PLACE_BITS: Final = MOST_REQUEST_LABELS.bit_length() - 1
_REASON_BITS: Final = MOST_REASONS.bit_length() - 1
_KIND_BITS: Final = _REASON_BITS + MOST_SIZES.bit_length() - 1

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Directory: TypeAlias = dict[str, list[Any]]


class Sums(NamedTuple):
    """Sums over exchanges, beside the histograms; times in seconds.

    What succeeded is what there was without what failed: that little is seldom anything.

    Args:
        failed: Total of those that failed.
        failed_queue: Waiting of those that failed.
        failed_run: Runs of those that failed.
        input: Decoding those that succeeded, and joining them with others.
        join: The part of it that was joining, and is in the runs, too.
        output: Handing out their rows, and encoding the answers.
        inferences: Their rows.
        unbatched: Those of them that ran outside of batches, as streams do.
        last: When the latest run of any ended; a point of `time.perf_counter()`, and no sum.
    """

    failed: Any = 0.0
    failed_queue: Any = 0.0
    failed_run: Any = 0.0
    input: Any = 0.0
    join: Any = 0.0
    output: Any = 0.0
    inferences: Any = 0.0
    unbatched: Any = 0.0
    last: Any = 0.0


class BatchSums(NamedTuple):
    """Batches of one size, and the seconds they took.

    Args:
        ran: How many ran.
        infer: Running, without joining.
        input: Joining the requests.
        output: Handing out rows.
    """

    ran: Any
    infer: Any
    input: Any
    output: Any


class Log(NamedTuple):
    """Exchanges that are not in the cells yet.

    Args:
        groups: `GROUP` numbers for every run of them that shared a batch: how many; when it began
            (NaN: none waited) and how long it ran (NaN: it did not); the place of their row among
            the touched, as `placed` has it, plus the column of the request; rows of the batch, and
            how many such batches are counted now; what kind of batch it was, as `kind_of` has it.
        more: `MORE` numbers for each group whose kind says that there are: rows of these exchanges,
            and seconds that decoding and encoding them took; seconds that joining and splitting the
            batch took. Of another group the rows are the batch's, and the seconds 0.
        totals: Seconds each of them took.
        enqueued: When each came to its batcher.
        directory: What the columns stand for.
    """

    groups: Floats
    more: Floats
    totals: Floats
    enqueued: Floats
    directory: Directory


def placed(local: int) -> int:
    """Return what stands for the place of a row among those touched, to add a column to."""
    return local << _PLACE_BITS


def kind_of(reason: int, size: int, members: int, *, more: bool) -> int:
    """Return what tells a kind of batch in one number.

    Args:
        reason: Column of the reason.
        size: Column of the batch size.
        members: Requests in the batch; 0 where none ran.
        more: Whether the log has more to say of the group.
    """
    return (members << 1 | more) << _KIND_BITS | size << _REASON_BITS | reason


class Columns:
    """Where each number stands in the row of a pair of model and version.

    Histograms and counts of everything come first; behind them are `Sums`, and `BatchSums` for each
    batch size.

    Args:
        edges: Upper bounds of the duration histograms in seconds.
    """

    __slots__ = (
        "batches",
        "edges",
        "queue",
        "reasons",
        "rows",
        "run",
        "sizes",
        "stride",
        "sums",
        "total",
    )

    def __init__(self, edges: Floats) -> None:
        self.edges = edges
        # A histogram has a cell per bucket, the last one without a bound, and one for the sum.
        width = len(edges) + 2
        self.total = MOST_REQUEST_LABELS
        self.queue = self.total + width
        self.run = self.queue + width
        self.sizes = self.run + width
        self.rows = self.sizes + len(SIZE_EDGES) + 1
        self.reasons = self.rows + 1
        self.sums = self.reasons + MOST_REASONS
        self.batches = self.sums + len(Sums._fields)
        self.stride = self.batches + MOST_SIZES * len(BatchSums._fields)

    def sums_of(self, row: Floats) -> Sums:
        """Return the `Sums` in a row."""
        return Sums(*row[self.sums : self.batches].tolist())

    def batch_sums_of(self, row: Floats) -> Floats:
        """Return the `BatchSums` in a row, one for each column of a batch size."""
        return row[self.batches : self.stride].reshape(MOST_SIZES, -1)

    def rows_touched(self, groups: Floats) -> int:
        """Return how many rows these groups of a log belong to."""
        return (int(groups[:, _REQUEST].max()) >> _PLACE_BITS) + 1 if len(groups) else 0

    def merged(self, one: Floats, other: Floats) -> Floats:
        """Return the numbers of two rows as one."""
        found: Floats = one + other
        last = self.batches - 1
        found[last] = max(one[last], other[last])
        return found

    def added(self, cells: Floats, log: Log) -> Floats:
        """Return cells with what is logged for their rows."""
        delta = self._delta(log, len(cells))
        last = self.batches - 1
        latest = np.maximum(cells[:, last], delta[:, last])
        delta += cells
        delta[:, last] = latest
        return delta

    def _delta(self, log: Log, rows: int) -> Floats:
        """Return what a log adds to the rows it touched."""
        delta = np.zeros((rows, self.stride))
        groups = _Groups(log, rows)
        delta[:, : self.sums] = self._counts(groups)
        delta[:, self.sums : self.batches] = np.column_stack(groups.sums())
        delta[:, self.batches :] = groups.batch_sums()
        return delta

    def _counts(self, groups: _Groups) -> Floats:
        """Return what is added to histograms and counts, whatever became of a request."""
        width, edges = self.sums, self.edges
        delta = np.zeros(groups.rows * width)
        counts, place, run = groups.counts, groups.place, groups.run
        base = place * width

        def add(at: Integers, weights: Floats | None = None) -> None:
            nonlocal delta
            delta += np.bincount(at, weights, len(delta))

        def fold(column: int, base: Integers, values: Floats, weights: Floats | None) -> None:
            there = values == values  # NaN: there is none
            if not there.all():
                base, values = base[there], values[there]
                weights = None if weights is None else weights[there]
            add(base + column + edges.searchsorted(values, "left"), weights)
            at = base + (column + len(edges) + 1)
            add(at, values if weights is None else values * weights)

        each = base.repeat(groups.repeats)
        add(base + groups.request, counts)
        fold(self.total, each, groups.totals, None)
        fold(self.queue, each, groups.queue, None)
        fold(self.run, base, run, counts)
        batches, sizes = groups.batches, groups.sizes
        if batches.any():
            add(base + self.sizes + SIZE_EDGES.searchsorted(sizes, "left"), batches)
            add(base + self.rows, batches * sizes)
            add(base + self.reasons + groups.reason, batches)
        return delta.reshape(groups.rows, width)


class _Groups:
    """The groups of a log, a column each.

    Args:
        log: The log.
        rows: How many rows it touched.
    """

    def __init__(self, log: Log, rows: int) -> None:
        self.rows = rows
        columns = log.groups.T
        self.counts, self._started, self.run, request, self.sizes, self.batches, kind = columns
        whole = request.astype(np.int64)
        self.place = whole >> _PLACE_BITS
        self.request = whole & (MOST_REQUEST_LABELS - 1)
        whole = kind.astype(np.int64)
        self.reason = whole & (MOST_REASONS - 1)
        self._size = (whole >> _REASON_BITS) & (MOST_SIZES - 1)
        self._members = whole >> (_KIND_BITS + 1)
        self._said = np.flatnonzero((whole >> _KIND_BITS) & 1)
        self._more = log.more[: len(self._said)].T
        self.repeats = self.counts.astype(np.int64)
        logged = int(self.repeats.sum())
        self.totals = log.totals[:logged]
        self.queue = self._started.repeat(self.repeats) - log.enqueued[:logged]
        self._well = _succeeded(log.directory)[self.request]

    def _summed(self, values: Floats, place: Integers) -> Floats:
        found: Any = np.bincount(place, values, self.rows)
        return found  # type: ignore[no-any-return]  # bincount's stubs forget the weights

    def sums(self) -> Sums:
        """Return what is added to the `Sums` of each row."""
        place, counts, well = self.place, self.counts, self._well
        nothing = np.zeros(self.rows)
        found = Sums(*[nothing] * len(Sums._fields))
        inferences = self.sizes.copy()
        if len(self._said):
            inferences[self._said] = self._more[_INFERENCES]
            here, good = place[self._said], well[self._said]
            join, split = self._more[_JOIN:] * (counts[self._said] * good)
            found = found._replace(
                input=self._summed(self._more[_DECODE] * good + join, here),
                join=self._summed(join, here),
                output=self._summed(self._more[_ENCODE] * good + split, here),
            )
        if not well.all():
            inferences *= well
            failed = 1 - well
            each, lost = place.repeat(self.repeats), failed.repeat(self.repeats)
            found = found._replace(
                failed=self._summed(self.totals * lost, each),
                failed_queue=self._summed(np.nan_to_num(self.queue) * lost, each),
                failed_run=self._summed(np.nan_to_num(self.run) * counts * failed, place),
            )
        last = np.zeros(self.rows)
        ended = self._started + self.run
        ran = ended == ended
        if ran.all():
            np.maximum.at(last, place, ended)
        else:
            np.maximum.at(last, place[ran], ended[ran])
            unbatched = np.where(np.isnan(self.run), counts * well, 0.0)
            found = found._replace(unbatched=self._summed(unbatched, place))
        return found._replace(inferences=self._summed(inferences, place), last=last)

    def batch_sums(self) -> Floats:
        """Return what is added to the `BatchSums` of each row."""
        found = np.zeros((self.rows * MOST_SIZES, len(BatchSums._fields)))
        at = self.place * MOST_SIZES + self._size
        members = np.maximum(self._members, 1)

        def add(field: str, values: Floats, at: Integers) -> None:
            found[:, BatchSums._fields.index(field)] += np.bincount(at, values, len(found))

        add("ran", self.batches, at)
        # Of a batch's time each of its requests brings a part: they need not come together.
        add("infer", np.nan_to_num(self.run) * self.counts / members, at)
        if len(self._said):
            at = at[self._said]
            part = self.counts[self._said] / members[self._said]
            join, split = self._more[_JOIN:] * part
            add("infer", -join, at)
            add("input", join, at)
            add("output", split, at)
        return found.reshape(self.rows, -1)


def _succeeded(directory: Directory) -> Integers:
    """Return 1 for the columns of requests that ended well, and 0 for the others."""
    found = np.zeros(MOST_REQUEST_LABELS, np.int64)
    for column, (_, code) in enumerate(directory["requests"]):
        found[column] = code == "OK"
    return found
