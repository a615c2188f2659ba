"""TensorFlow Serving's REST interface, version 1, and KServe's first protocol, which share paths.

Which of the two are there decides what stands where both have something: see `endpoints`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from modelserve.codecs import kserve, tfserving, tfserving_examples
from modelserve.errors import InvalidInput, ModelNotFound, ModelNotReady, ServeError, Unsupported
from modelserve.messages import Exchange, InferRequest, InferResponse
from modelserve.protocols import VersionInfo
from modelserve.tensors import Signature, Tensor

from .bodies import COMPRESSED_FROM, compress_answer, compress_asked
from .headers import server_timing
from .messages import Reply, Request, reply_json
from .table import Call, Endpoint, Route

if TYPE_CHECKING:
    from .routes import Routes

__all__ = ["endpoints"]

_Inputs: TypeAlias = dict[str, Tensor]
# Reads a document: the inputs, and what its answer depends on.
_Read: TypeAlias = Callable[[Mapping[str, Any], Signature], tuple[_Inputs, Any]]

_MOST_DIGITS: Final = 18
"""Digits of a version; one more would not fit into 64 bits."""

_NEVER_LOADED: Final = "not loaded"


# ---------------------------------------------------------------------- models and versions


async def _describe(routes: Routes, route: Route) -> VersionInfo:
    """Return the version that a path names, or the one that answers.

    Raises:
        ModelNotFound: There is none. That there is no such model is told in the words that clients
            know.
        ModelNotReady: It is not loaded.
        InvalidInput: What stands for a version is no number.
    """
    catalog = routes.catalog()
    wanted = _wanted(route)
    try:
        info = await catalog.describe(route.model, wanted)
    except ModelNotFound:
        if not wanted or not await _is_known(routes, route.model):
            raise _unknown(routes, route.model) from None
        raise
    if "label" in route.names and wanted not in info.labels:  # it is a number
        raise _no_label(route)
    return info


async def _is_known(routes: Routes, model: str) -> bool:
    try:
        await routes.catalog().describe(model)
    except ModelNotFound:
        return False
    except ModelNotReady:
        pass
    return True


def _wanted(route: Route) -> str:
    """Return the version number or label that a path names, or nothing.

    Raises:
        InvalidInput: What stands for a number is none.
    """
    return _number(route.version) if "version" in route.names else route.version


def _number(version: str) -> str:
    """Return a version number."""
    if not (version.isascii() and version.isdigit()):
        raise InvalidInput(
            f'expected a number, got "{version[:40]}"; a label goes behind /labels/', path="version"
        )
    if len(version) > _MOST_DIGITS:
        raise InvalidInput(f"expected a number below 10**{_MOST_DIGITS}", path="version")
    return version


def _unknown(routes: Routes, model: str) -> ModelNotFound:
    name = model[:200]
    if "kserve" in routes.protocols:
        return ModelNotFound(f"Model with name {name} does not exist.")
    return ModelNotFound(f"Servable not found for request: Latest({name})")


def _no_label(route: Route) -> ModelNotFound:
    label = route.names["label"][:80]
    return ModelNotFound(f'model "{route.model[:200]}" has no version labelled "{label}"')


async def _versions(routes: Routes, route: Route) -> list[VersionInfo]:
    """Return the versions that a path names, in whatever state."""
    wanted = _wanted(route)
    if not hasattr(routes.servable, "index"):
        raise Unsupported("what is served here does not list its models")
    infos = [info for info in await routes.catalog().index() if info.model == route.model]
    if not infos:
        raise _unknown(routes, route.model)
    if not wanted:
        # Versions that only lie in the store are none that somebody waits for.
        return [info for info in infos if info.reason != _NEVER_LOADED] or infos
    if "label" in route.names:
        found = [info for info in infos if wanted in info.labels]
        if not found:
            raise _no_label(route)
        return found
    found = [info for info in infos if info.version == wanted]
    if not found:
        raise ModelNotFound(f'model "{route.model[:200]}" has no version "{wanted}"')
    return found


async def _status(routes: Routes, request: Request, route: Route) -> Reply:
    infos = await _versions(routes, route)
    members: dict[str, Any] = {}
    if "kserve" in routes.protocols and len(route.names) == 1:
        members = {"name": route.model, "ready": any(info.state == "READY" for info in infos)}
    # Why a version failed is for whoever may read the repository's index.
    reasons = request.principal is None or route.scope in request.principal.scopes
    return reply_json(200, tfserving.encode_status(infos, reasons=reasons, **members), request)


async def _metadata(routes: Routes, request: Request, route: Route) -> Reply:
    info = await _describe(routes, route)
    return reply_json(200, tfserving.encode_metadata(info), request)


async def _model_ready(routes: Routes, request: Request, route: Route) -> Reply:
    try:
        await _describe(routes, route)
    except ModelNotReady:
        raise ModelNotReady(f"Model with name {route.model[:200]} is not ready.") from None
    return reply_json(200, kserve.encode_ready(route.model, True), request)


async def _models(routes: Routes, request: Request, route: Route) -> Reply:
    if not hasattr(routes.servable, "index"):
        raise Unsupported("what is served here does not list its models")
    infos = await routes.catalog().index()
    names = {info.model: None for info in infos if info.state == "READY"}
    return reply_json(200, kserve.encode_models(names), request)


async def _no_model(routes: Routes, request: Request, route: Route) -> Reply:
    raise InvalidInput("Missing model name in request.")


async def _alive(routes: Routes, request: Request, route: Route) -> Reply:
    return reply_json(200, kserve.encode_alive(), request)


# ---------------------------------------------------------------------- inference


class _Event:
    """The CloudEvent that a request may be.

    Attributes:
        binary: Whether its attributes are headers.
        structured: Whether it is the whole body.
    """

    __slots__ = ("binary", "structured")

    def __init__(self, routes: Routes, request: Request) -> None:
        self.binary = self.structured = False
        if "kserve" not in routes.protocols:
            return
        self.structured = kserve.is_structured_event(request.header("content-type") or "")
        if not self.structured and request.header("ce-specversion") is not None:
            kserve.check_event_headers(request.header)
            self.binary = True

    def wrap(self, reply: Reply, model: str) -> None:
        """Give a reply the form of the request."""
        if not (self.binary or self.structured):
            return
        time = datetime.now(UTC).isoformat()
        attributes = kserve.event_attributes(model, reply.id, time)
        if self.binary:
            headers = [(f"ce-{name}".encode(), v.encode()) for name, v in attributes.items()]
            reply.extra = [*reply.extra, *headers]
            return
        (data,) = reply.body
        body = kserve.encode_event(attributes, bytes(data))
        reply.body, reply.size = [body], len(body)
        reply.content_type = kserve.STRUCTURED.encode()


def _decode(
    routes: Routes,
    request: Request,
    route: Route,
    info: VersionInfo,
    event: _Event | None,
    read: _Read,
) -> tuple[InferRequest, Any]:
    """Return the message in a request, and what its answer depends on.

    A function of its own, so that nothing of the body is held while the servable is awaited.
    """
    started = perf_counter()
    document = tfserving.read_document(routes.take_body(request, route))
    if event is not None and event.structured:
        document = kserve.decode_event(document)
    inputs, form = read(document, info.signature or Signature([]))
    message = InferRequest(route.model, inputs, version=_wanted(route))
    routes.address(message, request)
    cast(Exchange, request.exchange).decode = perf_counter() - started
    return message, form


async def _reply(
    request: Request,
    response: InferResponse,
    encode: Callable[[], bytes],
    event: _Event | None = None,
) -> Reply:
    """Return the reply with a response that `encode` makes a body of."""
    started = perf_counter()
    exchange = cast(Exchange, request.exchange)
    exchange.version = response.version
    reply = reply_json(200, encode(), request)
    if event is not None:
        event.wrap(reply, exchange.model)
    asked = request.header("accept-encoding") or ""
    if reply.size >= COMPRESSED_FROM:
        compress_answer(reply, asked)
    await compress_asked(reply, asked)
    exchange.encode = perf_counter() - started
    if request.explains:
        reply.extra = [*reply.extra, (b"server-timing", server_timing(exchange).encode())]
    return reply


async def _predict(routes: Routes, request: Request, route: Route) -> Reply:
    info = await _describe(routes, route)
    event = _Event(routes, request)
    message, rows = _decode(routes, request, route, info, event, tfserving.decode_predict)
    response = await routes.servable.infer(message)
    return await _reply(
        request,
        response,
        lambda: tfserving.encode_predict(response.outputs, rows=rows),
        event,
    )


async def _classify(routes: Routes, request: Request, route: Route) -> Reply:
    info = await _describe(routes, route)
    message, count = _decode(routes, request, route, info, None, tfserving_examples.decode_examples)
    response = await routes.servable.infer(message)
    names = await _class_names(routes, info, response)
    return await _reply(
        request,
        response,
        lambda: tfserving_examples.encode_classes(response.outputs, count, names=names),
    )


async def _class_names(
    routes: Routes, info: VersionInfo, response: InferResponse
) -> tuple[str, ...]:
    """Return the names of the classes of the version that answered."""
    if (info.model, info.version) != (response.model, response.version):
        try:
            info = await routes.catalog().describe(response.model, response.version)
        except ServeError:  # it is gone since
            return ()
    return info.class_names


async def _regress(routes: Routes, request: Request, route: Route) -> Reply:
    info = await _describe(routes, route)
    message, count = _decode(routes, request, route, info, None, tfserving_examples.decode_examples)
    response = await routes.servable.infer(message)
    return await _reply(
        request, response, lambda: tfserving_examples.encode_values(response.outputs, count)
    )


async def _explain(routes: Routes, request: Request, route: Route) -> Reply:
    info = await _describe(routes, route)
    explain = getattr(routes.servable, "explain", None)
    if explain is None:
        raise Unsupported(
            "what is served here explains no predictions: it has no coroutine method explain"
        )
    event = _Event(routes, request)
    message, rows = _decode(routes, request, route, info, event, tfserving.decode_predict)
    response: InferResponse = await explain(message)
    return await _reply(
        request,
        response,
        lambda: kserve.encode_explanations(response.outputs, rows=rows),
        event,
    )


# ---------------------------------------------------------------------- the table

_MODEL: Final = "/v1/models/{model}"
_VERSIONED: Final = (f"{_MODEL}/versions/{{version}}", f"{_MODEL}/labels/{{label}}")


def _read(path: str, call: Call, summary: str, says: str) -> Endpoint:
    return Endpoint("GET", path, call, "read", describes=True, summary=summary, described=says)


def _infer(path: str, call: Call, summary: str, says: str) -> Endpoint:
    return Endpoint(
        "POST",
        path,
        call,
        "infer",
        max_body=None,
        records=True,
        summary=summary,
        described=says,
    )


def endpoints(protocols: Collection[str]) -> list[Endpoint]:
    """Return the endpoints of TensorFlow Serving, of KServe's first protocol, or of both.

    With both, ``GET /v1/models/M`` answers the states of the versions, as TensorFlow Serving does,
    and in the same document the members `name` and `ready`, as KServe does; and a model that is
    not there is told of in KServe's words.

    Args:
        protocols: The names of what there is: ``"tfserving"``, ``"kserve"``.
    """
    found: list[Endpoint] = []
    predicted = "a model's predictions for rows, or its outputs for columns"
    if "tfserving" in protocols:
        for path in (_MODEL, *_VERSIONED):
            found += [
                _read(path, _status, "the states of a model's versions", "v1.STATUS"),
                _read(
                    f"{path}/metadata",
                    _metadata,
                    "what a model takes and gives",
                    "v1.METADATA",
                ),
                _infer(f"{path}:predict", _predict, predicted, "v1.PREDICT"),
                _infer(
                    f"{path}:classify",
                    _classify,
                    "classes and scores of examples",
                    "v1.CLASSIFY",
                ),
                _infer(f"{path}:regress", _regress, "one number for each example", "v1.REGRESS"),
            ]
    elif "kserve" in protocols:
        found += [
            _read(_MODEL, _model_ready, "whether a model can answer", "v1.READY"),
            _infer(f"{_MODEL}:predict", _predict, predicted, "v1.PREDICT"),
        ]
    if "kserve" in protocols:
        found += [
            Endpoint(
                "GET",
                "",
                _alive,
                summary="whether the server is alive",
                described="v1.ALIVE",
            ),
            Endpoint(
                "GET",
                "/v1/models",
                _models,
                "read",
                summary="models that can answer",
                described="v1.MODELS",
            ),
            _infer(f"{_MODEL}:explain", _explain, "explanations of predictions", "v1.EXPLAIN"),
        ]
    elif "tfserving" in protocols:
        found.append(
            Endpoint(
                "GET",
                "/v1/models",
                _no_model,
                "read",
                summary="an error",
                described="v1.NO_MODEL",
            )
        )
    return found
