"""What a predict function takes and gives, read from its specifications, type hints or an example.

Only reads functions; calling them is `backends.python`.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Final, Union, get_args, get_origin

import numpy as np
from numpy.typing import NDArray

from modelserve.errors import InvalidInput
from modelserve.messages import Context
from modelserve.tensors import Datatype, Signature, TensorSpec, datatype_of, refuse_data_frame

__all__ = ["Call", "name_of", "read_function", "spec_of"]

_SCALARS: Final[dict[Any, Datatype]] = {
    float: "FP64",
    int: "INT64",
    bool: "BOOL",
    str: "BYTES",
    bytes: "BYTES",
}
_SYNC_ITERATORS: Final = (collections.abc.Iterator, collections.abc.Iterable)
_ASYNC_ITERATORS: Final = (collections.abc.AsyncIterator, collections.abc.AsyncIterable)
_ITERATORS: Final = (*_SYNC_ITERATORS, *_ASYNC_ITERATORS)
_GENERATORS: Final = (collections.abc.Generator, collections.abc.AsyncGenerator)
_MAPPINGS: Final = (dict, collections.abc.Mapping)
# Linters move imports that only annotations use below TYPE_CHECKING, and these are such.
_KNOWN_NAMES: Final[dict[str, Any]] = {
    **{hint.__name__: hint for hint in (*_ITERATORS, *_GENERATORS, collections.abc.Mapping)},
    "Annotated": Annotated,
    "Any": Any,
    "Context": Context,
    "NDArray": NDArray,
    "TensorSpec": TensorSpec,
    "np": np,
}
_HOW_TO_TELL: Final = (
    "Give inputs=[TensorSpec(...)], an example=, or a type hint such as float, str, "
    "NDArray[np.float32] or Annotated[np.ndarray, TensorSpec(...)]"
)


@dataclass(frozen=True, slots=True)
class Call:
    """How to call one predict function.

    Args:
        name: The function's name, for messages.
        signature: Inputs and outputs as requests see them.
        parameters: The function's parameter for each input; those passed by position are first.
        positional: How many are passed by position.
        context: Name of the parameter that takes the `Context`, or empty.
        state: Whether the first argument is what `setup` returned.
        scalars: Inputs passed as plain Python values, with their types; rows are then single.
        per_row: Whether the function takes one row at a time.
        streams: Whether it is a generator or asynchronous generator function, or takes a stream.
        asynchronous: Whether it is a coroutine or asynchronous generator function.
        stream: Name of the parameter that is an iterator over requests, or empty.
        mappings: Whether that iterator gives mappings of all inputs, not arrays of the only one.
    """

    name: str
    signature: Signature
    parameters: Mapping[str, str]
    positional: int
    context: str
    state: bool
    scalars: Mapping[str, type]
    per_row: bool
    streams: bool
    asynchronous: bool
    stream: str
    mappings: bool


def read_function(
    function: Callable[..., Any],
    *,
    inputs: Sequence[TensorSpec] | None = None,
    outputs: Sequence[TensorSpec] | None = None,
    example: Any = None,
    per_row: bool = False,
    state: bool = False,
) -> Call:
    """Find out how to call a predict function.

    Inputs come from `inputs`, else from `example`, else from the type hints; never from traffic.

    Args:
        function: Function, coroutine function, generator, asynchronous generator, or any callable.
        inputs: Specifications, named as the parameters or in their order.
        outputs: Specifications of what it returns, in order.
        example: A request's array for the first parameter, or its arrays by name.
        per_row: Whether the function takes one row.
        state: Whether the first parameter takes what `setup` returned.

    Raises:
        TypeError: It is no callable, or a class.
        ValueError: The inputs cannot be told, or contradict the function's parameters.
    """
    read = _Reading(function, state)
    asynchronous, generates = _kind(function)
    stream = read.stream(asynchronous)
    if inputs is not None:
        specs = list(inputs)
    elif example is not None:
        specs = read.from_example(example)
    else:
        specs = read.from_hints()
    parameters, positional = read.assigned(specs, stream)
    scalars = read.scalars(specs, parameters)
    if scalars and len(scalars) < len(specs) and not per_row:
        if inputs is None and example is None:
            read.refuse_mixture(specs, scalars)
        scalars = {}
    per_row = per_row or bool(scalars)
    return Call(
        name=read.name,
        signature=Signature(specs, _outputs(outputs, read.hints, per_row)),
        parameters=parameters,
        positional=positional,
        context=read.context,
        state=state,
        scalars=scalars,
        per_row=per_row,
        streams=generates or bool(stream),
        asynchronous=asynchronous,
        stream=stream,
        mappings=bool(stream) and (len(specs) != 1 or _gives_mappings(read.hints[stream])),
    )


def spec_of(name: str, array: np.ndarray[Any, Any]) -> TensorSpec:
    """Return the specification of arrays like this one, with any number of rows.

    Raises:
        InvalidInput: Its dtype has no datatype.
    """
    shape = (-1, *array.shape[1:]) if array.ndim else ()
    return TensorSpec(name, datatype_of(array.dtype), shape)


def name_of(function: Callable[..., Any]) -> str:
    """Return a callable's name; an object's, its class's."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


class _Reading:
    """One function's parameters and hints, sorted by what they are for."""

    def __init__(self, function: Callable[..., Any], state: bool) -> None:
        if not callable(function):
            raise TypeError(f"a model is made of a callable, got {type(function).__name__}")
        self.name = name = name_of(function)
        if inspect.isclass(function):
            raise TypeError(
                f"{name} is a class: give an object of it, or a function with setup={name}"
            )
        self.hints = _hints(function)
        known = _parameters(function)
        parameters = known or []
        self.context = next((p.name for p in parameters if self._is_context(p)), "")
        self._check_first(function, parameters, state)
        takes = [p for p in parameters[1 if state else 0 :] if p.name != self.context]
        self.variadic = known is None or any(p.kind is p.VAR_POSITIONAL for p in takes)
        self.keywords = any(p.kind is p.VAR_KEYWORD for p in takes)
        self.plain = {p.name: p for p in takes if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    def _is_context(self, parameter: inspect.Parameter) -> bool:
        hint = self.hints.get(parameter.name)
        if isinstance(hint, str):
            hint = hint.removesuffix(" | None").rpartition(".")[2]
            return hint == "Context"
        found = _without_none(hint) is Context
        if found and parameter.kind is parameter.POSITIONAL_ONLY:
            raise ValueError(
                f"{self.name}: parameter {parameter.name} takes the Context by name, so it cannot "
                "stand before the /"
            )
        return found

    def _check_first(
        self, function: Callable[..., Any], parameters: Sequence[inspect.Parameter], state: bool
    ) -> None:
        first = parameters[0].name if parameters else ""
        if first == "self" and inspect.isfunction(inspect.unwrap(function)) and not state:
            raise ValueError(
                f"{self.name} is a method without its object: make the model of an object's, "
                f"model(Object().{self.name}), or let setup= return what self is"
            )
        if state and (not first or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY):
            raise ValueError(f"{self.name}: setup= is given, but no parameter takes its result")
        if state and first == self.context:
            raise ValueError(
                f"{self.name}: the first parameter takes what setup= returns, and {first} is "
                "annotated Context; put it after"
            )

    # ------------------------------------------------------------------ a stream in

    def stream(self, asynchronous: bool) -> str:
        """Return the parameter that is an iterator over requests, or nothing."""
        found = [name for name in self.plain if _is_iterator(self.hints.get(name), _ITERATORS)]
        if not found:
            return ""
        stream = found[0]
        others = [n for n, p in self.plain.items() if n != stream and p.default is p.empty]
        if others:
            raise ValueError(
                f"{self.name}: {stream} takes a stream of requests, so {', '.join(others)} gets "
                "nothing; let the stream give mappings of all inputs"
            )
        right = _ASYNC_ITERATORS if asynchronous else _SYNC_ITERATORS
        if not _is_iterator(self.hints[stream], right):
            raise ValueError(
                f"{self.name}: {stream} must be annotated "
                + ("AsyncIterator, as the function is asynchronous" if asynchronous else "")
                + ("" if asynchronous else "Iterator, or the function be asynchronous")
            )
        return stream

    # ------------------------------------------------------------------ specifications

    def from_example(self, example: Any) -> list[TensorSpec]:
        """Read specifications from a request's arrays."""
        if not isinstance(example, Mapping):
            example = {next(iter(self.plain), "input"): example}
        specs = []
        for name, value in example.items():
            try:
                refuse_data_frame(value)
                spec = spec_of(name, np.asarray(value))
            except (InvalidInput, ValueError) as error:
                raise ValueError(f"{self.name}: example for {name}: {error}") from error
            known = self.plain.get(name)
            optional = known is not None and known.default is not known.empty
            specs.append(TensorSpec(name, spec.datatype, spec.shape, optional))
        if specs and all(spec.optional for spec in specs):
            specs[0] = TensorSpec(specs[0].name, specs[0].datatype, specs[0].shape)
        return specs

    def from_hints(self) -> list[TensorSpec]:
        """Read specifications from the type hints."""
        specs = []
        for parameter in self.plain.values():
            hint = self.hints.get(parameter.name)
            default = parameter.default is not parameter.empty
            if hint is None and default:
                continue  # an option of the function's, not an input
            spec = self._from_hint(parameter.name, hint)
            specs.append(TensorSpec(spec.name, spec.datatype, spec.shape, default or spec.optional))
        if not specs:
            raise ValueError(f"{self.name} takes no inputs. {_HOW_TO_TELL}")
        return specs

    def _from_hint(self, name: str, hint: Any) -> TensorSpec:
        if _is_iterator(hint, _ITERATORS):
            if _gives_mappings(hint):
                raise ValueError(
                    f"{self.name}: a stream of several tensors needs inputs=[TensorSpec(...)]"
                )
            hint = next(iter(get_args(hint)), None)
        spec = _from_hint(name, hint)
        if spec is None:
            why = f'; its hint "{hint}" cannot be read when it runs' * isinstance(hint, str)
            raise ValueError(
                f"{self.name}: nothing tells what parameter {name} takes{why}. {_HOW_TO_TELL}"
            )
        return spec

    def scalars(
        self, specs: Sequence[TensorSpec], parameters: Mapping[str, str]
    ) -> dict[str, type]:
        """Return the inputs whose parameters are hinted as single values, with their types."""
        found = {}
        for spec in specs:
            hint = self.hints.get(parameters.get(spec.name, spec.name))
            if _is_iterator(hint, _ITERATORS):
                hint = next(iter(get_args(hint)), None)
            hint = _bare(hint)
            if _scalar(hint) is not None and (spec.shape is None or len(spec.shape) == 1):
                found[spec.name] = typing.cast(type, hint)
        return found

    def refuse_mixture(self, specs: Sequence[TensorSpec], scalars: Mapping[str, type]) -> None:
        """Say that single values and arrays cannot be told apart by rows."""
        arrays = [spec.name for spec in specs if spec.name not in scalars]
        raise ValueError(
            f"{self.name} mixes single values ({', '.join(scalars)}) with arrays "
            f"({', '.join(arrays)}): give per_row=True if it takes one row of each, or "
            "inputs=[TensorSpec(...)] if it takes arrays of all rows"
        )

    # ------------------------------------------------------------------ inputs to parameters

    def assigned(self, specs: Sequence[TensorSpec], stream: str) -> tuple[dict[str, str], int]:
        """Return the parameter for each input, and how many go by position."""
        names = [spec.name for spec in specs]
        if stream:
            return dict.fromkeys(names, stream), int(self._is_positional(stream))
        parameters = self._matched(names)
        if parameters is None:
            return {name: name for name in names}, len(names)
        self._check_left(specs, parameters)
        order = list(self.plain)
        by_position = sorted(
            (name for name in names if self._is_positional(parameters[name])),
            key=lambda name: order.index(parameters[name]),
        )
        rest = [name for name in names if name not in by_position]
        return {name: parameters[name] for name in (*by_position, *rest)}, len(by_position)

    def _matched(self, names: Sequence[str]) -> dict[str, str] | None:
        """Match inputs with parameters, by name or in order; None where only `*args` takes them."""
        known = [name for name in names if name in self.plain]
        left = {n for n, p in self.plain.items() if p.default is p.empty} - set(known)
        if len(known) == len(names) or (self.keywords and not left):
            return {name: name for name in names}
        if self.variadic:
            return None
        parameters = dict(zip(names, self.plain, strict=False))
        if len(names) > len(self.plain) or any(parameters[name] != name for name in known):
            raise ValueError(
                f"{self.name} takes {', '.join(self.plain) or 'no inputs'}; the inputs given are "
                f"{', '.join(names)}"
            )
        return parameters

    def _is_positional(self, parameter: str) -> bool:
        found = self.plain.get(parameter)
        return found is not None and found.kind is found.POSITIONAL_ONLY

    def _check_left(self, specs: Sequence[TensorSpec], parameters: Mapping[str, str]) -> None:
        given = set(parameters.values())
        for name, parameter in self.plain.items():
            if parameter.default is parameter.empty and name not in given:
                raise ValueError(
                    f"{self.name}: parameter {name} gets no input; the inputs given are "
                    f"{', '.join(parameters) or 'none'}. Add one for it, or give it a default"
                )
        for spec in specs:
            known = self.plain.get(parameters[spec.name])
            if spec.optional and known is not None and known.default is known.empty:
                raise ValueError(
                    f'{self.name}: input "{spec.name}" is optional, but parameter {known.name} '
                    "has no default"
                )


# ---------------------------------------------------------------------- functions


def _layers(function: Callable[..., Any]) -> Iterator[Any]:
    """Walk from a callable to what it wraps: partials, decorators, an object's `__call__`."""
    seen: set[int] = set()
    layer: Any = function
    while layer is not None and id(layer) not in seen:
        seen.add(id(layer))
        yield layer
        partial = isinstance(layer, functools.partial)
        layer = layer.func if partial else getattr(layer, "__wrapped__", None)
    if not inspect.isroutine(function):
        yield getattr(type(function), "__call__", None)  # noqa: B004 - an object's own


def _kind(function: Callable[..., Any]) -> tuple[bool, bool]:
    """Tell whether a callable is asynchronous, and whether it generates."""
    for layer in _layers(function):
        if inspect.isasyncgenfunction(layer):
            return True, True
        if inspect.iscoroutinefunction(layer):
            return True, False
        if inspect.isgeneratorfunction(layer):
            return False, True
    return False, False


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # some built-in functions do not tell
        return None


# ---------------------------------------------------------------------- hints


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    target: Any = function
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target) and not hasattr(target, "__wrapped__"):
        target = type(target).__call__
    try:
        hints = typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError):
        # A name that is there only for the type checker spoils its own hint, not the others.
        names = {**_KNOWN_NAMES, **getattr(inspect.unwrap(target), "__globals__", {})}
        hints = {name: _resolved(hint, names) for name, hint in _annotations(target).items()}
    return {name: _expanded(hint) for name, hint in hints.items()}


def _annotations(target: Any) -> dict[str, Any]:
    try:
        return dict(getattr(target, "__annotations__", {}))
    except NameError:  # from Python 3.14 on they are evaluated when asked for
        annotationlib = import_module("annotationlib")
        return dict(annotationlib.get_annotations(target, format=annotationlib.Format.FORWARDREF))


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    """Return what a hint stands for, or its text where that cannot be told."""
    if isinstance(hint, typing.ForwardRef):
        hint = hint.__forward_arg__
    if not isinstance(hint, str):
        return hint
    holder = types.SimpleNamespace(__annotations__={"hint": hint})
    try:
        return typing.get_type_hints(holder, names, include_extras=True)["hint"]
    except (NameError, TypeError, AttributeError, SyntaxError):
        return hint


def _expanded(hint: Any) -> Any:
    """Return what a `type` alias stands for; numpy's own NDArray is one from 2.5 on."""
    while True:
        origin = get_origin(hint)
        if hasattr(origin, "__value__"):
            hint = origin.__value__[get_args(hint)]
        elif origin is None and hasattr(hint, "__value__"):
            hint = hint.__value__
        else:
            return hint


def _without_none(hint: Any) -> Any:
    hint = _expanded(hint)
    if get_origin(hint) in (Union, types.UnionType):
        rest = [one for one in get_args(hint) if one is not type(None)]
        if len(rest) == 1:
            return _expanded(rest[0])
    return hint


def _bare(hint: Any) -> Any:
    """Return a hint without `Annotated` and `| None`."""
    hint = _without_none(hint)
    return _without_none(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def _is_iterator(hint: Any, kinds: tuple[Any, ...]) -> bool:
    return (get_origin(hint) or hint) in kinds


def _gives_mappings(iterator: Any) -> bool:
    item = next(iter(get_args(iterator)), None)
    return item is Any or (get_origin(item) or item) in _MAPPINGS


def _scalar(hint: Any) -> Datatype | None:
    if not isinstance(hint, type):
        return None
    if hint in _SCALARS:
        return _SCALARS[hint]
    if issubclass(hint, np.generic):
        try:
            return datatype_of(hint)
        except (InvalidInput, TypeError):
            return None
    return None


def _from_hint(name: str, hint: Any) -> TensorSpec | None:
    hint = _without_none(hint)
    if get_origin(hint) is Annotated:
        for extra in get_args(hint)[1:]:
            if isinstance(extra, TensorSpec):
                return TensorSpec(name, extra.datatype, extra.shape, extra.optional)
        hint = _bare(hint)
    if (datatype := _scalar(hint)) is not None:
        return TensorSpec(name, datatype, (-1,))
    if get_origin(hint) is np.ndarray:
        # NDArray[np.float32] is np.ndarray[Any, np.dtype[np.float32]].
        arguments = get_args(get_args(hint)[-1])
        datatype = _scalar(arguments[0]) if arguments else None
        return None if datatype is None else TensorSpec(name, datatype)
    return None


def _outputs(
    outputs: Sequence[TensorSpec] | None, hints: Mapping[str, Any], per_row: bool
) -> Sequence[TensorSpec]:
    if outputs is not None:
        return outputs
    hint = hints.get("return")
    if get_origin(hint) in (*_ITERATORS, *_GENERATORS):
        hint = get_args(hint)[0]
    # The name in Annotated[..., TensorSpec("label", ...)] is the output's.
    extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    name = next((extra.name for extra in extras if isinstance(extra, TensorSpec)), "output")
    spec = _from_hint(name, hint)
    if spec is None or (_scalar(_bare(hint)) is not None and not extras and not per_row):
        return ()
    return (spec,)
