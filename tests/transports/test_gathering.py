"""Requests that an ASGI application answers together: the same answers as one by one."""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

import onnx_models
from modelserve.codecs._plans import FRAMES, HEADS
from modelserve.errors import DeadlineExceeded, Overloaded, ServeError
from modelserve.messages import Exchange
from modelserve.repository.repository import ModelRepository
from modelserve.security.authentication import APIKeys
from modelserve.transports.asgi import ASGIApp

INFER = "/v2/models/add/infer"
ROUNDS = 4
"""Until the form of the bodies has been seen often enough to be known."""


@pytest.fixture(autouse=True)
def room_for_new_forms() -> None:
    """Other tests may have filled the memory of forms, which then takes in few new ones."""
    for memo in (FRAMES, HEADS):
        memo.clear()


@pytest.fixture
def repository() -> Iterator[ModelRepository]:
    with ModelRepository() as made:
        made.add("add", onnx_models.add_one(), max_batch_size=8)
        for size in (1, 2, 4, 8) * 40:  # known as short, whatever it took here and now
            made._entries["add"].default.batcher.pacing.learn(size, 2e-6)
        yield made


def body(*data: Any, **more: Any) -> bytes:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": data}
    return json.dumps({"inputs": [tensor], **more}).encode()


def post_all(
    repository: ModelRepository,
    requests: Sequence[tuple[bytes, dict[str, str]]],
    **options: Any,
) -> tuple[list[httpx.Response], int]:
    """Send requests at once, several times; returns the last answers, and how many requests were
    answered together in all."""

    async def main() -> tuple[list[httpx.Response], int]:
        app = ASGIApp(repository, **options)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            for _ in range(ROUNDS):
                answers = await asyncio.gather(
                    *(client.post(INFER, content=c, headers=h) for c, h in requests)
                )
        return list(answers), sum(each.answered for each in app._gatherings.values())

    return asyncio.run(main())


def told(answers: Sequence[httpx.Response]) -> list[Any]:
    kept = ("content-type", "content-length", "inference-header-content-length")
    return [
        (answer.status_code, answer.content, [answer.headers.get(name) for name in kept])
        for answer in answers
    ]


def test_answers_are_those_of_requests_one_by_one(repository: ModelRepository) -> None:
    array = np.arange(4, dtype=np.float32).reshape(1, 4)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [1, 4],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": 16},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    binary = {"inference-header-content-length": str(len(head))}
    requests: list[tuple[bytes, dict[str, str]]] = [
        *((body(number, 2, 3, 4), {}) for number in range(6)),
        (head + array.tobytes(), binary),
        (body(1, 2, 3, "4"), {}),
        (body(1, 2, 3), {}),
        (body(1, 2, 3, 4, id="mine"), {}),
        (body(1, 2, 3, 4), {"x-request-id": "given"}),
        (b"{", {}),
        (b"", {}),
    ]
    together, some = post_all(repository, requests)
    apart, none = post_all(repository, requests, gather=False)
    assert told(together) == told(apart)
    assert [answer.status_code for answer in together] == [200] * 7 + [400, 400, 200, 200, 400, 400]
    assert some >= 7
    assert none == 0


def test_every_request_is_recorded_once_and_authenticated(repository: ModelRepository) -> None:
    key, hashed = APIKeys.generate()
    seen: list[Exchange] = []
    requests = [(body(1, 2, 3, 4), {"x-api-key": key}), (body(1, 2, 3, 4), {})] * 3
    answers, some = post_all(
        repository,
        requests,
        record=seen.append,
        authenticator=APIKeys({"ada": (hashed, {"infer"})}),
    )
    assert [answer.status_code for answer in answers] == [200, 401] * 3
    assert some > 0
    assert len(seen) == 6 * ROUNDS
    assert {(x.principal, x.code) for x in seen} == {("ada", "OK"), ("", "UNAUTHENTICATED")}


def test_one_application_gathers_in_every_loop_it_is_in(repository: ModelRepository) -> None:
    app = ASGIApp(repository)

    async def main() -> int:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            answer = await client.post(INFER, content=body(1, 2, 3, 4))
        return answer.status_code

    assert [asyncio.run(main()) for _ in range(3)] == [200] * 3
    assert len(app._gatherings) == 1, "those of loops that are closed are forgotten"


def test_cancelled_request_is_passed_over(repository: ModelRepository) -> None:
    async def main() -> list[Any]:
        transport = httpx.ASGITransport(app=ASGIApp(repository))
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            tasks = [
                asyncio.create_task(client.post(INFER, content=body(1, 2, 3, 4))) for _ in range(4)
            ]
            await asyncio.sleep(0)
            tasks[1].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(main())
    assert isinstance(found[1], asyncio.CancelledError)
    assert [found[number].status_code for number in (0, 2, 3)] == [200] * 3


class Busy(ModelRepository):
    """Has no time for what is to be answered within a second; "add" is known."""

    late_calls = 0

    def late(self, model: str, version: str, deadline: float) -> ServeError | None:
        self.late_calls += 1
        left = deadline - time.monotonic()
        if model != "add" or left > 1:
            return None
        if left > 0.25:
            return Overloaded('the "answer" would take 2 s', retry_after=2.2)
        return DeadlineExceeded("it is over")


@pytest.fixture
def busy() -> Iterator[Busy]:
    with Busy() as made:
        made.add("add", onnx_models.add_one(), max_batch_size=8)
        for size in (1, 2, 4, 8) * 40:
            made._entries["add"].default.batcher.pacing.learn(size, 2e-6)
        yield made


def timed(timeout: int) -> bytes:
    """A body that says first how many microseconds it has."""
    return b'{"parameters":{"timeout":%d},' % timeout + body(1, 2, 3, 4)[1:]


def test_what_is_late_is_refused_as_it_is_one_by_one(busy: Busy) -> None:
    requests: list[tuple[bytes, dict[str, str]]] = [
        (timed(500_000), {}),
        (timed(1), {}),
        (timed(60_000_000), {}),
        (body(1, 2, 3, 4), {}),
        (b'{"parameters":{"timeout":1}', {}),
        (timed(500_000), {"x-request-id": "given"}),
    ]
    seen: list[Exchange] = []
    together, some = post_all(busy, requests, record=seen.append)
    gathered = {(x.code, x.bytes_in, x.bytes_out, x.rows, x.version) for x in seen}
    seen.clear()
    apart, none = post_all(busy, requests, gather=False, record=seen.append)
    assert told(together) == told(apart)
    assert gathered == {(x.code, x.bytes_in, x.bytes_out, x.rows, x.version) for x in seen}
    assert len(seen) == len(requests) * ROUNDS
    assert [answer.status_code for answer in together] == [503, 504, 200, 200, 504, 503]
    for answers in (together, apart):
        assert [answer.headers.get("retry-after") for answer in answers][:3] == ["3", None, None]
        assert answers[0].json() == {"error": 'the "answer" would take 2 s'}
    assert len({answer.headers["x-request-id"] for answer in together}) == len(requests)
    assert some > 0
    assert none == 0


def test_who_may_not_ask_is_not_told_that_it_is_late(busy: Busy) -> None:
    key, hashed = APIKeys.generate()
    seen: list[Exchange] = []
    requests = [(timed(1), {"x-api-key": key}), (timed(1), {})]
    keys = APIKeys({"ada": (hashed, {"infer"})})
    answers, _ = post_all(busy, requests, record=seen.append, authenticator=keys)
    assert [answer.status_code for answer in answers] == [504, 401]
    assert {(x.principal, x.code) for x in seen} == {
        ("ada", "DEADLINE_EXCEEDED"),
        ("", "UNAUTHENTICATED"),
    }


def hold_up(seconds: float) -> None:
    time.sleep(seconds)


def test_time_counts_from_when_a_request_came(repository: ModelRepository) -> None:
    async def main() -> int:
        app = ASGIApp(repository)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            # It stands in the list when the loop is held up for longer than it has.
            task = asyncio.create_task(client.post(INFER, content=timed(10_000)))
            for _ in range(100):
                await asyncio.sleep(0)
                if any(each._arrivals for each in app._gatherings.values()):
                    break
            hold_up(0.02)
            return (await task).status_code

    assert asyncio.run(main()) == 504
