"""Headers of requests, and those that go with an error."""

import pytest

from modelserve.errors import (
    InvalidInput,
    MethodNotAllowed,
    QueueFull,
    RateLimited,
    Unauthenticated,
)
from modelserve.transports.routes.headers import headers_of, is_request_id, seconds_of


@pytest.mark.parametrize("text", ["a", "x" * 128, "8f-2:b/c", '"quoted"'])
def test_visible_text_is_an_id(text: str) -> None:
    assert is_request_id(text)


@pytest.mark.parametrize("text", ["", "x" * 129, "two words", "a\r\nb", "é", "\x00", "\x7f"])
def test_other_text_is_none(text: str) -> None:
    assert not is_request_id(text)


def test_timeout_is_seconds() -> None:
    assert seconds_of("0.25") == 0.25


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf", "1e11", "9" * 400])
def test_timeout_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="header X-Request-Timeout: expected seconds above 0"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (MethodNotAllowed("no", allow=("GET", "HEAD")), [(b"allow", b"GET, HEAD")]),
        (Unauthenticated("who?"), [(b"www-authenticate", b'Bearer realm="modelserve"')]),
        (QueueFull("full", retry_after=1.2), [(b"retry-after", b"2")]),
        (RateLimited("slow", retry_after=0.0), [(b"retry-after", b"1")]),
        (QueueFull("full"), []),
        (ValueError("any"), []),
    ],
)
def test_error_says_more_in_headers(error: Exception, headers: list[tuple[bytes, bytes]]) -> None:
    assert headers_of(error) == headers
