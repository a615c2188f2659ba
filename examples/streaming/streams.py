"""Streams without a server: words as they are made up, and alarms from readings as they come."""

from __future__ import annotations

import asyncio
import inspect
import random
import statistics
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from itertools import pairwise

import numpy as np

import modelserve as ms


def learned() -> dict[str, list[str]]:
    """Learn which word follows which, from the documentation of the statistics module."""
    texts = [inspect.getdoc(getattr(statistics, name)) or "" for name in statistics.__all__]
    texts = [text.partition(">>>")[0] for text in texts]
    following = defaultdict(list)
    for word, after in pairwise(" ".join(texts).split()):
        following[word].append(after)
    return dict(following)


@ms.model(setup=learned)
def write(following: dict[str, list[str]], start: str, seed: int = 0) -> Iterator[str]:
    """Write on from a word, for as long as somebody reads."""
    choice = random.Random(seed).choice
    word = start
    while True:
        yield word
        word = choice(following.get(word) or list(following))


@ms.model
async def alarms(reading: AsyncIterator[float]) -> AsyncIterator[bool]:
    """Tell of each reading whether it is far from those before it (Welford's running variance)."""
    count, mean, squares = 0, 0.0, 0.0
    async for value in reading:
        deviation = (squares / (count - 1)) ** 0.5 if count > 1 else 0.0
        yield count > 10 and abs(value - mean) > 5 * deviation
        count += 1
        delta = value - mean
        mean += delta / count
        squares += delta * (value - mean)


async def readings() -> AsyncIterator[ms.InferRequest]:
    """Ask about a sensor's readings, of which the 60th is wrong."""
    values = np.random.default_rng(0).normal(20.0, 0.5, 100)
    values[60] += 10
    for value in values:
        yield ms.InferRequest("alarms", {"reading": [value]})


async def main() -> None:
    async with ms.ModelRepository() as repository:
        repository.add(write)
        repository.add(alarms)

        words: list[str] = []
        request = ms.InferRequest("write", {"start": ["The"], "seed": [3]})
        async with aclosing(repository.stream(request)) as responses:
            async for response in responses:
                words.append(response.outputs["output"][0].decode())
                if len(words) == 12:
                    break  # closing the stream ends the generator
        print(" ".join(words))

        number = 0
        async for response in repository.stream(readings()):
            if response.outputs["output"][0]:
                print(f"alarm at reading {number}")
            number += 1
        print(f"{number} readings")


if __name__ == "__main__":
    asyncio.run(main())
