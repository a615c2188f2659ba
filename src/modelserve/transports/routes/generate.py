"""Triton's generate extension: one answer, or a stream of them as Server-Sent Events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, cast

from modelserve.codecs import oip_generate
from modelserve.errors import InvalidInput
from modelserve.messages import Exchange, InferRequest, InferResponse

from .messages import Reply, Request, reply_json
from .oip import MODEL_PATHS
from .table import Endpoint, Route

if TYPE_CHECKING:
    from .routes import Routes

__all__ = ["ENDPOINTS"]

_EVENTS: Final = b"text/event-stream; charset=utf-8"


async def _generate(routes: Routes, request: Request, route: Route) -> Reply:
    answers = _answers(routes, await _message(routes, request, route))
    try:
        first = await anext(answers, None)
        second = None if first is None else await anext(answers, None)
    finally:
        await _close(answers)
    if first is None or second is not None:
        raise InvalidInput(
            "the model gives no answer or several; ask for generate_stream, which takes any number"
        )
    cast(Exchange, request.exchange).version = first.version
    return reply_json(200, oip_generate.encode_generate(first), request)


async def _generate_stream(routes: Routes, request: Request, route: Route) -> Reply:
    answers = _answers(routes, await _message(routes, request, route))
    try:
        # Before the status is told: what fails at once is an error like any other.
        first = await anext(answers, None)
        event = b"" if first is None else oip_generate.encode_event(first)
    except BaseException:
        await _close(answers)
        raise
    if first is not None:
        cast(Exchange, request.exchange).version = first.version
    reply = Reply(200, _EVENTS, [], 0, request.id, stream=_Events(routes, request, event, answers))
    reply.extra = [(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
    return reply


async def _message(routes: Routes, request: Request, route: Route) -> InferRequest:
    body = routes.take_body(request, route)
    info = await routes.catalog().describe(route.model, route.version)
    if info.signature is None:
        raise InvalidInput(f'model "{route.model}" does not say what it takes')
    message = oip_generate.decode_generate(
        body, info.signature, model=route.model, version=route.version
    )
    routes.address(message, request)
    return message


def _answers(routes: Routes, message: InferRequest) -> AsyncIterator[InferResponse]:
    return aiter(routes.servable.stream(message))


async def _close(answers: AsyncIterator[InferResponse]) -> None:
    close = getattr(answers, "aclose", None)
    if close is not None:
        await close()


class _Events:
    """The answers to a request as Server-Sent Events. An error on the way is the last of them."""

    __slots__ = ("_answers", "_event", "_over", "_request", "_routes")

    def __init__(
        self, routes: Routes, request: Request, event: bytes, answers: AsyncIterator[InferResponse]
    ) -> None:
        self._routes = routes
        self._request = request
        self._event = event
        self._answers = answers
        self._over = not event

    def __aiter__(self) -> _Events:
        return self

    async def __anext__(self) -> bytes:
        event, self._event = self._event, b""
        if event:
            return event
        if self._over:
            raise StopAsyncIteration
        try:
            return oip_generate.encode_event(await anext(self._answers))
        except StopAsyncIteration:
            self._over = True
            raise
        except Exception as error:  # the boundary of one request, whose status is told already
            self._over = True
            return oip_generate.encode_failure(self._routes.told(self._request, error)[1])

    async def aclose(self) -> None:
        self._over = True
        await _close(self._answers)


ENDPOINTS: Final = tuple(
    Endpoint(
        "POST",
        f"{path}/{name}",
        call,
        "infer",
        max_body=None,
        records=True,
        summary=summary,
        described=described,
    )
    for path in MODEL_PATHS
    for name, call, described, summary in (
        (
            "generate",
            _generate,
            "generate.GENERATE",
            "one answer to a flat object of inputs and parameters",
        ),
        (
            "generate_stream",
            _generate_stream,
            "generate.GENERATE_STREAM",
            "the same as a stream of Server-Sent Events",
        ),
    )
)
