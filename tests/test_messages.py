"""Requests and their deadlines, and what a predict function is told of its batch."""

from __future__ import annotations

from math import nan
from time import monotonic
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelserve.messages import (
    BatchRecord,
    Context,
    Exchange,
    InferRequest,
    InferResponse,
    RequestInfo,
)

X = {"x": np.zeros((1, 4), np.float32)}
TIMES = st.floats(-1e6, 1e6)


def test_timeout_becomes_a_deadline_from_now() -> None:
    before = monotonic()
    request = InferRequest("m", X, timeout=5.0)
    assert request.deadline is not None
    assert before + 5.0 <= request.deadline <= monotonic() + 5.0


@given(TIMES, TIMES)
def test_the_earlier_of_timeout_and_deadline_counts(timeout: float, ahead: float) -> None:
    deadline = monotonic() + ahead
    before = monotonic()
    found = InferRequest("m", X, timeout=timeout, deadline=deadline).deadline
    assert found is not None
    assert min(deadline, before + timeout) <= found <= min(deadline, monotonic() + timeout)


@pytest.mark.parametrize(
    "when", [{"timeout": nan}, {"deadline": nan}, {"timeout": nan, "deadline": 5.0}], ids=str
)
def test_a_time_that_is_no_number_is_refused(when: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected seconds, got nan"):
        InferRequest("m", X, **when)  # type: ignore[arg-type]  # each name takes a float


def test_without_either_there_is_no_deadline() -> None:
    assert InferRequest("m", X).deadline is None


def test_requests_do_not_share_what_was_not_given() -> None:
    one, other = InferRequest("m", X), InferRequest("m", X)
    one.parameters = {**one.parameters, "k": 1}
    assert other.parameters == {}


def test_messages_take_no_attribute_that_is_misspelt() -> None:
    message: Any
    for message in (InferRequest("m", X), InferResponse("m", "1", X), Exchange("http")):
        with pytest.raises(AttributeError):
            message.dead_line = 1.0


def test_an_exchange_that_met_no_batch_says_so() -> None:
    exchange = Exchange("http", "m")
    assert exchange.batch is None
    assert (exchange.batch_rows, exchange.batch_requests, exchange.reason) == (0, 0, "")
    assert (exchange.queue, exchange.run) == (0.0, 0.0)


def test_exchanges_read_what_their_batch_has_in_common() -> None:
    record = BatchRecord(8, 2, "next", 5.0, 0.25)
    one, other = Exchange("http", "m"), Exchange("http", "m")
    one.enqueued, other.enqueued = 4.5, 4.75
    one.batch = other.batch = record
    assert (one.batch_rows, one.batch_requests, one.reason, one.run) == (8, 2, "next", 0.25)
    assert (one.queue, other.queue) == (0.5, 0.25)


def test_writing_to_one_exchange_of_a_batch_leaves_the_others_alone() -> None:
    record = BatchRecord(8, 2, "next", 5.0, 0.25)
    one, other = Exchange("http", "m"), Exchange("http", "m")
    one.batch = other.batch = record
    one.reason, one.queue, one.run = "idle", 1.5, 0.5
    one.batch_rows, one.batch_requests = 4, 1
    assert (one.batch_rows, one.batch_requests, one.reason) == (4, 1, "idle")
    assert (one.queue, one.run) == (1.5, 0.5)
    assert other.batch is record
    assert (other.batch_rows, other.batch_requests, other.reason) == (8, 2, "next")
    assert (other.queue, other.run) == (5.0, 0.25)


def test_messages_show_names_and_no_values() -> None:
    assert repr(InferRequest("m", X, version="2")) == "<InferRequest m version 2 inputs ['x']>"
    assert repr(InferRequest("m", X)) == "<InferRequest m inputs ['x']>"
    assert repr(BatchRecord(8, 2, "next", 5.0, 0.25)) == "<BatchRecord 2 requests 8 rows next>"
    assert repr(InferResponse("m", "1", X)) == "<InferResponse m version 1 outputs ['x']>"


@given(st.lists(st.none() | TIMES))
def test_a_batch_is_wanted_until_its_latest_deadline(deadlines: list[float | None]) -> None:
    requests = tuple(RequestInfo("", i, i + 1, deadline=d) for i, d in enumerate(deadlines))
    found = Context(requests=requests).deadline
    if not deadlines or None in deadlines:
        assert found is None
    else:
        assert found in deadlines
        assert all(found >= d for d in deadlines if d is not None)


def test_a_version_may_be_a_number() -> None:
    assert InferRequest("iris", {}, version=3).version == "3"


def test_a_deadline_that_never_comes_is_none() -> None:
    assert InferRequest("iris", {}, timeout=float("inf")).deadline is None
    assert InferRequest("iris", {}, deadline=float("inf")).deadline is None
    assert InferRequest("iris", {}, timeout=float("inf"), deadline=3.0).deadline == 3.0
