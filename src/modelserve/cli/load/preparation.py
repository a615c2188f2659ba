"""Makes the requests of a load: what a model takes, inputs that fit, one checked answer for each.

Speaks to the server as the client does (`modelserve.client.core`), over the standard library's
HTTP, one request at a time.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np

from modelserve.cli.load.generator import Origin, Shot
from modelserve.client.core import Answer, Core, Lost, Outcome, Send, Steps
from modelserve.codecs import oip
from modelserve.errors import ClientError, InvalidInput, ModelNotFound, Overloaded, ServeError
from modelserve.messages import InferRequest, InferResponse
from modelserve.protocols import VersionInfo
from modelserve.tensors import Datatype, Tensor, TensorSpec, as_tensor, numpy_dtype

__all__ = ["Model", "Server", "prepare", "read_inputs"]

T = TypeVar("T")
Arrays = Mapping[str, Tensor]

_MICROSECOND: Final = 1_000_000
_MOST_SHOTS: Final = 256
_MOST_SIZE: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Model:
    """The model to load, and how requests to it are made.

    Args:
        name: The model.
        version: A version or label; empty for the one that answers.
        rows: Rows of a request; 0 for as many as an input file has, or 1.
        shapes: Shapes of made inputs by name.
        binary: Send tensors as binary data.
        deadline: Seconds each request gives the server, as its parameter `timeout`; or None.
        any_answer: Take every answer for right, as of a model that draws random numbers.
        seed: Makes the same inputs again.
    """

    name: str
    version: str = ""
    rows: int = 0
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    binary: bool = False
    deadline: float | None = None
    any_answer: bool = False
    seed: int = 0


class Server:
    """A server to load: its address, and single requests to it.

    Args:
        url: ``http://host:port``, ``https://...``, or ``unix:PATH``.
        api_key: Sent with each request.
        headers: Further headers of each request.
        ssl_context: For https.
        binary: Send tensors as binary data.
        timeout: Seconds an answer may take.

    Raises:
        ValueError: The URL is not one.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        binary: bool = False,
        timeout: float = 30.0,
    ) -> None:
        self.core = Core(
            url,
            timeout=None,
            retries=0,
            binary=binary,
            api_key=api_key,
            headers=headers,
            max_response_size=_MOST_SIZE,
        )
        if self.core.socket and not hasattr(socket, "AF_UNIX"):
            raise ValueError(f"{url}: there are no Unix sockets on this platform")
        scheme, host, port = self.core.origin
        self.name = f"unix:{self.core.socket}" if self.core.socket else self.core.name
        self.origin = Origin(
            host, port, self.core.socket, ssl_context if scheme == "https" else None
        )
        self.timeout = timeout
        self.sent: Send | None = None
        """The last request, and the answer to it."""
        self.received: Answer | None = None

    def do(self, steps: Steps[T]) -> T:
        """Perform a verb of `core`.

        Raises:
            ServeError: It failed; the text names the server where it could not be reached.
        """
        outcome: Outcome = None
        try:
            while True:
                step = steps.send(outcome)
                assert isinstance(step, Send), "without retries there is nothing to wait for"
                outcome = self._exchange(step)
                self.sent = step
                self.received = outcome if isinstance(outcome, Answer) else None
        except StopIteration as done:
            return cast(T, done.value)
        except Overloaded as error:
            raise ServeError(
                f"{error} (status 503; the server asks to come back in {error.retry_after:g} s)"
            ) from error
        except ServeError as error:
            if self.received is not None:
                raise
            cause = error.__cause__
            hint = f": {cause}; --ca FILE, --insecure" if isinstance(cause, ssl.SSLError) else ""
            raise ServeError(f"{self.name}: {error}{hint}") from error

    def describe(self, model: Model) -> VersionInfo:
        """Ask what a model takes and gives; says which models there are if it is not among them."""
        try:
            return self.do(self.core.describe(model.name, model.version))
        except ModelNotFound as error:
            raise ServeError(f"{error}{'' if model.version else self._others()}") from error

    def _others(self) -> str:
        try:
            names = sorted({info.model for info in self.do(self.core.index())})
        except ServeError:  # it need not offer an index
            return ""
        return f"; the server has {', '.join(names[:20])}" if names else ""

    def _exchange(self, step: Send) -> Answer | Lost:
        connection = self._connection()
        try:
            connection.connect()
        except ssl.SSLError as error:
            return Lost("insecure", error)
        except TimeoutError as error:
            return Lost("timeout", error)
        except OSError as error:
            return Lost("refused", error)
        try:
            connection.sock.sendall(wire(step))
            response = http.client.HTTPResponse(connection.sock, method=step.method)
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())
        except TimeoutError as error:
            return Lost("timeout", error)
        except (OSError, http.client.HTTPException) as error:
            kind = type(error) in (ConnectionResetError, http.client.RemoteDisconnected)
            return Lost("reset" if kind else "broken", error)
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        origin = self.origin
        if origin.socket is not None:
            return _UnixConnection(origin.socket, self.timeout)
        if origin.ssl_context is not None:
            return http.client.HTTPSConnection(
                origin.host, origin.port, timeout=self.timeout, context=origin.ssl_context
            )
        return http.client.HTTPConnection(origin.host, origin.port, timeout=self.timeout)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def wire(step: Send) -> bytes:
    """Return a request as it goes over a connection that stays open."""
    lines = [step.method.encode() + b" " + step.target + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in step.headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + b"".join(step.body)


# ---------------------------------------------------------------------- inputs


def read_inputs(path: Path, info: VersionInfo) -> Arrays:
    """Return the arrays of a file: .npz, or JSON.

    JSON is a request of the Open Inference Protocol, or an object of lists by input name.

    Raises:
        ValueError: It holds something else.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        return _read_json(path.read_bytes(), info)
    except (InvalidInput, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_json(body: bytes, info: VersionInfo) -> Arrays:
    document = json.loads(body)
    if type(document) is not dict:
        raise ValueError("expected an object: a request, or lists by input name")
    if type(document.get("inputs")) is list and "inputs" not in _specs(info):
        return oip.decode_request(body, model=info.model).inputs
    specs = _specs(info)
    arrays: dict[str, Tensor] = {}
    for name, value in document.items():
        if name not in specs:
            known = ", ".join(sorted(specs)) or "none that it states"
            raise ValueError(f'unknown input "{name}"; model "{info.model}" takes {known}')
        arrays[name] = as_tensor(value, specs[name].datatype, path=f'"{name}"')
    return arrays


def _specs(info: VersionInfo) -> dict[str, TensorSpec]:
    return {} if info.signature is None else {spec.name: spec for spec in info.signature.inputs}


def make_inputs(model: Model, info: VersionInfo) -> Arrays:
    """Return inputs that fit what a server says of a model; optional ones are left out.

    Sizes that are open are 1, or those the model's `shapes` give. Integers are 0 or 1, which every
    vocabulary and mask has.

    Raises:
        ValueError: The server does not say enough.
    """
    specs = _specs(info)
    if not specs:
        raise ValueError(
            f'the server does not say what model "{info.model}" takes: give --input FILE'
        )
    unknown = sorted(set(model.shapes) - set(specs))
    if unknown:
        raise ValueError(
            f'--shape: unknown input "{unknown[0]}"; model "{info.model}" takes '
            f"{', '.join(sorted(specs))}"
        )
    random = np.random.default_rng(model.seed)
    return {
        spec.name: _values(random, spec.datatype, _shape(model, spec))
        for spec in specs.values()
        if not spec.optional or spec.name in model.shapes
    }


def _shape(model: Model, spec: TensorSpec) -> tuple[int, ...]:
    if spec.name in model.shapes:
        return model.shapes[spec.name]
    if spec.shape is None:
        raise ValueError(
            f'the server does not say how many axes input "{spec.name}" has: give '
            f"--shape {spec.name}:SIZES, or --input FILE"
        )
    shape = [1 if size < 0 else size for size in spec.shape]
    if model.rows:
        if not spec.shape or spec.shape[0] not in (-1, model.rows):
            raise ValueError(
                f'--rows {model.rows}: input "{spec.name}" has shape {list(spec.shape)}, whose '
                "first axis is not open"
            )
        shape[0] = model.rows
    return tuple(shape)


def _values(random: np.random.Generator, datatype: Datatype, shape: tuple[int, ...]) -> Tensor:
    if datatype == "BYTES":
        words = np.array([b"a", b"word", b"several words"], np.object_)
        return as_tensor(words[random.integers(0, len(words), shape)], datatype)
    dtype = numpy_dtype(datatype)
    if dtype.kind in "iub":
        return random.integers(0, 2, shape).astype(dtype)
    return random.standard_normal(shape).astype(dtype)


# ---------------------------------------------------------------------- requests with answers


def prepare(server: Server, model: Model, inputs: Path | None) -> tuple[VersionInfo, list[Shot]]:
    """Return what a model is, and requests to it, each sent once and answered rightly.

    Raises:
        ServeError: The server cannot be reached, has no such model, or refuses a request.
        ValueError: The inputs do not fit the model.
    """
    info = server.describe(model)
    if inputs is None:
        batches: Sequence[Arrays] = [make_inputs(model, info)]
    else:
        batches = _split(read_inputs(inputs, info), model.rows)
    return info, [_shot(server, model, info, batch) for batch in batches]


def _split(arrays: Arrays, rows: int) -> list[Arrays]:
    """Cut arrays into requests of some rows each; all of them in one where that is 0."""
    if not rows:
        return [arrays]
    counts = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(counts) != 1 or min(counts) < rows:
        raise ValueError(f"--rows {rows}: the inputs have {sorted(counts)} rows")
    starts = range(0, min(counts) - rows + 1, rows)[:_MOST_SHOTS]
    return [
        {name: array[start : start + rows] for name, array in arrays.items()} for start in starts
    ]


def _shot(server: Server, model: Model, info: VersionInfo, arrays: Arrays) -> Shot:
    rows = 1
    if info.signature is not None and info.signature.inputs:
        arrays, rows = info.signature.validate(arrays, batched=info.max_batch_size > 0)
    response = server.do(server.core.infer(_request(model, arrays, None)))
    assert server.received is not None
    asked = server.core.infer(_request(model, arrays, model.deadline))
    return Shot(
        wire(cast(Send, next(asked))),
        server.received.body,
        _anything if model.any_answer else _Equal(response, server.received),
        rows,
    )


def _request(model: Model, arrays: Arrays, deadline: float | None) -> InferRequest:
    parameters: dict[str, Any] = {}
    if deadline is not None:
        # As a parameter and not as a deadline, which would be a moment: every request has as long.
        parameters["timeout"] = max(1, round(deadline * _MICROSECOND))
    # With an id, which comes back: a server may make one up, and no two answers would be the same.
    return InferRequest(
        model.name, arrays, version=model.version, id="bench", parameters=parameters
    )


def _anything(body: bytes) -> bool:
    return True


class _Equal:
    """Tells whether a body says what a checked answer says, within the rounding of batch sizes."""

    def __init__(self, response: InferResponse, answer: Answer) -> None:
        self._response = response
        head = answer.headers.get(oip.HEADER)
        # What follows the JSON part is as long in every answer; the JSON itself may hold numbers.
        self._binary = None if head is None else len(answer.body) - int(head)

    def __call__(self, body: bytes) -> bool:
        try:
            head = None if self._binary is None else max(0, len(body) - self._binary)
            response = oip.decode_response(body, header_length=head)
        except ClientError:
            return False
        expected = self._response
        return response.outputs.keys() == expected.outputs.keys() and all(
            _close(response.outputs[name], output) for name, output in expected.outputs.items()
        )


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if expected.dtype.kind != "f":
        return bool(np.array_equal(found, expected))
    # Kernels round differently for other batch sizes; half precision has three digits.
    tolerance = 1e-2 if expected.dtype.itemsize < 4 else 1e-4
    scale = float(np.nanmax(np.abs(expected), initial=0.0)) if expected.size else 0.0
    return bool(
        np.allclose(found, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
    )
