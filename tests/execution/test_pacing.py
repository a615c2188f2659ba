"""The batcher's judgement, one rule at a time; the rules together are in test_simulation."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution.simulator import affine, minilm
from modelserve.errors import InvalidInput
from modelserve.execution.pacing import BatchBounds, BatchSize, Pacing

X = {"x": np.zeros((2, 64), np.float32)}


def taught(model, sizes=(1, 2, 4, 8, 16, 32, 64), most=64, rounds=30):
    size = BatchSize(most)
    for _ in range(rounds):
        for rows in sizes:
            size.learn(rows, model(rows))
    return size


def busy(pacing, seconds, size, runs=40, start=0.0):
    """Run batches back to back; return when the last one ended."""
    now = start
    for _ in range(runs):
        run = pacing.start(now, size, size)
        now += seconds
        pacing.finish(run, now, seconds)
    return now


# ------------------------------------------------------------------ bounds


def test_rows_are_the_size_where_the_user_counts_no_cost():
    bounds = BatchBounds(8)
    assert (bounds.measure(X, 2), bounds.most) == (2, 8)
    assert bounds.fits(8, 8, 8)
    assert not bounds.fits(9, 9, 8)


def test_cost_is_the_size_where_the_user_counts_it_and_rows_stay_bounded():
    bounds = BatchBounds(4, 1000, lambda inputs: inputs["x"].size)
    assert (bounds.measure(X, 2), bounds.most) == (128, 1000)
    assert bounds.fits(4, 1000, 1000)
    assert not bounds.fits(5, 640, 1000)
    assert not bounds.fits(2, 1001, 1000)


def test_a_request_that_costs_more_than_a_batch_may_is_refused():
    bounds = BatchBounds(4, 100, lambda inputs: inputs["x"].size)
    with pytest.raises(InvalidInput, match="costs 128, more than max_batch_cost 100"):
        bounds.measure(X, 2)


@pytest.mark.parametrize("cost", [-1, float("nan"), float("inf")])
def test_a_cost_that_is_none_is_the_function_s_fault(cost):
    with pytest.raises(ValueError, match="cost must return a number"):
        BatchBounds(4, 100, lambda inputs: cost).measure(X, 2)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((-1,), "max_batch_size"),
        ((1, -1), "max_batch_cost"),
        ((1, 5), "go together"),
        ((1, 0, len), "go together"),
    ],
)
def test_bounds_that_contradict_themselves_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        BatchBounds(*arguments)


# ------------------------------------------------------------------ the best size


def test_all_that_waits_is_taken_before_anything_is_known():
    size = BatchSize(64)
    for rows in (5, 7, 2):
        assert size.limit(rows) >= rows
        size.learn(rows, 0.001)


def test_one_row_is_best_where_batching_gains_nothing():
    assert taught(affine(0.0, 1e-3)).value == 1


def test_a_moderate_size_is_best_where_a_row_costs_more_in_large_batches():
    assert taught(minilm).value == 8


def test_the_bound_is_best_where_a_run_costs_mostly_a_fixed_part():
    assert taught(affine(1.75e-3, 0.2e-3)).value == 64


def test_a_size_is_not_preferred_while_nothing_says_that_larger_ones_are_worse():
    assert taught(minilm, sizes=(1, 2, 4)).value == 64


def test_what_waits_beyond_the_best_size_is_left_for_the_next_batch():
    size = taught(minilm)
    assert size.limit(20) == 8


def test_a_remainder_is_taken_along_where_its_own_batch_would_cost_too_much():
    size = BatchSize(64)
    for _ in range(30):
        for rows in (1, 8, 16, 24, 32, 40, 48, 64):
            size.learn(rows, 1.75e-3 + 0.2e-3 * min(rows, 40) + 0.26e-3 * max(0, rows - 40))
    assert 32 <= size.value < 48
    assert size.limit(size.value + 4) == size.value + 4


def test_a_size_never_seen_is_tried_a_bounded_number_of_times():
    size = taught(affine(0.0, 1e-3), sizes=(1, 3))
    tried = 0
    for _ in range(2000):
        rows = min(10, size.limit(10))
        tried += rows != size.value
        size.learn(rows, 1e-3 * rows)
    assert 0 < tried < 60


def test_a_wrong_early_estimate_is_mended():
    size = BatchSize(64)
    for _ in range(6):  # disturbed, all of them
        size.learn(8, 0.5)
        size.learn(1, 5e-3)
        size.learn(2, 0.1)
    assert size.value == 1
    for _ in range(1500):
        rows = min(40, size.limit(40))
        size.learn(rows, minilm(rows))
    assert size.value / minilm(size.value) > 0.9 * 8 / minilm(8)


def test_the_best_size_does_not_change_sides_with_noise():
    rng = random.Random(5)
    size = taught(minilm)
    changes, before = 0, size.value
    for _ in range(2000):
        rows = min(40, size.limit(40))
        size.learn(rows, minilm(rows) * rng.lognormvariate(0, 0.05))
        changes += size.value != before
        before = size.value
    assert changes <= 8


def test_small_batches_do_where_lanes_idle_much_of_the_time():
    size = BatchSize(64)
    for _ in range(30):
        for rows in (1, 2, 4, 8, 16):
            size.learn(rows, minilm(rows), busy=0.3)
    assert size.value == 1


@given(st.integers(1, 64), st.lists(st.tuples(st.integers(1, 64), st.floats(1e-6, 1))))
def test_a_limit_never_passes_the_bound(most, runs):
    size = BatchSize(most)
    for rows, seconds in runs:
        size.learn(min(rows, most), seconds)
        for waiting in (1, rows, most, 3 * most):
            assert 1 <= size.limit(waiting) <= most


def test_shapes_are_judged_apart():
    pacing = Pacing(BatchBounds(64))
    for _ in range(30):
        for rows in (1, 2, 4, 8, 16, 32, 64):
            pacing.learn(rows, 1e-3 * rows, key="long")
            pacing.learn(rows, 1e-3 + 1e-5 * rows, key="short")
    assert (pacing.best("long"), pacing.best("short")) == (1, 64)
    assert pacing.limit(50, "never seen") == 64


def test_shapes_are_remembered_up_to_a_number():
    pacing = Pacing(BatchBounds(64))
    for key in range(1000):
        pacing.learn(1, 1e-3, key)
    assert len(pacing._sizes) == 64
    assert pacing.finish_in(0.0, 0, 1, "never seen") is not None


def test_reasons_name_the_bound_the_learned_size_or_neither():
    pacing = Pacing(BatchBounds(64))
    assert pacing.reason("next", 64, 64, left=True) == "full"
    assert pacing.reason("next", 8, 8, left=True) == "best"
    assert pacing.reason("next", 5, 8, left=False) == "next"
    assert Pacing(BatchBounds(0)).reason("idle", 1, 1, left=True) == "idle"


def test_the_simple_way_judges_nothing():
    pacing = Pacing(BatchBounds(64), simple=True)
    for _ in range(30):
        for rows in (1, 2, 4, 8, 16):
            pacing.learn(rows, 1e-3 * rows)
    busy(pacing, 1.0, 1)
    assert pacing.limit(50) == 64
    assert pacing.admits(0.0, 1e-9, ahead=1000, size=1)
    assert pacing.lead(64) == 0.0
    assert [pacing.watching, pacing.holds] == [False, False]


# ------------------------------------------------------------------ where it runs


def test_a_short_run_is_inline_and_a_long_one_is_not():
    pacing = Pacing(BatchBounds(64), inline=True)
    assert not pacing.inline(1)
    pacing.learn(1, 20e-6)
    assert pacing.inline(1)
    assert not pacing.inline(64)


def test_a_function_is_never_inline():
    pacing = Pacing(BatchBounds(64))
    pacing.learn(1, 20e-6)
    assert not pacing.inline(1)


def test_a_run_on_the_loop_that_became_long_is_noticed_within_some_tens():
    pacing = Pacing(BatchBounds(64), inline=True)
    for _ in range(1000):
        pacing.ran_inline(1, 20e-6)
    assert pacing.inline(1)
    for _ in range(50):
        pacing.ran_inline(1, 1e-3)
    assert not pacing.inline(1)


def test_between_the_two_bounds_nothing_changes_sides():
    pacing = Pacing(BatchBounds(8), inline=True)
    pacing.learn(1, 150e-6)
    assert pacing.inline(1)  # as it was
    pacing.learn(8, 900e-6)
    assert not pacing.inline(8)
    assert not pacing.inline(1)


# ------------------------------------------------------------------ waiting


def returning(pacing, model, callers, after=0.2e-3, rounds=40):
    """Let callers come back after each batch but the last; return when that one ended."""
    now = 0.0
    for _ in range(rounds):
        for _ in range(callers):
            if pacing.watching:
                pacing.arrived(now + after, 1)
        run = pacing.start(now + after, callers, callers)
        now += after + model(callers)
        pacing.finish(run, now, model(callers))
    return now


def test_nothing_is_held_by_default():
    pacing = Pacing(BatchBounds(64))
    now = busy(pacing, 0.01, 4)
    assert pacing.hold(now, 3, now) == 0.0


def test_callers_that_come_back_at_once_are_waited_for():
    pacing = Pacing(BatchBounds(64))
    now = returning(pacing, affine(1.75e-3, 0.2e-3), 8)
    assert pacing.holds
    until = pacing.hold(now, 1, now)
    assert now < until <= now + 0.6e-3
    assert pacing.target == 9


def test_callers_are_not_waited_for_where_a_join_saves_nothing():
    pacing = Pacing(BatchBounds(64))
    for _ in range(20):
        for rows in (1, 2, 4, 8, 16):
            pacing.learn(rows, 1e-3 * rows)
    now = returning(pacing, affine(0.0, 1e-3), 8)
    assert pacing.hold(now, 1, now) == 0.0


def test_callers_that_stay_away_are_waited_for_no_longer():
    pacing = Pacing(BatchBounds(64))
    now = returning(pacing, affine(1.75e-3, 0.2e-3), 8)
    now = busy(pacing, 3.35e-3, 8, runs=10, start=now)
    assert not pacing.holds
    assert pacing.hold(now, 1, now) == 0.0


def test_with_several_lanes_nobody_is_waited_for():
    pacing = Pacing(BatchBounds(64), lanes=2)
    now = returning(pacing, affine(1.75e-3, 0.2e-3), 8)
    assert not pacing.holds
    assert pacing.hold(now, 1, now) == 0.0


def test_a_user_s_delay_holds_until_it_ran_out_or_the_batch_is_full():
    pacing = Pacing(BatchBounds(8), max_queue_delay=0.005)
    assert pacing.holds
    assert pacing.hold(1.0, 3, oldest=0.999) == pytest.approx(1.004)
    assert pacing.target == 8
    assert pacing.hold(1.0, 8, oldest=0.999) == 0.0
    assert pacing.hold(1.004, 3, oldest=0.999) == 0.0


def test_a_negative_delay_is_refused():
    with pytest.raises(ValueError, match="max_queue_delay"):
        Pacing(BatchBounds(8), max_queue_delay=-1.0)


# ------------------------------------------------------------------ admission


def test_nothing_is_predicted_before_anything_was_measured():
    pacing = Pacing(BatchBounds(8))
    assert pacing.finish_in(0.0, 100, 1) is None
    run = pacing.start(0.0, 1, 1)
    assert pacing.admits(0.0, 1e-3, ahead=100, size=1)
    pacing.finish(run, 1.0, None)
    assert pacing.finish_in(0.0, 100, 1) is None


def test_a_finish_counts_what_runs_and_what_is_ahead():
    pacing = Pacing(BatchBounds(8))
    now = busy(pacing, 0.1, 8)
    pacing.start(now, 8, 8)
    finish = pacing.finish_in(now + 0.04, ahead=16, size=8)
    assert finish is not None
    assert finish.expected == pytest.approx(0.06 + 3 * 0.1, rel=0.01)
    assert finish.expected <= finish.upper <= 1.5 * finish.expected


def test_several_lanes_share_what_is_ahead():
    pacing = Pacing(BatchBounds(8), lanes=2)
    now = busy(pacing, 0.1, 8)
    pacing.start(now, 8, 8)
    pacing.start(now + 0.05, 8, 8)
    finish = pacing.finish_in(now + 0.06, ahead=8, size=8)
    assert finish is not None
    assert finish.expected == pytest.approx(0.09 + 0.1, rel=0.01)


def test_time_beside_the_run_is_part_of_the_prediction():
    pacing = Pacing(BatchBounds(8))
    now = 0.0
    for _ in range(100):
        run = pacing.start(now, 8, 8)
        now += 0.12
        pacing.finish(run, now, 0.1)
    finish = pacing.finish_in(now, ahead=8, size=8)
    assert finish is not None
    assert finish.expected == pytest.approx(0.24, rel=0.02)


def test_a_request_that_cannot_be_in_time_is_not_admitted():
    pacing = Pacing(BatchBounds(8))
    now = busy(pacing, 0.1, 8)
    pacing.start(now, 8, 8)
    assert pacing.admits(now, 0.4, ahead=8, size=1)
    assert not pacing.admits(now, 0.15, ahead=8, size=1)


def test_an_idle_lane_admits_whatever_was_learned():
    pacing = Pacing(BatchBounds(8))
    now = busy(pacing, 10.0, 1)
    assert pacing.admits(now, 0.001, ahead=0, size=1)


def test_a_batch_has_to_start_a_run_before_the_deadline():
    pacing = Pacing(BatchBounds(8))
    assert pacing.lead(8) == 0.0
    busy(pacing, 0.1, 8)
    assert pacing.lead(8) == pytest.approx(0.1)


def test_a_model_found_long_by_mistake_is_known_as_short_again_by_what_threads_run():
    pacing = Pacing(BatchBounds(8), inline=True)
    for size in (1, 8):
        pacing.learn(size, 150e-6)
    pacing.ran_inline(1, 1e-3)
    assert not pacing.brief
    pacing.finish(pacing.start(0.0, 1, 1), 20e-6, 20e-6)
    assert pacing.brief


def test_a_model_whose_largest_batch_is_short_is_tiny():
    pacing = Pacing(BatchBounds(8), inline=True)
    pacing.learn(1, 20e-6)
    assert not pacing.tiny
    pacing.learn(8, 30e-6)
    assert pacing.tiny
    for _ in range(100):
        pacing.learn(8, 5e-3)
    assert not pacing.tiny


def test_a_model_of_several_shapes_is_never_taken_for_tiny():
    pacing = Pacing(BatchBounds(8), inline=True)
    pacing.learn(8, 30e-6, "short")
    assert not pacing.tiny
    assert pacing.inline(8, "short")
