"""Messages between processes: framed, bounded, and errors that keep their kind."""

from __future__ import annotations

import asyncio

import pytest

from modelserve.errors import BackendError, Conflict, LoadError, ModelNotFound, ServeError
from modelserve.workers.wire import (
    MAX_MESSAGE,
    Message,
    decode_error,
    encode,
    encode_error,
    receive,
)


def received(data: bytes) -> Message | None:
    async def main() -> Message | None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await receive(reader)

    return asyncio.run(main())


def test_message_comes_back() -> None:
    message = {"call": "load", "model": "ö", "version": "3"}
    assert received(encode(message)) == message


@pytest.mark.parametrize("cut", [0, 2, 4, 9])
def test_connection_that_ends_ends_the_messages(cut: int) -> None:
    assert received(encode({"call": "status"})[:cut]) is None


def test_too_long_a_message_is_not_read() -> None:
    with pytest.raises(ValueError, match="at most"):
        received((MAX_MESSAGE + 1).to_bytes(4, "big"))


def test_too_long_a_message_is_not_sent() -> None:
    with pytest.raises(ValueError, match="at most"):
        encode({"text": "x" * MAX_MESSAGE})


@pytest.mark.parametrize("body", [b"[1]", b"nonsense", b'"text"'])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # json's own where it is no JSON at all
        received(len(body).to_bytes(4, "big") + body)


@pytest.mark.parametrize("error", [ModelNotFound("no m"), Conflict("busy"), LoadError("broken")])
def test_error_keeps_its_kind_and_text(error: ServeError) -> None:
    again = decode_error(encode_error(error))
    assert (type(again), str(again)) == (type(error), str(error))


@pytest.mark.parametrize("error", [OSError(2, "gone", "/secret/path"), BackendError("/secret")])
def test_error_that_is_not_public_says_only_its_kind(error: Exception) -> None:
    again = decode_error(encode_error(error))
    assert (type(again), str(again)) == (LoadError, type(error).__name__)


def test_unknown_kind_of_error_is_a_load_error() -> None:
    assert type(decode_error({"error": "annotations", "text": "x"})) is LoadError
