"""The order of waiting and the bounds of the queue."""

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated import rows
from modelserve.errors import QueueFull
from modelserve.execution.queue import Pending, PendingQueue
from modelserve.messages import InferRequest

NEVER = 0.0


def pending(
    *numbers: float, key: Any = None, inputs: dict[str, Any] | None = None, **options: Any
) -> Pending:
    inputs = rows(*numbers) if inputs is None else inputs
    return Pending(InferRequest("m", inputs, **options), inputs, max(1, len(numbers)), key, 0.0, ())


def filled(*entries: Pending) -> PendingQueue:
    queue = PendingQueue(1000, 1 << 20, "m")
    for entry in entries:
        queue.push(entry)
    return queue


def test_an_empty_queue_gives_an_empty_batch():
    assert PendingQueue(1, 1).take(8, NEVER) == ([], 0, [])


def test_a_batch_has_one_key_the_one_whose_head_is_first():
    a, b, c = pending(1, key="a"), pending(2, key="b"), pending(3, key="a")
    queue = filled(a, b, c)
    assert queue.take(8, NEVER) == ([a, c], 2, [])
    assert queue.take(8, NEVER) == ([b], 1, [])
    assert len(queue) == 0


def test_an_urgent_entry_brings_its_key_to_the_front():
    a, b = pending(1, key="a"), pending(2, key="b", priority=1)
    assert filled(a, b).take(8, NEVER)[0] == [b]


def test_an_entry_with_as_many_rows_as_allowed_runs_alone():
    a, b = pending(*range(4)), pending(1)
    assert filled(a, b).take(4, NEVER) == ([a], 4, [])


def test_removing_tells_whether_the_entry_still_waited():
    a = pending(1)
    queue = filled(a, pending(2))
    assert queue.remove(a)
    assert not queue.remove(a)
    assert len(queue) == 1


def test_expired_entries_are_given_back_apart():
    late, alive = pending(1, deadline=5.0), pending(2, deadline=7.0)
    queue = filled(late, alive)
    assert queue.take(8, 6.0) == ([alive], 1, [late])
    assert (len(queue), queue.bytes) == (0, 0)


def test_when_all_of_a_key_expired_the_next_key_runs():
    late, alive = pending(1, key="a", deadline=5.0), pending(2, key="b")
    assert filled(late, alive).take(8, 6.0) == ([alive], 1, [late])


def test_the_bound_on_requests_names_itself():
    queue = PendingQueue(1, 1 << 20, "m")
    queue.push(pending(1))
    with pytest.raises(QueueFull, match=r'model "m": 1 requests wait already.*max_queue_size 1'):
        queue.push(pending(2))


def test_one_request_larger_than_the_bound_on_bytes_is_let_in_when_nothing_waits():
    queue = PendingQueue(10, 1)
    queue.push(pending(1, 2, 3))
    with pytest.raises(QueueFull, match="max_queue_bytes 1"):
        queue.push(pending(1))


def test_bytes_tensors_count_by_what_they_hold():
    content = np.array([[b"x" * 1000], [b""]], np.object_)
    queue = filled(pending(inputs={"x": content}))
    assert queue.bytes >= 1000
    queue.drain()
    assert queue.bytes == 0


def test_draining_gives_everything_in_order():
    a, b, c = pending(1, key="a"), pending(2, key="b", priority=1), pending(3, key="a")
    queue = filled(a, b, c)
    assert queue.drain() == [b, a, c]
    assert (len(queue), queue.bytes) == (0, 0)


def test_an_entry_nobody_waits_for_is_not_taken():
    class Port:
        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self.loop = loop

    gone, left, alive = pending(1), pending(2), pending(3)
    dead, loop = asyncio.new_event_loop(), asyncio.new_event_loop()
    for entry, its in ((gone, dead), (left, loop), (alive, loop)):
        entry.port = Port(its)  # type: ignore[assignment]
        entry.future = its.create_future()
    dead.close()
    left.future.cancel()  # type: ignore[union-attr]
    try:
        assert filled(gone, left, alive).take(8, NEVER) == ([alive], 1, [gone, left])
    finally:
        loop.close()


ENTRY = st.tuples(
    st.integers(1, 4),  # rows
    st.sampled_from("ab"),  # key
    st.integers(0, 3),  # priority
    st.sampled_from([None, 1.0, 3.0]),  # deadline
    st.booleans(),  # removed again
)


@given(st.lists(ENTRY, max_size=30), st.integers(4, 6))
def test_everything_leaves_once_in_order_and_within_the_limit(entries, max_rows):
    queue = PendingQueue(1000, 1 << 20, "m")
    waiting = []
    for count, key, priority, deadline, removed in entries:
        entry = pending(*range(count), key=key, priority=priority, deadline=deadline)
        queue.push(entry)
        if removed:
            assert queue.remove(entry)
        else:
            waiting.append(entry)
    taken: list[Pending] = []
    gone: list[Pending] = []
    while True:
        batch, count, expired = queue.take(max_rows, 2.0)
        gone += expired
        if not batch:
            break
        assert count == sum(entry.rows for entry in batch) <= max_rows
        assert len({entry.key for entry in batch}) == 1
        taken += batch
    assert (len(queue), queue.bytes) == (0, 0)
    assert set(gone) == {entry for entry in waiting if entry.deadline == 1.0}
    for key in "ab":
        ours = [entry for entry in taken if entry.key == key]
        expected = [entry for entry in waiting if entry.key == key and entry.deadline != 1.0]
        # The queue's own order is by priority, then by arrival; sorting is stable.
        assert ours == sorted(expected, key=lambda entry: entry.request.priority or 100)


def test_text_that_comes_with_a_request_counts_too():
    queue = filled(pending(1, id="i" * 500, parameters={"prompt": "p" * 700, "n": 3}))
    assert queue.bytes >= 1200
    queue.take(8, NEVER)
    assert queue.bytes == 0


def test_what_waits_is_counted_in_rows_however_it_leaves():
    late, one, two = pending(1, deadline=1.0), pending(1, 2), pending(3, 4, 5)
    queue = filled(late, one, two)
    assert queue.waiting == 6
    assert queue.take(2, 5.0) == ([one], 2, [late])
    assert queue.waiting == 3
    queue.remove(two)
    assert queue.waiting == 0


def test_ahead_is_what_waits_with_as_high_a_priority():
    queue = filled(pending(1, priority=5), pending(2, 3), pending(4, priority=200))
    assert [queue.ahead(priority, 8) for priority in (1, 5, 0, 200, 300)] == [0, 1, 3, 4, 4]


def test_entries_that_share_no_batch_count_as_a_batch_each():
    queue = filled(*(pending(1, key=key) for key in "abc"))
    assert queue.ahead(0, 8) == 16
    assert queue.ahead(1, 8) == 0


def test_the_head_is_counted_by_its_key_and_dated_by_its_oldest():
    first, urgent = pending(1, 2, key="a"), pending(3, key="a", priority=1)
    first.enqueued, urgent.enqueued = 1.0, 2.0
    assert filled(first, urgent, pending(4, key="b")).head() == ("a", 3, 1.0)


def test_a_batch_is_bounded_by_cost_and_its_first_entry_always_goes():
    queue = PendingQueue(100, 1 << 20, "m", costed=True)
    entries = [pending(number) for number in range(4)]
    for entry, cost in zip(entries, (12, 4, 6, 1), strict=True):
        entry.cost = cost
        queue.push(entry)
    assert queue.waiting == 23
    assert queue.take(8, NEVER, 10) == (entries[:1], 1, [])
    assert queue.take(8, NEVER, 10) == (entries[1:3], 2, [])
    assert queue.waiting == 1
