"""What both clients know: what to send, when to send it again, and what answers mean.

Written once, as generators that yield steps and are sent their outcomes; nothing here does input
or output. The wire format is in `modelserve.codecs.oip`.
"""

from __future__ import annotations

import random as _random
import socket
import time
from collections.abc import Callable, Container, Generator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from threading import Lock
from time import monotonic
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast
from urllib.parse import quote, urlsplit

from modelserve import errors
from modelserve.codecs import oip, oip_catalog, oip_control, oip_statistics
from modelserve.errors import DeadlineExceeded, InvalidInput, ServeError, UnavailableError
from modelserve.messages import InferRequest, InferResponse, ModelStatistics
from modelserve.protocols import ModelConfig, VersionInfo
from modelserve.tensors import Tensor, as_tensor

__all__ = ["Answer", "Core", "Lost", "Outcome", "Retries", "Send", "Step", "Steps", "Wait"]

T = TypeVar("T")
Buffer: TypeAlias = bytes | memoryview
Pairs: TypeAlias = list[tuple[bytes, bytes]]

_MOST_METADATA: Final = 256
_MOST_TEXT: Final = 2000
_OF_MODELS: Final = ("/v2/models/", "/v2/repository/models/")

# Headers that belong to this hop; a request's own headers do not replace them.
_RESERVED: Final = frozenset(
    {
        "accept-encoding",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "host",
        "idempotency-key",
        oip.HEADER,
        "keep-alive",
        "proxy-authorization",
        "te",
        "traceparent",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-api-key",
    }
)

# More of a `Retry-After` is not believed: any number of digits may come, and is slept for.
_LONGEST_PAUSE: Final = 365 * 86_400.0

_BY_STATUS: Final[Mapping[int, type[ServeError]]] = {
    400: errors.InvalidInput,
    401: errors.Unauthenticated,
    403: errors.PermissionDenied,
    404: errors.ModelNotFound,
    405: errors.MethodNotAllowed,
    409: errors.Conflict,
    413: errors.PayloadTooLarge,
    422: errors.InvalidInput,
    499: errors.Cancelled,
    500: errors.BackendError,
    501: errors.Unsupported,
    502: errors.UnavailableError,
    503: errors.UnavailableError,
    504: errors.DeadlineExceeded,
}


class Retries:
    """Say how often and when a request is tried again.

    Tried again is only what is safe: a request whose connection was refused, or was lost before
    the first byte of an answer (unless it belongs to a sequence, or changes what is served), and
    one answered 429 or 503 with `Retry-After`. The pause before retry n is drawn evenly from 0 to
    ``min(cap, base * 2**n)`` seconds, on top of `Retry-After` where the server gave one.

    A budget keeps retries from multiplying the load of a server in trouble: a retry takes one
    token of at most `burst`, a request gives back `ratio`. Clients given the same object share
    its budget. May be used from any thread.

    Args:
        count: Retries of one request, at most.
        base: Seconds.
        cap: Seconds.
        ratio: Retries per request in the long run, from 0 to 1.
        burst: Retries in a row before the ratio counts.
        random: Returns numbers from 0 to 1.

    Raises:
        ValueError: A number is out of its range.

    Example:
        >>> retries = Retries(1, base=0.1, random=lambda: 0.5)
        >>> retries.pause(0)
        0.05
    """

    def __init__(
        self,
        count: int = 2,
        *,
        base: float = 0.05,
        cap: float = 1.0,
        ratio: float = 0.1,
        burst: int = 10,
        random: Callable[[], float] = _random.random,
    ) -> None:
        if count < 0 or base < 0 or cap < 0 or burst < 0 or not 0 <= ratio <= 1:
            raise ValueError("retries: count, base, cap and burst are >= 0, ratio is from 0 to 1")
        self.count = count
        self._base = base
        self._cap = cap
        self._ratio = ratio
        self._burst = float(burst)
        self._random = random
        self._tokens = self._burst
        self._lock = Lock()

    def pause(self, retry: int) -> float:
        """Draw the seconds to wait before a retry; the first is number 0."""
        return self._random() * min(self._cap, self._base * 2.0**retry)

    def give(self) -> None:
        """Count a request into the budget."""
        with self._lock:
            self._tokens = min(self._burst, self._tokens + self._ratio)

    def take(self) -> bool:
        """Take one retry out of the budget; tell whether there was one."""
        with self._lock:
            # A tenth ten times is a little less than one.
            if self._tokens < 1.0 - 1e-9:
                return False
            self._tokens -= 1.0
            return True


@dataclass(frozen=True, slots=True)
class Send:
    """Step: send this and read the whole answer."""

    method: str
    target: bytes
    headers: Pairs
    body: Sequence[Buffer]
    deadline: float | None
    limit: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Step: let this many seconds pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Outcome of `Send`: an answer, whatever its status. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """Outcome of `Send`: no answer."""

    kind: Literal["refused", "reset", "broken", "timeout", "insecure", "unsendable", "too large"]
    cause: Exception | None = None


Step: TypeAlias = Send | Wait
Outcome: TypeAlias = Answer | Lost | None
Steps: TypeAlias = Generator[Step, Outcome, T]


class Core:
    """The verbs as generators of steps; see `Client` for the arguments."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float | None,
        retries: int | Retries,
        binary: bool,
        api_key: str | None,
        headers: Mapping[str, str] | None,
        max_response_size: int,
    ) -> None:
        if timeout is not None and not timeout > 0:  # NaN included
            raise ValueError(f"timeout: expected seconds > 0 or None, got {timeout}")
        scheme, host, port, self.socket, self.prefix = _address(url)
        self.origin = (scheme, host, port)
        self.timeout = timeout
        self.retries = retries if isinstance(retries, Retries) else Retries(retries)
        self.binary = binary
        self.limit = max_response_size
        self._metadata: dict[tuple[str, str], VersionInfo] = {}
        authority = f"[{host}]" if ":" in host else host
        if port != (443 if scheme == "https" else 80):
            authority += f":{port}"
        self.name = self.socket or f"{scheme}://{authority}"
        self.headers: Pairs = [
            (b"host", authority.encode("ascii")),
            (b"accept-encoding", b"identity"),
        ]
        if api_key is not None:
            self.headers.append((b"authorization", b"Bearer " + _header(api_key)))
        for name, value in (headers or {}).items():
            self.headers.append((_header(name), _header(value)))

    # One exchange, with its retries

    def exchange(
        self,
        method: str,
        path: str,
        make: Callable[[], tuple[Sequence[Buffer], Pairs]],
        *,
        deadline: float | None,
        repeatable: bool = True,
        retries: int | None = None,
        accept: Container[int] = (200,),
    ) -> Steps[Answer]:
        """Send what `make` makes until there is an answer whose status is accepted."""
        target = (self.prefix + path).encode("ascii")
        self.retries.give()
        most = self.retries.count if retries is None else retries
        retry = 0
        while True:
            if deadline is not None and monotonic() >= deadline:
                raise DeadlineExceeded("the deadline passed before an answer was there")
            body, headers = make()
            outcome = yield Send(
                method, target, [*self.headers, *headers], body, deadline, self.limit
            )
            if isinstance(outcome, Answer) and outcome.status in accept:
                return outcome
            error, after = self._failure(cast("Answer | Lost", outcome), path, repeatable)
            if after is None or retry >= most:
                raise error
            pause = after + self.retries.pause(retry)
            if deadline is not None and monotonic() + pause >= deadline:
                raise error
            if not self.retries.take():
                raise error
            yield Wait(pause)
            retry += 1

    def _failure(
        self, outcome: Answer | Lost, path: str, repeatable: bool
    ) -> tuple[ServeError, float | None]:
        """The error, and the least pause before a retry; None where a retry is not safe."""
        if isinstance(outcome, Answer):
            error, after = _refusal(outcome, path)
            if outcome.status == 404:
                error.add_note(f"server: {self.name}")
            return error, after
        cause = _first_cause(outcome.cause)
        error = _LOST[outcome.kind](_why(cause) if outcome.kind == "refused" else "")
        error.__cause__ = cause
        # A note shows in tracebacks and not in the text, which a gateway passes to its callers.
        error.add_note(f"server: {self.name}")
        again = outcome.kind == "refused" or (outcome.kind == "reset" and repeatable)
        return error, 0.0 if again else None

    # The verbs

    def predict(self, request: InferRequest, inputs: Any) -> Steps[InferResponse]:
        """Answer a request made for these inputs, by name or of a model that takes just one."""
        if isinstance(inputs, Mapping):
            request.inputs = inputs
        else:
            if request.deadline is None:
                request.deadline = self._until(self.timeout)
            info = yield from self._described(request, request.deadline)
            request.inputs = {_only_input(info, request.model): inputs}
        return (yield from self.infer(request))

    def infer(self, request: InferRequest) -> Steps[InferResponse]:
        deadline = self._until(self.timeout) if request.deadline is None else request.deadline
        inputs = request.inputs
        if not all(hasattr(value, "dtype") for value in inputs.values()):
            inputs = yield from self._arrays(request, deadline)
        path = _model_path(request.model, request.version) + "/infer"
        stateful = request.sequence_id or request.parameters.get("sequence_id")
        wire = _wire(request, inputs, deadline)

        def make() -> tuple[Sequence[Buffer], Pairs]:
            # Anew for every try: the time left is part of it.
            parts, header_length = oip.encode_request(wire, binary=self.binary)
            return parts, _infer_headers(request, parts, header_length)

        try:
            answer = yield from self.exchange(
                "POST", path, make, deadline=deadline, repeatable=not stateful
            )
        except (InvalidInput, errors.ModelNotFound):
            self._metadata.pop((request.model, request.version), None)
            raise
        try:
            return oip.decode_response(answer.body, header_length=answer.headers.get(oip.HEADER))
        except errors.ClientError as error:
            raise _invalid(error) from error

    def _arrays(self, request: InferRequest, deadline: float | None) -> Steps[Mapping[str, Tensor]]:
        """Make arrays of lists and numbers, by the datatypes the server states."""
        info = yield from self._described(request, deadline)
        specs = {} if info.signature is None else {s.name: s for s in info.signature.inputs}
        arrays = {}
        for index, (name, value) in enumerate(request.inputs.items()):
            path = f'inputs[{index}] "{name}"'
            if not hasattr(value, "dtype"):
                if name not in specs:
                    known = ", ".join(sorted(specs)) or "none"
                    raise InvalidInput(f"unknown input; the model takes {known}", path=path)
                value = as_tensor(value, specs[name].datatype, path=path)
            arrays[name] = value
        return arrays

    def _described(self, request: InferRequest, deadline: float | None) -> Steps[VersionInfo]:
        """Describe a request's model; asks the server the first time."""
        key = (request.model, request.version)
        info = self._metadata.get(key)
        if info is None:
            info = yield from self._describe(*key, deadline)
            if len(self._metadata) >= _MOST_METADATA:
                self._metadata.clear()
            self._metadata[key] = info
        return info

    def index(self) -> Steps[list[VersionInfo]]:
        make = _json_body(oip_catalog.encode_index_request())
        answer = yield from self.exchange(
            "POST", "/v2/repository/index", make, deadline=self._until(self.timeout)
        )
        return _decoded(oip_catalog.decode_index, answer)

    def describe(self, model: str, version: str = "") -> Steps[VersionInfo]:
        return (yield from self._describe(model, version, self._until(self.timeout)))

    def _describe(self, model: str, version: str, deadline: float | None) -> Steps[VersionInfo]:
        answer = yield from self.exchange(
            "GET", _model_path(model, version), _nothing, deadline=deadline
        )
        return _decoded(oip_catalog.decode_metadata, answer)

    def config(self, model: str, version: str) -> Steps[ModelConfig]:
        answer = yield from self.exchange(
            "GET",
            _model_path(model, version) + "/config",
            _nothing,
            deadline=self._until(self.timeout),
        )
        return _decoded(oip_statistics.decode_config, answer)

    def statistics(self, model: str, version: str) -> Steps[list[ModelStatistics]]:
        path = _model_path(model, version) if model else "/v2/models"
        answer = yield from self.exchange(
            "GET", f"{path}/stats", _nothing, deadline=self._until(self.timeout)
        )
        return _decoded(oip_statistics.decode_statistics, answer)

    def ready(self, model: str = "", version: str = "") -> Steps[bool]:
        path = _model_path(model, version) + "/ready" if model else "/v2/health/ready"
        try:
            # Whoever asks wants to know how it is now; once more only for a stale connection.
            answer = yield from self.exchange(
                "GET",
                path,
                _nothing,
                deadline=self._until(self.timeout),
                retries=min(1, self.retries.count),
                accept=(200, 400, 503),
            )
        except UnavailableError:
            return False
        return answer.status == 200 and oip_catalog.decode_ready(answer.body)

    def load(
        self,
        model: str,
        version: str,
        timeout: float | None,
        config: str | Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> Steps[str]:
        body = oip_control.encode_load(version, config, files)
        yield from self._change(model, "load", body, timeout)
        if version:
            return version
        info = yield from self.describe(model)
        return info.version

    def unload(self, model: str, version: str, drain: float) -> Steps[None]:
        timeout = None if self.timeout is None else self.timeout + drain
        yield from self._change(model, "unload", oip_control.encode_unload(version), timeout)

    def _change(self, model: str, verb: str, body: bytes, timeout: float | None) -> Steps[None]:
        for key in [key for key in tuple(self._metadata) if key[0] == model]:
            self._metadata.pop(key, None)
        yield from self.exchange(
            "POST",
            f"/v2/repository/models/{quote(model, safe='')}/{verb}",
            _json_body(body),
            deadline=self._until(timeout),
            repeatable=False,
        )

    def _until(self, timeout: float | None) -> float | None:
        return None if timeout is None else monotonic() + timeout


_LOST: Final[Mapping[str, Callable[[str], ServeError]]] = {
    "refused": lambda why: UnavailableError(f"the server cannot be reached{why}"),
    "reset": lambda _: UnavailableError("the server closed the connection without an answer"),
    "broken": lambda _: UnavailableError("the server's answer broke off or is not HTTP"),
    "timeout": lambda _: DeadlineExceeded("the deadline passed before an answer was there"),
    "insecure": lambda _: UnavailableError("no secure connection to the server could be made"),
    "unsendable": lambda _: InvalidInput("the request cannot be sent: a header is not valid"),
    "too large": lambda _: ServeError("the server's answer is larger than max_response_size"),
}


def _first_cause(error: BaseException | None) -> BaseException | None:
    """Return what the network libraries' errors come from, without what they say around it."""
    while error is not None:
        inner = error.__cause__
        if isinstance(error, BaseExceptionGroup):  # one for each address tried
            inner = error.exceptions[0]
        if inner is None:
            error.__suppress_context__ = True
            return error
        error = inner
    return None


def _why(cause: BaseException | None) -> str:
    # Without the error's own text, which may hold an address.
    for kind, text in _REASONS:
        if isinstance(cause, kind):
            return f": {text}"
    return ""


_REASONS: Final[tuple[tuple[type[OSError], str], ...]] = (
    (ConnectionRefusedError, "connection refused"),
    (socket.gaierror, "its name cannot be resolved"),
    (FileNotFoundError, "there is no such socket"),
    (PermissionError, "permission denied"),
)


def _only_input(info: VersionInfo, model: str) -> str:
    inputs = () if info.signature is None else info.signature.inputs
    if not inputs:
        raise TypeError(f'the server does not say what model "{model}" takes: give arrays by name')
    if len(inputs) != 1:
        names = ", ".join(f'"{spec.name}"' for spec in inputs)
        raise TypeError(f'model "{model}" takes the inputs {names}: give arrays by name')
    return inputs[0].name


def _address(url: str) -> tuple[str, str, int, str | None, str]:
    """Split a URL into scheme, host, port, path of a Unix socket, and path prefix."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        path = parts.path if not parts.netloc else ""
        if not path:
            raise ValueError("url: expected unix:/path/of/the/socket")
        return "http", "localhost", 80, path, ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("url: expected http://host, https://host or unix:/path")
    if parts.query or parts.fragment or parts.username is not None:
        raise ValueError("url: expected no query, fragment, or user; pass keys as api_key")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    port = parts.port or (443 if parts.scheme == "https" else 80)
    prefix = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
    return parts.scheme, host, port, None, prefix


def _header(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise ValueError("headers: expected latin-1 text") from error


def _model_path(model: str, version: str) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _nothing() -> tuple[Sequence[Buffer], Pairs]:
    return (), []


def _json_body(body: bytes) -> Callable[[], tuple[Sequence[Buffer], Pairs]]:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    return lambda: ((body,), headers)


def _wire(
    request: InferRequest, inputs: Mapping[str, Tensor], deadline: float | None
) -> InferRequest:
    """The request with arrays for lists and the deadline it really has."""
    if inputs is request.inputs and deadline == request.deadline:
        return request
    return InferRequest(
        request.model,
        inputs,
        version=request.version,
        id=request.id,
        outputs=request.outputs,
        parameters=request.parameters,
        input_parameters=request.input_parameters,
        output_parameters=request.output_parameters,
        priority=request.priority,
        deadline=deadline,
        sequence_id=request.sequence_id,
    )


def _infer_headers(
    request: InferRequest, parts: Sequence[Buffer], header_length: int | None
) -> Pairs:
    size = sum(memoryview(part).nbytes for part in parts)
    kind = b"application/json" if header_length is None else b"application/octet-stream"
    headers = [(b"content-type", kind), (b"content-length", str(size).encode())]
    if header_length is not None:
        headers.append((oip.HEADER.encode(), str(header_length).encode()))
    if request.trace:
        headers.append((b"traceparent", _header(request.trace)))
    if request.idempotency_key:
        headers.append((b"idempotency-key", _header(request.idempotency_key)))
    headers += [
        (_header(name), _header(value))
        for name, value in request.headers.items()
        if name.lower() not in _RESERVED
    ]
    return headers


def _refusal(answer: Answer, path: str) -> tuple[ServeError, float | None]:
    if answer.status == 404 and not path.startswith(_OF_MODELS):
        text = f"the server answered, but has no path {path}: check the prefix in the client's URL"
        return ServeError(text), None
    text = _error_text(answer)
    after = _retry_after(answer.headers.get("retry-after"))
    if answer.status == 429:
        return errors.RateLimited(text, retry_after=after), after
    if answer.status == 503 and after is not None:
        return errors.Overloaded(text, retry_after=after), after
    found = _BY_STATUS.get(answer.status)
    if found is None:
        found = errors.ClientError if 400 <= answer.status < 500 else ServeError
    return found(text), None


def _error_text(answer: Answer) -> str:
    text = oip.decode_error(answer.body)
    if text:
        return text[:_MOST_TEXT]
    text = f"the server answered with HTTP status {answer.status}"
    if answer.status == 404:
        text += "; if it has this model, check the prefix in the client's URL"
    return text


def _retry_after(value: str | None) -> float | None:
    """Seconds a `Retry-After` header asks for; None without one that can be read."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.replace(".", "", 1).isdigit():
        return min(float(value), _LONGEST_PAUSE)
    try:
        left = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, left), _LONGEST_PAUSE)


def _decoded(decode: Callable[[bytes], T], answer: Answer) -> T:
    try:
        return decode(answer.body)
    except errors.ClientError as error:
        raise _invalid(error) from error


def _invalid(error: Exception) -> ServeError:
    # The caller did nothing wrong: what the codec calls invalid input is the server's answer.
    return ServeError(f"the server's answer is not valid: {error}")
