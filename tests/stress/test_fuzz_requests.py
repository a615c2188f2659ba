"""A few thousand changed requests to a server in a process of its own.

`MODELSERVE_FUZZ=N` sends N times as many.
"""

import asyncio
import os
import sys

import pytest

from stress.fuzz_requests import fuzz, request, served, still_serves

REQUESTS = 4000 * int(os.environ.get("MODELSERVE_FUZZ", "1"))
MOST_GROWTH = 64 << 20

pytestmark = pytest.mark.stress


def test_a_request_is_a_function_of_seed_and_number() -> None:
    assert [request(1, number) for number in range(50)] == [request(1, n) for n in range(50)]
    assert [request(1, number) for number in range(50)] != [request(2, n) for n in range(50)]


@pytest.mark.timeout(300)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_server_goes_on_whatever_is_asked(environment: dict[str, str]) -> None:
    with served(environment) as (address, process, log):
        outcome = asyncio.run(fuzz(address, process, seed=1, count=REQUESTS))
        assert outcome.wrong == []
        assert sum(outcome.statuses.values()) == REQUESTS
        # It was not all refused at the door.
        assert min(outcome.statuses[200], outcome.statuses[400]) > REQUESTS // 20
        assert outcome.growth < MOST_GROWTH
        assert asyncio.run(still_serves(address))
        assert "Traceback" not in log.read_text()
