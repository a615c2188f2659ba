"""The two clients. They carry out the steps of `modelserve.client.core` and add nothing to them."""

# ruff: noqa: ASYNC109  # a client's timeout is told to the server, too

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from modelserve.errors import Unsupported
from modelserve.messages import InferRequest, InferResponse, ModelStatistics, Parameters
from modelserve.protocols import ModelConfig, Policy, VersionInfo

from .core import Core, Outcome, Retries, Send, Steps

if TYPE_CHECKING:
    from .connections import AsyncConnections, Connections

__all__ = ["AsyncClient", "Client"]

T = TypeVar("T")
_Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_MAX_RESPONSE_SIZE: Final = 256 << 20
_MAX_CONNECTIONS: Final = 100
_LOAD_TIMEOUT: Final = 600.0


class Client:
    """Ask a server of the Open Inference Protocol (REST), from any thread.

    A call takes at most its timeout in all: waiting for a connection, sending, retries and
    reading (looking up the host's name excepted, which the operating system bounds). The server
    is told how much time is left.

    Args:
        url: ``http://host:port``, ``https://host``, either with a path prefix, or
            ``unix:/path/of/the/socket``.
        timeout: Seconds a call may take where it has no deadline of its own; None for any time.
        retries: Retries of a call at most, or a `Retries`.
        binary: Send and ask for tensors as binary data, which is faster; otherwise as JSON.
        api_key: Sent as ``Authorization: Bearer``.
        headers: Sent with every request.
        verify: For https: True for the system's authorities, False for none (any certificate
            passes), a PEM file of the authorities to trust, or an `ssl.SSLContext`.
        max_connections: Open at once; further calls wait for one.
        max_response_size: Bytes; a larger answer is refused.

    Raises:
        ValueError: The URL or a number is wrong.
        ImportError: httpcore is not installed.

    Example:
        >>> with Client("http://127.0.0.1:9") as client:
        ...     client.ready()  # no server there
        False
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float | None = 30.0,
        retries: int | Retries = 2,
        binary: bool = True,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        verify: bool | str | os.PathLike[str] | ssl.SSLContext = True,
        max_connections: int = _MAX_CONNECTIONS,
        max_response_size: int = _MAX_RESPONSE_SIZE,
    ) -> None:
        self._core = Core(
            url,
            timeout=timeout,
            retries=retries,
            binary=binary,
            api_key=api_key,
            headers=headers,
            max_response_size=max_response_size,
        )
        try:
            from .connections import Connections
        except ImportError as error:
            raise _missing() from error
        self._connections: Connections | None = Connections(
            self._core.origin,
            socket=self._core.socket,
            ssl_context=_ssl_context(self._core, verify),
            max_connections=max_connections,
        )

    def predict(
        self,
        model: str,
        inputs: Any,
        *,
        version: str | int = "",
        outputs: Sequence[str] | None = None,
        parameters: Parameters | None = None,
        timeout: float | None = None,
        priority: int = 0,
    ) -> dict[str, _Array]:
        """Return a model's outputs for inputs, arrays by name.

        Args:
            model: Name of the model.
            inputs: Arrays by name, of the datatypes the model takes; for a model of one input,
                that array. The one name, and what lists and numbers are made, comes from the
                model's metadata, which is fetched once and kept.
            version: Version number or label; empty lets the server choose.
            outputs: Names of the outputs wanted; None for all.
            parameters: The request's parameters.
            timeout: Seconds the call may take; None for the client's.
            priority: 0 is the default; from 1 on, a lower number goes first.

        Raises:
            InvalidInput: The server, or the encoding, refuses the inputs.
            TypeError: Inputs without names for a model that does not take just one.
            ModelNotFound: No such model or version.
            UnavailableError: The server cannot be reached, is overloaded, or was too slow.
            ServeError: Whatever else went wrong.
        """
        request = _request(model, version, outputs, parameters, timeout, priority)
        return dict(self._carry_out(self._core.predict(request, inputs)).outputs)

    def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request; its inputs have names, else inputs and errors are as in `predict`."""
        return self._carry_out(self._core.infer(request))

    def index(self) -> list[VersionInfo]:
        """List every version of every model the server knows."""
        return self._carry_out(self._core.index())

    def describe(self, model: str, version: str = "") -> VersionInfo:
        """Describe one version; without a number the one that answers by default.

        Raises:
            ModelNotFound: No such model or version.
        """
        return self._carry_out(self._core.describe(model, version))

    def config(self, model: str, version: str = "") -> ModelConfig:
        """Return a version's configuration, in the form of Triton's JSON.

        Raises:
            ModelNotFound: No such model or version.
            Unsupported: The server does not tell.
        """
        return self._carry_out(self._core.config(model, version))

    def statistics(self, model: str = "", version: str = "") -> list[ModelStatistics]:
        """Return what loaded versions have done: all, those of a model, or one.

        Raises:
            ModelNotFound: No such model or version.
            Unsupported: The server does not tell.
        """
        return self._carry_out(self._core.statistics(model, version))

    def ready(self, model: str = "", version: str = "") -> bool:
        """Tell whether a model (without a name: the server) can answer now.

        False, too, where the server cannot be reached.

        Raises:
            ModelNotFound: No such model or version.
            ServeError: The server answered and does not know the path: the URL's prefix is wrong.
        """
        return self._carry_out(self._core.ready(model, version))

    def load(
        self,
        model: str,
        version: str = "",
        *,
        config: str | Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
        timeout: float | None = _LOAD_TIMEOUT,
    ) -> str:
        """Have the server load a version; returns its number.

        Args:
            model: Name of the model.
            version: Version number; empty lets the server choose.
            config: Triton's model configuration in JSON, its text or the object, to be used until
                the next load instead of the stored one; as `ModelRepository.load` has it. The
                server has to be started with `uploads`.
            files: Contents by name in the model's directory (``1/model.onnx``), to be served until
                the next load instead of the stored versions. Needs `config`, which may be ``{}``.
            timeout: Seconds to wait for it; None for any time.

        Raises:
            PermissionDenied: The server does not take configurations and files.
            InvalidInput: They are malformed, or cannot be served.
            PayloadTooLarge: They are more than the server takes.
        """
        return self._carry_out(self._core.load(model, version, timeout, config, files))

    def unload(self, model: str, version: str = "", *, drain: float = 30.0) -> None:
        """Have the server unload a version (without a number: all), after its requests.

        Args:
            model: Name of the model.
            version: Version number; empty for all.
            drain: Seconds to wait for the requests under way, beyond the client's timeout. The
                protocol has no word for it: the server keeps to its own bound.
        """
        self._carry_out(self._core.unload(model, version, drain))

    def close(self) -> None:
        """Close the connections. Calls under way are finished; later ones raise RuntimeError."""
        connections, self._connections = self._connections, None
        if connections is not None:
            connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _carry_out(self, steps: Steps[T]) -> T:
        outcome: Outcome = None
        try:
            while True:
                step = steps.send(outcome)
                if isinstance(step, Send):
                    connections = self._connections
                    if connections is None:
                        _raise_closed()
                    outcome = connections.send(step)
                else:
                    time.sleep(step.seconds)
                    outcome = None
        except StopIteration as done:
            result: T = done.value
            return result


class AsyncClient:
    """Ask a server of the Open Inference Protocol (REST) from asyncio.

    It is a `Servable`, a `Catalog` and an `Admin`: a transport that serves it is a gateway. The
    arguments are those of `Client`. It may be used from several event loops, each of which gets
    connections of its own; close it on each.

    Raises:
        ValueError: The URL or a number is wrong.
        ImportError: httpcore or anyio is not installed.

    Example:
        >>> async def main():
        ...     async with AsyncClient("http://127.0.0.1:9") as client:
        ...         return await client.ready()  # no server there
        >>> asyncio.run(main())
        False
    """

    classifies: Final = True
    """The server answers `classification`."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float | None = 30.0,
        retries: int | Retries = 2,
        binary: bool = True,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        verify: bool | str | os.PathLike[str] | ssl.SSLContext = True,
        max_connections: int = _MAX_CONNECTIONS,
        max_response_size: int = _MAX_RESPONSE_SIZE,
    ) -> None:
        self._core = Core(
            url,
            timeout=timeout,
            retries=retries,
            binary=binary,
            api_key=api_key,
            headers=headers,
            max_response_size=max_response_size,
        )
        try:
            import anyio  # noqa: F401  # httpcore needs it for asyncio and does not say so

            from .connections import AsyncConnections
        except ImportError as error:
            raise _missing() from error
        self._ssl_context = _ssl_context(self._core, verify)
        self._max_connections = max_connections
        self._make = AsyncConnections
        self._connections: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncConnections] = (
            WeakKeyDictionary()
        )
        self._closed = False

    async def predict(
        self,
        model: str,
        inputs: Any,
        *,
        version: str | int = "",
        outputs: Sequence[str] | None = None,
        parameters: Parameters | None = None,
        timeout: float | None = None,
        priority: int = 0,
    ) -> dict[str, _Array]:
        """Return a model's outputs for inputs; as `Client.predict`."""
        request = _request(model, version, outputs, parameters, timeout, priority)
        response = await self._carry_out(self._core.predict(request, inputs))
        return dict(response.outputs)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request; as `Client.infer`."""
        return await self._carry_out(self._core.infer(request))

    def stream(
        self, request: InferRequest | AsyncIterable[InferRequest]
    ) -> AsyncIterator[InferResponse]:
        """Refuse: what `generate_stream` sends over REST has no datatypes, so it is no response.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported(
            "a stream over REST has no datatypes; read the events of generate_stream instead"
        )

    async def index(self) -> list[VersionInfo]:
        """List every version of every model the server knows."""
        return await self._carry_out(self._core.index())

    async def describe(self, model: str, version: str = "") -> VersionInfo:
        """Describe one version; as `Client.describe`."""
        return await self._carry_out(self._core.describe(model, version))

    async def config(self, model: str, version: str = "") -> ModelConfig:
        """Return a version's configuration; as `Client.config`."""
        return await self._carry_out(self._core.config(model, version))

    async def statistics(self, model: str = "", version: str = "") -> list[ModelStatistics]:
        """Return what loaded versions have done; as `Client.statistics`."""
        return await self._carry_out(self._core.statistics(model, version))

    async def ready(self, model: str = "", version: str = "") -> bool:
        """Tell whether a model or the server can answer now; as `Client.ready`."""
        return await self._carry_out(self._core.ready(model, version))

    async def aload(
        self,
        model: str,
        version: str = "",
        *,
        config: str | Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
        timeout: float | None = _LOAD_TIMEOUT,
    ) -> str:
        """Have the server load a version; as `Client.load`."""
        return await self._carry_out(self._core.load(model, version, timeout, config, files))

    async def aunload(self, model: str, version: str = "", *, drain: float = 30.0) -> None:
        """Have the server unload a version; as `Client.unload`."""
        await self._carry_out(self._core.unload(model, version, drain))

    async def aroute(self, model: str, policy: Policy | str | None) -> None:
        """Refuse: the protocol has no such call.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported("routes cannot be set over the Open Inference Protocol")

    async def aclose(self) -> None:
        """Close this event loop's connections. Later calls raise RuntimeError."""
        self._closed = True
        connections = self._connections.pop(asyncio.get_running_loop(), None)
        if connections is not None:
            await connections.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _carry_out(self, steps: Steps[T]) -> T:
        if asyncio.current_task() is None:
            # Stepped by a loop's callback: timeouts and connections need a task.
            return await asyncio.ensure_future(self._in_task(steps))
        return await self._in_task(steps)

    async def _in_task(self, steps: Steps[T]) -> T:
        outcome: Outcome = None
        try:
            while True:
                step = steps.send(outcome)
                if isinstance(step, Send):
                    outcome = await self._here().send(step)
                else:
                    await asyncio.sleep(step.seconds)
                    outcome = None
        except StopIteration as done:
            result: T = done.value
            return result

    def _here(self) -> AsyncConnections:
        if self._closed:
            _raise_closed()
        loop = asyncio.get_running_loop()
        connections = self._connections.get(loop)
        if connections is None:
            connections = self._connections[loop] = self._make(
                self._core.origin,
                socket=self._core.socket,
                ssl_context=self._ssl_context,
                max_connections=self._max_connections,
            )
        return connections


def _request(
    model: str,
    version: str | int,
    outputs: Sequence[str] | None,
    parameters: Parameters | None,
    timeout: float | None,
    priority: int,
) -> InferRequest:
    return InferRequest(
        model,
        {},  # set by `Core.predict`
        version=version,
        outputs=outputs,
        parameters={} if parameters is None else parameters,
        timeout=timeout,
        priority=priority,
    )


def _ssl_context(
    core: Core, verify: bool | str | os.PathLike[str] | ssl.SSLContext
) -> ssl.SSLContext | None:
    if isinstance(verify, ssl.SSLContext):
        return verify
    if not isinstance(verify, bool | str | os.PathLike):
        raise TypeError(
            f"verify is True, False, a file of authorities or an ssl.SSLContext, got {verify!r}"
        )
    if core.origin[0] != "https":
        return None
    context = ssl.create_default_context(cafile=None if isinstance(verify, bool) else verify)
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _missing() -> ImportError:
    return ImportError('clients need httpcore: pip install "modelserve[client]"')


def _raise_closed() -> NoReturn:
    raise RuntimeError("the client is closed")
