"""`modelserve demo`: real input from a model file to a version changed under load."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib import resources
from time import perf_counter
from typing import Any, Final

import numpy as np

from modelserve.backends.onnxruntime import InferenceSession
from modelserve.client import AsyncClient
from modelserve.errors import ServeError
from modelserve.messages import InferRequest, InferResponse
from modelserve.repository.repository import ModelRepository
from modelserve.transports.serving import HTTPServer

__all__ = ["declare"]

_CALLERS: Final = 64
_ROUNDS: Final = 4
_UNDER_LOAD: Final = 1.5
"""Seconds of requests around the change of version."""

_Ask = Callable[[InferRequest], Awaitable[InferResponse]]


def declare(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo",
        help="serve a classifier of handwritten digits and change its version under load",
        description=(
            "Publish a classifier of scikit-learn's handwritten digits, serve it, send the images "
            "held out from its training one by one and many at once, in-process and over HTTP, "
            "then publish a better version while requests are under way. Exit status 1 if one "
            "failed."
        ),
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    images, labels = _held_out()
    with tempfile.TemporaryDirectory(prefix="modelserve-demo-") as directory:
        return asyncio.run(_demo(directory, images, labels))


def _held_out() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the quarter of the images the models were not trained on, and what they show."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            'the demo needs scikit-learn\'s images: pip install "modelserve[demo]"'
        ) from error
    digits = load_digits()
    _, images, _, labels = train_test_split(
        digits.data.astype(np.float32),
        digits.target,
        test_size=0.25,
        random_state=0,  # as in the script that trained them
        stratify=digits.target,
    )
    return images, labels


def _model(version: str) -> bytes:
    file = resources.files("modelserve.cli").joinpath("digits", f"digits-{version}.onnx")
    return file.read_bytes()


async def _demo(directory: str, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> int:
    async with ModelRepository(directory) as repository:
        version = await repository.apublish("digits", _model("1"))
        info = await repository.describe("digits")
        print(f"published  digits version {version}; batching {info.batching.partition(',')[0]}")
        async with HTTPServer(repository, http="127.0.0.1:0") as server:
            print(f"serving    {server.url}/v2/models/digits")
            print(f"input      {len(images)} held-out images of handwritten digits\n")
            async with AsyncClient(server.url, max_connections=_CALLERS) as client:
                await _measure(repository, client, images, labels)
                return await _change_version(repository, client, images, labels)


# ---------------------------------------------------------------------- one by one against batched


async def _measure(
    repository: ModelRepository,
    client: AsyncClient,
    images: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
) -> None:
    print(f"{'':<38}{'accuracy':>9}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'batch':>7}")
    for path, ask in (("in-process", repository.infer), ("HTTP", client.infer)):
        for callers in (1, _CALLERS):
            how = "one by one" if callers == 1 else f"{callers} at a time"
            rounds = _ROUNDS * (4 if path == "in-process" else 1)
            await _send(ask, images, labels, callers, 1)  # warm
            before = _batches(repository)
            accuracy, rate, times = await _send(ask, images, labels, callers, rounds)
            requests, batches = (b - a for a, b in zip(before, _batches(repository), strict=True))
            p50, p99 = np.percentile(times, [50, 99]) * 1e3
            print(
                f"{path + ', ' + how:<38}{accuracy:>9.3f}{rate:>12,.0f}{p50:>9.2f}{p99:>9.2f}"
                f"{requests / max(batches, 1):>7.1f}"
            )
    print("client and server share one process here, so HTTP's figures include the client's work\n")


async def _send(
    ask: _Ask,
    images: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    callers: int,
    rounds: int,
) -> tuple[float, float, list[float]]:
    """Send each image as a request; return accuracy, requests a second and latencies."""
    order = iter(list(range(len(images))) * rounds)
    times: list[float] = []
    right = 0

    async def caller() -> None:
        nonlocal right
        for index in order:
            began = perf_counter()
            response = await ask(InferRequest("digits", {"image": images[index : index + 1]}))
            times.append(perf_counter() - began)
            right += int(response.outputs["label"][0] == labels[index])

    began = perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return right / len(times), len(times) / (perf_counter() - began), times


def _batches(repository: ModelRepository) -> tuple[float, float]:
    """Return requests and batches so far."""
    requests = batches = 0.0
    for family in repository.metrics.collect():
        for sample in family.samples:
            if sample.name == "modelserve_requests_total":
                requests += sample.value
            elif sample.name == "modelserve_batch_size_count":
                batches += sample.value
    return requests, batches


# ---------------------------------------------------------------------- a change under load


async def _change_version(
    repository: ModelRepository,
    client: AsyncClient,
    images: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
) -> int:
    expected = {version: _labels_by(version, images) for version in ("1", "2")}
    answered: Counter[str] = Counter()
    failed: list[ServeError] = []
    wrong = 0

    async def caller(ask: _Ask, first: int) -> None:
        nonlocal wrong
        index = first
        while not done.is_set():
            index = (index + 1) % len(images)
            try:
                response = await ask(InferRequest("digits", {"image": images[index : index + 1]}))
            except ServeError as error:
                failed.append(error)
                continue
            answered[response.version] += 1
            wrong += int(response.outputs["label"][0] != expected[response.version][index])

    done = asyncio.Event()
    async with _callers(
        [
            caller(ask, number * 7)
            for ask in (repository.infer, client.infer)
            for number in range(16)
        ],
        done,
    ):
        await asyncio.sleep(_UNDER_LOAD / 2)
        began = perf_counter()
        version = await repository.apublish("digits", _model("2"))
        took = perf_counter() - began
        await asyncio.sleep(_UNDER_LOAD / 2)
    right = (expected[version] == labels).mean()
    print(f"published  digits version {version} in {took * 1e3:.0f} ms with 32 callers under way")
    print(f"answered   {answered['1']:,} by version 1, {answered['2']:,} by version 2")
    print(f"failed     {len(failed)}, wrong {wrong}")
    print(f"accuracy   {right:.3f} now, {(expected['1'] == labels).mean():.3f} before")
    for error in failed[:3]:
        print(f"  {type(error).__name__}: {error}")
    return 1 if failed or wrong or not answered["1"] or not answered["2"] else 0


def _labels_by(version: str, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return what plain ONNX Runtime says, to hold the answers against."""
    session = InferenceSession(_model(version))
    labels: np.ndarray[Any, Any] = session.run({"image": images})["label"]
    session.close()
    return labels


@asynccontextmanager
async def _callers(
    callers: list[Coroutine[Any, Any, None]], done: asyncio.Event
) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(caller) for caller in callers]
    try:
        yield
    finally:
        done.set()
        await asyncio.gather(*tasks)
