"""Draw the lines of a text, have them read, and hold the answers against the text.

    python read.py [FILE]                              in this process
    python read.py [FILE] --url http://127.0.0.1:8000  by a server

Without a file, the text is the Zen of Python. `--package` asks the package's own reader, too. Exit
status 1 if a line was not read as it is, or not as the package reads it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from lines import draw

import modelserve as ms


def zen() -> str:
    printed = StringIO()
    with redirect_stdout(printed):
        import this  # noqa: F401  # importing it prints the text
    return printed.getvalue()


def words(text: str) -> str:
    """Make every run of spaces one: how many there were is not to be seen."""
    return " ".join(text.split())


@asynccontextmanager
async def models(url: str | None) -> AsyncIterator[ms.Servable]:
    """Give what answers: a client, or a repository here. Both are servables."""
    if url is not None:
        async with ms.AsyncClient(url) as client:
            yield client
        return
    from lines import serve_lines

    async with ms.ModelRepository() as repository:
        await asyncio.to_thread(serve_lines, repository)  # loading takes a while
        yield repository


async def read(url: str | None, images: Sequence[np.ndarray[Any, Any]]) -> list[str]:
    """Send all lines at once, each in a request of its own."""
    async with models(url) as served:
        began = perf_counter()
        requests = [ms.InferRequest("read_line", {"image": image}) for image in images]
        responses = await asyncio.gather(*(served.infer(request) for request in requests))
        print(f"{len(images)} lines in {perf_counter() - began:.2f} s")
        return [response.outputs["text"][0].decode() for response in responses]


def read_by_package(images: Sequence[np.ndarray[Any, Any]]) -> list[str]:
    from rapidocr import RapidOCR

    reader: Any = RapidOCR(params={"Global.log_level": "error"})
    answers = [
        reader(np.repeat(image[..., None], 3, axis=2), use_det=False, use_cls=False)
        for image in images
    ]
    return [answer.txts[0] if answer.txts else "" for answer in answers]


def compare(what: str, expected: Sequence[str], found: Sequence[str]) -> bool:
    """Print the lines that differ, and how many do not."""
    pairs = list(zip(expected, found, strict=True))
    differing = [(right, read) for right, read in pairs if words(right) != words(read)]
    for right, read in differing:
        print(f"  {right!r}\n  {read!r}")
    print(f"as {what}: {len(pairs) - len(differing)} of {len(pairs)} lines")
    return not differing


def main() -> int:
    parser = argparse.ArgumentParser(description="Read lines of text that are drawn first.")
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--url", help="a server to ask; without, the model runs in this process")
    parser.add_argument("--package", action="store_true", help="ask the package's own reader, too")
    arguments = parser.parse_args()
    text = arguments.file.read_text("utf-8") if arguments.file else zen()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        parser.error("no text in the file")
    images = [draw(line) for line in lines]
    found = asyncio.run(read(arguments.url, images))
    same = compare("drawn", lines, found)
    if arguments.package:
        same &= compare("the package reads", read_by_package(images), found)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
