"""The heads of answers: what the server writes of itself."""

from datetime import UTC, datetime
from email.utils import format_datetime

from hypothesis import given
from hypothesis import strategies as st

from modelserve.transports.http1.replies import _date


@given(st.integers(0, 253402300799))
def test_a_date_is_written_as_the_standard_library_writes_it(moment: int) -> None:
    expected = format_datetime(datetime.fromtimestamp(moment, UTC), usegmt=True)
    assert _date(moment + 0.25) == expected.encode()
