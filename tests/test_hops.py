"""How many Python calls one request costs: a layer that creeps in is seen here before in time.

Counts are those of an undisturbed request; what now and then comes on top (a histogram that is
folded, a thread that was asked) is not counted. A bound that is passed for a reason may be raised
with it; the lower bounds only tell that something was counted.
"""

import asyncio
import json
import selectors
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import modelserve
import onnx_models
from modelserve.codecs._plans import FRAMES
from modelserve.messages import Exchange, InferRequest
from modelserve.repository.repository import ModelRepository
from modelserve.transports.asgi import ASGIApp

ROW = np.ones((1, 4), np.float32)
REPEATS = 60


PACKAGE = str(Path(modelserve.__file__).parent)
# The event loop's own calls differ between versions of Python, and this file's are the test's.
OTHERS = (str(Path(asyncio.__file__).parent), selectors.__file__, __file__)


class Calls:
    """Counts the calls of Python functions in this thread, by file, each time it is entered."""

    def __init__(self) -> None:
        self._counts: list[Counter[str]] = []

    def __enter__(self) -> None:
        counts: Counter[str] = Counter()
        self._counts.append(counts)

        def note(frame: FrameType, event: str, argument: Any) -> None:
            if event == "call":
                counts[frame.f_code.co_filename] += 1

        sys.setprofile(note)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def least(self) -> tuple[int, int]:
        """Return the calls of the request with the fewest, and how many files of ours they are in.

        Resuming a coroutine or generator counts as a call of it.
        """
        counted = [
            {path: count for path, count in counts.items() if not path.startswith(OTHERS)}
            for counts in self._counts
        ]
        least = min(counted, key=lambda counts: sum(counts.values()))
        return sum(least.values()), sum(path.startswith(PACKAGE) for path in least)


@pytest.fixture
def repository() -> Iterator[ModelRepository]:
    with ModelRepository() as repository:
        FRAMES.clear()  # other tests may have filled it, and it takes in few new forms then
        repository.add("add", onnx_models.add_one(), max_batch_size=8)
        for size in (1, 2, 4, 8) * 40:  # known as short, whatever it took here and now
            repository._entries["add"].default.batcher.pacing.learn(size, 2e-6)
        yield repository


def count_async(request: Callable[[], Any]) -> tuple[int, int]:
    calls = Calls()

    async def main() -> None:
        for _ in range(REPEATS):
            with calls:
                await request()

    asyncio.run(main())
    return calls.least()


def test_predict(repository: ModelRepository) -> None:
    calls = Calls()
    for _ in range(REPEATS):
        with calls:
            repository.predict("add", {"x": ROW})
    count, files = calls.least()
    assert 15 < count <= 30
    assert files <= 12


def test_infer(repository: ModelRepository) -> None:
    count, files = count_async(lambda: repository.infer(InferRequest("add", {"x": ROW})))
    assert 15 < count <= 34
    assert files <= 12


def test_infer_of_several_callers(repository: ModelRepository) -> None:
    async def eight() -> None:
        requests = (InferRequest("add", {"x": ROW}) for _ in range(8))
        await asyncio.gather(*map(repository.infer, requests))

    count, files = count_async(eight)
    assert 80 < count <= 8 * 24
    assert files <= 14


def test_begin_of_several_requests(repository: ModelRepository) -> None:
    async def eight() -> None:
        answered = asyncio.get_running_loop().create_future()
        left = 8

        def done(response: Any, error: BaseException | None) -> None:
            nonlocal left
            left -= 1
            if not left:
                answered.set_result(None)

        for _ in range(left):
            request = InferRequest("add", {"x": ROW})
            request.exchange = Exchange("http", "add")
            repository.begin(request, done)
        await answered

    count, files = count_async(eight)
    assert 80 < count <= 8 * 21
    assert files <= 13


def test_json_request_to_the_application(repository: ModelRepository) -> None:
    app = ASGIApp(repository)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0] * 4}
    body = json.dumps({"inputs": [tensor]}).encode()
    message = {"type": "http.request", "body": body, "more_body": False}
    statuses = set()

    async def receive() -> Any:
        return message

    async def send(sent: Any) -> None:
        statuses.add(sent.get("status", 200))

    def request() -> Any:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v2/models/add/infer",
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
            ],
        }
        return app(scope, receive, send)

    count, files = count_async(request)
    assert statuses == {200}
    assert 30 < count <= 75
    # Requests and replies have a file of their own, and so has the wait for their clients.
    assert files <= 17
