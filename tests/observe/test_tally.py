"""Statistics of versions: exact counts and times, of one process and of several."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter, time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelserve.messages import BatchRecord, BatchStatistics, Exchange, ModelStatistics, Spent
from modelserve.observe.columns import MOST_SIZES
from modelserve.observe.ledger import LOG_SIZE
from modelserve.observe.metrics import Metrics
from modelserve.observe.pool import Pool

BUCKETS = (0.001, 0.1)
SERIES = 40
# Seconds that floats hold exactly, so that sums are exact.
UNIT = 2.0**-10
NS = 10**9


def batch(
    rows: Sequence[int],
    *,
    codes: Sequence[str] = (),
    version: str = "1",
    protocol: str = "http",
    started: float = 8.0,
) -> list[Exchange]:
    """Make the exchanges of a batch: waits of 2, 4, ... units, a run of 16, and so on."""
    shared = BatchRecord(sum(rows), len(rows), "next", started, 16 * UNIT)
    if len(rows) > 1:
        shared.join, shared.split = UNIT, 2 * UNIT
    made = []
    for number, own in enumerate(rows):
        x = Exchange(protocol, "m")
        x.version, x.rows, x.batch = version, own, shared
        x.enqueued, x.total = started - 2 * (number + 1) * UNIT, 64 * UNIT
        if protocol != "inprocess":
            x.decode, x.encode = 4 * UNIT, 8 * UNIT
        if codes:
            x.code = codes[number]
        made.append(x)
    return made


def expected(batches: Sequence[Sequence[Exchange]]) -> ModelStatistics:
    """Add up, exchange by exchange, what statistics are to say."""
    everything = [x for members in batches for x in members]
    well = [x for x in everything if x.code == "OK"]
    records = [members[0].batch for members in batches]

    def spent(seconds: Sequence[float]) -> Spent:
        return Spent(len(seconds), round(sum(seconds) * NS))

    sizes = sorted({record.rows for record in records if record is not None})
    by_size = [[r for r in records if r is not None and r.rows == size] for size in sizes]
    found = {
        "success": [x.total for x in well],
        "fail": [x.total for x in everything if x.code != "OK"],
        "queue": [x.queue for x in well],
        "compute_input": [x.decode + x.batch.join for x in well],  # type: ignore[union-attr]
        "compute_infer": [x.run - x.batch.join for x in well],  # type: ignore[union-attr]
        "compute_output": [x.encode + x.batch.split for x in well],  # type: ignore[union-attr]
    }
    return ModelStatistics(
        "m",
        "1",
        inference_count=sum(x.rows for x in well),
        execution_count=len(batches),
        batches=tuple(
            BatchStatistics(
                size,
                spent([r.join for r in some]),
                spent([r.run - r.join for r in some]),
                spent([r.split for r in some]),
            )
            for size, some in zip(sizes, by_size, strict=True)
        ),
        **{name: spent(seconds) for name, seconds in found.items()},
    )


def told(metrics: Metrics) -> ModelStatistics:
    (found,) = metrics.statistics([("m", "1")])
    return found


def without_time(found: ModelStatistics) -> tuple[object, ...]:
    """Return everything but when the last run ended; parts of a batch's time do not add up to the
    last bit."""
    rounded = [
        (
            b.batch_size,
            *(
                (s.count, round(s.ns, -1))
                for s in (b.compute_input, b.compute_infer, b.compute_output)
            ),
        )
        for b in found.batches
    ]
    times = (
        *(found.success, found.fail, found.queue),
        *(found.compute_input, found.compute_infer, found.compute_output),
    )
    return (found.inference_count, found.execution_count, times, rounded)


def test_what_one_batch_did() -> None:
    metrics = Metrics()
    metrics.observe(batch([1, 3]))
    found = told(metrics)
    assert without_time(found) == without_time(expected([batch([1, 3])]))
    assert found.success == Spent(2, round(128 * UNIT * NS))
    assert found.queue == Spent(2, round(6 * UNIT * NS))
    assert found.compute_input == Spent(2, round(10 * UNIT * NS))
    assert found.compute_infer == Spent(2, round(30 * UNIT * NS))
    assert found.compute_output == Spent(2, round(20 * UNIT * NS))
    assert (found.inference_count, found.execution_count) == (4, 1)
    (of_size,) = found.batches
    assert of_size == BatchStatistics(
        4,
        Spent(1, round(UNIT * NS)),
        Spent(1, round(15 * UNIT * NS)),
        Spent(1, round(2 * UNIT * NS)),
    )


BATCHES = st.lists(
    st.tuples(
        st.lists(
            st.tuples(st.integers(1, 5), st.sampled_from(["OK", "INTERNAL"])),
            min_size=1,
            max_size=5,
        ),
        st.sampled_from(["http", "inprocess"]),
    ),
    min_size=1,
    max_size=12,
)


@given(BATCHES, st.randoms(use_true_random=False), st.integers(1, 7), st.booleans())
def test_statistics_are_exact_in_any_order_and_folding(
    drawn: list[tuple[list[tuple[int, str]], str]], random: object, fold: int, whole: bool
) -> None:
    batches = [
        batch([rows for rows, _ in members], codes=[code for _, code in members], protocol=protocol)
        for members, protocol in drawn
    ]
    exchanges = [x for members in batches for x in members]
    if not whole:
        random.shuffle(exchanges)  # type: ignore[attr-defined]  # a random.Random
    metrics = Metrics()
    for start in range(0, len(exchanges), fold):
        metrics.observe(exchanges[start : start + fold])
    assert without_time(told(metrics)) == without_time(expected(batches))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=30))
def test_a_pool_tells_what_one_process_would(drawn: list[tuple[int, int]]) -> None:
    size = Pool.size(3, buckets=BUCKETS, max_series=SERIES)
    pool = Pool(bytearray(size), 3, buckets=BUCKETS, max_series=SERIES)
    members = []
    for slot in range(3):
        metrics = Metrics(buckets=BUCKETS, max_series=SERIES)
        metrics.share(pool, slot)
        metrics.declare("m", "1")
        members.append(metrics)
    batches = [batch([1] * rows) for _, rows in drawn]
    for (slot, _), made in zip(drawn, batches, strict=True):
        members[slot].observe(made)
    wanted = without_time(expected(batches))
    for metrics in members:
        assert without_time(told(metrics)) == wanted
    # A process that ends leaves what it counted.
    pool.release(2)
    assert without_time(told(members[0])) == wanted


def test_what_succeeded_counts_apart_from_what_failed() -> None:
    metrics = Metrics()
    metrics.observe(batch([2, 3], codes=["OK", "INTERNAL"]))
    late = batch([1], codes=["DEADLINE_EXCEEDED"])
    late[0].batch, late[0].rows = BatchRecord(0, 0, "", 8.0, 0.0), 1
    metrics.observe(late)
    found = told(metrics)
    assert (found.inference_count, found.execution_count) == (2, 1)
    assert (found.success.count, found.fail.count, found.queue.count) == (1, 2, 1)
    assert found.queue.ns == round(2 * UNIT * NS)
    assert found.fail.ns == round(128 * UNIT * NS)


def test_a_stream_is_one_inference_that_no_batch_ran() -> None:
    metrics = Metrics()
    stream = Exchange("http", "m")
    stream.version, stream.total, stream.decode = "1", 64 * UNIT, 4 * UNIT
    metrics.observe([stream])
    found = told(metrics)
    assert (found.inference_count, found.execution_count, found.batches) == (1, 1, ())
    assert found.success == Spent(1, round(64 * UNIT * NS))
    assert found.compute_input == Spent(1, round(4 * UNIT * NS))
    assert (found.queue, found.compute_infer) == (Spent(1, 0), Spent(1, 0))


def test_the_last_inference_is_a_point_of_the_clock() -> None:
    metrics = Metrics()
    metrics.declare("m", "1")
    assert told(metrics).last_inference == 0
    before = time()
    metrics.observe(batch([1], started=perf_counter() - 16 * UNIT))
    metrics.observe(batch([1], started=perf_counter() - 100))  # came late, and changes nothing
    last = told(metrics).last_inference / 1e3
    assert before - 0.1 <= last <= time() + 0.1


def test_what_was_settled_and_what_was_not_are_one() -> None:
    metrics = Metrics()
    batches = [batch([1 + number % 3]) for number in range(LOG_SIZE + 100)]
    for made in batches:
        metrics.observe(made)
    assert without_time(told(metrics)) == without_time(expected(batches))


def test_a_version_nobody_asked_has_done_nothing() -> None:
    metrics = Metrics()
    metrics.declare("m", "1")
    assert told(metrics) == ModelStatistics("m", "1")
    assert metrics.statistics([("other", "9")]) == [ModelStatistics("other", "9")]


def test_a_forgotten_version_begins_anew() -> None:
    metrics = Metrics()
    metrics.observe(batch([3]))
    metrics.forget("m", "1")
    metrics.declare("m", "1")
    assert told(metrics) == ModelStatistics("m", "1")


def test_sizes_without_end_are_told_apart_as_far_as_there_is_room() -> None:
    metrics = Metrics()
    sizes = range(1, 2 * MOST_SIZES)
    for rows in sizes:
        metrics.observe(batch([rows]))
    found = told(metrics)
    assert [b.batch_size for b in found.batches] == list(range(1, MOST_SIZES))
    assert found.execution_count == len(sizes)
    assert found.inference_count == sum(sizes)


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_the_next_process_in_a_slot_goes_on_with_all_sums(killed: int) -> None:
    size = Pool.size(1, buckets=BUCKETS, max_series=SERIES)
    pool = Pool(bytearray(size), 1, buckets=BUCKETS, max_series=SERIES)
    batches = []
    for round_ in range(3):
        metrics = Metrics(buckets=BUCKETS, max_series=SERIES)
        metrics.share(pool, 0)  # whoever was there before is gone, without a word
        metrics.declare("m", "1")
        for number in range(5):
            codes = ["OK", "INTERNAL"] if (number + round_) % 2 else []
            batches.append(batch([2, number + 1], codes=codes))
            metrics.observe(batches[-1])
        if round_ == killed:
            told(metrics)  # settled, this time
    assert without_time(told(metrics)) == without_time(expected(batches))
