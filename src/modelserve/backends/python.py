"""A Python callable as a backend: one object for each instance, with what `setup` loaded for it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from modelserve.backends.functions import Call, read_function, spec_of
from modelserve.errors import BackendError, InvalidInput, LoadError
from modelserve.messages import Context
from modelserve.protocols import Traits
from modelserve.tensors import (
    Datatype,
    Signature,
    Tensor,
    TensorSpec,
    as_bytes_tensor,
    as_tensor,
    datatype_of,
    numpy_dtype,
)

__all__ = ["PythonBackend"]

_NO_CONTEXT: Final = Context()
_MISSING: Final = object()


class PythonBackend:
    """Runs a predict function.

    The function gets read-only arrays. A plain function is called on one thread of its own, the one
    `setup` ran on (with `concurrency`, on so many threads); a coroutine function or asynchronous
    generator on one event loop, the one `setup` ran on; a generator on a thread for each stream.

    Args:
        function: Function, coroutine function, generator, asynchronous generator, or any callable.
            It returns a mapping of output names to arrays, or one array, or a tuple of arrays; in a
            list of rows an element may be an exception, which then fails that row alone. A
            generator yields the same.
        inputs: What it takes; else read from `example` or the type hints.
        outputs: What it returns: names, datatypes and shapes are held to; else read from the return
            hint, or learned (names and datatypes) by running the example.
        example: A request's array for the first parameter, or its arrays by name.
        per_row: Whether the function takes one row without the batch axis. Type hints of single
            values (`float`, `str`, ...) imply it. A stream's request then has one row.
        setup: Called once for each instance; what it returns is the function's first argument. It
            gets the instance's number if it has a parameter without default, may be a generator
            that cleans up after its `yield`, and asynchronous where the function is.
        retry: Whether calling the function twice does no harm: a failed batch is then run again in
            halves, so that only the guilty rows fail.
        concurrency: How many calls may be under way at once in one instance; without, 1 for a
            function, 64 for a coroutine function or generator, 1024 for an asynchronous generator.
        instance: Number of this instance.

    Raises:
        TypeError: The function is no callable, or a class.
        ValueError: The inputs cannot be told, or contradict the function's parameters.

    Example:
        >>> backend = PythonBackend(lambda x: x * 2, inputs=[TensorSpec("x", "FP32", (-1,))])
        >>> backend.run({"x": np.ones(2, np.float32)})
        {'output': array([2., 2.], dtype=float32)}
    """

    platform: Final = "python"

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        inputs: Sequence[TensorSpec] | None = None,
        outputs: Sequence[TensorSpec] | None = None,
        example: Any = None,
        per_row: bool = False,
        setup: Callable[..., Any] | None = None,
        retry: bool = False,
        concurrency: int | None = None,
        instance: int = 0,
    ) -> None:
        self._function = function
        self._call: Call = read_function(
            function,
            inputs=inputs,
            outputs=outputs,
            example=example,
            per_row=per_row,
            state=setup is not None,
        )
        if concurrency is not None and concurrency < 1:
            raise ValueError(f"{self._call.name}: concurrency is at least 1, got {concurrency}")
        self._setup = setup
        self._setup_arguments = _setup_arguments(self._call, setup, instance)
        self._state: Any = None
        self._cleanup: Any = None
        self.signature = self._call.signature
        self._shapes = {spec.name: spec.shape for spec in self.signature.outputs}
        self._dtypes = _dtypes(self.signature)
        self.example = self._example(example)
        """Inputs to try the function with when it is loaded, or None."""
        self.per_row = self._call.per_row
        self.traits = Traits(
            repeatable=retry,
            context=bool(self._call.context),
            asynchronous=self._call.asynchronous,
            streams=self._call.streams,
            takes_stream=bool(self._call.stream),
            concurrency=concurrency or _concurrency(self._call),
            opens=setup is not None,
        )
        if self._call.streams:
            self.stream = self._astream if self._call.asynchronous else self._stream
        elif self._call.asynchronous:
            self.run = self._arun  # type: ignore[assignment,method-assign]  # as its traits say

    def _example(self, example: Any) -> Mapping[str, Tensor] | None:
        if example is None or self._call.stream:
            return None
        if not isinstance(example, Mapping):
            example = {self.signature.inputs[0].name: example}
        try:
            checked, _ = self.signature.validate(
                {name: np.asarray(value) for name, value in example.items()}, batched=False
            )
            if self._call.per_row:
                _count(checked)
        except InvalidInput as error:
            raise ValueError(f"{self._call.name}: example: {error}") from error
        return checked

    # ------------------------------------------------------------------ life

    def open(self) -> Any:
        """Run `setup`; a coroutine where the function is one.

        Raises:
            LoadError: It failed; its cause is chained.
        """
        if self._call.asynchronous:
            return self._aopen()
        try:
            value = self._make_state()
            if inspect.isgenerator(value):
                self._cleanup, value = value, _first(next(value, _MISSING))
        except Exception as error:  # the boundary around user code
            raise self._setup_failed(error) from error
        self._state = value
        return None

    async def _aopen(self) -> None:
        try:
            value = self._make_state()
            if inspect.isasyncgen(value):
                self._cleanup, value = value, _first(await anext(value, _MISSING))
            elif inspect.isgenerator(value):
                self._cleanup, value = value, _first(next(value, _MISSING))
            elif inspect.isawaitable(value):
                value = await value
        except Exception as error:  # the boundary around user code
            raise self._setup_failed(error) from error
        self._state = value

    def _make_state(self) -> Any:
        assert self._setup is not None
        return self._setup(*self._setup_arguments)

    def _setup_failed(self, error: Exception) -> LoadError:
        return LoadError(f"setup of {self._call.name} failed: {type(error).__name__}: {error}")

    def close(self) -> Any:
        """Let `setup` clean up; a coroutine where the function is one."""
        cleanup, self._cleanup = self._cleanup, None
        self._state = None
        if inspect.isasyncgen(cleanup):
            return _finish_async(cleanup)
        if cleanup is not None:
            next(cleanup, None)
        return None

    # ------------------------------------------------------------------ calls

    def run(
        self, inputs: Mapping[str, Tensor], context: Context = _NO_CONTEXT
    ) -> Mapping[str, Any]:
        """Call the function on a batch, or on each of its rows; returns outputs by name."""
        if self._call.per_row:
            return self._columns([self._row(row, context) for row in self._rows(inputs)])
        return self._named(self._invoke(inputs, context))

    async def _arun(
        self, inputs: Mapping[str, Tensor], context: Context = _NO_CONTEXT
    ) -> Mapping[str, Any]:
        if self._call.per_row:
            rows = [self._arow(row, context) for row in self._rows(inputs)]
            return self._columns(await asyncio.gather(*rows))
        return self._named(await _awaited(self._invoke(inputs, context)))

    def _row(
        self, row: Mapping[str, Any] | Exception, context: Context
    ) -> Mapping[str, Any] | Exception:
        if isinstance(row, Exception):
            return row
        try:
            return self._split(self._invoke(row, context))
        except Exception as error:  # the boundary around user code: one row fails, not the batch
            return error

    async def _arow(
        self, row: Mapping[str, Any] | Exception, context: Context
    ) -> Mapping[str, Any] | Exception:
        if isinstance(row, Exception):
            return row
        try:
            return self._split(await _awaited(self._invoke(row, context)))
        except Exception as error:  # the boundary around user code: one row fails, not the batch
            return error

    def _stream(self, inputs: Any, context: Context = _NO_CONTEXT) -> Iterator[Mapping[str, Any]]:
        """Yield outputs; `inputs` is a mapping, or an iterator of mappings for a stream in."""
        result = self._invoke(self._request(inputs), context)
        if not isinstance(result, Iterator):
            yield self._item(result)
            return
        try:
            for value in result:
                yield self._item(value)
        finally:
            if hasattr(result, "close"):
                result.close()

    async def _astream(
        self, inputs: Any, context: Context = _NO_CONTEXT
    ) -> AsyncIterator[Mapping[str, Any]]:
        result = self._invoke(self._request(inputs), context)
        if inspect.isawaitable(result):
            yield self._item(await result)
            return
        try:
            async for value in result:
                yield self._item(value)
        finally:
            if hasattr(result, "aclose"):
                await result.aclose()

    # ------------------------------------------------------------------ arguments

    def _invoke(self, inputs: Mapping[str, Any], context: Context) -> Any:
        call = self._call
        arguments = [self._state] if call.state else []
        if call.stream:
            keyword: dict[str, Any] = {call.stream: inputs[call.stream]}
            if call.positional:
                arguments.append(keyword.pop(call.stream))
        elif call.positional:
            names = list(call.parameters)[: call.positional]
            given = [name for name in names if name in inputs]
            if given != names[: len(given)]:
                left_out = next(name for name in names if name not in inputs)
                raise InvalidInput(
                    f'input "{left_out}" may be left out only with those after it', path="inputs"
                )
            arguments += [_frozen(inputs[name]) for name in given]
            keyword = {
                call.parameters[name]: _frozen(value)
                for name, value in inputs.items()
                if name not in given
            }
        else:
            keyword = {call.parameters[name]: _frozen(value) for name, value in inputs.items()}
        if call.context:
            keyword[call.context] = context
        return self._function(*arguments, **keyword)

    def _request(self, inputs: Any) -> Mapping[str, Any]:
        """Return what a stream's function is called with."""
        if self._call.stream:
            return {self._call.stream: self._requests(inputs)}
        return self._only_row(inputs) if self._call.per_row else inputs

    def _requests(self, inputs: Any) -> Any:
        """Return the requests' tensors as the function reads them: one input's alone."""

        def item(tensors: Mapping[str, Tensor]) -> Any:
            row = self._only_row(tensors) if self._call.per_row else tensors
            if self._call.mappings:
                return {name: _frozen(value) for name, value in row.items()}
            return _frozen(next(iter(row.values())))

        if self._call.asynchronous:
            return (item(tensors) async for tensors in inputs)
        return (item(tensors) for tensors in inputs)

    def _only_row(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        rows = list(self._rows(inputs))
        if len(rows) != 1:
            raise InvalidInput(f"a stream takes one row, got {len(rows)}", path="inputs")
        row = rows[0]
        if isinstance(row, Exception):
            raise row
        return row

    def _rows(self, inputs: Mapping[str, Tensor]) -> Iterable[dict[str, Any] | Exception]:
        scalars = self._call.scalars
        columns = [
            (name, _column(tensor, scalars.get(name)), scalars.get(name) is str)
            for name, tensor in inputs.items()
        ]
        for index in range(_count(inputs)):
            row = {}
            try:
                for name, column, text in columns:
                    value = column[index]
                    row[name] = value.decode() if text and isinstance(value, bytes) else value
            except UnicodeDecodeError as error:
                yield InvalidInput(f"row {index} is not UTF-8 text: {error}", path=f'"{name}"')
            else:
                yield row

    # ------------------------------------------------------------------ results

    def _split(self, value: Any) -> Mapping[str, Any]:
        """Return the function's result as values by output name."""
        if isinstance(value, Exception):
            raise value
        if isinstance(value, Mapping):
            return value
        specs = self.signature.outputs
        if isinstance(value, tuple):
            names = [spec.name for spec in specs] or [f"output_{i}" for i in range(len(value))]
            if len(names) != len(value):
                raise BackendError(
                    f"{self._call.name} returned {len(value)} outputs; declared: {', '.join(names)}"
                )
            return dict(zip(names, value, strict=True))
        if inspect.iscoroutine(value):
            value.close()
            raise BackendError(
                f"{self._call.name} returned a coroutine; declare it with `async def`"
            )
        return {specs[0].name if len(specs) == 1 else "output": value}

    def _named(self, value: Any) -> dict[str, Any]:
        """Return the function's result as tensors by output name, as declared."""
        outputs = dict(self._split(value))
        for spec in self.signature.outputs:
            if spec.name not in outputs:
                raise BackendError(
                    f'output "{spec.name}" is declared, and {self._call.name} returned '
                    f"{', '.join(map(str, outputs)) or 'nothing'}"
                )
            outputs[spec.name] = self._declared(outputs[spec.name], spec)
        if len(outputs) > len(self.signature.outputs):
            known = {spec.name for spec in self.signature.outputs}
            for name, found in outputs.items():
                if name not in known:
                    outputs[name] = _by_row(name, found, None)
        return outputs

    def _declared(self, value: Any, spec: TensorSpec) -> Any:
        if type(value) is not np.ndarray or value.dtype != self._dtypes.get(spec.name):
            value = _by_row(spec.name, value, spec.datatype)
        # What was learned from an example is one shape among others.
        shape = self._shapes.get(spec.name)
        if shape is None:
            return value
        if isinstance(value, list):
            wrong = [_misfit(spec.name, (len(value), *np.shape(row)), shape) for row in value]
            return [
                row if isinstance(row, Exception) else error or row
                for row, error in zip(value, wrong, strict=True)
            ]
        if (error := _misfit(spec.name, value.shape, shape)) is not None:
            raise error
        return value

    def _item(self, value: Any) -> dict[str, Any]:
        """Return what a generator yielded as tensors; a single row gets its batch axis back."""
        if not self._call.per_row:
            return self._named(value)
        return self._named({name: [one] for name, one in self._split(value).items()})

    def _columns(self, rows: Sequence[Mapping[str, Any] | Exception]) -> dict[str, Any]:
        """Turn outputs by row into rows by output; a failed row fails in every output."""
        good = [row for row in rows if not isinstance(row, Exception)]
        names = list(good[0]) if good else [s.name for s in self.signature.outputs] or ["output"]
        for row in good:
            if row.keys() != good[0].keys():
                raise BackendError(
                    f"{self._call.name} returned {', '.join(names)} for one row and "
                    f"{', '.join(row)} for another"
                )
        return self._named(
            {
                name: [row if isinstance(row, Exception) else row[name] for row in rows]
                for name in names
            }
        )

    def learn_outputs(self, outputs: Mapping[str, Tensor]) -> None:
        """Take the outputs' specifications from what the example gave, where none are declared."""
        if self.signature.outputs:
            return
        specs = [spec_of(name, np.asarray(value)) for name, value in outputs.items()]
        self.signature = Signature(self.signature.inputs, specs)
        self._dtypes = _dtypes(self.signature)


def _concurrency(call: Call) -> int:
    # An await or a yield leaves the instance free for the next caller; a plain call does not.
    if call.asynchronous:
        return 1024 if call.streams else 64
    return 64 if call.streams else 1


def _setup_arguments(
    call: Call, setup: Callable[..., Any] | None, instance: int
) -> tuple[int, ...]:
    """Return the instance's number where `setup` asks for it."""
    if setup is None:
        return ()
    if not callable(setup):
        raise TypeError(f"{call.name}: setup is a callable, got {type(setup).__name__}")
    if not call.asynchronous and (
        inspect.iscoroutinefunction(setup) or inspect.isasyncgenfunction(setup)
    ):
        raise ValueError(
            f"{call.name}: setup is asynchronous and the function is not; make both `async def`, "
            "or neither"
        )
    try:
        parameters = inspect.signature(setup).parameters.values()
    except (ValueError, TypeError):  # some built-in classes do not tell
        return ()
    needed = [
        p
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(needed) > 1 or any(p.kind is p.KEYWORD_ONLY for p in needed):
        raise ValueError(
            f"{call.name}: setup gets the instance's number and nothing else, and needs "
            f"{', '.join(p.name for p in needed)}; bind them with functools.partial"
        )
    return (instance,) * len(needed)


def _first(yielded: Any) -> Any:
    if yielded is _MISSING:
        raise RuntimeError("it is a generator that yielded nothing")
    return yielded


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _count(inputs: Mapping[str, Tensor]) -> int:
    """Return how many rows inputs have; no input is one row of nothing."""
    sizes = {name: tensor.shape[0] if tensor.ndim else -1 for name, tensor in inputs.items()}
    if len(set(sizes.values())) > 1 or -1 in sizes.values():
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
        raise InvalidInput(f"expected as many rows in each, got {shapes}", path="inputs")
    return next(iter(sizes.values()), 1)


def _column(tensor: Tensor, kind: type | None) -> Any:
    """Return what gives a row by its index: Python's own values where those are hinted."""
    return tensor if kind is None or issubclass(kind, np.generic) else tensor.tolist()


def _dtypes(signature: Signature) -> dict[str, np.dtype[Any]]:
    """Return the dtypes of outputs that need no more than to have them."""
    return {
        spec.name: numpy_dtype(spec.datatype)
        for spec in signature.outputs
        if spec.datatype != "BYTES"
    }


def _frozen(value: Any) -> Any:
    """Return a read-only view: a binary request's tensors are views of what was received."""
    if isinstance(value, np.ndarray) and value.flags.writeable:
        value = value.view()
        value.flags.writeable = False
    return value


def _by_row(name: str, value: Any, datatype: Datatype | None) -> Any:
    """Return an output as a tensor; as a list of rows where some failed or differ in shape.

    In a list each row is what it would be alone.
    """
    if not isinstance(value, list) or not (
        any(isinstance(row, Exception) for row in value) or _is_ragged(value)
    ):
        return _tensor(name, value, datatype)
    return [
        row if isinstance(row, Exception) else _tensor(name, [row], datatype)[0] for row in value
    ]


def _is_ragged(rows: list[Any]) -> bool:
    try:
        return len({np.shape(row) for row in rows}) > 1
    except ValueError:  # within a row
        return False


def _tensor(name: str, value: Any, datatype: Datatype | None) -> Any:
    """Return an output as a tensor of its datatype, or of the one it has.

    Raises:
        BackendError: It cannot be one.
    """
    if not isinstance(value, np.ndarray) and hasattr(value, "__dlpack__"):
        return value
    try:
        array = _array(value)
        if datatype is None:
            datatype = datatype_of(array.dtype)
        if datatype == "BYTES":
            return as_bytes_tensor(array)
        dtype = numpy_dtype(datatype)
        if array.dtype == dtype:
            return array
        if isinstance(value, np.ndarray | np.generic):
            if not np.can_cast(array.dtype, dtype, "same_kind"):
                raise BackendError(f'output "{name}": expected {datatype}, got {array.dtype}')
            return array.astype(dtype)
        return as_tensor(value, datatype)
    except (InvalidInput, ValueError, TypeError) as error:
        raise BackendError(f'output "{name}": {error}') from error


def _array(value: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(value)
    if array.dtype.kind in "SU" and not isinstance(value, np.ndarray):
        # numpy's own text types cut off NUL bytes at the end, and make text of numbers beside it.
        return np.asarray(value, np.object_)
    return array


def _misfit(name: str, shape: Sequence[int], expected: Sequence[int]) -> BackendError | None:
    if len(shape) == len(expected) and all(
        size in (-1, found) for found, size in zip(shape, expected, strict=True)
    ):
        return None
    return BackendError(f'output "{name}": expected shape {expected}, got {tuple(shape)}')


async def _finish_async(cleanup: Any) -> None:
    await anext(cleanup, None)
