"""Whether answers are those a row of the table should have."""

from __future__ import annotations

from collections.abc import Sequence

from transports.http1.rows import PROBED, REFUSALS, Row
from transports.raw_http import Answer


def judge(row: Row, answers: Sequence[Answer]) -> None:
    """Fail unless these are the answers the row should have."""
    told = [answer.told for answer in answers]
    assert all(answer.headers["x-request-id"] for answer in answers)
    if row.end == "cut":
        assert all(answer.status in REFUSALS and answer.closes for answer in answers), told
        assert len(answers) <= 1, told
        return
    if row.or_refused and told[-1:] != [PROBED]:
        # Refused, or understood, but with a body unread that nobody wants.
        (answer,) = answers
        assert answer.told in row.told or answer.status in REFUSALS
    elif row.end == "refused":
        assert told[:-1] == list(row.told), told
        assert told[-1:], "closed without an answer"
        assert answers[-1].status in (row.statuses or REFUSALS), told
    else:
        assert told == [*row.told, *([PROBED] if row.end == "open" else [])], told
    assert [answer.closes for answer in answers] == [False] * (len(answers) - 1) + [True]
