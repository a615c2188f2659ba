"""One backend by itself: how it calls its function, what it makes of results, setup, clean-up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import modelserve as ms

X = ms.TensorSpec("x", "FP32", (-1, 2))
Y = ms.TensorSpec("y", "FP32", (-1,))
ONES = np.ones((3, 2), np.float32)


def backend(function: Any, **declared: Any) -> ms.PythonBackend:
    return ms.PythonBackend(function, **{"inputs": [X], **declared})


def run(function: Any, request: Mapping[str, Any] | None = None, **declared: Any) -> Any:
    return backend(function, **declared).run({"x": ONES} if request is None else request)


# ---------------------------------------------------------------------- results


def test_mapping_names_the_outputs() -> None:
    outputs = run(lambda x: {"total": x.sum(axis=1), "rows": [1, 2, 3]})
    assert outputs["total"].tolist() == [2, 2, 2]
    assert outputs["rows"].tolist() == [1, 2, 3]


def test_one_array_is_the_one_declared_output() -> None:
    assert list(run(lambda x: x[:, 0], outputs=[Y])) == ["y"]


def test_one_array_without_declaration_is_called_output() -> None:
    assert list(run(lambda x: x[:, 0])) == ["output"]


def test_tuple_is_the_declared_outputs_in_order() -> None:
    declared = [Y, ms.TensorSpec("z", "INT64", (-1,))]
    outputs = run(lambda x: (x[:, 0], np.arange(3)), outputs=declared)
    assert outputs["z"].tolist() == [0, 1, 2]


def test_tuple_without_declaration_is_numbered() -> None:
    assert list(run(lambda x: (x, x))) == ["output_0", "output_1"]


def test_numbers_become_the_declared_datatype() -> None:
    assert run(lambda x: x[:, 0].astype(np.float64), outputs=[Y])["y"].dtype == np.float32
    assert run(lambda x: [1, 2.5, True], outputs=[Y])["y"].tolist() == [1, 2.5, 1]


def test_right_array_is_handed_over_as_it_is() -> None:
    result = np.zeros(3, np.float32)
    assert run(lambda x: result, outputs=[Y])["y"] is result


@pytest.mark.parametrize("outputs", [None, [ms.TensorSpec("output", "BYTES", (-1,))]])
def test_text_becomes_bytes(outputs: Any) -> None:
    result = run(lambda x: ["ä", b"b\x00", "c\x00"], outputs=outputs)["output"]
    assert result.dtype == object
    assert result.tolist() == ["ä".encode(), b"b\x00", b"c\x00"]


class OnDevice:
    """An array that only its own library can read."""

    dtype = np.dtype(np.float32)
    shape = (3,)

    def __dlpack__(self) -> Any:
        raise BufferError("not in host memory")


def test_array_on_a_device_is_left_there() -> None:
    result = OnDevice()
    assert run(lambda x: result, outputs=[Y])["y"] is result


SHAPED = ms.TensorSpec("y", "FP32", (-1, 3))
WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "columns": (ONES, {"outputs": [SHAPED]}, r'"y": expected shape \(-1, 3\), got \(3, 2\)'),
    "axes": (ONES, {"outputs": [Y]}, r'"y": expected shape \(-1,\), got \(3, 2\)'),
    "datatype": (np.ones(3, complex), {}, 'output "output": dtype complex128 has no datatype'),
    "cast": (ONES, {"outputs": [ms.TensorSpec("y", "INT64")]}, '"y": expected INT64, got float32'),
    "list": ([0.5], {"outputs": [ms.TensorSpec("y", "INT64")]}, "expected INT64, got FP64 values"),
    "range": ([300], {"outputs": [ms.TensorSpec("y", "UINT8")]}, "out of the range of UINT8"),
    "not text": (ONES, {"outputs": [ms.TensorSpec("y", "BYTES")]}, "expected BYTES, got FP32"),
    "half text": (["a", 1], {}, "element 1 is int; BYTES takes bytes or str"),
    "missing": ({"z": ONES}, {"outputs": [Y]}, '"y" is declared, and predict returned z'),
    "nothing": ({}, {"outputs": [Y]}, '"y" is declared, and predict returned nothing'),
    "too many": ((ONES, ONES), {"outputs": [Y]}, "predict returned 2 outputs; declared: y"),
    "None": (None, {}, 'output "output": element 0 is NoneType'),
    "ragged row": ([[[1], [1, 2]]], {}, 'output "output": setting an array element'),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_result_is_explained(case: str) -> None:
    result, declared, words = WRONG[case]

    def predict(x: Any) -> Any:
        return result

    with pytest.raises(ms.BackendError, match=words):
        run(predict, **declared)


def test_coroutine_from_a_plain_function_is_explained() -> None:
    async def later() -> None: ...

    def predict(x: Any) -> Any:
        return later()

    with pytest.raises(ms.BackendError, match="predict returned a coroutine; declare it with"):
        run(predict)


def test_returned_exception_is_raised() -> None:
    with pytest.raises(KeyError, match="no such thing"):
        run(lambda x: KeyError("no such thing"))


def test_rows_of_different_shapes_stay_a_list() -> None:
    rows = run(lambda x: [[1], [1, 2], [3]])["output"]
    assert [row.tolist() for row in rows] == [[1], [1, 2], [3]]


def test_rows_beside_a_failed_one_are_of_the_declared_datatype() -> None:
    failure = ValueError("bad")
    first, second, third = run(lambda x: [1, failure, 2.5], outputs=[Y])["y"]
    assert (first.dtype, third.dtype) == (np.float32, np.float32)
    assert second is failure


def test_row_of_wrong_shape_fails_alone() -> None:
    good, bad, _ = run(lambda x: [[1.0, 2.0, 3.0], [1.0], [4.0, 5.0, 6.0]], outputs=[SHAPED])["y"]
    assert good.tolist() == [1, 2, 3]
    assert isinstance(bad, ms.BackendError)
    assert str(bad) == 'output "y": expected shape (-1, 3), got (3, 1)'


# ---------------------------------------------------------------------- arguments


def test_arguments_are_read_only() -> None:
    def predict(x: Any) -> Any:
        x[0] = 0

    mine = np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match="read-only"):
        run(predict, {"x": mine})
    assert mine.flags.writeable


def test_rows_are_read_only() -> None:
    def predict(x: Any) -> Any:
        x[0] = 0

    (error, *_) = run(predict, {"x": ONES.copy()}, per_row=True)["output"]
    assert isinstance(error, ValueError)


def test_inputs_of_other_names_arrive_in_order() -> None:
    inputs = [ms.TensorSpec("a", "FP32"), ms.TensorSpec("b", "FP32")]
    outputs = run(
        lambda left, right: left - right,
        {"b": np.ones(1, np.float32), "a": np.zeros(1, np.float32)},
        inputs=inputs,
    )
    assert outputs["output"].tolist() == [-1]


def test_positional_only_parameters_get_their_inputs() -> None:
    def predict(a: Any, b: Any, /, *, c: Any) -> Any:
        return {"a": a, "b": b, "c": c}

    one, two, three = (np.array([n]) for n in (1, 2, 3))
    inputs = [ms.TensorSpec(name, "INT64") for name in ("c", "b", "a")]
    outputs = run(predict, {"c": three, "b": two, "a": one}, inputs=inputs)
    assert {name: value.tolist() for name, value in outputs.items()} == {
        "a": [1],
        "b": [2],
        "c": [3],
    }


def test_optional_input_left_out_leaves_the_default() -> None:
    inputs = [ms.TensorSpec("a", "INT64"), ms.TensorSpec("b", "INT64", optional=True)]
    outputs = run(lambda x, y=7: x + y, {"a": np.array([1])}, inputs=inputs)
    assert outputs["output"].tolist() == [8]


def test_input_before_a_positional_one_cannot_be_left_out() -> None:
    def predict(a: Any = 1, b: Any = 2, /) -> Any:
        return a + b

    inputs = [ms.TensorSpec(name, "INT64", optional=True) for name in ("a", "b")]
    with pytest.raises(ms.InvalidInput, match='"a" may be left out only with those after it'):
        run(predict, {"b": np.array([1])}, inputs=inputs)


def test_context_is_passed_by_name() -> None:
    def predict(context: ms.Context, left: Any) -> Any:
        return {"out": left * context.parameters["scale"]}

    made = backend(predict)
    assert made.traits.context
    outputs = made.run({"x": ONES}, ms.Context(parameters={"scale": 3}))
    assert outputs["out"][0].tolist() == [3, 3]


# ---------------------------------------------------------------------- rows


def test_single_values_arrive_as_python_values() -> None:
    seen: list[Any] = []

    def predict(a: float, b: int, c: bool, d: str, e: bytes, f: np.float32) -> float:
        seen.append((a, b, c, d, e, f))
        return a

    arrays = {
        "a": np.array([0.5]),
        "b": np.array([2]),
        "c": np.array([True]),
        "d": np.array(["ä".encode()], object),
        "e": np.array([b"\xff"], object),
        "f": np.array([1.5], np.float32),
    }
    assert ms.PythonBackend(predict).run(arrays)["output"].tolist() == [0.5]
    assert seen == [(0.5, 2, True, "ä", b"\xff", 1.5)]
    assert [type(value) for value in seen[0]] == [float, int, bool, str, bytes, np.float32]


def test_row_that_is_no_text_fails_alone() -> None:
    def predict(text: str) -> int:
        return len(text)

    rows = np.array([b"abc", b"\xff", b"d"], object)
    first, second, third = ms.PythonBackend(predict).run({"text": rows})["output"]
    assert (first, third) == (3, 1)
    assert isinstance(second, ms.InvalidInput)
    assert str(second).startswith('"text": row 1 is not UTF-8 text')


def test_failing_row_fails_alone() -> None:
    def inverse(x: float) -> float:
        return 1 / x

    first, second, third = ms.PythonBackend(inverse).run({"x": np.array([1.0, 0.0, 4.0])})["output"]
    assert (first, third) == (1, 0.25)
    assert isinstance(second, ZeroDivisionError)


def test_row_may_return_its_exception() -> None:
    def predict(x: float) -> Any:
        return ms.InvalidInput("too small") if x < 1 else x

    first, second = ms.PythonBackend(predict).run({"x": np.array([0.0, 1.0])})["output"]
    assert isinstance(first, ms.InvalidInput)
    assert second == 1


def test_row_gives_several_outputs() -> None:
    def predict(x: float) -> tuple[float, str]:
        return 2 * x, str(x)

    declared = [ms.TensorSpec("twice", "FP32", (-1,)), ms.TensorSpec("text", "BYTES", (-1,))]
    outputs = ms.PythonBackend(predict, outputs=declared).run({"x": np.array([1.0, 2.0])})
    assert outputs["twice"].tolist() == [2, 4]
    assert outputs["text"].tolist() == [b"1.0", b"2.0"]


def test_array_rows_come_without_the_batch_axis() -> None:
    outputs = run(lambda x: x.shape[0] * x, per_row=True)
    assert outputs["output"].shape == (3, 2)
    assert outputs["output"].dtype == np.float32


def test_rows_with_different_outputs_are_explained() -> None:
    def predict(x: float) -> Any:
        return {"small": x} if x < 1 else {"large": x}

    with pytest.raises(ms.BackendError, match="predict returned small for one row and large for"):
        ms.PythonBackend(predict).run({"x": np.array([0.0, 1.0])})


def test_inputs_of_different_rows_are_the_callers_fault() -> None:
    def predict(a: float, b: float) -> float:
        return a + b

    with pytest.raises(ms.InvalidInput, match=r"as many rows in each, got a \(2,\), b \(1,\)"):
        ms.PythonBackend(predict).run({"a": np.zeros(2), "b": np.zeros(1)})


def test_all_inputs_left_out_is_one_row() -> None:
    def predict(a: float = 3.0) -> float:
        return a

    assert ms.PythonBackend(predict).run({})["output"].tolist() == [3]


@given(st.lists(st.one_of(st.none(), st.floats(-100, 100)), min_size=1, max_size=20))
def test_row_is_the_same_alone_and_beside_others(values: list[float | None]) -> None:
    def predict(x: float) -> Any:
        return ValueError("none") if np.isnan(x) else (int(x) if x > 50 else x)

    made = ms.PythonBackend(predict, outputs=[ms.TensorSpec("y", "FP32", (-1,))])
    x = np.array([np.nan if value is None else value for value in values])
    together = made.run({"x": x})["y"]
    for index in range(len(x)):
        alone = made.run({"x": x[index : index + 1]})["y"][0]
        assert type(together[index]) is type(alone)
        assert isinstance(alone, ValueError) or together[index] == alone


def test_asynchronous_rows_run_together() -> None:
    async def main() -> Any:
        both = asyncio.Barrier(3)

        async def predict(x: float) -> float:
            await both.wait()
            return 2 * x

        made: Any = ms.PythonBackend(predict)
        return await made.run({"x": np.arange(3.0)})

    assert asyncio.run(main())["output"].tolist() == [0, 2, 4]


def test_asynchronous_row_that_is_no_text_fails_alone() -> None:
    async def predict(text: str) -> int:
        return len(text)

    made: Any = ms.PythonBackend(predict)
    rows = np.array([b"abc", b"\xff"], object)
    first, second = asyncio.run(made.run({"text": rows}))["output"]
    assert first == 3
    assert isinstance(second, ms.InvalidInput)


def test_asynchronous_row_fails_alone() -> None:
    async def inverse(x: float) -> float:
        return 1 / x

    made: Any = ms.PythonBackend(inverse)
    first, second = asyncio.run(made.run({"x": np.array([0.0, 2.0])}))["output"]
    assert isinstance(first, ZeroDivisionError)
    assert second == 0.5


# ---------------------------------------------------------------------- example


def test_example_is_a_request() -> None:
    made = ms.PythonBackend(lambda x: x, example=np.ones((2, 3)))
    assert made.example is not None
    assert made.example["x"].shape == (2, 3)


def test_outputs_learned_from_an_example_hold_names_and_datatypes_not_sizes() -> None:
    made = ms.PythonBackend(lambda x: x, example=np.ones((1, 3)))
    made.learn_outputs({"output": np.ones((1, 3))})
    assert made.signature.outputs == (ms.TensorSpec("output", "FP64", (-1, 3)),)
    assert made.run({"x": np.ones((1, 5))})["output"].shape == (1, 5)
    with pytest.raises(ms.BackendError, match="expected FP64, got complex128"):
        made.run({"x": np.ones((1, 3), complex)})


def test_example_that_contradicts_the_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"<lambda>: example: .*expected shape \(-1, 2\), got"):
        backend(lambda x: x, example=np.ones((1, 3), np.float32))


def test_example_without_rows_is_refused_where_there_must_be_one() -> None:
    with pytest.raises(ValueError, match=r"<lambda>: example: .*as many rows in each, got x \(\)"):
        ms.PythonBackend(lambda x: x, example=1.5, per_row=True)


# ---------------------------------------------------------------------- setup


def test_setup_makes_the_first_argument() -> None:
    made = backend(lambda scale, x: x * scale, setup=lambda: 3)
    made.open()
    assert made.run({"x": ONES})["output"][0, 0] == 3


def test_setup_gets_the_instance_it_asks_for() -> None:
    made = backend(lambda number, x: [number], setup=lambda instance: instance, instance=5)
    made.open()
    assert made.run({"x": ONES})["output"].tolist() == [5]


def load(path: str = "model.bin", *, flavour: str = "plain") -> str:
    return f"{flavour} {path}"


@pytest.mark.parametrize(
    ("setup", "made"),
    [
        (load, "plain model.bin"),
        (partial(load, path="other.bin"), "plain other.bin"),
        (partial(load, flavour="fancy"), "fancy model.bin"),
        (str, ""),
    ],
    ids=["defaults", "bound", "bound option", "class"],
)
def test_setup_with_defaults_is_called_without_arguments(setup: Any, made: str) -> None:
    one = backend(lambda state, x: [state], setup=setup)
    one.open()
    assert one.run({"x": ONES})["output"].tolist() == [made.encode()]


def test_generator_cleans_up_when_closed() -> None:
    log = []

    def setup() -> Iterator[str]:
        log.append("open")
        yield "state"
        log.append("close")

    made = backend(lambda state, x: [state], setup=setup)
    made.open()
    assert log == ["open"]
    made.close()
    made.close()
    assert log == ["open", "close"]


@pytest.mark.parametrize("kind", ["coroutine", "async generator", "generator", "plain"])
def test_asynchronous_function_takes_any_setup(kind: str) -> None:
    log = []

    async def coroutine() -> str:
        return "state"

    async def async_generator() -> AsyncIterator[str]:
        yield "state"
        log.append("closed")

    def generator() -> Iterator[str]:
        yield "state"
        log.append("closed")

    setups = {
        "coroutine": coroutine,
        "async generator": async_generator,
        "generator": generator,
        "plain": lambda: "state",
    }

    async def predict(state: str, x: NDArray[np.float32]) -> Any:
        return [state]

    async def main() -> None:
        made: Any = ms.PythonBackend(predict, setup=setups[kind])
        await made.open()
        assert (await made.run({"x": ONES}))["output"].tolist() == [b"state"]
        closing = made.close()
        if closing is not None:
            await closing

    asyncio.run(main())
    assert log == (["closed"] if "generator" in kind else [])


def yields_nothing() -> Iterator[int]:
    yield from ()


def test_failing_setup_says_whose_and_why() -> None:
    def setup() -> None:
        raise FileNotFoundError("weights.bin")

    def predict(state: Any, x: Any) -> Any: ...

    with pytest.raises(
        ms.LoadError, match=r"^setup of predict failed: FileNot.*: weights.bin$"
    ) as e:
        backend(predict, setup=setup).open()
    assert isinstance(e.value.__cause__, FileNotFoundError)


def test_failing_asynchronous_setup_says_whose_and_why() -> None:
    async def setup() -> None:
        raise ConnectionError("nobody there")

    async def predict(state: Any, x: Any) -> Any: ...

    with pytest.raises(ms.LoadError, match=r"^setup of predict failed: Conn.*: nobody there$"):
        asyncio.run(backend(predict, setup=setup).open())


def test_setup_that_yields_nothing_fails() -> None:
    with pytest.raises(ms.LoadError, match="it is a generator that yielded nothing"):
        backend(lambda state, x: x, setup=yields_nothing).open()


async def later() -> None: ...


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        (later, "setup is asynchronous and the function is not; make both `async def`, or neither"),
        (lambda a, b: a, "gets the instance's number and nothing else, and needs a, b; bind them"),
    ],
    ids=["asynchronous", "two parameters"],
)
def test_wrong_setup_is_refused(setup: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        backend(lambda state, x: x, setup=setup)


def test_setup_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="setup is a callable, got dict"):
        backend(lambda state, x: x, setup={"a": 1})


def test_concurrency_is_positive() -> None:
    with pytest.raises(ValueError, match="<lambda>: concurrency is at least 1, got 0"):
        backend(lambda x: x, concurrency=0)


# ---------------------------------------------------------------------- streams


def streamed(made: Any, inputs: Any) -> list[dict[str, Any]]:
    return [{k: v.tolist() for k, v in item.items()} for item in made.stream(inputs)]


def test_generator_gets_single_values_and_gives_rows() -> None:
    def spell(word: str, times: int = 1) -> Iterator[str]:
        yield from word * times

    word = {"word": np.array([b"ab"], object)}
    made = ms.PythonBackend(spell)
    assert streamed(made, word) == [{"output": [b"a"]}, {"output": [b"b"]}]
    assert len(streamed(made, {**word, "times": np.array([2])})) == 4


def test_generator_of_arrays_gives_arrays() -> None:
    def halves(x: Any) -> Iterator[Any]:
        yield x[:1]
        yield {"rest": x[1:]}

    assert streamed(backend(halves), {"x": ONES}) == [
        {"output": [[1, 1]]},
        {"rest": [[1, 1], [1, 1]]},
    ]


def test_streams_output_is_held_to_its_declaration() -> None:
    def predict(x: Any) -> Iterator[Any]:
        yield np.ones((1, 2))

    (item,) = backend(predict, outputs=[X]).stream({"x": ONES})
    assert item["x"].dtype == np.float32
    with pytest.raises(ms.BackendError, match=r'"y": expected shape \(-1,\), got \(1, 2\)'):
        next(iter(backend(predict, outputs=[Y]).stream({"x": ONES})))


def test_stream_of_single_values_takes_one_row() -> None:
    def spell(word: str) -> Iterator[str]:
        yield word

    with pytest.raises(ms.InvalidInput, match="inputs: a stream takes one row, got 2"):
        next(iter(ms.PythonBackend(spell).stream({"word": np.array([b"a", b"b"], object)})))


def test_stream_refuses_what_is_no_text() -> None:
    def spell(word: str) -> Iterator[str]:
        yield word

    with pytest.raises(ms.InvalidInput, match="not UTF-8"):
        next(iter(ms.PythonBackend(spell).stream({"word": np.array([b"\xff"], object)})))


def test_closing_a_stream_closes_the_generator() -> None:
    log = []

    def forever(x: Any) -> Iterator[Any]:
        try:
            while True:
                yield x
        finally:
            log.append("closed")

    stream: Any = backend(forever).stream({"x": ONES})
    next(stream)
    stream.close()
    assert log == ["closed"]


def test_function_may_return_an_iterator_of_its_own() -> None:
    def total(values: Iterator[float]) -> Any:
        return map(float, values)

    made = ms.PythonBackend(total)
    requests = iter([{"values": np.array([1.0])}, {"values": np.array([2.0])}])
    assert streamed(made, requests) == [{"output": [1]}, {"output": [2]}]


def test_stream_in_gives_one_answer() -> None:
    def total(values: Iterator[float]) -> float:
        return sum(values)

    requests = iter([{"values": np.array([1.0])}, {"values": np.array([2.5])}])
    assert streamed(ms.PythonBackend(total), requests) == [{"output": [3.5]}]


def test_stream_in_of_several_inputs_gives_mappings() -> None:
    def dot(rows: Iterator[Mapping[str, Any]]) -> Iterator[Any]:
        for row in rows:
            yield row["a"] @ row["b"]

    inputs = [ms.TensorSpec("a", "FP64", (2,)), ms.TensorSpec("b", "FP64", (2,))]
    made = ms.PythonBackend(dot, inputs=inputs)
    requests = iter([{"a": np.ones(2), "b": np.array([1.0, 2.0])}])
    assert streamed(made, requests) == [{"output": 3.0}]


def test_stream_in_may_stand_after_the_context() -> None:
    def total(context: ms.Context, values: Iterator[float]) -> float:
        return context.parameters["factor"] * sum(values)

    stream: Any = ms.PythonBackend(total).stream
    (item,) = stream(iter([{"values": np.array([2.0])}]), ms.Context(parameters={"factor": 3.0}))
    assert item["output"].tolist() == [6]


def test_stream_in_by_position() -> None:
    def total(state: float, values: Iterator[float], /) -> float:
        return state + sum(values)

    made = ms.PythonBackend(total, setup=lambda: 10.0)
    made.open()
    assert streamed(made, iter([{"values": np.array([2.0])}])) == [{"output": [12]}]


async def collected(made: Any, inputs: Any) -> list[Any]:
    return [item["output"].tolist() async for item in made.stream(inputs)]


async def requests(*values: float) -> AsyncIterator[Mapping[str, Any]]:
    for value in values:
        yield {"values": np.array([value])}


def test_asynchronous_generator_gives_rows() -> None:
    async def count(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    assert asyncio.run(collected(ms.PythonBackend(count), {"n": np.array([2])})) == [[0], [1]]


def test_asynchronous_stream_in_gives_one_answer() -> None:
    async def total(values: AsyncIterator[float]) -> float:
        return sum([value async for value in values])

    assert asyncio.run(collected(ms.PythonBackend(total), requests(1, 2))) == [[3]]


def test_asynchronous_stream_in_and_out() -> None:
    async def running(values: AsyncIterator[float]) -> AsyncIterator[float]:
        total = 0.0
        async for value in values:
            total += value
            yield total

    assert asyncio.run(collected(ms.PythonBackend(running), requests(1, 2))) == [[1], [3]]
