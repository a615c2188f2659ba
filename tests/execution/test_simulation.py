"""The laws of the batcher's judgement, on simulated callers and models. See `simulator`."""

import random
from itertools import pairwise
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from execution.simulator import (
    MODELS,
    MOST,
    Aimd,
    Natural,
    Ours,
    Request,
    Simulation,
    capacity,
    minilm,
    poisson,
)

SEEDS = 10
REQUESTS = 4000
LEARNING = 1000
# Of the some 200 comparisons one in forty would fail by chance if nothing differed.
MARGIN = 0.01
T_95 = 2.262  # Student's t, 9 degrees of freedom


def others(model):
    return {
        "none": lambda: Natural(1),
        "window 1 ms": lambda: Natural(window=1e-3),
        "window 5 ms": lambda: Natural(window=5e-3),
        "AIMD": lambda: Aimd(10 * model(1)),
    }


def outcomes(make, model, load):
    found = []
    for seed in range(SEEDS):
        arrivals = poisson(load * capacity(model), REQUESTS, seed)
        outcome = Simulation(make(), model, arrivals=arrivals, seed=seed).run()
        found.append((outcome.percentile(50, LEARNING), outcome.percentile(99, LEARNING)))
    return found


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8, 0.9])
@pytest.mark.parametrize("name", MODELS)
def test_under_poisson_arrivals_nothing_else_answers_sooner(name, load):
    model = MODELS[name]
    ours = outcomes(Ours, model, load)
    for other, make in others(model).items():
        if other == "none" and load * capacity(model) * model(1) > 1.1:
            continue  # it cannot keep up, and its queue grows for ever
        theirs = outcomes(make, model, load)
        for place, percentile in enumerate(("p50", "p99")):
            more = [a[place] - b[place] for a, b in zip(ours, theirs, strict=True)]
            interval = T_95 * stdev(more) / SEEDS**0.5
            usual = mean(found[place] for found in theirs)
            assert mean(more) - interval <= MARGIN * usual, (other, percentile)


@pytest.mark.parametrize("callers", [16, 32, 64])
def test_the_learned_size_ends_near_the_best_throughput(callers):
    for seed in range(3):
        policy = Ours()
        Simulation(
            policy, minilm, callers=callers, requests=2000, think=lambda rng: 0.5e-3, seed=seed
        ).run()
        size = policy.pacing.best()
        assert size / minilm(size) >= 0.9 * capacity(minilm)


def test_the_learned_size_is_found_within_some_hundred_requests():
    policy = Ours()
    Simulation(policy, minilm, callers=32, requests=700, think=lambda rng: 0.5e-3, seed=1).run()
    size = policy.pacing.best()
    assert size / minilm(size) >= 0.9 * capacity(minilm)


@pytest.mark.parametrize("callers", [8, 16, 32, 64])
def test_closed_loops_get_nearly_the_best_throughput(callers):
    outcome = Simulation(
        Ours(),
        minilm,
        callers=callers,
        requests=3000,
        think=lambda rng: 0.3e-3 * rng.uniform(0.5, 1.5),
        undisturbed=True,
    ).run()
    assert outcome.throughput(len(outcome.runs) // 3) >= 0.95 * capacity(minilm)


@pytest.mark.parametrize(("callers", "gain"), [(2, 1.25), (4, 1.2), (8, 1.2)])
def test_callers_that_come_back_meet_in_one_batch(callers, gain):
    def throughput(policy):
        return (
            Simulation(
                policy,
                MODELS["wide"],
                callers=callers,
                requests=2000,
                think=lambda rng: 0.2e-3 * rng.uniform(0.5, 1.5),
            )
            .run()
            .throughput(200)
        )

    assert throughput(Ours()) > gain * throughput(Natural())


@pytest.mark.parametrize("load", [0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", MODELS)
def test_under_poisson_arrivals_hardly_anything_is_held(name, load):
    model = MODELS[name]
    arrivals = poisson(load * capacity(model), REQUESTS, 7)
    outcome = Simulation(Ours(), model, arrivals=arrivals, seed=7).run()
    held = sum(end - begin for begin, end, _ in outcome.holds)
    assert held <= 0.01 * outcome.ended


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("factor", [2, 5])
def test_overload_leaves_nine_tenths_of_the_capacity_useful(name, factor):
    model = MODELS[name]
    timeout = min(0.1, 50 * model(1))
    rate = factor * capacity(model)
    arrivals = poisson(rate, int(rate * timeout * 50), 3, timeout=timeout)
    outcome = Simulation(Ours(), model, arrivals=arrivals, seed=3).run()
    assert outcome.goodput(since=5 * timeout) >= 0.9 * capacity(model)


def test_without_admission_overload_leaves_little():
    """What the law above is measured against: the simulator does not hand goodput to anyone."""
    arrivals = poisson(5 * capacity(minilm), 6000, 3, timeout=0.1)
    outcome = Simulation(Natural(), minilm, arrivals=arrivals, seed=3).run()
    assert outcome.goodput(since=0.5) < 0.5 * capacity(minilm)


def test_a_rejection_is_rare_where_there_is_room():
    arrivals = poisson(0.5 * capacity(minilm), 3000, 4, timeout=0.3)
    outcome = Simulation(Ours(), minilm, arrivals=arrivals, seed=4).run()
    assert sum(request.rejected for request in outcome.requests) <= 30


# ------------------------------------------------------------------ laws, for any arrivals


@st.composite
def traffic(draw):
    seed = draw(st.integers(0, 1 << 30))
    rng = random.Random(seed)
    model = MODELS[draw(st.sampled_from(sorted(MODELS)))]
    load = draw(st.floats(0.1, 3.0))
    rows = draw(st.integers(1, 6))
    priorities = draw(st.integers(1, 3))
    now = 0.0
    arrivals = []
    for _ in range(draw(st.integers(1, 200))):
        if rng.random() < 0.7:
            now += rng.expovariate(load * capacity(model) / rows)
        deadline = now + 20 * model(1) if rng.random() < 0.2 else None
        arrivals.append(Request(now, rng.randint(1, rows), rng.randint(1, priorities), deadline))
    return model, arrivals, seed


LAW = hypothesis_settings(max_examples=40)


@LAW
@given(traffic(), st.integers(1, 3), st.sampled_from([0.0, 1e-3]), st.sampled_from([8, MOST]))
def test_no_request_waits_beside_an_idle_lane_longer_than_was_said(made, lanes, delay, most):
    model, arrivals, seed = made
    policy = Ours(most, lanes, delay)
    outcome = Simulation(policy, model, arrivals=arrivals, lanes=lanes, seed=seed).run()
    assert outcome.unasked <= 1e-12
    for begin, end, said in outcome.holds:
        assert begin <= end <= said + 1e-12


@LAW
@given(traffic(), st.integers(1, 3))
def test_every_request_is_answered_once_or_told_why_not(made, lanes):
    model, arrivals, seed = made
    outcome = Simulation(Ours(lanes=lanes), model, arrivals=arrivals, lanes=lanes, seed=seed).run()
    ran = [id(request) for run in outcome.runs for request in run.requests]
    assert len(ran) == len(set(ran))
    for request in arrivals:
        answered = request.finished is not None
        assert answered == (id(request) in ran)
        assert answered or request.deadline is not None


@LAW
@given(traffic(), st.sampled_from([6, 8, MOST]))
def test_no_batch_passes_the_bound(made, most):
    model, arrivals, seed = made
    outcome = Simulation(Ours(most), model, arrivals=arrivals, seed=seed).run()
    assert all(run.rows <= most for run in outcome.runs)


@LAW
@given(traffic())
def test_within_a_priority_the_first_come_is_the_first_served(made):
    model, arrivals, seed = made
    outcome = Simulation(Ours(), model, arrivals=arrivals, seed=seed).run()
    for priority in {request.priority for request in arrivals}:
        served = [r.arrived for run in outcome.runs for r in run.requests if r.priority == priority]
        assert all(before <= after for before, after in pairwise(served))


def test_a_simulation_is_the_same_every_time():
    def once():
        arrivals = poisson(0.8 * capacity(minilm), 500, 9)
        return Simulation(Ours(), minilm, arrivals=arrivals, seed=9).run()

    first, second = once(), once()
    assert [run.at for run in first.runs] == [run.at for run in second.runs]
    assert [run.rows for run in first.runs] == [run.rows for run in second.runs]
