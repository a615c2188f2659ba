"""What a row of the tables of conformance is: a request, and what must come of it.

A row that is refused names the place in its request that is wrong, and what would be right.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from wire.golden_asks import Ask, given, infer, said

MAX_BODY: Final = 1 << 20
"""Bytes a body may have at the server that is asked."""


class Row(NamedTuple):
    """One request and what must come of it.

    Args:
        ask: The request.
        status: The answer's status.
        told: How an error's text begins; or what the JSON of any other answer holds.
        then: What else stands in an error's text.
    """

    ask: Ask
    status: int
    told: Any = None
    then: str = ""


def refused(ask: Ask, place: str, then: str = "", status: int = 400) -> Row:
    """Return a row whose request is wrong."""
    return Row(ask, status, place, then)


def answered(ask: Ask, told: Any = None) -> Row:
    """Return a row whose request is right."""
    return Row(ask, 200, told)


def holding(*data: Any, **members: Any) -> dict[str, Any]:
    """Return what an answer with one output holds."""
    return {"outputs": [{"data": list(data), **members}]}


def wrong_input(name: str, place: str, then: str = "", /, **members: Any) -> Row:
    """Return a row whose only input has some members that are wrong."""
    return refused(infer(name, said(given() | members)), f"inputs[0]{place}", then)


NOT_JSON: Final = "the body is not valid JSON: "
