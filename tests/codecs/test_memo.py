"""What comes again is held, within bounds, and what does not costs nothing."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from modelserve.codecs._memo import Memo


def memo(entries: int = 3, size: int = 100) -> Memo[str, int]:
    return Memo(entries=entries, size=size)


def test_a_key_is_due_from_its_second_coming_on() -> None:
    some = memo()
    assert [some.due("a"), some.due("b"), some.due("a"), some.due("a")] == [
        False,
        False,
        True,
        True,
    ]


def test_a_value_is_found_until_cleared() -> None:
    some = memo()
    some.keep("a", 1, size=5)
    assert (some.get("a"), some.get("b"), len(some), some.size) == (1, None, 1, 5)
    some.clear()
    assert (some.get("a"), len(some), some.size) == (None, 0, 0)


def test_the_oldest_goes_when_there_are_too_many() -> None:
    some = memo(entries=2)
    for number, key in enumerate("abc"):
        some.keep(key, number, size=1)
    assert [some.get(key) for key in "abc"] == [None, 1, 2]
    assert some.size == 2


def test_as_many_go_as_the_new_one_takes() -> None:
    some = memo(entries=9, size=10)
    for key in "abc":
        some.keep(key, 1, size=3)
    some.keep("d", 2, size=7)
    assert [some.get(key) for key in "abcd"] == [None, None, 1, 2]
    assert some.size == 10


def test_a_value_takes_the_place_of_the_keys_old_one() -> None:
    some = memo()
    some.keep("a", 1, size=60)
    some.keep("a", 2, size=70)
    assert (some.get("a"), len(some), some.size) == (2, 1, 70)


def test_one_beyond_the_bound_is_not_held_and_pushes_nothing_out() -> None:
    some = memo(size=10)
    some.keep("a", 1, size=10)
    some.keep("b", 2, size=11)
    assert (some.get("a"), some.get("b"), some.size) == (1, None, 10)


def test_keys_that_never_come_again_leave_a_bounded_trace() -> None:
    some = memo(entries=4)
    assert not any(some.due(str(number)) for number in range(1000))
    assert len(some._seen) <= 16
    assert len(some) == 0


def test_one_of_sixteen_gets_in_where_another_must_go() -> None:
    some = memo(entries=2)
    keys = [str(number) for number in range(3)]
    for _ in range(3):
        for key in keys:
            if some.due(key):
                some.keep(key, int(key), size=1)
    made = 0
    for _ in range(160):
        for key in keys:
            if some.get(key) is None and some.due(key):
                some.keep(key, int(key), size=1)
                made += 1
    assert 5 < made <= 160 // 16 + 1
    some.clear()
    assert [some.due("a"), some.due("a"), some.due("a")] == [False, True, True]


@pytest.mark.parametrize("entries", [1, 5])
def test_threads_keep_the_count(entries: int) -> None:
    some = memo(entries=entries, size=20)

    def work(start: int) -> None:
        for number in range(300):
            key = str((start + number) % 7)
            found = some.get(key)
            assert found in (None, int(key))
            if some.due(key):
                some.keep(key, int(key), size=1 + number % 5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(some) <= entries
    assert some.size == sum(some._sizes.values()) <= 20
    assert some._sizes.keys() == some._values.keys()
