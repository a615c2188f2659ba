"""A Python callable as a backend: one object for each instance, with what `setup` loaded for it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from modelserve.backends.functions import Call, read_function, spec_of
from modelserve.errors import BackendError
from modelserve.messages import Context
from modelserve.protocols import Traits
from modelserve.tensors import Signature, Tensor, TensorSpec, numpy_dtype

__all__ = ["PythonBackend"]

_NO_CONTEXT: Final = Context()
_MISSING: Final = object()


class PythonBackend:
    """Runs a predict function.

    The function gets read-only arrays, and is called on one thread (a coroutine function: on one
    event loop) of its own, the same on which `setup` ran.

    Args:
        function: Function, coroutine function, generator, asynchronous generator, or any callable.
            It returns a mapping of output names to arrays, or one array, or a tuple of arrays; in a
            list of rows an element may be an exception, which then fails that row alone.
        inputs: What it takes; else read from `example` or the type hints.
        outputs: What it returns; else read from the return hint or by running the example.
        example: An array for the first parameter, or arrays by name.
        max_batch_size: Most rows of a call; 0 hands each request over as it came.
        per_row: Whether the function takes one row without the batch axis. Type hints of single
            values (`float`, `str`, ...) imply it.
        setup: Called once for each instance; what it returns is the function's first argument. It
            may take the instance's number, and may be a generator that cleans up after its `yield`.
        retry: Whether calling the function twice does no harm: a failed batch is then run again in
            halves, so that only the guilty rows fail.
        concurrency: How many calls may be under way at once in one instance.
        instance: Number of this instance.

    Raises:
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
        max_batch_size: int = 0,
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
            batched=max_batch_size > 0,
            per_row=per_row,
            state=setup is not None,
        )
        self._setup = setup
        self._instance = instance
        self._state: Any = None
        self._cleanup: Any = None
        self.signature = self._call.signature
        self.example = self._example(example)
        """Inputs to try the function with when it is loaded, or None."""
        self.per_row = self._call.per_row
        self.traits = Traits(
            repeatable=retry,
            context=bool(self._call.context),
            asynchronous=self._call.asynchronous,
            streams=self._call.streams,
            takes_stream=self._call.takes_stream,
            concurrency=concurrency or _concurrency(self._call),
            opens=setup is not None,
        )
        if self._call.streams:
            self.stream = self._astream if self._call.asynchronous else self._stream
        elif self._call.asynchronous:
            self.run = self._arun  # type: ignore[assignment,method-assign]  # as its traits say

    def _example(self, example: Any) -> Mapping[str, Tensor] | None:
        if example is None or self._call.takes_stream:
            return None
        if not isinstance(example, Mapping):
            example = {self._call.names[0]: example}
        checked, _ = self.signature.validate(
            {name: np.asarray(value) for name, value in example.items()}, batched=False
        )
        return checked

    # ------------------------------------------------------------------ life

    def open(self) -> Any:
        """Run `setup`; a coroutine where the function is one."""
        if self._call.asynchronous:
            return self._aopen()
        value = self._make_state()
        if inspect.isgenerator(value):
            self._cleanup, value = value, next(value)
        self._state = value
        return None

    async def _aopen(self) -> None:
        value = self._make_state()
        if inspect.isasyncgen(value):
            self._cleanup, value = value, await anext(value)
        elif inspect.isgenerator(value):
            self._cleanup, value = value, next(value)
        elif inspect.isawaitable(value):
            value = await value
        self._state = value

    def _make_state(self) -> Any:
        assert self._setup is not None
        try:
            wants = len(inspect.signature(self._setup).parameters)
        except (ValueError, TypeError):
            wants = 0
        return self._setup(self._instance) if wants else self._setup()

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
        return self._named(
            self._function(*self._positional(inputs), **self._keyword(inputs, context))
        )

    async def _arun(
        self, inputs: Mapping[str, Tensor], context: Context = _NO_CONTEXT
    ) -> Mapping[str, Any]:
        if self._call.per_row:
            rows = [self._arow(row, context) for row in self._rows(inputs)]
            return self._columns(await asyncio.gather(*rows))
        return self._named(
            await self._function(*self._positional(inputs), **self._keyword(inputs, context))
        )

    def _row(self, row: Mapping[str, Any], context: Context) -> Mapping[str, Any] | Exception:
        try:
            return self._named(
                self._function(*self._positional(row), **self._keyword(row, context)), single=True
            )
        except Exception as error:  # the boundary around user code: one row fails, not the batch
            return error

    async def _arow(
        self, row: Mapping[str, Any], context: Context
    ) -> Mapping[str, Any] | Exception:
        try:
            return self._named(
                await self._function(*self._positional(row), **self._keyword(row, context)),
                single=True,
            )
        except Exception as error:  # the boundary around user code: one row fails, not the batch
            return error

    def _stream(self, inputs: Any, context: Context = _NO_CONTEXT) -> Iterator[Mapping[str, Any]]:
        """Yield outputs; `inputs` is a mapping, or an iterator of mappings for a stream in."""
        result = self._function(*self._positional(inputs), **self._keyword(inputs, context))
        if not inspect.isgenerator(result) and not isinstance(result, Iterator):
            result = iter((result,))
        try:
            for value in result:
                yield self._named(value)
        finally:
            if hasattr(result, "close"):
                result.close()

    async def _astream(
        self, inputs: Any, context: Context = _NO_CONTEXT
    ) -> AsyncIterator[Mapping[str, Any]]:
        result = self._function(*self._positional(inputs), **self._keyword(inputs, context))
        if inspect.isawaitable(result):
            yield self._named(await result)
            return
        try:
            async for value in result:
                yield self._named(value)
        finally:
            if hasattr(result, "aclose"):
                await result.aclose()

    def _positional(self, inputs: Any) -> list[Any]:
        arguments = [self._state] if self._call.state else []
        if self._call.takes_stream:
            arguments.append(self._requests(inputs))
        elif self._call.positional:
            arguments += [_frozen(inputs[name]) for name in self._call.names if name in inputs]
        return arguments

    def _keyword(self, inputs: Any, context: Context) -> dict[str, Any]:
        keyword: dict[str, Any] = {}
        if not self._call.positional and not self._call.takes_stream:
            keyword = {name: _frozen(value) for name, value in inputs.items()}
        if self._call.context:
            keyword[self._call.context] = context
        return keyword

    def _requests(self, inputs: Any) -> Any:
        """Return the requests' tensors as the function reads them: one input's alone."""
        only = self._call.names[0] if len(self._call.names) == 1 else None
        scalar = self._call.scalars.get(only) if only is not None else None

        def item(tensors: Mapping[str, Tensor]) -> Any:
            if only is None:
                return {name: _frozen(value) for name, value in tensors.items()}
            if scalar is not None:
                return _plain(tensors[only].ravel()[0], scalar)
            return _frozen(tensors[only])

        if self._call.asynchronous:
            return (item(tensors) async for tensors in inputs)
        return (item(tensors) for tensors in inputs)

    def _rows(self, inputs: Mapping[str, Tensor]) -> Iterable[dict[str, Any]]:
        count = len(next(iter(inputs.values())))
        scalars = self._call.scalars
        for index in range(count):
            row = {}
            for name, tensor in inputs.items():
                value = tensor[index]
                row[name] = _plain(value, scalars[name]) if name in scalars else value
            yield row

    def _named(self, value: Any, *, single: bool = False) -> dict[str, Any]:
        """Return the function's result as outputs by name, of the datatypes declared."""
        specs = self.signature.outputs
        if not isinstance(value, Mapping):
            if isinstance(value, tuple):
                names = [spec.name for spec in specs] or [f"output_{i}" for i in range(len(value))]
                if len(names) != len(value):
                    raise BackendError(f"returned {len(value)} outputs; {len(names)} are declared")
                value = dict(zip(names, value, strict=True))
            else:
                value = {specs[0].name if len(specs) == 1 else "output": value}
        outputs = dict(value)
        if single:
            return outputs
        for spec in specs:
            found = outputs.get(spec.name, _MISSING)
            if found is _MISSING:
                raise BackendError(
                    f'output "{spec.name}" is declared, and the function returned '
                    f"{', '.join(map(str, outputs)) or 'nothing'}"
                )
            outputs[spec.name] = _cast(found, spec)
        return outputs

    def _columns(self, rows: Sequence[Mapping[str, Any] | Exception]) -> dict[str, Any]:
        """Turn outputs by row into rows by output; a failed row fails in every output."""
        names = next((list(row) for row in rows if not isinstance(row, Exception)), ["output"])
        failed = any(isinstance(row, Exception) for row in rows)
        columns: dict[str, Any] = {}
        for name in names:
            values = [row if isinstance(row, Exception) else row[name] for row in rows]
            columns[name] = values if failed else np.asarray(values)
        return columns if failed else self._named(columns)

    def learn_outputs(self, outputs: Mapping[str, Tensor]) -> None:
        """Take the outputs' specifications from what the example gave, where none are declared."""
        if self.signature.outputs:
            return
        specs = [spec_of(name, np.asarray(value)) for name, value in outputs.items()]
        self.signature = Signature(self.signature.inputs, specs)


def _concurrency(call: Call) -> int:
    # An await or a yield leaves the instance free for the next caller; a plain call does not.
    if call.asynchronous:
        return 1024 if call.streams else 64
    return 64 if call.streams else 1


def _plain(value: Any, kind: type) -> Any:
    if kind is str and isinstance(value, bytes):
        return value.decode()
    if issubclass(kind, np.generic) or isinstance(value, bytes):
        return value
    return value.item()


def _frozen(value: Any) -> Any:
    """Return a read-only view: a binary request's tensors are views of what was received."""
    if isinstance(value, np.ndarray) and value.flags.writeable:
        value = value.view()
        value.flags.writeable = False
    return value


def _cast(value: Any, spec: TensorSpec) -> Any:
    if type(value) is list and any(isinstance(row, Exception) for row in value):
        return value
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack__"):
        array = np.asarray(value)
        dtype = numpy_dtype(spec.datatype)
        if spec.datatype == "BYTES" or array.dtype == dtype:
            return array
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise BackendError(f'output "{spec.name}": expected {spec.datatype}, got {array.dtype}')
        return array.astype(dtype)
    return value


async def _finish_async(cleanup: Any) -> None:
    await anext(cleanup, None)
