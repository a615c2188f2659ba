"""Joining requests into a batch and splitting its outputs."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gated import GatedBackend, rows
from modelserve.errors import BackendError, InvalidInput, ServeError
from modelserve.execution.batch import Batch, run_batch
from modelserve.execution.queue import Pending
from modelserve.messages import InferRequest
from modelserve.protocols import Traits

PLAIN = Traits()
REPEATABLE = Traits(repeatable=True)


def entry(*numbers: float, **options: Any) -> Pending:
    inputs = rows(*numbers)
    return Pending(InferRequest("m", inputs, **options), inputs, len(numbers), None, 0.0, ())


def run(
    entries: list[Pending], function: Any, traits: Traits = PLAIN, *, batched: bool = True
) -> GatedBackend:
    backend = GatedBackend(function, traits)
    count = sum(one.rows for one in entries)
    batch = Batch(entries, count, model="m", version="1", batched=batched, reason="next")
    run_batch(batch, backend, traits)
    return backend


def test_each_entry_gets_its_own_rows_of_every_output():
    entries = [entry(1, 2), entry(3)]
    run(entries, lambda inputs: {"y": inputs["x"] * 2, "n": np.arange(3)})
    assert entries[0].outputs is not None
    assert entries[1].outputs is not None
    assert entries[0].outputs["y"].tolist() == [[2], [4]]
    assert entries[1].outputs["y"].tolist() == [[6]]
    assert entries[0].outputs["n"].tolist() == [0, 1]
    assert entries[1].outputs["n"].tolist() == [2]


def test_a_single_request_reaches_the_backend_without_a_copy():
    one = entry(1)
    seen = []
    run([one], lambda inputs: seen.append(inputs["x"]) or {"y": inputs["x"]})
    assert np.shares_memory(seen[0], one.inputs["x"])


def test_an_unbatched_request_may_have_outputs_of_any_shape():
    one = entry(1, 2)
    run([one], lambda _: {"y": np.float32(7), "z": np.zeros((5, 1))}, batched=False)
    assert one.outputs is not None
    assert one.outputs["y"] == 7
    assert one.outputs["z"].shape == (5, 1)


def test_a_small_slice_of_a_large_output_does_not_keep_the_batch_alive():
    entries = [entry(i) for i in range(8)]
    run(entries, lambda inputs: {"y": np.zeros((8, 100_000), np.float32)})
    for one in entries:
        assert one.outputs is not None
        assert one.outputs["y"].base is None


def test_a_slice_of_a_small_output_is_a_view():
    entries = [entry(i) for i in range(8)]
    run(entries, lambda inputs: {"y": np.zeros((8, 10), np.float32)})
    for one in entries:
        assert one.outputs is not None
        assert one.outputs["y"].base is not None


def test_only_the_entry_with_the_failed_row_fails():
    entries = [entry(1), entry(2, 3), entry(4)]
    wrong = ValueError("row")
    run(entries, lambda _: {"y": [1.0, 2.0, wrong, 4.0], "z": [1, 2, wrong, 4]})
    assert isinstance(entries[1].error, BackendError)
    assert entries[1].error.__cause__ is wrong
    assert entries[1].outputs is None
    for one, value in ((entries[0], 1.0), (entries[2], 4.0)):
        assert one.error is None
        assert one.outputs is not None
        assert one.outputs["y"].tolist() == [value]
        assert one.outputs["z"].tolist() == [value]


def test_a_serve_error_for_a_row_reaches_its_caller_as_it_is():
    entries = [entry(1), entry(2)]
    refusal = InvalidInput("too small")
    run(entries, lambda _: {"y": [refusal, 2.0]})
    assert entries[0].error is refusal
    assert entries[1].error is None


def test_text_outputs_become_bytes():
    entries = [entry(1), entry(2)]
    run(entries, lambda _: {"y": ["grün", "b"]})
    assert [one.outputs and one.outputs["y"].tolist() for one in entries] == [
        ["grün".encode()],
        [b"b"],
    ]


def test_outputs_of_foreign_byte_order_are_turned():
    one = entry(1)
    run([one], lambda _: {"y": np.ones((1, 1), ">f4")})
    assert one.outputs is not None
    assert one.outputs["y"].dtype == np.dtype("=f4")
    assert one.outputs["y"].tolist() == [[1]]


def raise_on(*guilty: float, error: type[Exception] = ValueError) -> Any:
    def function(inputs: Any) -> dict[str, Any]:
        if set(guilty) & set(inputs["x"].ravel().tolist()):
            raise error("guilty")
        return {"y": inputs["x"]}

    return function


@pytest.mark.parametrize("error", [ValueError, InvalidInput, BackendError])
@pytest.mark.parametrize("guilty", range(6))
def test_bisection_finds_the_one_guilty_entry(guilty, error):
    entries = [entry(i) for i in range(6)]
    run(entries, raise_on(guilty, error=error), REPEATABLE)
    assert [isinstance(one.error, ServeError) for one in entries] == [i == guilty for i in range(6)]
    assert [one.outputs is None for one in entries] == [i == guilty for i in range(6)]


def test_bisection_is_capped():
    entries = [entry(i) for i in range(64)]
    backend = run(entries, raise_on(*range(64)), REPEATABLE)
    assert all(isinstance(one.error, BackendError) for one in entries)
    assert len(backend.runs) <= 1 + 16 + 6


def test_without_repeatable_a_failed_batch_is_not_run_again():
    entries = [entry(1), entry(2)]
    backend = run(entries, raise_on(2))
    assert len(backend.runs) == 1
    assert all(isinstance(one.error, BackendError) for one in entries)


def test_an_unknown_output_is_not_bisected():
    entries = [entry(1, outputs=["q"]), entry(2, outputs=["q"])]
    backend = run(entries, lambda inputs: {"y": inputs["x"]}, REPEATABLE)
    assert len(backend.runs) == 1
    for one in entries:
        assert isinstance(one.error, InvalidInput)
    assert entries[0].error is not entries[1].error


def test_an_error_of_the_users_own_class_reaches_every_caller():
    class Picky(ServeError):
        def __init__(self, first: int, second: int) -> None:
            super().__init__(f"{first} and {second}")

    def function(_: Any) -> Any:
        raise Picky(1, 2)

    entries = [entry(1), entry(2)]
    run(entries, function)
    assert [str(one.error) for one in entries] == ["1 and 2", "1 and 2"]


@pytest.mark.parametrize("text", ["row 3 is bad", None], ids=["made from a row", "frozen"])
def test_an_error_that_cannot_be_copied_reaches_every_caller_as_it_is(text):
    class Row:
        number = 3

    class BadRow(InvalidInput):
        def __init__(self, row: Row) -> None:
            super().__init__(f"row {row.number} is bad")

    @dataclass(frozen=True)
    class Frozen(BackendError):
        row: int

    def function(_: Any) -> Any:
        raise Frozen(3) if text is None else BadRow(Row())

    entries = [entry(1), entry(2), entry(3)]
    run(entries, function)
    assert {type(one.error).__name__ for one in entries} == {"BadRow" if text else "Frozen"}
    assert len({str(one.error) for one in entries}) == 1
    assert text is None or str(entries[1].error) == text


def test_each_caller_has_the_text_of_an_error_that_words_it_itself():
    class BadRow(InvalidInput):
        def __init__(self, number: object) -> None:
            super().__init__(f"row {number} is bad")

    def function(_: Any) -> Any:
        raise BadRow(3)

    entries = [entry(1), entry(2)]
    run(entries, function)
    assert [str(one.error) for one in entries] == ["row 3 is bad"] * 2
    assert entries[0].error is not entries[1].error


@pytest.mark.parametrize(
    "function",
    [
        raise_on(1, error=ValueError),
        raise_on(1, error=BackendError),
        lambda inputs: {"y": [ValueError("no")] * len(inputs["x"])},
    ],
    ids=["any error", "a backend's", "of one row"],
)
def test_a_failure_that_was_logged_says_so_to_every_caller(function, caplog):
    entries = [entry(1), entry(2)]
    run(entries, function)
    assert "failed on a batch" in caplog.text
    for one in entries:
        assert isinstance(one.error, BackendError)
        assert one.error.logged


def test_a_failure_at_load_is_not_said_to_be_logged():
    one = entry(1)
    batch = Batch([one], 1, model="m", version="1", batched=True, reason="load")
    run_batch(batch, GatedBackend(raise_on(1), PLAIN), PLAIN)
    assert isinstance(one.error, BackendError)
    assert not one.error.logged


def test_requested_outputs_come_in_the_order_asked():
    one = entry(1, outputs=["z", "y"])
    run([one], lambda inputs: {"y": inputs["x"], "z": inputs["x"], "w": inputs["x"]})
    assert one.outputs is not None
    assert list(one.outputs) == ["z", "y"]


@pytest.mark.parametrize(
    "parts",
    [
        [np.arange(4.0, dtype=np.float32).reshape(2, 2), np.zeros((1, 2), np.float32)],
        [np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(6).reshape(2, 3)[::-1]],
        [np.zeros((0, 2), np.int64), np.ones((1, 2), np.int64)],
        [np.zeros((1, 0), np.int8), np.ones((2, 0), np.int8)],
        [np.zeros((0, 2), np.int64), np.zeros((0, 2), np.int64)],
        [np.array([[b"a"], [b""]], np.object_), np.array([[b"ccc"]], np.object_)],
        [np.array([True]), np.array([False, True])],
        [np.ones((1, 2), ml_dtypes.bfloat16), np.zeros((2, 2), ml_dtypes.bfloat16)],
    ],
)
def test_inputs_are_joined_as_numpy_would(parts):
    seen = []

    def function(inputs):
        seen.append(inputs["x"])
        return {"y": np.arange(len(inputs["x"]))}

    entries = [
        Pending(InferRequest("m", {"x": part}), {"x": part}, len(part), None, 0.0) for part in parts
    ]
    rows_of = sum(map(len, parts))
    run_batch(
        Batch(entries, rows_of, model="m", version="1", batched=True, reason="next"),
        Plain(function),
        PLAIN,
    )
    expected = np.concatenate(parts)
    assert (seen[0].dtype, seen[0].shape) == (expected.dtype, expected.shape)
    assert (seen[0] == expected).all()
    assert [entry.error for entry in entries] == [None] * len(parts)


class Plain:
    """A backend that is only a function."""

    def __init__(self, function: Any) -> None:
        self.run = function


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 1), (1, 3)])
def test_all_outputs_are_split_with_the_axes_they_have(counts):
    entries = [entry(*range(count)) for count in counts]
    total = sum(counts)
    outputs = {
        "flat": np.arange(total),
        "deep": np.arange(total * 6).reshape(total, 3, 2),
        "strided": np.arange(total * 2).reshape(2, total).T,
    }
    run(entries, lambda _: dict(outputs))
    start = 0
    for one in entries:
        assert one.outputs is not None
        for name, whole in outputs.items():
            expected = whole[start : start + one.rows]
            assert one.outputs[name].shape == expected.shape
            assert (one.outputs[name] == expected).all()
        start += one.rows


def test_a_single_request_has_a_dictionary_of_its_own():
    kept = {"y": np.ones((1, 1))}
    one = entry(1)
    run([one], lambda _: kept)
    assert one.outputs == kept
    assert one.outputs is not kept


def test_a_model_without_outputs_answers_with_none():
    entries = [entry(1), entry(2)]
    run(entries, lambda _: {})
    assert [one.outputs for one in entries] == [{}, {}]
