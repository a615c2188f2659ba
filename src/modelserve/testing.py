"""A model that is only a function, for tests of whatever takes a `Servable`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from inspect import isawaitable
from time import perf_counter_ns, time_ns
from typing import Any, TypeAlias

from modelserve.errors import (
    BackendError,
    ModelNotFound,
    ModelNotReady,
    ServeError,
    Unsupported,
)
from modelserve.execution.waiting import Done, TaskTicket
from modelserve.messages import InferRequest, InferResponse, ModelStatistics, Spent
from modelserve.protocols import ModelConfig, Policy, State, Ticket, VersionInfo
from modelserve.repository.model_config import signature_config
from modelserve.tensors import Signature, Tensor, TensorSpec

__all__ = ["StubModel"]

Outputs: TypeAlias = Mapping[str, Tensor]


class StubModel:
    """One model with one version, answered by a plain function: Servable, Catalog and Admin.

    It needs no runtime and no file, runs the function in the caller's event loop, and does not
    batch. Not safe for use from several threads at once.

    Args:
        function: Takes the inputs by name, gives the outputs by name; may be a coroutine
            function. Without one the outputs are the inputs.
        inputs: What it takes. Empty: any tensors, unchecked.
        outputs: What it gives, for its description only.
        name: Name of the model.
        version: Number of its one version.
        labels: Labels that stand for the version.
        latency: Seconds every answer takes at least.
        fail_every: Every n-th request fails with `error`; 0 for never.
        error: What a failing request raises.

    Example:
        >>> import asyncio, numpy as np
        >>> stub = StubModel(lambda inputs: {"y": inputs["x"] * 2}, name="double")
        >>> request = InferRequest("double", {"x": np.ones(3, np.float32)})
        >>> asyncio.run(stub.infer(request)).outputs["y"]
        array([2., 2., 2.], dtype=float32)
    """

    def __init__(
        self,
        function: Callable[[Mapping[str, Tensor]], Outputs | Awaitable[Outputs]] = dict,
        *,
        inputs: Iterable[TensorSpec] = (),
        outputs: Iterable[TensorSpec] = (),
        name: str = "stub",
        version: str = "1",
        labels: Iterable[str] = (),
        latency: float = 0.0,
        fail_every: int = 0,
        error: ServeError | None = None,
    ) -> None:
        self.function = function
        self.signature = Signature(inputs, outputs)
        self.name = name
        self.version = version
        self.labels = tuple(labels)
        self.latency = latency
        self.fail_every = fail_every
        self.error = error or BackendError("the stub was told to fail")
        self.state: State = "READY"
        self.count = 0
        """How many requests came."""
        self._succeeded = self._failed = Spent()
        self._last = 0
        self.requests: deque[InferRequest] = deque(maxlen=100)
        """The latest requests, oldest first."""

    def _find(self, model: str, version: str) -> None:
        if model != self.name:
            raise ModelNotFound(f'there is no model "{model}"')
        if version not in ("", self.version, *self.labels):
            raise ModelNotFound(f'model "{model}" has no version "{version}"')

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request with what the function gives.

        Raises:
            ModelNotFound: It is for another model or version.
            ModelNotReady: The version was unloaded.
            InvalidInput: The inputs do not fit.
            BackendError: The function failed.
        """
        self._refuse(request)
        self.count += 1
        self.requests.append(request)
        began = perf_counter_ns()
        try:
            response = await self._respond(request)
        except BaseException:
            self._failed = _spent(self._failed, began)
            raise
        self._succeeded = _spent(self._succeeded, began)
        self._last = time_ns() // 1_000_000
        return response

    async def _respond(self, request: InferRequest) -> InferResponse:
        inputs = request.inputs
        if self.signature.inputs:
            inputs, _ = self.signature.validate(inputs, batched=False)
        if self.latency:
            await asyncio.sleep(self.latency)
        if self.fail_every and self.count % self.fail_every == 0:
            raise self.error
        outputs = await self._call(inputs)
        if request.outputs is not None:
            outputs = {name: outputs[name] for name in request.outputs if name in outputs}
        return InferResponse(self.name, self.version, outputs, id=request.id)

    def begin(self, request: InferRequest, done: Done) -> Ticket:
        """Answer one request by calling `done`; see `protocols.Servable`.

        Raises:
            ModelNotFound: It is for another model or version.
            ModelNotReady: The version was unloaded.
        """
        self._refuse(request)
        return TaskTicket(self.infer(request), request, done)

    def _refuse(self, request: InferRequest) -> None:
        self._find(request.model, request.version)
        if self.state != "READY":
            raise ModelNotReady(f'model "{self.name}" version {self.version} is not loaded')

    async def _call(self, inputs: Mapping[str, Tensor]) -> Outputs:
        try:
            outputs: Any = self.function(inputs)
            if isawaitable(outputs):
                outputs = await outputs
        except ServeError:
            raise
        except Exception as error:
            raise BackendError(f'model "{self.name}" failed') from error
        found: Outputs = outputs
        return found

    async def stream(
        self, request: InferRequest | AsyncIterable[InferRequest]
    ) -> AsyncIterator[InferResponse]:
        """Answer each request with one response."""
        if isinstance(request, InferRequest):
            yield await self.infer(request)
            return
        async for one in request:
            yield await self.infer(one)

    def _info(self) -> VersionInfo:
        ready = self.state == "READY"
        return VersionInfo(
            model=self.name,
            version=self.version,
            state=self.state,
            reason="" if ready else "unloaded",
            signature=self.signature if ready else None,
            platform="python",
            batching="a stub does not batch",
            labels=self.labels,
            versions=(self.version,) if ready else (),
        )

    async def index(self) -> list[VersionInfo]:
        """List the one version."""
        return [self._info()]

    async def describe(self, model: str, version: str = "") -> VersionInfo:
        """Describe the version."""
        self._find(model, version)
        if self.state != "READY":
            raise ModelNotReady(f'model "{model}" version {self.version} is not loaded')
        return self._info()

    async def config(self, model: str, version: str = "") -> ModelConfig:
        """Return what its signature says in the form of a configuration."""
        await self.describe(model, version)
        return signature_config(self.name, self.signature, platform="python")

    async def statistics(self, model: str = "", version: str = "") -> list[ModelStatistics]:
        """Return how often it succeeded and failed, whatever came between."""
        if model:
            await self.describe(model, version)
        elif self.state != "READY":
            return []
        count = self._succeeded.count
        return [
            ModelStatistics(
                self.name,
                self.version,
                last_inference=self._last,
                inference_count=count,
                execution_count=count,
                success=self._succeeded,
                fail=self._failed,
            )
        ]

    async def ready(self, model: str = "", version: str = "") -> bool:
        """Tell whether the version is loaded."""
        if model:
            self._find(model, version)
        return self.state == "READY"

    async def aload(
        self,
        model: str,
        version: str = "",
        *,
        config: str | Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> str:
        """Make the version ready; returns its number.

        Raises:
            Unsupported: A configuration or files came along.
        """
        self._find(model, version)
        if config is not None or files is not None:
            raise Unsupported("a stub is a function: it takes no configuration and no files")
        self.state = "READY"
        return self.version

    async def aunload(self, model: str, version: str = "", *, drain: float = 30.0) -> None:
        """Make the version unavailable."""
        self._find(model, version)
        self.state = "UNAVAILABLE"

    async def aroute(self, model: str, policy: Policy | str | None) -> None:
        """Accept any policy: there is one version to choose."""
        self._find(model, "" if policy is None or not isinstance(policy, str) else policy)


def _spent(before: Spent, began: int) -> Spent:
    return Spent(before.count + 1, before.ns + perf_counter_ns() - began)
