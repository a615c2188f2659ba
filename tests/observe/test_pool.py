"""Pools: the metrics of several processes exposed as one, and nothing lost with a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from modelserve.messages import BatchRecord, Exchange
from modelserve.observe.ledger import LOG_SIZE, MOST_TOUCHED
from modelserve.observe.metrics import Metrics
from modelserve.observe.pool import Pool

BUCKETS = (0.001, 0.1)
SERIES = 40


def make_pool(slots: int = 3) -> Pool:
    size = Pool.size(slots, buckets=BUCKETS, max_series=SERIES)
    return Pool(bytearray(size), slots, buckets=BUCKETS, max_series=SERIES)


def member(pool: Pool, slot: int) -> Metrics:
    metrics = Metrics(buckets=BUCKETS, max_series=SERIES)
    metrics.share(pool, slot)
    return metrics


def batch(size: int, *, model: str = "m", version: str = "1", code: str = "OK") -> list[Exchange]:
    record = BatchRecord(size, size, "idle", 1.0, 0.01)
    made = []
    for _ in range(size):
        exchange = Exchange("http", model)
        exchange.version, exchange.code, exchange.rows = version, code, 1
        exchange.enqueued, exchange.batch, exchange.total = 0.75, record, 0.5
        made.append(exchange)
    return made


def exposed(metrics: Metrics) -> dict[str, float]:
    text = metrics.render()[0].decode()
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(metrics: Metrics) -> float:
    return sum(v for k, v in exposed(metrics).items() if k.startswith("modelserve_requests_total"))


def test_each_exposes_what_all_have_counted() -> None:
    pool = make_pool()
    one, two = member(pool, 0), member(pool, 1)
    one.observe(batch(3))
    two.observe(batch(4))
    two.observe(batch(2, code="INTERNAL"))
    assert exposed(one) == exposed(two)
    found = exposed(one)
    assert found["modelserve_requests_total['1', 'OK', 'http', 'm']"] == 7
    assert found["modelserve_requests_total['1', 'INTERNAL', 'http', 'm']"] == 2
    assert found["modelserve_batch_size_count['1', 'm']"] == 3
    assert found["modelserve_batches_total['1', 'idle', 'm']"] == 3
    assert found["modelserve_queue_duration_seconds_sum['1', 'm']"] == 9 * 0.25
    assert found["modelserve_request_duration_seconds_sum['1', 'm']"] == 9 * 0.5


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40), st.integers(0, 9)), max_size=60))
def test_a_pool_counts_as_one_process_would(folds: list[tuple[int, int, int]]) -> None:
    pool = make_pool()
    members = [member(pool, slot) for slot in range(3)]
    alone = Metrics(buckets=BUCKETS, max_series=SERIES)
    for slot, size, name in folds:
        members[slot].observe(batch(size, model=f"m{name}"))
        alone.observe(batch(size, model=f"m{name}"))
    expected = exposed(alone)
    for metrics in members:
        assert exposed(metrics) == pytest.approx(expected)


def test_next_process_in_a_slot_goes_on_counting() -> None:
    pool = make_pool()
    other = member(pool, 1)
    other.declare("m", "1")
    member(pool, 0).observe(batch(5))  # left in the log: it was killed
    assert total(other) == 5
    pool.release(0)
    assert total(other) == 5
    heir = member(pool, 0)
    assert total(other) == 5
    heir.observe(batch(2))
    assert total(heir) == total(other) == 7


def test_process_killed_while_it_settles_is_counted_once() -> None:
    pool = make_pool()
    victim, other = member(pool, 0), member(pool, 1)
    other.declare("m", "1")
    victim.observe(batch(5))
    victim.flush()
    ledger = pool.ledgers[0]

    class Killed(Exception):
        pass

    def die(rows: int, settles: int) -> None:
        raise Killed

    ledger._apply = die  # type: ignore[method-assign]  # the journal is written, the cells not
    with pytest.raises(Killed):
        ledger.settle()
    del ledger._apply
    assert total(other) == 5
    heir = member(pool, 0)
    heir.observe(batch(1))
    assert total(heir) == total(other) == 6


def test_full_log_is_settled_and_exact() -> None:
    pool = make_pool()
    one, two = member(pool, 0), member(pool, 1)
    for _ in range(LOG_SIZE // 30):
        one.observe(batch(31))
    one.observe(batch(31) * 100)
    assert total(two) == (LOG_SIZE // 30 + 100) * 31


def test_more_series_at_once_than_the_log_has_places_for() -> None:
    pool = make_pool()
    one, two = member(pool, 0), member(pool, 1)
    names = [f"m{index}" for index in range(MOST_TOUCHED + 5)]
    one.observe([exchange for name in names for exchange in batch(2, model=name)])
    assert total(two) == 2 * len(names)


def test_version_forgotten_by_all_is_exposed_no_more() -> None:
    pool = make_pool()
    one, two = member(pool, 0), member(pool, 1)
    for metrics in (one, two):
        metrics.observe(batch(1))
        metrics.observe(batch(1, version="2"))
    one.forget("m", "1")
    assert exposed(one)["modelserve_requests_total['1', 'OK', 'http', 'm']"] == 1
    two.forget("m", "1")
    assert "modelserve_requests_total['1', 'OK', 'http', 'm']" not in exposed(one)
    assert total(two) == 2


def test_process_that_leaves_keeps_its_counts_in_the_pool() -> None:
    pool = make_pool()
    one, two = member(pool, 0), member(pool, 1)
    one.observe(batch(3))
    two.observe(batch(1))
    one.leave()
    one.forget("m", "1")  # its models are closed
    pool.release(0)
    assert total(two) == 4


def test_what_an_ended_process_counted_for_a_version_gone_is_not_exposed() -> None:
    pool = make_pool()
    member(pool, 0).observe(batch(1, version="1"))
    pool.release(0)
    other = member(pool, 1)
    other.observe(batch(1, version="2"))
    assert total(other) == 1
    member(pool, 0)  # and so with the next one there, which does not serve it either
    assert total(other) == 1


def test_rows_of_versions_gone_are_used_again() -> None:
    pool = make_pool()
    for round in range(5):
        metrics = member(pool, 0)
        for index in range(SERIES):
            metrics.observe(batch(1, model=f"{round}-{index}"))
        assert total(metrics) == SERIES
        labels = sorted(["1", "OK", "http", f"{round}-0"])
        assert exposed(metrics)[f"modelserve_requests_total{labels}"] == 1


def test_gauges_are_added_up() -> None:
    pool = make_pool()
    one, two = member(pool, 0), member(pool, 1)
    for depth, metrics in ((3.0, one), (4.0, two)):
        metrics.observe(batch(1))
        metrics.add_gauge("modelserve_depth", "D.", ["model"], lambda n=depth: [(("m",), n)])
        metrics.flush()
    assert exposed(one)["modelserve_depth['m']"] == 7
    pool.release(1)
    assert exposed(one)["modelserve_depth['m']"] == 3


def test_pool_of_other_buckets_is_refused() -> None:
    with pytest.raises(ValueError, match="buckets"):
        Metrics().share(make_pool(), 0)


def test_sharing_after_the_first_count_is_refused() -> None:
    metrics = Metrics(buckets=BUCKETS, max_series=SERIES)
    metrics.observe(batch(1))
    with pytest.raises(RuntimeError, match="before a model is loaded"):
        metrics.share(make_pool(), 0)


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are passed on as POSIX does")
def test_processes_that_are_killed_at_any_moment_leave_whole_numbers(
    environment: dict[str, str],
) -> None:
    """Readers see requests, durations and batches of the same exchanges, at any moment."""
    import mmap

    size = Pool.size(2, buckets=BUCKETS, max_series=SERIES)
    with TemporaryFile() as file:
        file.truncate(size)
        pool = Pool(mmap.mmap(file.fileno(), size), 2, buckets=BUCKETS, max_series=SERIES)
        reader = member(pool, 1)
        reader.declare("m", "1")
        before = 0.0
        for _ in range(3):
            with subprocess.Popen(
                [sys.executable, str(Path(__file__).parent / "pool_writer.py"), str(file.fileno())],
                pass_fds=[file.fileno()],
                env=environment,
                stdout=subprocess.PIPE,
            ) as writer:
                assert writer.stdout is not None
                assert writer.stdout.readline() == b"going\n"
                for _ in range(40):
                    check_whole(exposed(reader))
                writer.kill()
            after = total(reader)
            assert after > before
            check_whole(exposed(reader))
            before = after


def check_whole(found: dict[str, float]) -> None:
    requests = found.get("modelserve_requests_total['1', 'OK', 'http', 'm']", 0)
    assert requests % 8 == 0
    assert found.get("modelserve_request_duration_seconds_count['1', 'm']", 0) == requests
    assert found.get("modelserve_request_duration_seconds_sum['1', 'm']", 0) == requests / 2
    assert found.get("modelserve_batch_size_count['1', 'm']", 0) == requests / 8
