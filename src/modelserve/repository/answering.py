"""How a repository answers requests: it chooses a version, and passes the request on.

What is served is `repository.control`'s; `ModelRepository` puts both together.
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from typing import Any, Final

from modelserve.errors import LoadError, ServeError
from modelserve.execution.batcher import BatcherClosed
from modelserve.execution.nested import chain
from modelserve.execution.waiting import Awaited, Done, Joined, RecordAll, code_of
from modelserve.messages import Exchange, InferRequest, InferResponse, Parameters
from modelserve.protocols import Ticket
from modelserve.repository.control import Control
from modelserve.repository.models import ModelEntry
from modelserve.repository.versions import ModelVersion
from modelserve.tensors import Tensor

__all__ = ["Answering"]

_NONE: Final[Parameters] = {}
_MOST_DETOURS: Final = 8
"""Models that policies may send one request through."""


class Answering:
    """The `Servable` part of a `ModelRepository`, which sets the attributes.

    Attributes:
        classifies: It answers `classification` itself.
        record: Takes closed exchanges.
        record_all: Takes exchanges that end at the same moment.
    """

    classifies: Final = True
    record: Callable[[Exchange], None]
    record_all: RecordAll
    _control: Control
    _entries: Mapping[str, ModelEntry]

    def predict(
        self,
        model: str,
        inputs: Any,
        *,
        version: str | int = "",
        outputs: Sequence[str] | None = None,
        parameters: Parameters = _NONE,
        priority: int = 0,
        timeout: float | None = None,
    ) -> dict[str, Tensor]:
        """Return a model's outputs; for threads, and quick enough to call from anywhere.

        Args:
            model: Name of the model.
            inputs: Arrays by name; for a model of one input, that array. Lists are converted.
            version: Version number or label.
            outputs: Names of the outputs wanted; None for all.
            parameters: Parameters of the request.
            priority: 0 is the default; from 1 on, a lower number goes first.
            timeout: Seconds until the answer is no longer wanted.

        Raises:
            ModelNotFound: No such model or version.
            InvalidInput: The inputs do not fit the model's signature.
            DeadlineExceeded: `timeout` passed.
            QueueFull: Too many requests wait already.
            BackendError: Model code failed; its cause is chained.
        """
        if inputs.__class__ is not dict and not isinstance(inputs, Mapping):
            inputs = {self._only_input(model, str(version)): inputs}
        request = InferRequest(
            model,
            inputs,
            version=version,
            outputs=outputs,
            parameters=parameters,
            priority=priority,
            timeout=timeout,
        )
        exchange = request.exchange = Exchange("inprocess", model)
        try:
            while True:
                chosen = self._choose(request)
                exchange.model, exchange.version = chosen.model, chosen.version
                try:
                    return chosen.infer_blocking(request)  # type: ignore[return-value]  # a dict
                except BatcherClosed:
                    continue  # unloaded since it was chosen; its successor is there by now
        except BaseException as error:
            exchange.code = code_of(error)
            raise
        finally:
            self.record(exchange)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request.

        Raises:
            ModelNotFound: No such model or version.
            InvalidInput: The inputs do not fit the model's signature.
            DeadlineExceeded: The deadline passed.
            QueueFull: Too many requests wait already.
            BackendError: Model code failed; its cause is chained.
        """
        exchange = request.exchange
        mine = exchange is None
        if exchange is None:
            # An id as an argument would take 0.1 us, there or not.
            exchange = request.exchange = Exchange("inprocess", request.model)
            exchange.id = request.id
        waiting: Awaited | None = None
        try:
            while True:
                # As `_choose` does: in the usual case no call is made, which saves 0.1 us.
                entry = None if request.version else self._entries.get(request.model)
                usual = entry is not None and entry.policy is None and entry.served.default
                chosen = usual or self._choose(request)
                exchange.model, exchange.version = chosen.model, chosen.version
                try:
                    # One coroutine for the whole way: each level would cost 0.1 us.
                    waiting = None
                    if chosen.batcher.crowded and not chain.get():
                        record = self.record_all if mine else None
                        waiting = chosen.batcher.join(request, None, record)
                    if waiting is None:
                        waiting = chosen.enqueue(request)
                    if waiting is None:
                        outputs = await chosen.infer(request)
                        break
                except BatcherClosed:
                    continue  # unloaded since it was chosen; its successor is there by now
                if waiting.outputs is not None:  # it ran already
                    outputs = waiting.outputs
                else:
                    outputs = await waiting.future  # type: ignore[misc]  # there is one then
                break
            response = InferResponse(chosen.model, chosen.version, outputs)
            response.id = request.id
            return response
        except BaseException as error:
            if waiting is not None:
                waiting.leave()
            exchange.code = code_of(error)
            raise
        finally:
            if mine:
                request.exchange = None  # the request may be sent again
                if waiting.__class__ is not Joined or waiting.record is not None:
                    self.record(exchange)  # otherwise it was with the others of its batch

    def begin(self, request: InferRequest, done: Done) -> Ticket:
        """Answer one request by calling `done`, without a coroutine; see `protocols.Servable`.

        Args:
            request: The request. Whoever opened its exchange closes it; without one nothing is
                recorded.
            done: Called once with a response or an error, on this event loop's thread.

        Raises:
            ServeError: The request is refused at once, as by `infer`.
        """
        exchange = request.exchange
        try:
            while True:
                chosen = self._choose(request)
                if exchange is not None:
                    exchange.model, exchange.version = chosen.model, chosen.version
                try:
                    return chosen.begin(request, done)
                except BatcherClosed:
                    continue  # unloaded since it was chosen; its successor is there by now
        except BaseException as error:
            if exchange is not None:
                exchange.code = code_of(error)
            raise

    def check_deadline(self, model: str, version: str, deadline: float) -> None:
        """Refuse at once what could not be answered by a deadline, before its body is decoded.

        Args:
            model: Name of the model.
            version: Version number or label, or empty.
            deadline: A point of `time.monotonic()`.

        Raises:
            DeadlineExceeded: It is past.
            Overloaded: What runs and waits would not be done by then.
        """
        error = self.late(model, version, deadline)
        if error is not None:
            raise error

    def late(self, model: str, version: str, deadline: float) -> ServeError | None:
        """Return what `check_deadline` would raise, which saves a caller that tells it 1 us."""
        chosen = self.row_runner(model, version)
        return None if chosen is None else chosen.batcher.late(deadline)

    def row_runner(self, model: str, version: str) -> ModelVersion | None:
        """Return what runs rows that a transport gathered; see `protocols.Gathering`."""
        entry = self._entries.get(model)
        if entry is None or (entry.policy is not None and not version):
            return None  # a policy chooses for each request
        try:
            return entry.find(version)
        except ServeError:
            return None

    async def stream(
        self, request: InferRequest | AsyncIterable[InferRequest], *, model: str = ""
    ) -> AsyncIterator[InferResponse]:
        """Answer one request, or a stream of them, with a stream of responses.

        A model that is no generator answers each request once. The next item is made when it is
        asked for; leaving the loop (and closing the iterator) stops the model's generator.

        Args:
            request: One request, or an asynchronous iterable of requests to one model.
            model: The model to open a stream of requests to, so that the stream can be opened
                before the first request is there; without it the first request tells.

        Raises:
            ServeError: As `infer`; also from within the stream.
        """
        first: InferRequest
        source: InferRequest | AsyncIterable[InferRequest]
        if isinstance(request, InferRequest):
            first, source = request, request
        elif model:
            first, source = InferRequest(model, {}), request
        else:
            iterator = aiter(request)
            try:
                first = await anext(iterator)
            except StopAsyncIteration:
                return
            source = _chained(first, iterator)
        exchange = first.exchange
        mine = exchange is None
        if exchange is None:
            exchange = Exchange("inprocess", first.model, id=first.id)
        try:
            if isinstance(source, InferRequest) or self._choose(first).takes_stream:
                async with aclosing(self._answers(first, source, exchange)) as responses:
                    async for response in responses:
                        yield response
                return
            async for one in source:
                async with aclosing(self._answers(one, one, exchange)) as responses:
                    async for response in responses:
                        yield response
        except BaseException as error:
            exchange.code = code_of(error)
            raise
        finally:
            if mine:
                self.record(exchange)

    async def _answers(
        self,
        routed: InferRequest,
        source: InferRequest | AsyncIterable[InferRequest],
        exchange: Exchange,
    ) -> AsyncGenerator[InferResponse, None]:
        """Answer from the version chosen for `routed`."""
        while True:
            chosen = self._choose(routed)
            exchange.model, exchange.version = chosen.model, chosen.version
            try:
                async with aclosing(chosen.stream(source)) as responses:
                    async for response in responses:
                        yield response
                return
            except BatcherClosed:
                continue  # unloaded before it began; its successor is there by now

    def _choose(self, request: InferRequest) -> ModelVersion:
        name = request.model
        wanted = request.version
        entry = self._entries.get(name)
        # The usual case in one step: saves two calls, 0.1 us.
        if entry is not None and not wanted and entry.policy is None:
            default = entry.served.default
            if default is not None:
                return default
        for _ in range(_MOST_DETOURS):
            entry = self._entries.get(name)
            if entry is None:
                raise self._control.unknown(name)
            version, elsewhere = entry.choose(request, wanted)
            if elsewhere is None:
                return version  # type: ignore[return-value]  # one of the two is there
            name, wanted = elsewhere.model, elsewhere.version
        raise LoadError(f'model "{request.model}": policies send its requests in a circle')

    def _only_input(self, model: str, version: str) -> str:
        inputs = self._control.entry(model).find(version).signature.inputs
        if len(inputs) != 1:
            names = ", ".join(f'"{spec.name}"' for spec in inputs)
            raise TypeError(f'model "{model}" takes the inputs {names}: give arrays by name')
        return inputs[0].name


async def _chained(
    first: InferRequest, rest: AsyncIterator[InferRequest]
) -> AsyncIterator[InferRequest]:
    yield first
    async for request in rest:
        yield request
