"""What a function takes, read from specifications, an example or hints; and refusals that help."""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ForwardRef, Optional

import numpy as np
import pytest
from numpy.typing import NDArray

import modelserve as ms
from modelserve.backends.functions import name_of, read_function, spec_of

if TYPE_CHECKING:
    import numpy as only_checked
    import numpy.typing as npt

    import modelserve as serving

X = ms.TensorSpec("x", "FP32", (-1, 4))
Y = ms.TensorSpec("y", "FP32", (-1, 4))


def inputs_of(function: Any, **declared: Any) -> tuple[ms.TensorSpec, ...]:
    return read_function(function, **declared).signature.inputs


# ---------------------------------------------------------------------- specifications


def test_inputs_named_as_parameters_are_passed_by_name() -> None:
    call = read_function(lambda y, x: None, inputs=[X, Y])
    assert call.parameters == {"x": "x", "y": "y"}
    assert call.positional == 0


def test_inputs_of_other_names_are_taken_in_order() -> None:
    call = read_function(lambda a, b: None, inputs=[X, Y])
    assert call.parameters == {"x": "a", "y": "b"}


def test_inputs_go_to_variable_keywords() -> None:
    call = read_function(lambda **inputs: None, inputs=[X, Y])
    assert call.parameters == {"x": "x", "y": "y"}


def test_inputs_go_to_variable_arguments_in_order() -> None:
    call = read_function(lambda *arrays: None, inputs=[X, Y])
    assert (list(call.parameters), call.positional) == (["x", "y"], 2)


def test_required_parameter_comes_before_variable_keywords() -> None:
    def predict(data: Any, **options: Any) -> None: ...

    assert read_function(predict, inputs=[X]).parameters == {"x": "data"}


def test_positional_only_parameters_are_matched_by_name() -> None:
    def predict(x: Any, y: Any, /) -> None: ...

    call = read_function(predict, inputs=[Y, X])
    assert (list(call.parameters), call.positional) == (["x", "y"], 2)


def test_builtin_that_does_not_tell_its_parameters_is_called_by_position() -> None:
    call = read_function(max, inputs=[X, Y])
    assert call.positional == 2


def test_parameters_with_defaults_need_no_input() -> None:
    assert inputs_of(lambda x, k=3: None, inputs=[X]) == (X,)


# ---------------------------------------------------------------------- example


def test_example_array_is_for_the_first_parameter() -> None:
    def predict(features: Any, threshold: float = 0.5) -> None: ...

    assert inputs_of(predict, example=np.zeros((1, 4), np.float32)) == (
        ms.TensorSpec("features", "FP32", (-1, 4)),
    )


def test_example_mapping_gives_all_inputs() -> None:
    example = {"a": np.zeros((2, 3)), "b": np.array(["x", "y"])}
    assert inputs_of(lambda a, b: None, example=example) == (
        ms.TensorSpec("a", "FP64", (-1, 3)),
        ms.TensorSpec("b", "BYTES", (-1,)),
    )


def test_example_for_a_parameter_with_default_is_optional() -> None:
    example = {"x": np.zeros((1, 2)), "mask": np.zeros((1, 2), bool)}
    optional = [spec.optional for spec in inputs_of(lambda x, mask=None: None, example=example)]
    assert optional == [False, True]


def test_something_is_required_of_every_request() -> None:
    (spec,) = inputs_of(lambda x=None: None, example=np.zeros((1, 2)))
    assert not spec.optional


def test_example_may_be_a_nested_list() -> None:
    assert inputs_of(lambda x: None, example=[[1, 2], [3, 4]]) == (
        ms.TensorSpec("x", "INT64", (-1, 2)),
    )


def test_example_for_variable_keywords_has_a_name_all_the_same() -> None:
    (spec,) = inputs_of(lambda **kwargs: None, example=np.zeros((1, 2)))
    assert spec.name == "input"


def test_spec_of_scalar_has_no_rows() -> None:
    assert spec_of("x", np.asarray(1.5)) == ms.TensorSpec("x", "FP64", ())


# ---------------------------------------------------------------------- hints


def test_hinted_arrays_are_of_any_shape() -> None:
    def predict(x: NDArray[np.float32], ids: NDArray[np.int64]) -> None: ...

    assert inputs_of(predict) == (ms.TensorSpec("x", "FP32"), ms.TensorSpec("ids", "INT64"))


def test_annotated_specification_is_taken_under_the_parameters_name() -> None:
    def predict(x: Annotated[np.ndarray, ms.TensorSpec("any", "FP16", (-1, 2))]) -> None: ...

    assert inputs_of(predict) == (ms.TensorSpec("x", "FP16", (-1, 2)),)


@pytest.mark.parametrize(
    ("hint", "datatype"),
    [
        (float, "FP64"),
        (int, "INT64"),
        (bool, "BOOL"),
        (str, "BYTES"),
        (bytes, "BYTES"),
        (np.float32, "FP32"),
        (Annotated[float, "metres"], "FP64"),
        (Optional[float], "FP64"),  # noqa: UP045 - both spellings
        (float | None, "FP64"),
    ],
)
def test_hint_of_a_single_value_means_one_row(hint: Any, datatype: str) -> None:
    def predict(x: Any) -> None: ...

    predict.__annotations__["x"] = hint
    call = read_function(predict)
    assert [(spec.datatype, spec.shape) for spec in call.signature.inputs] == [(datatype, (-1,))]
    assert call.per_row
    assert list(call.scalars) == ["x"]


def test_hints_of_single_values_hold_beside_inputs() -> None:
    def predict(x: float) -> None: ...

    call = read_function(predict, inputs=[ms.TensorSpec("x", "FP32", (-1,))])
    assert call.scalars == {"x": float}


def test_hints_of_single_values_hold_beside_an_example() -> None:
    def predict(x: float) -> None: ...

    assert read_function(predict, example=[1.0]).per_row


def test_declared_inputs_may_mix_single_values_with_arrays() -> None:
    def predict(x: NDArray[np.float32], k: int) -> None: ...

    call = read_function(predict, inputs=[X, ms.TensorSpec("k", "INT64", (-1,))])
    assert (call.per_row, call.scalars) == (False, {})


def test_row_may_mix_single_values_with_arrays() -> None:
    def predict(x: NDArray[np.float32], k: int) -> None: ...

    assert read_function(predict, per_row=True).scalars == {"k": int}


def test_default_makes_a_hinted_input_optional() -> None:
    def predict(x: float, k: int = 3, unit: str | None = None) -> None: ...

    assert [spec.optional for spec in inputs_of(predict)] == [False, True, True]


def test_option_without_hint_is_no_input() -> None:
    def predict(x: NDArray[np.float32], threshold=0.5) -> None: ...  # type: ignore[no-untyped-def]

    assert [spec.name for spec in inputs_of(predict)] == ["x"]


def test_name_only_for_the_type_checker_spoils_its_own_hint_alone() -> None:
    def predict(x: NDArray[np.float32]) -> only_checked.ndarray[Any, Any]: ...

    assert inputs_of(predict) == (ms.TensorSpec("x", "FP32"),)


def test_well_known_names_are_read_though_only_the_type_checker_has_them() -> None:
    namespace: dict[str, Any] = {}
    # This module's own `from __future__ import annotations` holds for what it compiles.
    exec("def predict(x: NDArray[np.float32], context: ms.Context | None): ...", namespace)
    call = read_function(namespace["predict"])
    assert call.signature.inputs == (ms.TensorSpec("x", "FP32"),)
    assert call.context == "context"


def test_hint_that_was_left_as_a_reference_is_read() -> None:
    def predict(x: Any, context: Any) -> None: ...

    predict.__annotations__ = {
        "x": ForwardRef("NDArray[np.float32]"),
        "context": ForwardRef("serving.Context"),
        "return": ForwardRef("Unknown"),
    }
    call = read_function(predict)
    assert call.signature.inputs == (ms.TensorSpec("x", "FP32"),)
    assert call.context == "context"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a type statement needs Python 3.12")
def test_hint_may_be_an_alias() -> None:
    namespace: dict[str, Any] = {"np": np, "ms": ms, "NDArray": NDArray, "Iterator": Iterator}
    exec(
        "type Array[T] = NDArray[T]\n"
        "type Image = Array[np.float32]\n"
        "def predict(images: Iterator[Image]) -> Image | None: ...",
        namespace,
    )
    call = read_function(namespace["predict"])
    assert call.signature.inputs == (ms.TensorSpec("images", "FP32"),)
    assert call.signature.outputs == (ms.TensorSpec("output", "FP32"),)


def test_context_is_found_though_its_module_is_only_for_the_type_checker() -> None:
    def predict(x: float, request: serving.Context) -> None: ...

    assert read_function(predict).context == "request"


def test_context_may_be_optional() -> None:
    def predict(x: float, context: ms.Context | None = None) -> None: ...

    assert read_function(predict).context == "context"
    assert [spec.name for spec in inputs_of(predict)] == ["x"]


def test_hint_of_what_is_returned_names_the_output() -> None:
    def predict(x: float) -> Annotated[float, ms.TensorSpec("score", "FP32", (-1,))]: ...

    assert read_function(predict).signature.outputs == (ms.TensorSpec("score", "FP32", (-1,)),)


def test_returned_single_value_of_a_whole_batch_tells_nothing() -> None:
    def predict(x: NDArray[np.float32]) -> float: ...

    assert read_function(predict).signature.outputs == ()


def test_generators_hint_is_of_what_it_yields() -> None:
    def predict(prompt: str) -> Iterator[str]:
        yield prompt

    assert read_function(predict).signature.outputs == (ms.TensorSpec("output", "BYTES", (-1,)),)


# ---------------------------------------------------------------------- kinds of callables


class Doubler:
    def __call__(self, x: float) -> float:
        return 2 * x

    async def later(self, x: float) -> float:
        return 2 * x

    @staticmethod
    def double(x: float) -> float:
        return 2 * x

    def method(self, x: Any) -> None: ...


def logged(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


async def later(x: float, factor: float = 2) -> float:
    return factor * x


async def ticks(x: float) -> AsyncIterator[float]:
    yield x


class Later:
    async def __call__(self, x: float) -> float:
        return x


@pytest.mark.parametrize(
    ("function", "asynchronous", "streams"),
    [
        (Doubler(), False, False),
        (Doubler().later, True, False),
        (Doubler.double, False, False),
        (Later(), True, False),
        (later, True, False),
        (functools.partial(functools.partial(later), factor=3.0), True, False),
        (logged(later), True, False),
        (ticks, True, True),
        (logged(ticks), True, True),
    ],
    ids=[
        "object",
        "bound method",
        "static method",
        "asynchronous object",
        "coroutine function",
        "partial",
        "decorated",
        "asynchronous generator",
        "decorated generator",
    ],
)
def test_kind_is_seen_through_objects_partials_and_decorators(
    function: Any, asynchronous: bool, streams: bool
) -> None:
    call = read_function(function)
    assert (call.asynchronous, call.streams) == (asynchronous, streams)
    assert call.signature.inputs[0] == ms.TensorSpec("x", "FP64", (-1,))


def test_coroutine_that_drives_a_generator_is_a_coroutine() -> None:
    @functools.wraps(ticks)
    async def last(x: float) -> float:
        return x

    call = read_function(last)
    assert (call.asynchronous, call.streams) == (True, False)


@pytest.mark.parametrize(
    ("function", "name"),
    [(later, "later"), (functools.partial(later), "later"), (Doubler(), "Doubler"), (max, "max")],
)
def test_callables_have_names(function: Any, name: str) -> None:
    assert name_of(function) == name


# ---------------------------------------------------------------------- a stream in


def test_iterator_takes_a_stream() -> None:
    def total(values: Iterator[float]) -> float:
        return sum(values)

    call = read_function(total)
    assert (call.stream, call.streams, call.mappings) == ("values", True, False)
    assert call.signature.inputs == (ms.TensorSpec("values", "FP64", (-1,)),)


def test_iterator_of_mappings_takes_all_inputs() -> None:
    def total(rows: Iterable[Mapping[str, Any]]) -> float:
        return len(list(rows))

    call = read_function(total, inputs=[X])
    assert (call.stream, call.mappings) == ("rows", True)


def test_iterator_without_argument_takes_a_stream() -> None:
    def total(rows: Iterator) -> float:  # type: ignore[type-arg]
        return len(list(rows))

    assert read_function(total, inputs=[X]).stream == "rows"


# ---------------------------------------------------------------------- refusals


def unhinted(x) -> None: ...  # type: ignore[no-untyped-def]


def hinted_strangely(x: list[float]) -> None: ...


def hinted_complex(x: np.complex128) -> None: ...


def hinted_unreadably(x: npt.NDArray[np.float32]) -> None: ...


def two(x: Any, y: Any) -> None: ...


def mixed(x: NDArray[np.float32], k: int) -> None: ...


def nothing() -> None: ...


def context_first(context: ms.Context, x: float) -> None: ...


def context_by_position(x: float, context: ms.Context, /) -> None: ...


def stream_and_more(xs: Iterator[float], y: float) -> float: ...


def stream_of_mappings(xs: Iterator[dict[str, Any]]) -> float: ...


def waits_for_nobody(xs: AsyncIterator[float]) -> float: ...


async def blocks(xs: Iterator[float]) -> float: ...


OPTIONAL = ms.TensorSpec("y", "FP32", (-1, 4), optional=True)

REFUSALS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no hint": (unhinted, {}, "unhinted: nothing tells what parameter x takes. Give inputs="),
    "strange hint": (hinted_strangely, {}, "hinted_strangely: nothing tells what parameter x"),
    "no datatype": (hinted_complex, {}, "hinted_complex: nothing tells what parameter x takes"),
    "unreadable hint": (hinted_unreadably, {}, '"npt.NDArray.*" cannot be read when it runs. Give'),
    "no parameters": (nothing, {}, "nothing takes no inputs. Give inputs="),
    "too many inputs": (unhinted, {"inputs": [X, Y]}, "takes x; the inputs given are x, y"),
    "none of its parameters": (nothing, {"inputs": [X]}, "takes no inputs; the inputs given are x"),
    "input forgotten": (
        two,
        {"inputs": [X]},
        "two: parameter y gets no input; .* given are x. Add",
    ),
    "no input given": (unhinted, {"inputs": []}, "x gets no input; the inputs given are none. Add"),
    "names crosswise": (
        two,
        {"inputs": [Y, ms.TensorSpec("z", "FP32")]},
        "two takes x, y; the inputs given are y, z",
    ),
    "optional, no default": (
        two,
        {"inputs": [X, OPTIONAL]},
        '"y" is optional, but parameter y has',
    ),
    "mixture": (mixed, {}, r"single values \(k\) with arrays \(x\): give per_row=True if"),
    "example of dates": (
        unhinted,
        {"example": np.zeros(1, "M8[s]")},
        "unhinted: example for x: dt",
    ),
    "ragged example": (unhinted, {"example": [[1], [1, 2]]}, "unhinted: example for x: setting an"),
    "setup for nobody": (nothing, {"state": True}, "nothing: setup= is given, but no parameter"),
    "setup before context": (context_first, {"state": True}, "first parameter takes what setup="),
    "context by position": (context_by_position, {}, "parameter context takes the Context by name"),
    "method": (Doubler.method, {"inputs": [X]}, r"method is a method without its object: make"),
    "stream and more": (stream_and_more, {}, "xs takes a stream of requests, so y gets nothing"),
    "stream of mappings": (stream_of_mappings, {}, "stream_of_mappings: a stream of several"),
    "async stream": (waits_for_nobody, {}, "xs must be annotated Iterator, or the function be as"),
    "sync stream": (blocks, {}, "xs must be annotated AsyncIterator, as the function is async"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_wrong_declaration_is_refused_in_words(case: str) -> None:
    function, declared, words = REFUSALS[case]
    with pytest.raises(ValueError, match=words):
        read_function(function, **declared)


def test_class_is_refused() -> None:
    with pytest.raises(TypeError, match="Doubler is a class: give an object of it, or a function"):
        read_function(Doubler)


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="made of a callable, got int"):
        read_function(3)  # type: ignore[arg-type]
