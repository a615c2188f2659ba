"""Recorder: nothing is lost, nothing counted twice, observers do not disturb each other."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from threading import Barrier, Event, Thread, current_thread

import pytest

from modelserve.messages import Exchange
from modelserve.observe.recorder import Recorder


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Kept:
    """An observer that keeps what it gets, fold by fold."""

    def __init__(self) -> None:
        self.folds: list[list[Exchange]] = []

    def observe(self, exchanges: Sequence[Exchange]) -> None:
        self.folds.append(list(exchanges))

    @property
    def all(self) -> list[Exchange]:
        return [exchange for fold in self.folds for exchange in fold]


class Failing:
    def __init__(self) -> None:
        self.calls = 0

    def observe(self, exchanges: Sequence[Exchange]) -> None:
        self.calls += 1
        raise RuntimeError("full")


def test_total_runs_from_the_start_to_the_record() -> None:
    clock = Clock()
    exchange = Exchange("http", "iris")
    exchange.started = clock.now
    clock.now += 0.25
    Recorder(clock=clock).record(exchange)
    assert exchange.total == 0.25


def test_those_recorded_together_end_at_one_moment_and_are_folded_with_the_next() -> None:
    clock = Clock()
    recorder = Recorder([kept := Kept()], clock=clock)
    first, second = Exchange("http"), Exchange("http")
    first.started, second.started = clock.now, clock.now + 0.01
    clock.now += 0.05
    recorder.record_all([first, second])
    assert (first.total, second.total) == pytest.approx((0.05, 0.04))
    recorder.record_all([Exchange("http") for _ in range(70)])
    assert not kept.folds
    recorder.record_all([third := Exchange("http")])
    assert [len(fold) for fold in kept.folds] == [72]
    recorder.flush()
    assert kept.folds[1] == [third]


def test_those_recorded_together_are_folded_after_the_interval() -> None:
    clock = Clock()
    recorder = Recorder([kept := Kept()], clock=clock)
    recorder.record_all([Exchange("http")])
    clock.now += 1.0
    recorder.record_all([Exchange("http")])
    assert len(kept.all) == 1


def test_none_are_recorded_together_while_an_observer_is_eager() -> None:
    recorder = Recorder([kept := Kept()], clock=Clock())
    recorder.add(eager := Kept(), eager=True)
    assert not recorder.record_all([Exchange("http")])
    recorder.remove(eager)
    assert recorder.record_all([Exchange("http")])
    recorder.flush()
    assert len(kept.all) == 1


def test_sixty_four_exchanges_make_a_fold() -> None:
    kept = Kept()
    recorder = Recorder([kept], clock=Clock())
    for _ in range(63):
        recorder.record(Exchange("http"))
    assert kept.folds == []
    recorder.record(Exchange("http"))
    assert [len(fold) for fold in kept.folds] == [64]


def test_a_tenth_of_a_second_makes_a_fold() -> None:
    clock, kept = Clock(), Kept()
    recorder = Recorder([kept], clock=clock)
    recorder.record(Exchange("http"))
    assert kept.folds == []
    clock.now += 0.11
    recorder.record(Exchange("http"))
    assert [len(fold) for fold in kept.folds] == [2]


def test_flush_passes_on_what_is_pending_once() -> None:
    kept = Kept()
    recorder = Recorder([kept], clock=Clock())
    exchange = Exchange("http")
    recorder.record(exchange)
    recorder.flush()
    recorder.flush()
    assert kept.folds == [[exchange]]


def test_threads_lose_and_double_nothing() -> None:
    kept = Kept()
    recorder = Recorder([kept])
    mine = [[Exchange("http", id=f"{t}-{i}") for i in range(3000)] for t in range(8)]
    start = Barrier(8)

    def run(exchanges: list[Exchange]) -> None:
        start.wait()
        for index, exchange in enumerate(exchanges):
            recorder.record(exchange)
            if index % 500 == 0:
                recorder.flush()

    threads = [Thread(target=run, args=(exchanges,)) for exchanges in mine]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.flush()
    expected = Counter(exchange.id for exchanges in mine for exchange in exchanges)
    assert Counter(exchange.id for exchange in kept.all) == expected


def test_failing_observer_keeps_nothing_from_the_next() -> None:
    kept = Kept()
    recorder = Recorder([Failing(), kept], clock=Clock())
    recorder.record(Exchange("http"))
    recorder.flush()
    assert len(kept.all) == 1


def test_failing_observer_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock, failing = Clock(), Failing()
    recorder = Recorder([failing], clock=clock)
    with caplog.at_level(logging.ERROR):
        for seconds in (0.0, 1.0, 58.0, 2.0):
            clock.now += seconds
            recorder.record(Exchange("http"))
            recorder.flush()
    assert failing.calls == 4
    assert len(caplog.records) == 2
    assert caplog.records[0].getMessage() == (
        "observer Failing failed; 1 exchanges are missing from it"
    )


def test_observer_that_makes_exchanges_does_not_deadlock() -> None:
    class Asking:
        def __init__(self) -> None:
            self.seen = 0

        def observe(self, exchanges: Sequence[Exchange]) -> None:
            self.seen += len(exchanges)
            if self.seen == 1:
                for _ in range(100):
                    recorder.record(Exchange("inprocess"))
                recorder.flush()

    asking = Asking()
    recorder = Recorder([asking], clock=Clock())
    recorder.record(Exchange("http"))
    recorder.flush()
    recorder.flush()
    assert asking.seen == 101


def test_slow_observer_does_not_hold_up_other_threads() -> None:
    entered, go = Event(), Event()

    class Slow:
        def __init__(self) -> None:
            self.seen = 0

        def observe(self, exchanges: Sequence[Exchange]) -> None:
            if current_thread() is thread:
                entered.set()
                go.wait(10)
            self.seen += len(exchanges)

    slow = Slow()
    recorder = Recorder([slow], clock=Clock())
    recorder.record(Exchange("http"))
    thread = Thread(target=recorder.flush)
    thread.start()
    assert entered.wait(10)
    for _ in range(200):
        recorder.record(Exchange("http"))  # would not return if it waited for the fold
    assert slow.seen == 0
    go.set()
    thread.join()
    recorder.flush()
    assert slow.seen == 201


def test_added_observer_gets_later_folds() -> None:
    kept = Kept()
    recorder = Recorder(clock=Clock())
    recorder.record(Exchange("http", id="before"))
    recorder.flush()
    recorder.add(kept)
    recorder.record(Exchange("http", id="after"))
    recorder.flush()
    assert [exchange.id for exchange in kept.all] == ["after"]


def test_an_eager_observer_gets_each_exchange_at_once() -> None:
    eager, patient = Kept(), Kept()
    recorder = Recorder([patient], clock=Clock())
    recorder.add(eager, eager=True)
    for count in range(1, 4):
        recorder.record(Exchange("http"))
        assert len(eager.all) == len(patient.all) == count
    recorder.remove(eager)
    recorder.record(Exchange("http"))
    assert len(patient.all) == 3
    recorder.flush()
    assert (len(eager.all), len(patient.all)) == (3, 4)


def test_an_observer_that_was_never_added_may_be_removed() -> None:
    recorder = Recorder()
    recorder.remove(Kept())
    assert not recorder.observed


def test_no_exchange_of_many_threads_waits_for_an_eager_observer() -> None:
    kept = Kept()
    recorder = Recorder()
    recorder.add(kept, eager=True)
    threads = [
        Thread(target=lambda: [recorder.record(Exchange("http")) for _ in range(500)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept.all) == 2000


def test_an_eager_observer_that_causes_exchanges_does_not_go_on_forever() -> None:
    recorder = Recorder()

    class Causes:
        count = 0

        def observe(self, exchanges: Sequence[Exchange]) -> None:
            self.count += 1
            recorder.record(Exchange("http"))

    causes = Causes()
    recorder.add(causes, eager=True)
    recorder.record(Exchange("http"))
    assert 1 <= causes.count < 100
