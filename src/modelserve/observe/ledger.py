"""The numbers of one process's metrics, in a buffer of fixed layout that other processes may read.

One writer appends what it folded to a log and settles the log into cells now and then. Every step
takes effect with one store of one word, so whoever reads finds each exchange once or not at all,
also after the writer was killed. Names and meanings are `observe.metrics`; here are rows.
"""

from __future__ import annotations

import json
from struct import pack_into
from threading import Lock
from time import sleep
from typing import Any, Final, NamedTuple

import numpy as np

from modelserve.observe.columns import (
    GROUP,
    MORE,
    Columns,
    Directory,
    Floats,
    Integers,
    Log,
    placed,
)

__all__ = ["LOG_SIZE", "MOST_TOUCHED", "Ledger", "Reading"]

LOG_SIZE: Final = 4096
"""Exchanges the log holds; they are settled when it is full."""

MOST_TOUCHED: Final = 32
"""Rows that exchanges in the log may belong to."""

_HEADER: Final = 8
_STATE, _USED, _DIRECTORY, _GAUGES, _OWNER = range(5)
_TEXT: Final = 2**18  # bytes of each copy of the directory and of the gauges
_JOURNAL_UNIT: Final = 1 << 16
_SETTLE_UNIT: Final = 1 << 32
_TRIES: Final = 20


class Reading(NamedTuple):
    """What a ledger held at one moment.

    Args:
        directory: The names its writer gave to rows and columns.
        cells: One row of numbers per row of the ledger.
    """

    directory: Directory
    cells: Floats


class Ledger:
    """Rows of numbers with one writer, and any number of readers in other processes.

    The methods that write are called by one thread at a time, of one process; `read` by anyone.
    Numbers are float64: counts are exact up to 2**53.

    Args:
        columns: What a row holds.
        rows: How many rows there can be.
        buffer: Memory of `size` bytes, zero at first; None for memory of its own, which grows.
    """

    def __init__(self, columns: Columns, rows: int, buffer: Any = None) -> None:
        self.columns = columns
        self.shared = buffer is not None
        self.most_rows = rows
        self.directory = _directory(b"")
        held = rows if self.shared else min(rows, 4)
        stride = columns.stride
        words: Integers
        if buffer is None:
            words = np.zeros(self.size(columns, held, texts=False) // 8, np.int64)
        else:
            words = np.frombuffer(buffer, np.int64, self.size(columns, rows) // 8)
        self._words = words
        self._header = words.data[:_HEADER]
        floats = words.view(np.float64)
        at = _HEADER

        def take(count: int) -> Floats:
            nonlocal at
            part = floats[at : at + count]
            at += count
            return part

        groups, more = take(LOG_SIZE * GROUP), take(LOG_SIZE * MORE)
        totals, enqueued = take(LOG_SIZE), take(LOG_SIZE)
        self._groups, self._totals, self._enqueued = groups, totals, enqueued
        self._more = more.reshape(-1, MORE)
        self._touched = take(MOST_TOUCHED).view(np.int64)
        self._journal = take(MOST_TOUCHED * stride).reshape(MOST_TOUCHED, stride)
        # A directory and gauges are for other processes, and there are none here.
        self._texts = take(4 * _TEXT // 8).data.cast("B") if self.shared else None
        self._cells = take(held * stride).reshape(held, stride)
        self._logged = 0  # exchanges in the log
        self._entries = 0  # groups of them
        self._said = 0  # numbers of those of which there is more to say
        self._local: dict[int, int] = {}  # rows touched, by their place among the touched

    @staticmethod
    def size(columns: Columns, rows: int, *, texts: bool = True) -> int:
        """Bytes of memory a ledger takes; whole pages, so that ledgers may lie side by side."""
        words = _HEADER + LOG_SIZE * (GROUP + MORE + 2) + MOST_TOUCHED
        words += (MOST_TOUCHED + rows) * columns.stride
        return -(-(words * 8 + (4 * _TEXT if texts else 0)) // 4096) * 4096

    # ------------------------------------------------------------------ the writer

    @property
    def owner(self) -> int:
        """Process id of the writer; 0 where it ended."""
        return self._header[_OWNER]

    @owner.setter
    def owner(self, pid: int) -> None:
        self._header[_OWNER] = pid

    def adopt(self, pid: int) -> None:
        """Become the writer of shared memory, and go on with what the one before has left."""
        state = self._header[_STATE]
        settles, journal, entries = _parted(state)
        if journal:
            # It was killed while it settled: the journal is whole, so this ends what it began.
            self._apply(journal, settles)
        self._entries = 0 if journal else entries
        counts = self._groups[: self._entries * GROUP : GROUP]
        self._logged = int(counts.sum())
        left = self._touched[: self._touched_rows()]
        self._local = {int(row): place for place, row in enumerate(left)}
        self.directory = _directory(self._text(_DIRECTORY))
        self.settle()
        series = self.directory["series"]
        for row in range(self._header[_USED]):
            if row >= len(series) or series[row] is None:
                self._cells[row] = 0.0
            else:
                series[row][2] = False
        self._publish()
        self.owner = pid

    def open_row(self, model: str, version: str) -> int | None:
        """Return the row of these names: a new one, or the one left by the writer before.

        None if there is no room.
        """
        series = self.directory["series"]
        left = [model, version, False]
        row = series.index(left) if left in series else self._free_row()
        if row is None:
            return None
        if row == len(series):
            series.append(None)
        before, series[row] = series[row], [model, version, True]
        if not self._publish():
            series[row] = before
            return None
        self._header[_USED] = max(self._header[_USED], row + 1)
        return row

    def _free_row(self) -> int | None:
        series = self.directory["series"]
        if None in series:
            return series.index(None)
        if len(series) < self.most_rows:
            if len(series) == len(self._cells):
                self._grow()
            return len(series)
        for row, names in enumerate(series):
            if not names[2]:  # left by the writer before, and asked for by nobody since
                self.close_row(row)
                return row
        return None

    def close_row(self, row: int) -> None:
        """Drop a row and its numbers; to be settled before."""
        self.directory["series"][row] = None
        # In this order: numbers without a name are dropped by whoever comes next.
        self._publish()
        self._cells[row] = 0.0

    def open_column(self, kind: str, names: Any, most: int, rest: Any) -> int:
        """Return the column of names among the `kind`, opened if need be; the last is the rest's.

        Args:
            kind: ``"requests"``, ``"reasons"`` or ``"sizes"``.
            names: Names of the column.
            most: How many columns there are.
            rest: Names of the last column, for whatever finds no other.
        """
        columns = self.directory[kind]
        if names in columns:
            return columns.index(names)
        if len(columns) == most:
            return most - 1
        columns.append(names if len(columns) < most - 1 else rest)
        if self._publish():
            return len(columns) - 1
        columns.pop()
        return max(0, len(columns) - 1)

    def place(self, row: int) -> int:
        """Return where the row's numbers begin for what is appended next; settled before if full.

        It holds until `settle`, which forgets all places.
        """
        local = self._local.get(row)
        if local is None:
            if len(self._local) == MOST_TOUCHED:
                raise RuntimeError("too many rows were touched: settle before")
            local = len(self._local)
            self._touched[local] = row
            self._local[row] = local
        return placed(local)

    @property
    def room(self) -> int:
        """How many more exchanges the log takes."""
        return LOG_SIZE - self._logged

    @property
    def touched(self) -> int:
        """Rows that what is in the log belongs to."""
        return len(self._local)

    def append(
        self, totals: list[float], enqueued: list[float], groups: list[float], more: list[float]
    ) -> None:
        """Add exchanges to the log, all at once for whoever reads.

        Args:
            totals: Seconds each took.
            enqueued: When each came to its batcher.
            groups: `GROUP` numbers for every run of them that shared a batch; see `columns.Log`.
            more: `MORE` numbers for each of the groups that have them.
        """
        # Packing floats takes a third of the time of making an array of them, a fifth of integers.
        at = 8 * self._logged
        form = f"{len(totals)}d"
        pack_into(form, self._totals.data, at, *totals)
        pack_into(form, self._enqueued.data, at, *enqueued)
        pack_into(f"{len(groups)}d", self._groups.data, 8 * GROUP * self._entries, *groups)
        if more:
            pack_into(f"{len(more)}d", self._more.data, 8 * self._said, *more)
            self._said += len(more)
        entries = len(groups) // GROUP
        self._logged += len(totals)
        self._entries += entries
        _in_order()
        self._header[_STATE] += entries

    def settle(self) -> None:
        """Move what is in the log into the cells."""
        if self._entries:
            settles, _, _ = _parted(self._header[_STATE])
            rows = self._touched[: len(self._local)]
            log = self._log(self._groups_logged(self._entries), self.directory)
            new = self.columns.added(self._cells[rows], log)
            if self.shared:
                self._journal[: len(rows)] = new
                _in_order()
                self._header[_STATE] += len(rows) * _JOURNAL_UNIT
                self._apply(len(rows), settles)
            else:
                self._cells[rows] = new
                self._header[_STATE] = 0
        self._logged = self._entries = self._said = 0
        self._local.clear()

    def _apply(self, rows: int, settles: int) -> None:
        # Whatever is here may be done twice: the journal holds new values, not differences.
        _in_order()
        self._cells[self._touched[:rows]] = self._journal[:rows]
        _in_order()
        self._header[_STATE] = (settles + 1) % (1 << 30) * _SETTLE_UNIT

    def _groups_logged(self, entries: int) -> Floats:
        return self._groups[: entries * GROUP].reshape(-1, GROUP)

    def _log(self, groups: Floats, directory: Directory) -> Log:
        return Log(groups, self._more, self._totals, self._enqueued, directory)

    def _grow(self) -> None:
        more = min(self.most_rows, 4 * len(self._cells)) - len(self._cells)
        self._cells = np.concatenate([self._cells, np.zeros((more, self.columns.stride))])

    def _touched_rows(self) -> int:
        return self.columns.rows_touched(self._groups_logged(self._entries))

    # ------------------------------------------------------------------ texts

    def write_gauges(self, text: bytes) -> bool:
        """Let readers see this text; whether there was room."""
        return self._write_text(_GAUGES, text)

    def read_gauges(self) -> bytes:
        """Return the text that was written last."""
        return self._text(_GAUGES)

    def _publish(self) -> bool:
        return not self.shared or self._write_text(_DIRECTORY, json.dumps(self.directory).encode())

    def _write_text(self, which: int, text: bytes) -> bool:
        if self._texts is None or len(text) > _TEXT:
            return False
        # There are two copies; a store of this word says which one holds, and how long it is.
        turn = self._header[which] // _SETTLE_UNIT + 1
        start = self._text_start(which, turn)
        self._texts[start : start + len(text)] = text
        _in_order()
        self._header[which] = turn * _SETTLE_UNIT + len(text)
        return True

    def _text(self, which: int) -> bytes:
        if self._texts is None:
            return b""
        for _ in range(_TRIES):
            word = self._header[which]
            turn, length = divmod(word, _SETTLE_UNIT)
            start = self._text_start(which, turn)
            _in_order()
            text = bytes(self._texts[start : start + length])
            _in_order()
            if self._header[which] == word:
                return text
        return b""

    @staticmethod
    def _text_start(which: int, turn: int) -> int:
        return (2 * (which - _DIRECTORY) + turn % 2) * _TEXT

    # ------------------------------------------------------------------ readers

    def read(self) -> Reading:
        """Return what the ledger holds, of any process; its writer may go on meanwhile."""
        for attempt in range(_TRIES):
            # Nobody ends what a dead writer began: then there is nothing to wait for.
            found = self._attempt(last=attempt == _TRIES - 1 or not self.owner)
            if found is not None:
                return found
            sleep(0.001)
        return Reading(_directory(b""), np.zeros((0, self.columns.stride)))

    def _attempt(self, *, last: bool) -> Reading | None:
        state = self._header[_STATE]
        settles, journal, entries = _parted(state)
        if journal and not last:
            return None  # its writer settles now: in a moment it is done
        _in_order()
        word = self._header[_DIRECTORY]
        directory = _directory(self._text(_DIRECTORY)) if self.shared else self.directory
        cells = self._cells[: self._header[_USED]].copy()
        touched = self._touched.copy()
        if journal:
            # The writer ended, or was stopped, while it settled; the journal says what it wanted.
            cells[touched[:journal]] = self._journal[:journal]
            _in_order()
            return Reading(directory, cells) if self._header[_STATE] == state else None
        if entries:
            groups = self._groups_logged(entries).copy()
            at = touched[: self.columns.rows_touched(groups)]
            cells[at] = self.columns.added(cells[at], self._log(groups, directory))
        _in_order()
        after = (*_parted(self._header[_STATE])[:2], self._header[_DIRECTORY])
        return Reading(directory, cells) if last or after == (settles, 0, word) else None


def _in_order() -> None:
    """Let no other processor see a store behind this before one in front of it; the same for loads.

    Some kinds reorder them. Giving back a lock and taking it again is what Python has against it.
    """
    lock = Lock()
    lock.acquire()
    lock.release()
    lock.acquire()


def _parted(state: int) -> tuple[int, int, int]:
    """Return how often the log was settled, rows in the journal, groups in the log."""
    settles, rest = divmod(state, _SETTLE_UNIT)
    journal, entries = divmod(rest, _JOURNAL_UNIT)
    return settles, journal, entries


def _directory(text: bytes) -> Directory:
    found: Directory = json.loads(text) if text else {}
    return {kind: found.get(kind, []) for kind in ("series", "requests", "reasons", "sizes")}
