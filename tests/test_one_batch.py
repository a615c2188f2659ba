"""Callers of every kind meet in one batch: a thread, a coroutine, and clients over a socket."""

import asyncio
import threading
from collections.abc import Iterable
from time import monotonic
from typing import Any

import httpx
import numpy as np
import pytest

import onnx_models
from modelserve.backends.onnxruntime import InferenceSession
from modelserve.messages import Exchange, InferRequest
from modelserve.repository.decorator import model
from modelserve.repository.repository import ModelRepository
from modelserve.tensors import Tensor, TensorSpec
from modelserve.transports.serving import HTTPServer


class Gate:
    """Holds the first run until it is opened, and notes how many rows each run had."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.rows: list[int] = []

    def __call__(self, rows: int) -> None:
        self.rows.append(rows)
        if len(self.rows) == 1:
            self.entered.set()
            assert self.opened.wait(15)


class Gated:
    """An ONNX session behind a gate; without traits, its runs have their own thread."""

    def __init__(self, gate: Gate) -> None:
        self._session = InferenceSession(onnx_models.add_one(), providers=["cpu"])
        self._gate = gate
        self.signature = self._session.signature

    def run(self, inputs: Any) -> Any:
        self._gate(len(inputs["x"]))
        return self._session.run(inputs)

    def close(self) -> None:
        self._session.close()


class Exchanges:
    """An observer that keeps what it is given."""

    def __init__(self) -> None:
        self.closed: list[Exchange] = []

    def observe(self, exchanges: Iterable[Exchange]) -> None:
        self.closed.extend(exchanges)


def queue_depth(repository: ModelRepository) -> float:
    return sum(
        sample.value
        for family in repository.metrics.collect()
        if family.name == "modelserve_queue_depth"
        for sample in family.samples
    )


async def until_waiting(repository: ModelRepository, count: int) -> None:
    end = monotonic() + 10
    while True:
        if queue_depth(repository) == count:
            return
        assert monotonic() < end
        await asyncio.sleep(0.002)


def row(number: float) -> dict[str, Tensor]:
    return {"x": np.full((1, 4), number, np.float32)}


async def four_callers(repository: ModelRepository, gate: Gate) -> list[float]:
    """Ask in four ways while the one instance is held; return what each was answered."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [30.0] * 4}]}
    async with HTTPServer(repository, http="127.0.0.1:0") as server:
        held = asyncio.create_task(repository.infer(InferRequest("add", row(0))))
        assert await asyncio.to_thread(gate.entered.wait, 10)
        predicted = asyncio.create_task(asyncio.to_thread(repository.predict, "add", row(10)))
        await until_waiting(repository, 1)
        inferred = asyncio.create_task(repository.infer(InferRequest("add", row(20))))
        await until_waiting(repository, 2)
        async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
            url = f"{server.url}/v2/models/add/infer"
            posted = asyncio.create_task(client.post(url, json=body))
            await until_waiting(repository, 3)
            url = f"{server.url}/v1/models/add:predict"
            rows = asyncio.create_task(client.post(url, json={"instances": [[40.0] * 4]}))
            await until_waiting(repository, 4)
            gate.opened.set()
            answer, of_rows = await posted, await rows
        assert (answer.status_code, of_rows.status_code) == (200, 200)
        assert (await held).outputs["y"].tolist() == [[1.0] * 4]
        return [
            float((await predicted)["y"][0, 0]),
            float((await inferred).outputs["y"][0, 0]),
            answer.json()["outputs"][0]["data"][0],
            of_rows.json()["predictions"][0][0],
        ]


def python_function(repository: ModelRepository, gate: Gate) -> None:
    @model(name="add", inputs=[TensorSpec("x", "FP32", (-1, 4))], max_batch_size=8)
    def add(x: Any) -> Any:
        gate(len(x))
        return {"y": x + 1}

    repository.add(add)


def onnx_session(repository: ModelRepository, gate: Gate) -> None:
    repository.add("add", Gated(gate), max_batch_size=8, warm_up=False)


@pytest.mark.parametrize("added", [python_function, onnx_session])
def test_thread_coroutine_and_http_requests_share_one_batch(added: Any) -> None:
    gate, seen = Gate(), Exchanges()
    with ModelRepository(observers=[seen]) as repository:
        added(repository, gate)
        assert asyncio.run(four_callers(repository, gate)) == [11.0, 21.0, 31.0, 41.0]
    assert gate.rows == [1, 4]
    batched = [exchange for exchange in seen.closed if exchange.batch_requests == 4]
    protocols = sorted(exchange.protocol for exchange in batched)
    assert protocols == ["http", "http", "inprocess", "inprocess"]
    assert {(exchange.batch_rows, exchange.reason) for exchange in batched} == {(4, "next")}
