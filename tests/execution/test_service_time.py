"""What a batch takes, learned while serving."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelserve.execution.service_time import ServiceTime, step_of

SECONDS = st.floats(1e-7, 100)
RUNS = st.lists(st.tuples(st.integers(0, 100), SECONDS), min_size=1, max_size=100)


def learned(seconds, runs=200, seed=0, spread=0.05):
    rng = random.Random(seed)
    times = ServiceTime()
    for _ in range(runs):
        for rows, took in seconds.items():
            times.update(rows, took * rng.lognormvariate(0, spread))
    return times


def test_nothing_is_known_at_first():
    times = ServiceTime()
    assert times.predict(1) is None
    assert times.upper(1) is None
    assert times.shortest(1) is None
    assert times.known(1) is None
    assert times.largest == 0


def test_a_larger_batch_is_predicted_as_if_no_row_came_for_free():
    times = ServiceTime()
    times.update(1, 0.001)
    assert times.predict(4) == 0.004
    assert times.known(4) is None


def test_a_smaller_batch_is_predicted_to_take_as_long_as_the_smallest_known():
    times = ServiceTime()
    times.update(8, 0.001)
    assert times.predict(4) == 0.001


def test_a_size_between_two_measured_ones_lies_on_the_line():
    times = ServiceTime()
    times.update(2, 0.002)
    times.update(6, 0.004)
    assert times.predict(4) == pytest.approx(0.003)


def test_warming_up_with_one_row_and_a_full_batch_is_enough_to_begin():
    times = ServiceTime()
    times.update(1, 0.002)
    times.update(64, 0.0146)
    assert times.predict(32) == pytest.approx(0.0082)


def test_one_outlier_leaves_no_trace():
    times = learned({1: 0.001})
    before = times.predict(1)
    times.update(1, 1.0)
    assert times.predict(1) == pytest.approx(before, rel=0.02)


def test_a_disturbed_first_run_is_forgotten_at_once():
    times = ServiceTime()
    times.update(1, 0.5)
    times.update(1, 0.001)
    assert times.predict(1) == pytest.approx(0.001)


def test_outliers_now_and_then_do_not_shift_the_estimate():
    rng = random.Random(1)
    times = ServiceTime()
    for _ in range(500):
        factor = 20.0 if rng.random() < 0.05 else rng.lognormvariate(0, 0.05)
        times.update(4, 0.001 * factor)
    assert times.predict(4) == pytest.approx(0.001, rel=0.1)


@pytest.mark.parametrize("factor", [0.5, 2.0, 5.0])
def test_a_lasting_change_is_believed_within_some_tens_of_runs(factor):
    rng = random.Random(2)
    times = learned({1: 0.001})
    for _ in range(60):
        times.update(1, 0.001 * factor * rng.lognormvariate(0, 0.05))
    assert times.predict(1) == pytest.approx(0.001 * factor, rel=0.15)


def test_a_size_not_seen_for_long_is_learned_anew_quickly():
    times = learned({1: 0.001, 8: 0.004})
    for _ in range(300):
        times.update(1, 0.002)
    for _ in range(10):
        times.update(8, 0.008)
    assert times.known(8) == pytest.approx(0.008, rel=0.15)


def test_contradicting_sizes_are_pooled():
    times = learned({1: 0.003, 2: 0.001}, spread=0.0)
    assert times.predict(1) == times.predict(2) == pytest.approx(0.002, rel=0.01)


def test_the_upper_estimate_is_passed_by_about_one_run_in_ten():
    rng = random.Random(3)
    times = learned({4: 0.001}, runs=1000, spread=0.3)
    runs = [0.001 * rng.lognormvariate(0, 0.3) for _ in range(3000)]
    upper = times.upper(4)
    assert upper is not None
    assert 0.05 < sum(run > upper for run in runs) / len(runs) < 0.16


def test_sums_of_many_runs_stay_below_their_upper_factor_nine_times_in_ten():
    rng = random.Random(4)

    def run():
        return 0.001 * (3.0 if rng.random() < 0.02 else rng.lognormvariate(0, 0.05))

    times = ServiceTime()
    for _ in range(3000):
        times.update(1, run())
    _, upper = times.upper_of(20)
    estimate = times.predict(1)
    assert estimate is not None
    sums = [sum(run() for _ in range(20)) for _ in range(500)]
    assert sum(total <= upper * estimate for total in sums) / len(sums) > 0.75


def test_the_shortest_follows_a_short_run_at_once_and_a_long_one_slowly():
    times = learned({1: 0.010}, spread=0.0)
    times.update(1, 0.002)
    short = times.shortest(1)
    assert short is not None
    assert short <= 0.0065
    times.update(1, 1.0)
    after = times.shortest(1)
    assert after is not None
    assert short < after < 0.1


def test_few_runs_leave_more_to_hope_for_than_many():
    few, many = learned({8: 0.01}, runs=2), learned({8: 0.01}, runs=100)
    assert few.hopeful(8) < 0.97 * 0.01 < many.hopeful(8)
    assert ServiceTime().hopeful(8) == 0.0


def test_age_counts_the_runs_since_a_size_was_seen():
    times = learned({1: 0.001, 2: 0.002}, runs=3)
    for _ in range(5):
        times.update(1, 0.001)
    assert (times.age(2), times.age(4)) == (5, times.runs)


@given(st.integers(1, 1 << 40))
def test_a_step_is_the_least_one_that_holds_the_size(rows):
    step = step_of(rows)
    assert rows <= step <= max(rows, rows * 1.25)
    assert step_of(step) == step


@given(RUNS)
def test_a_prediction_never_falls_with_more_rows(updates):
    times = ServiceTime()
    for rows, seconds in updates:
        times.update(rows, seconds)
    found = [times.predict(rows) or 0.0 for rows in range(1, 200)]
    for less, more in pairwise(found):
        assert 0 < less <= more * (1 + 1e-9)


@given(SECONDS, SECONDS, st.lists(st.integers(1, 64), min_size=1, max_size=60))
def test_the_estimate_stays_between_the_shortest_and_the_longest(low, high, sizes):
    low, high = sorted((low, high))
    times = ServiceTime()
    for number, rows in enumerate(sizes):
        size = step_of(rows)
        times.update(size, high if number % 3 == 0 else low)
    for rows in sizes:
        known = times.known(rows)
        assert known is not None
        assert low * (1 - 1e-9) <= known <= high * (1 + 1e-9)
