"""Name the types of all files in a directory, and hold them against magika's own answers.

    python classify.py DIRECTORY                              in this process
    python classify.py DIRECTORY --url http://127.0.0.1:8000  by a server

Exit status 1 if one answer is another than the package's.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import modelserve as ms

BLOCK = 4096
THREADS = 16


def blocks(path: Path) -> tuple[bytes, bytes]:
    """Read the first and the last block of a file."""
    with path.open("rb") as file:
        head = file.read(BLOCK)
        file.seek(max(0, path.stat().st_size - BLOCK))
        return head, file.read(BLOCK)


@contextmanager
def models(url: str | None) -> Iterator[ms.Client | ms.ModelRepository]:
    """Give what answers: a client, or a repository here. Both have the same `predict`."""
    if url is not None:
        with ms.Client(url) as client:
            yield client
        return
    from content_types import content_type, model_file

    with TemporaryDirectory() as directory, ms.ModelRepository(directory) as repository:
        repository.publish("magika", model_file())
        repository.add(content_type(repository))
        yield repository


def classify(
    served: ms.Client | ms.ModelRepository, paths: Sequence[Path]
) -> list[tuple[str, float]]:
    """Ask for each file in a request of its own, many at a time; return labels and scores."""

    def ask(path: Path) -> tuple[str, float]:
        head, tail = blocks(path)
        answer = served.predict("content_type", {"head": [head], "tail": [tail]})
        return answer["label"][0].decode(), float(answer["score"][0])

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(ask, paths))


def show(paths: Sequence[Path], answers: Sequence[tuple[str, float]]) -> None:
    """Print a line for each type found."""
    found = defaultdict(list)
    for path, (label, score) in zip(paths, answers, strict=True):
        found[label].append((score, path))
    print(f"{'type':<16}{'files':>6}{'lowest score':>14}  for example")
    for label, files in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        score, path = min(files)
        print(f"{label:<16}{len(files):>6}{score:>14.3f}  {path.name}")


def compare(paths: Sequence[Path], answers: Sequence[tuple[str, float]]) -> int:
    """Hold the answers against the package's; return how many differ."""
    from magika import Magika

    differing = 0
    furthest = 0.0
    own = Magika()
    for path, (label, score) in zip(paths, answers, strict=True):
        expected = own.identify_path(path)
        furthest = max(furthest, abs(score - expected.score))
        if label != str(expected.output.label):
            differing += 1
            print(f"{path}: {label}, the package says {expected.output.label}")
    agreeing = len(paths) - differing
    print(f"agreement: {agreeing} of {len(paths)} files; scores within {furthest:.1e}")
    return differing


def main() -> int:
    parser = argparse.ArgumentParser(description="Name the types of files.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--url", help="a server to ask; without, the model runs in this process")
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.directory.rglob("*") if path.is_file())
    if not paths:
        parser.error(f"no files in {arguments.directory}")
    with models(arguments.url) as served:
        began = perf_counter()
        answers = classify(served, paths)
        took = perf_counter() - began
    show(paths, answers)
    print(f"{len(paths)} files in {took:.2f} s, {THREADS} at a time")
    return 1 if compare(paths, answers) else 0


if __name__ == "__main__":
    sys.exit(main())
