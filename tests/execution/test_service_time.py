"""What a batch takes, learned while serving."""

from hypothesis import given
from hypothesis import strategies as st

from modelserve.execution.service_time import ServiceTime


def test_nothing_is_known_at_first():
    times = ServiceTime()
    assert times.predict(1) is None
    assert times.known(1) is None


def test_a_larger_batch_is_predicted_as_if_no_row_came_for_free():
    times = ServiceTime()
    times.update(1, 0.001)
    assert times.predict(4) == 0.004
    assert times.known(4) is None


def test_a_smaller_batch_is_not_predicted_from_a_larger_one():
    times = ServiceTime()
    times.update(8, 0.001)
    assert times.predict(4) is None
    assert times.predict(8) == 0.001


def test_a_shorter_time_counts_at_once_and_a_longer_one_slowly():
    times = ServiceTime()
    times.update(1, 0.010)
    times.update(1, 0.002)
    faster = times.predict(1)
    assert faster is not None
    assert faster <= 0.006
    times.update(1, 1.0)
    slower = times.predict(1)
    assert slower is not None
    assert faster < slower < 0.1


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.floats(1e-7, 100)), min_size=1))
def test_the_estimate_stays_between_the_shortest_and_the_longest(updates):
    times = ServiceTime()
    for rows, seconds in updates:
        times.update(rows, seconds)
    for rows, _ in updates:
        known = times.known(rows)
        assert known is not None
        slack = 1 + 1e-9
        assert min(s for _, s in updates) / slack <= known <= max(s for _, s in updates) * slack
