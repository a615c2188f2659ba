"""What a predict function takes and gives, read from its specifications, type hints or an example.

Only reads functions; calling them is `backends.python`.
"""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, get_args, get_origin

import numpy as np

from modelserve.errors import InvalidInput
from modelserve.messages import Context
from modelserve.tensors import Signature, TensorSpec, datatype_of

__all__ = ["Call", "read_function", "spec_of"]

_SCALARS: Final[dict[Any, str]] = {
    float: "FP64",
    int: "INT64",
    bool: "BOOL",
    str: "BYTES",
    bytes: "BYTES",
}
_ITERATORS: Final = (
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
)


@dataclass(frozen=True, slots=True)
class Call:
    """How to call one predict function.

    Args:
        signature: Inputs and outputs as requests see them.
        names: Inputs in the order of the function's parameters.
        positional: Whether inputs are passed by position, not by parameter name.
        context: Name of the parameter that takes the `Context`, or empty.
        state: Whether the first argument is what `setup` returned.
        scalars: Inputs passed as plain Python values, with their types; rows are then single.
        per_row: Whether the function takes one row at a time.
        streams: Whether it is a generator or asynchronous generator function.
        asynchronous: Whether it is a coroutine or asynchronous generator function.
        takes_stream: Whether its one input parameter is an iterator of requests.
    """

    signature: Signature
    names: tuple[str, ...]
    positional: bool
    context: str
    state: bool
    scalars: Mapping[str, type]
    per_row: bool
    streams: bool
    asynchronous: bool
    takes_stream: bool


def read_function(
    function: Callable[..., Any],
    *,
    inputs: Sequence[TensorSpec] | None = None,
    outputs: Sequence[TensorSpec] | None = None,
    example: Any = None,
    batched: bool = False,
    per_row: bool = False,
    state: bool = False,
) -> Call:
    """Find out how to call a predict function.

    Inputs come from `inputs`, else from `example`, else from the type hints; never from traffic.

    Args:
        function: Function, coroutine function, generator, asynchronous generator, or any callable.
        inputs: Specifications, named as the parameters or in their order.
        outputs: Specifications of what it returns, in order.
        example: An array for the first parameter, or arrays by name.
        batched: Whether axis 0 of every tensor is a batch.
        per_row: Whether the function takes one row.
        state: Whether the first parameter takes what `setup` returned.

    Raises:
        ValueError: The inputs cannot be told, or contradict the function's parameters.
    """
    if not callable(function):
        raise TypeError(f"a model is made of a callable, got {type(function).__name__}")
    hints = _hints(function)
    parameters = _parameters(function)
    context = next((p.name for p in parameters if hints.get(p.name) is Context), "")
    takes_state = state and bool(parameters)
    if state and not parameters:
        raise ValueError(f"{_name(function)}: setup= is given, but no parameter takes its result")
    takes = [p for p in parameters[1 if takes_state else 0 :] if p.name != context]
    asynchronous = _is(function, inspect.iscoroutinefunction) or _is(
        function, inspect.isasyncgenfunction
    )
    streams = _is(function, inspect.isgeneratorfunction) or _is(
        function, inspect.isasyncgenfunction
    )
    plain = [p for p in takes if p.kind is not p.VAR_KEYWORD and p.kind is not p.VAR_POSITIONAL]
    takes_stream = len(plain) == 1 and get_origin(hints.get(plain[0].name)) in _ITERATORS
    scalars: dict[str, type] = {}
    if inputs is not None:
        specs = list(inputs)
    elif example is not None:
        specs = _from_example(function, example, plain)
    else:
        specs, scalars = _from_hints(function, hints, plain, batched or per_row)
    by_name = {p.name for p in plain}
    keyword = any(p.kind is p.VAR_KEYWORD for p in takes)
    positional = not takes_stream and not (all(spec.name in by_name for spec in specs) or keyword)
    positional = positional or any(p.kind is p.POSITIONAL_ONLY for p in plain)
    if positional and parameters and len(specs) > len(plain) and not _variadic(takes):
        raise ValueError(
            f"{_name(function)} takes {', '.join(sorted(by_name)) or 'no inputs'}; "
            f"the inputs given are {', '.join(spec.name for spec in specs)}"
        )
    return Call(
        signature=Signature(specs, _outputs(outputs, hints, bool(scalars) or per_row)),
        names=tuple(spec.name for spec in specs),
        positional=positional,
        context=context,
        state=takes_state,
        scalars=scalars,
        per_row=per_row or bool(scalars),
        streams=streams or takes_stream,
        asynchronous=asynchronous,
        takes_stream=takes_stream,
    )


def spec_of(name: str, array: np.ndarray[Any, Any]) -> TensorSpec:
    """Return the specification of arrays like this one, with any number of rows.

    Raises:
        InvalidInput: Its dtype has no datatype.
    """
    shape = (-1, *array.shape[1:]) if array.ndim else ()
    return TensorSpec(name, datatype_of(array.dtype), shape)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _is(function: Callable[..., Any], test: Callable[[Any], bool]) -> bool:
    inner = inspect.unwrap(function)
    while hasattr(inner, "func"):  # functools.partial
        inner = inner.func
    return test(inner) or test(getattr(inner, "__call__", None))  # noqa: B004 - an object's own


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    target = function
    while hasattr(target, "func"):
        target = target.func
    if not (inspect.isroutine(target) or inspect.isclass(target)):
        target = type(target).__call__
    try:
        return typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError, AttributeError):
        # Names that exist only for the type checker: what can be read without them is enough.
        hints = dict(getattr(target, "__annotations__", {}))
        for name, hint in hints.items():
            if isinstance(hint, str) and hint.rpartition(".")[2] == "Context":
                hints[name] = Context
        return hints


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # some built-in functions do not tell
        return []


def _variadic(parameters: Sequence[inspect.Parameter]) -> bool:
    return any(p.kind is p.VAR_POSITIONAL for p in parameters)


def _from_example(
    function: Callable[..., Any], example: Any, parameters: Sequence[inspect.Parameter]
) -> list[TensorSpec]:
    if not isinstance(example, Mapping):
        example = {parameters[0].name if parameters else "input": example}
    specs = []
    for name, value in example.items():
        try:
            specs.append(spec_of(name, np.asarray(value)))
        except InvalidInput as error:
            raise ValueError(f"{_name(function)}: example for {name}: {error}") from error
    return specs


def _from_hints(
    function: Callable[..., Any],
    hints: Mapping[str, Any],
    parameters: Sequence[inspect.Parameter],
    rows: bool,
) -> tuple[list[TensorSpec], dict[str, type]]:
    specs: list[TensorSpec] = []
    scalars: dict[str, type] = {}
    for parameter in parameters:
        hint = hints.get(parameter.name)
        if get_origin(hint) in _ITERATORS:
            hint = get_args(hint)[0]
            if get_origin(hint) in (dict, collections.abc.Mapping) or hint in (dict, Any):
                raise ValueError(
                    f"{_name(function)}: a stream of several tensors needs inputs=[TensorSpec(...)]"
                )
        spec = _from_hint(parameter.name, hint)
        if spec is None:
            raise ValueError(
                f"{_name(function)}: nothing tells what parameter {parameter.name} takes. Give "
                "inputs=[TensorSpec(...)], an example=, or a type hint such as float, str, "
                "NDArray[np.float32] or Annotated[np.ndarray, TensorSpec(...)]"
            )
        if _scalar(hint) is not None:
            scalars[parameter.name] = typing.cast(type, hint)
        if parameter.default is not parameter.empty:
            spec = TensorSpec(spec.name, spec.datatype, spec.shape, optional=True)
        specs.append(spec)
    if not specs:
        raise ValueError(f"{_name(function)} takes no inputs")
    if scalars and len(scalars) < len(specs):
        arrays = [spec.name for spec in specs if spec.name not in scalars]
        raise ValueError(
            f"{_name(function)} mixes single values ({', '.join(scalars)}) with arrays "
            f"({', '.join(arrays)}); give inputs=[TensorSpec(...)]"
        )
    return specs, scalars


def _scalar(hint: Any) -> str | None:
    if hint in _SCALARS:
        return _SCALARS[hint]
    if isinstance(hint, type) and issubclass(hint, np.generic):
        return datatype_of(hint)
    return None


def _from_hint(name: str, hint: Any) -> TensorSpec | None:
    if get_origin(hint) is Annotated:
        for extra in get_args(hint)[1:]:
            if isinstance(extra, TensorSpec):
                return TensorSpec(name, extra.datatype, extra.shape, extra.optional)
        hint = get_args(hint)[0]
    if (datatype := _scalar(hint)) is not None:
        return TensorSpec(name, datatype, (-1,))  # type: ignore[arg-type]  # from the table above
    if get_origin(hint) is np.ndarray:
        # NDArray[np.float32] is np.ndarray[Any, np.dtype[np.float32]].
        arguments = get_args(get_args(hint)[1])
        if arguments and isinstance(arguments[0], type) and issubclass(arguments[0], np.generic):
            try:
                return TensorSpec(name, datatype_of(arguments[0]))
            except (InvalidInput, TypeError):
                return None
    return None


def _outputs(
    outputs: Sequence[TensorSpec] | None, hints: Mapping[str, Any], single: bool
) -> Sequence[TensorSpec]:
    if outputs is not None:
        return outputs
    hint = hints.get("return")
    if get_origin(hint) in (*_ITERATORS, collections.abc.Generator, collections.abc.AsyncGenerator):
        hint = get_args(hint)[0]
    spec = _from_hint("output", hint)
    if spec is None or (_scalar(hint) is not None and not single):
        return ()
    return (spec,)
