"""Models in routes of FastAPI: a dependency that asks one, routes typed by what a model takes.

For all routes of a server's protocols, below a prefix, mount a `modelserve.ASGIApp` instead. Both
may stand side by side: their requests meet in the same batches.
"""

# ruff: noqa: ASYNC109  # the model is told the timeout
# Without `from __future__ import annotations`: FastAPI reads the annotations of what it calls.

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from inspect import isawaitable, iscoroutinefunction
from secrets import token_hex
from time import monotonic
from typing import Annotated, Any, Final, TypeAlias, cast

from modelserve.codecs.arrays import JSONBytes, encode_arrays, parse
from modelserve.errors import BackendError, Cancelled, InvalidInput, PayloadTooLarge, ServeError
from modelserve.messages import InferRequest, InferResponse, Parameters
from modelserve.protocols import Servable
from modelserve.tensors import Signature, Tensor
from modelserve.transports.interruption import Interrupted, Watches
from modelserve.transports.routes import MAX_BODY_SIZE
from modelserve.transports.routes.headers import headers_of, is_request_id, seconds_of

try:
    from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from pydantic import ValidationError
except ImportError as error:
    raise ImportError(
        'routes of FastAPI need fastapi: pip install "modelserve[fastapi]"'
    ) from error

from modelserve.integrations.pydantic import (
    RequestModel,
    request_model,
    response_model,
)

__all__ = ["ERRORS", "Predictor", "add_model_route", "install_errors"]

_LOG = logging.getLogger(__name__)
_NONE: Final[Parameters] = {}
_JSON: Final = "application/json"
_JSON_TYPE: Final = re.compile(r"application/(?:[\w.!#$&^-]+\+)?json\s*(?:;|$)", re.IGNORECASE)

_HEADERS: Final = frozenset(
    (b"idempotency-key", b"traceparent", b"x-request-id", b"x-request-timeout")
)

Inputs: TypeAlias = Mapping[str, Any] | RequestModel


def _response(description: str, detail: Mapping[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"detail": detail}, "required": ["detail"]}
    return {"description": description, "content": {_JSON: {"schema": schema}}}


_TEXT: Final = {"type": "string"}
_PLACES: Final = {"type": "array", "items": {"anyOf": [_TEXT, {"type": "integer"}]}}
_WRONG: Final = {"type": "object", "properties": {"type": _TEXT, "loc": _PLACES, "msg": _TEXT}}

ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    400: _response("The inputs do not fit the model, or a header cannot be read", _TEXT),
    404: _response("There is no such model or version", _TEXT),
    500: _response("The model failed", _TEXT),
    503: _response("The model is not ready, or too many requests wait; try again", _TEXT),
    504: _response("The request's time was over before there was an answer", _TEXT),
}
"""The errors of a model, for the argument `responses` of a route of your own."""

_BODY_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    413: _response("The body is too large", _TEXT),
    415: _response("The body is not said to be JSON", _TEXT),
    422: _response("The body does not fit", {"type": "array", "items": _WRONG}),
}


class Predictor:
    """A model as a dependency of FastAPI: `Annotated[Predictor, Depends(iris)]`.

    What a route gets is a predictor of its own request. That one gives the model what the headers
    say: `X-Request-Timeout` ends the request, `X-Request-Id`, `Idempotency-Key` and `traceparent`
    go with it. It also takes the request back when its client goes away, as `ASGIApp` does: the
    client is looked for once an answer takes longer than 50 ms, if the body has been read.

    Without a request, as it was made, it asks the model, too. In tests the one is put in another's
    place: `app.dependency_overrides[iris] = Predictor(StubModel(...), "iris")`.

    Args:
        servable: What answers: a repository, a model, a client, a stub.
        model: Name of the model.
        version: Version number or label; empty for the one that answers by default.
        timeout: Seconds every request has, from when its predictor was made; None for any time.

    Raises:
        TypeError: What is to answer has no `infer`.
        ValueError: The timeout is not above 0.

    Example:
        >>> from modelserve.testing import StubModel
        >>> iris = Predictor(StubModel(name="iris"), "iris", timeout=1.0)
        >>> app = FastAPI()
        >>> @app.post("/flowers")
        ... async def classify(x: list[float], iris: Annotated[Predictor, Depends(iris)]):
        ...     return (await iris.predict({"x": [x]}))["x"]
    """

    __slots__ = ("_model", "_request", "_servable", "_since", "_timeout", "_version", "_watches")

    def __init__(
        self,
        servable: Servable,
        model: str,
        *,
        version: str | int = "",
        timeout: float | None = None,
    ) -> None:
        if isinstance(servable, type) or not hasattr(servable, "infer"):
            raise TypeError(
                "expected what has a coroutine method infer(request), such as a ModelRepository, "
                f"got {servable!r}"
            )
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout is more than 0 seconds, got {timeout}")
        self._servable = servable
        self._model = model
        self._version = str(version)
        self._timeout = timeout
        self._watches = Watches()
        self._request: Request | None = None
        self._since = 0.0

    def __repr__(self) -> str:
        return f"<Predictor {self._model}>"

    # A coroutine, since FastAPI runs what is none in a thread.
    async def __call__(self, request: Request) -> "Predictor":
        """Return the predictor of one request; FastAPI calls it."""
        bound = object.__new__(type(self))
        bound._servable = self._servable
        bound._model = self._model
        bound._version = self._version
        bound._timeout = self._timeout
        bound._watches = self._watches
        bound._request = request
        bound._since = monotonic()
        return bound

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._model

    @property
    def signature(self) -> Signature:
        """What the model takes and gives now.

        Raises:
            ModelNotFound: No such model or version is known.
            ModelNotReady: It is known and not loaded.
            TypeError: That takes waiting: it is on another machine, or in a store and not loaded.
        """
        found = getattr(self._servable, "signature", None)
        if isinstance(found, Signature):
            return found
        return _described(self._servable, self._model, self._version)

    async def predict(
        self,
        inputs: Inputs,
        *,
        outputs: Sequence[str] | None = None,
        parameters: Parameters = _NONE,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Mapping[str, Tensor]:
        """Return the model's outputs, arrays by name; see `infer`."""
        response = await self.infer(
            inputs, outputs=outputs, parameters=parameters, priority=priority, timeout=timeout
        )
        return response.outputs

    async def infer(
        self,
        inputs: Inputs,
        *,
        outputs: Sequence[str] | None = None,
        parameters: Parameters = _NONE,
        priority: int = 0,
        timeout: float | None = None,
    ) -> InferResponse:
        """Return the model's response, which knows the version that answered.

        Args:
            inputs: Arrays by name (lists are converted), or a model of pydantic that
                `request_model` made.
            outputs: Names of the outputs wanted; None for all.
            parameters: Parameters of the request.
            priority: 0 is the default; from 1 on, a lower number goes first.
            timeout: Seconds from now until the answer is no longer wanted. The earliest of this,
                the predictor's and the header's counts.

        Raises:
            Cancelled: The client went away.
            InvalidInput: The inputs do not fit the model, or a header cannot be read.
            ServeError: Whatever else the model or its queue says.
        """
        message = self._message(inputs, outputs, parameters, priority, timeout)
        request = self._request
        if request is None or not await _is_read(request):
            return await self._servable.infer(message)
        try:
            return await self._watches.watched(self._servable.infer(message), request.receive)
        except Interrupted:
            raise Cancelled("the client went away") from None

    async def stream(
        self,
        inputs: Inputs,
        *,
        outputs: Sequence[str] | None = None,
        parameters: Parameters = _NONE,
        priority: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[InferResponse]:
        """Answer with the responses of a model that gives many, as they are made; see `infer`.

        Whoever leaves the loop early stops the model. FastAPI does when the client goes away, if
        the route is a generator or answers with a `StreamingResponse`.
        """
        message = self._message(inputs, outputs, parameters, priority, timeout)
        responses = cast(Any, self._servable.stream(message))
        async with aclosing(responses):
            async for response in responses:
                yield response

    def _message(
        self,
        inputs: Inputs,
        outputs: Sequence[str] | None,
        parameters: Parameters,
        priority: int,
        timeout: float | None,
    ) -> InferRequest:
        arrays = inputs.to_inputs() if isinstance(inputs, RequestModel) else inputs
        request = self._request
        deadline = None
        if self._timeout is not None:
            deadline = (monotonic() if request is None else self._since) + self._timeout
        message = InferRequest(
            self._model,
            arrays,
            version=self._version,
            outputs=outputs,
            parameters=parameters,
            priority=priority,
            timeout=timeout,
            deadline=deadline,
        )
        if request is not None:
            # Most requests have none of these headers: one look, instead of one for each.
            headers = dict(request.scope["headers"])
            if not _HEADERS.isdisjoint(headers):
                self._apply(headers, message)
        return message

    def _apply(self, headers: Mapping[bytes, bytes], message: InferRequest) -> None:
        """Tell a message what the headers of the request say."""
        id = headers.get(b"x-request-id", b"").decode("latin-1")
        if is_request_id(id):
            message.id = id
        message.idempotency_key = headers.get(b"idempotency-key", b"").decode("latin-1")
        message.trace = headers.get(b"traceparent", b"").decode("latin-1")
        said = headers.get(b"x-request-timeout")
        if said is not None:
            end = self._since + seconds_of(said.decode("latin-1"))
            message.deadline = end if message.deadline is None else min(end, message.deadline)


async def _is_read(request: Request) -> bool:
    """Tell whether the next thing to be received is the client's end, and not its body."""
    if hasattr(request, "_body") or getattr(request, "_stream_consumed", False):
        return True
    if "content-length" in request.headers or "transfer-encoding" in request.headers:
        return False
    if request.scope.get("http_version", "1.1") not in ("1.0", "1.1"):
        return False  # a body may come without either header there, and without end
    await request.body()  # there is none, as after a GET
    return True


def _described(servable: Servable, model: str, version: str) -> Signature:
    """Return a signature without an event loop, where describing takes no waiting."""
    describe = getattr(servable, "describe", None)
    info = None
    if iscoroutinefunction(describe):
        description = describe(model, version)
        try:
            description.send(None)
        except StopIteration as done:
            info = done.value
        except RuntimeError:  # it asked for an event loop, and there is none
            pass
        finally:
            description.close()
    if info is None or info.signature is None:
        raise TypeError(
            f'what model "{model}" takes cannot be told here: load it before, or give signature='
        )
    return cast(Signature, info.signature)


def add_model_route(
    app: FastAPI | APIRouter,
    path: str,
    predictor: Predictor | Callable[..., Awaitable[Predictor]],
    *,
    signature: Signature | None = None,
    per_row: bool = False,
    json_bytes: JSONBytes = "utf8",
    allow_nan: bool = False,
    examples: Mapping[str, Any] | None = None,
    max_body_size: int = MAX_BODY_SIZE,
    name: str | None = None,
    responses: Mapping[int | str, dict[str, Any]] | None = None,
    **options: Any,
) -> None:
    """Add a route that takes a model's inputs (POST) and answers with its outputs.

    The body is a JSON object with an array, as nested lists, for each input; the answer is one
    with each output, in which NaN and infinities are null. Both are in the OpenAPI document as
    they were when the route was made: a version that takes something else answers 400. A body
    that does not fit is answered 422, in FastAPI's own form. Errors of the model are answered as
    by `install_errors`, unless the application has a handler for `ServeError` of its own.

    Args:
        app: The application, or a router.
        path: The route's path.
        predictor: The model; or a dependency that gives a predictor, with `signature`.
        signature: What is taken and given; without, what the model takes and gives now. Outputs
            it does not name are not asked for.
        per_row: A request is one row; the first axis is left out of inputs and outputs. Requests
            that arrive together still share a batch.
        json_bytes: What a string is for BYTES: text, or base64.
        allow_nan: Whether null may stand for NaN in arrays of floats.
        examples: Values of inputs for the documentation, by name.
        max_body_size: Bytes the body may have; a larger one is answered 413.
        name: The route's name, from which come its summary and the names of the schemas; without,
            that of the model.
        responses: Further responses for the documentation.
        **options: Given to FastAPI's `add_api_route`: `tags`, `dependencies`, ...

    Raises:
        TypeError: The signature cannot be told without waiting.
        ValueError: An example is wrong; or with `per_row` a tensor has no rows.

    Example:
        >>> from modelserve import TensorSpec
        >>> from modelserve.testing import StubModel
        >>> x = TensorSpec("x", "FP32", (-1, 4))
        >>> stub = StubModel(inputs=[x], outputs=[x], name="echo")
        >>> app = FastAPI()
        >>> add_model_route(app, "/echo", Predictor(stub, "echo"))
    """
    if signature is None:
        if not isinstance(predictor, Predictor):
            raise TypeError("what this dependency's model takes is not known: give signature=")
        signature = predictor.signature
    known = predictor.model if isinstance(predictor, Predictor) else "model"
    name = name or known
    title = "".join(part[:1].upper() + part[1:] for part in re.split(r"[\W_]+", name)) or "Model"
    form: dict[str, Any] = {"per_row": per_row, "json_bytes": json_bytes, "allow_nan": allow_nan}
    body = request_model(signature, f"{title}Request", examples=examples, **form)
    wanted = [spec.name for spec in signature.outputs]
    gives: Any = response_model(signature, f"{title}Response", **form) if wanted else None
    answer = _Answer(body, wanted, per_row, json_bytes, max_body_size)
    # Naming all outputs would part the requests from those that name none: other batches.
    if wanted and not (isinstance(predictor, Predictor) and _gives_only(predictor, wanted)):
        answer.asked = wanted

    async def ask(request: Request) -> Response:
        found = await _overridden(cast(Predictor, predictor), request)
        return await answer(request, found)

    async def ask_dependency(request: Request, predictor: Predictor) -> Response:
        return await answer(request, predictor)

    route: Callable[..., Awaitable[Response]] = ask
    if not isinstance(predictor, Predictor):
        route = ask_dependency
        route.__annotations__["predictor"] = Annotated[Predictor, Depends(predictor)]
    content = {_JSON: {"schema": body.model_json_schema()}}
    documented = {"requestBody": {"required": True, "content": content}}
    app.add_api_route(
        path,
        route,
        methods=["POST"],
        name=name,
        **{
            "description": f'Answers with the outputs of model "{known}".',
            "response_model": gives,
            "openapi_extra": documented,
            "responses": {**ERRORS, **_BODY_ERRORS, **(responses or {})},
            **options,
        },
    )


class _Answer:
    """Reads a body, asks a model and writes its answer; for one route."""

    __slots__ = ("_body", "_json_bytes", "_max_body_size", "_per_row", "_wanted", "asked")

    def __init__(
        self,
        body: type[RequestModel],
        wanted: Sequence[str],
        per_row: bool,
        json_bytes: JSONBytes,
        max_body_size: int,
    ) -> None:
        self._body = body
        self._wanted = wanted
        self._per_row = per_row
        self._json_bytes = json_bytes
        self._max_body_size = max_body_size
        self.asked: Sequence[str] | None = None
        """Names of the outputs to ask for; None for all."""

    async def __call__(self, request: Request, predictor: Predictor) -> Response:
        try:
            _check_type(request)
            inputs = self._read(await _body_of(request, self._max_body_size))
            response = await predictor.infer(inputs, outputs=self.asked)
            content = self._written(response)
        except ServeError as error:
            if _has_handler(request, error):
                raise
            return _refusal(request, error)
        answer = Response(content, media_type=_JSON)
        if response.id:
            answer.headers["x-request-id"] = response.id
        return answer

    def _read(self, body: bytes) -> Mapping[str, Any]:
        try:
            document = parse(body)
        except ValueError as error:
            wrong = {
                "type": "json_invalid",
                "loc": ("body", getattr(error, "pos", 0)),
                "msg": "JSON decode error",
                "input": {},
                "ctx": {"error": getattr(error, "msg", str(error))},
            }
            raise RequestValidationError([wrong]) from None
        try:
            return self._body.inputs_of(document)
        except ValidationError as error:
            found = error.errors(include_url=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found])

    def _written(self, response: InferResponse) -> bytes:
        outputs, wanted = response.outputs, self._wanted
        if wanted and len(outputs) != len(wanted):
            outputs = {name: outputs[name] for name in wanted if name in outputs}
        if self._per_row:
            outputs = {name: _row(name, array) for name, array in outputs.items()}
        try:
            return encode_arrays(outputs, json_bytes=self._json_bytes)
        except (InvalidInput, ValueError) as error:
            raise BackendError(
                f'model "{response.model}" gave an output that JSON cannot carry: {error}'
            ) from error


def _row(name: str, array: Tensor) -> Tensor:
    if array.shape[:1] != (1,):
        raise BackendError(f'output "{name}" has shape {array.shape} for one row')
    return array.reshape(array.shape[1:])


def _gives_only(predictor: Predictor, wanted: Sequence[str]) -> bool:
    try:
        given = predictor.signature.outputs
    except (TypeError, ServeError):
        return False
    return {spec.name for spec in given} <= set(wanted)


async def _overridden(predictor: Predictor, request: Request) -> Predictor:
    """Return the predictor of a request, out of the application's overrides if it is there.

    As FastAPI would, in a fifth of the time: the dependency has no dependencies of its own.
    """
    overrides = getattr(request.scope.get("app"), "dependency_overrides", None)
    if not overrides or predictor not in overrides:
        return await predictor(request)
    found = overrides[predictor]
    if not isinstance(found, Predictor):
        found = found()
        if isawaitable(found):
            found = await found
    if not isinstance(found, Predictor):
        raise TypeError(f"a predictor is overridden by a predictor, got {found!r}")
    return await found(request)


def _check_type(request: Request) -> None:
    """Refuse what a web page may send to another site without asking: anything but JSON."""
    kind = request.headers.get("content-type", "")
    if kind != _JSON and not _JSON_TYPE.match(kind):
        raise HTTPException(415, f"expected Content-Type: {_JSON}")


async def _body_of(request: Request, limit: int) -> bytes:
    said = request.headers.get("content-length", "")
    if said.isascii() and said.isdigit() and len(said) < 20:
        if int(said) > limit:
            raise PayloadTooLarge(f"the body has {said} bytes; {limit} are allowed")
        return await request.body()
    chunks, size = [], 0
    async with aclosing(cast(Any, request.stream())) as stream:
        async for chunk in stream:
            size += len(chunk)
            if size > limit:
                raise PayloadTooLarge(f"the body has more than the {limit} bytes allowed")
            chunks.append(chunk)
    return b"".join(chunks)


def install_errors(app: FastAPI) -> None:
    """Have an application answer errors of modelserve with their status.

    The body is FastAPI's, `{"detail": "..."}`. What a remote caller may not see (why a model
    failed) is logged, with the request's id in both places. `Retry-After` says when to come again
    where that is known.

    Args:
        app: The application, before its first request. A handler it has for `ServeError` is
            replaced.

    Raises:
        RuntimeError: The application has answered requests already.

    Example:
        >>> app = FastAPI()
        >>> install_errors(app)
    """

    async def refuse(request: Request, error: Exception) -> Response:
        return _refusal(request, cast(ServeError, error))

    if app.middleware_stack is not None:
        raise RuntimeError("install_errors goes before an application's first request")
    app.add_exception_handler(ServeError, refuse)


def _has_handler(request: Request, error: ServeError) -> bool:
    # Those in force; one that was added after the first request is not.
    handlers = request.scope.get("starlette.exception_handlers", ({}, {}))[0]
    # A handler of `Exception` is for what nobody expects.
    return any(kind in handlers for kind in type(error).__mro__ if issubclass(kind, ServeError))


def _refusal(request: Request, error: ServeError) -> Response:
    """Return the response that tells an error, without what a remote caller may not see."""
    id = request.headers.get("x-request-id", "")
    if not is_request_id(id):
        id = token_hex(8)
    text = str(error)
    if not error.public:
        what = "the model failed" if isinstance(error, BackendError) else "internal error"
        text = f"{what}; request id {id}"
        _LOG.error(
            "%s %r failed, request id %s",
            request.method,
            request.url.path[:200],
            id,
            exc_info=None if isinstance(error, BackendError) and error.logged else error,
        )
    detail = text.encode(errors="replace").decode()
    response = JSONResponse({"detail": detail}, error.http)
    response.headers["x-request-id"] = id
    response.raw_headers.extend(headers_of(error))
    return response
