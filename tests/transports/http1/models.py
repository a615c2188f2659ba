"""A server for a test, and models that wait, or answer with much."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from modelserve.testing import StubModel
from modelserve.transports.serving import HTTPServer
from transports.http1.rows import post, text
from transports.raw_http import BOUND


@asynccontextmanager
async def served(servable: Any = None, **options: Any) -> AsyncIterator[HTTPServer]:
    """Serve a model, "echo" by default, with our own server."""
    settings = {"http": "127.0.0.1:0", "drain": 0.0, **options}
    async with HTTPServer(servable or StubModel(name="echo"), **settings) as server:
        yield server


class Held(StubModel):
    """The model "echo", which answers when it is let."""

    def __init__(self) -> None:
        super().__init__(self._answer, name="echo")
        self.gate = asyncio.Event()
        self.entered = asyncio.Semaphore(0)
        self.begun: list[str] = []
        """What was said in the requests that began."""
        self.cancelled: list[str] = []

    async def _answer(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        said = str(inputs["x"].ravel()[0], "ascii")
        self.begun.append(said)
        self.entered.release()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(said)
            raise
        return inputs

    async def wait_inside(self) -> None:
        """Wait until one more request has begun."""
        async with asyncio.timeout(BOUND):
            await self.entered.acquire()


class Sums(StubModel):
    """The model "echo", which tells the sum of what it got, without a copy."""

    def __init__(self) -> None:
        super().__init__(self._sum, name="echo")

    def _sum(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"y": np.array([inputs["x"].sum(dtype=np.uint64)])}


def large(size: int) -> StubModel:
    """Return the model "echo" that answers with so many bytes."""
    answer = np.zeros(size, np.uint8)
    return StubModel(lambda inputs: {"y": answer}, name="echo")


def wanting_bytes(*headers: str) -> bytes:
    """Return a request whose answer is to be bytes behind the JSON."""
    body = json.loads(text("x"))
    body["parameters"] = {"binary_data_output": True}
    told = json.dumps(body).encode()
    return post(told, f"content-length: {len(told)}", *headers)


def upload(size: int, *headers: str) -> tuple[bytes, int]:
    """Return the head and JSON of a request with so many bytes of tensor, and its whole length."""
    tensor = {
        "name": "x",
        "datatype": "UINT8",
        "shape": [size],
        "parameters": {"binary_data_size": size},
    }
    told = json.dumps({"inputs": [tensor]}).encode()
    length = len(told) + size
    lines = f"content-length: {length}", f"inference-header-content-length: {len(told)}"
    return post(told, *lines, *headers), length


async def until(condition: Callable[[], bool]) -> None:
    """Poll until a condition holds."""
    async with asyncio.timeout(BOUND):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)
