"""The store under kill -9, several publishing processes, and a disk without room.

MODELSERVE_TEST_KILLS sets how many publishers are killed (40).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from modelserve.errors import LoadError
from modelserve.repository.store import LocalStore

KILLS = int(os.environ.get("MODELSERVE_TEST_KILLS", "40"))
SEED = 20240607

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks, kills and mounts")

# An empty graph, then a field of zeros that no one reads.
MAKE_MODEL = """
def model(size):
    return bytes([0x3A, 0, 0x7A]) + bytes((size >> s & 0x7F) | 0x80 for s in (0, 7, 14)) \\
        + bytes([size >> 21]) + bytes(size)
"""

# Forks a publisher per line of input, so that a kill does not cost a start of Python.
PUBLISHER = f"""
import os, sys
from modelserve.repository.store import LocalStore
{MAKE_MODEL}

def publish(root, turn):
    store, data = LocalStore(root), model(3 << 20)
    while True:
        version = store.put("m", data).version
        store.label("m", {{"stable": version}})
        store.collect("m", 2)
        store.put(f"new{{turn}}", data)
        store.delete(f"new{{turn}}", "1")

for turn, _ in enumerate(sys.stdin):
    child = os.fork()
    if child == 0:
        publish(sys.argv[1], turn)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""

SEVERAL = f"""
import sys
from modelserve.repository.store import LocalStore
{MAKE_MODEL}
store = LocalStore(sys.argv[1])
for _ in range(15):
    print(store.put("m", model(1 << 20)).version, flush=True)
"""

LIMITED = f"""
import resource, sys
from modelserve.errors import LoadError
from modelserve.repository.store import LocalStore
{MAKE_MODEL}
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
store = LocalStore(sys.argv[1])
print(store.put("m", model(1 << 10)).version)
try:
    store.put("m", model(4 << 20))
except LoadError as error:
    print(error)
    print(type(error.__cause__).__name__)
"""


def model(size: int) -> bytes:
    made: dict[str, Callable[[int], bytes]] = {}
    exec(MAKE_MODEL, made)
    return made["model"](size)


def whole(store: LocalStore) -> None:
    """Fail unless every visible version is complete and verifies, and every label points at one."""
    for name in store.models():
        for version in store.versions(name):
            stored = store.open(name, version)
            assert set(os.listdir(stored.path)) == {"model.onnx", ".manifest.json"}
            assert set(stored.manifest["files"]) == {"model.onnx"}
        assert set(store.labels(name).values()) <= set(store.versions(name))


def litter(root: Path) -> list[str]:
    """Everything in the store that belongs neither to a version nor to it for good."""
    found = []
    for entry in root.iterdir():
        if entry.name == ".lock":
            continue
        versions = [path for path in entry.iterdir() if path.name.isdecimal()]
        rest = [path for path in entry.iterdir() if path not in versions]
        found += [path.name for path in rest if path.name != ".labels.json"]
        if entry.name.startswith(".") or not versions:
            found.append(entry.name)
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start Python processes that are gone when the test is over."""
    processes: list[subprocess.Popen[str]] = []

    def run(script: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "models")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.communicate()


@pytest.mark.timeout(20 + KILLS)
def test_killed_publishers_leave_whole_versions_and_no_litter(
    tmp_path: Path, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    root = tmp_path / "models"
    reader = LocalStore(root)  # constructed before: it cleans nothing up
    moments = random.Random(SEED)
    publisher = start(PUBLISHER)
    assert publisher.stdin is not None
    assert publisher.stdout is not None
    interrupted = 0
    for _ in range(KILLS):
        publisher.stdin.write("\n")
        publisher.stdin.flush()
        child = int(publisher.stdout.readline())
        time.sleep(moments.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        assert publisher.stdout.readline() == "dead\n"
        whole(reader)
        interrupted += root.exists() and bool(litter(root))
        store = LocalStore(root)
        assert not root.exists() or litter(root) == []
        whole(store)
        for name in store.models():
            if name != "m":
                store.delete(name, "1")
    assert interrupted, "no kill fell into a publication: the test shows nothing"


def test_two_publishing_processes_never_collide(
    tmp_path: Path, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    publishers = [start(SEVERAL), start(SEVERAL)]
    while any(publisher.poll() is None for publisher in publishers):
        whole(LocalStore(tmp_path / "models"))  # cleans up beside the living
    numbers = [int(n) for publisher in publishers for n in publisher.communicate()[0].split()]
    assert sorted(numbers) == list(range(1, 31))
    assert [publisher.returncode for publisher in publishers] == [0, 0]
    store = LocalStore(tmp_path / "models")
    assert store.versions("m") == tuple(map(str, range(1, 31)))
    whole(store)
    assert litter(store.path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount small file systems in memory, where that is allowed."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


def test_full_disk_is_a_load_error_and_leaves_nothing(
    small_disk: Callable[[str], Path],
) -> None:
    store = LocalStore(small_disk("size=2m") / "models")
    with pytest.raises(LoadError, match="no space left") as caught:
        store.put("m", model(4 << 20))
    assert isinstance(caught.value.__cause__, OSError)
    assert store.models() == ()
    assert os.listdir(store.path) == [".lock"]
    assert store.put("m", model(1 << 20)).version == "1"


@pytest.mark.parametrize("options", ["size=128k", "size=4m,nr_inodes=30"])
def test_disk_that_fills_up_at_any_step_leaves_nothing(
    small_disk: Callable[[str], Path], options: str
) -> None:
    disk = small_disk(options)
    store = LocalStore(disk / "models")
    store.put("m", model(10))
    store.label("m", {"stable": "1"})
    refusals: list[str] = []
    fillers: list[Path] = []
    while len(refusals) < 6:  # every round leaves one page, or one file, less than the one before
        fillers.append(disk / f"filler{len(fillers)}")
        with suppress(OSError):  # the disk is full: what counts comes now
            fillers[-1].write_bytes(bytes(4096))
        for step in _steps(store):
            try:
                step()
            except LoadError as error:
                refusals.append(str(error))
            whole(store)
            assert litter(store.path) == []
    assert [text for text in refusals if "no space left" not in text] == []
    assert store.labels("m")["stable"] == "1"


def _steps(store: LocalStore) -> list[Callable[[], Any]]:
    return [
        lambda: store.put("m", model(10)),
        lambda: store.put("m", model(9000), version="7"),
        lambda: store.put("new", model(10)),
        lambda: store.label("m", {"stable": "1", "more": "1"}),
        lambda: store.label("m", {"stable": "1", "more": None}),
        lambda: store.collect("m", 0),
        lambda: store.collect("new", 0),
    ]


def test_file_over_the_size_limit_is_a_load_error_and_leaves_nothing(
    tmp_path: Path, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    lines = start(LIMITED).communicate()[0].splitlines()
    assert lines == ["1", 'publishing "m": File too large', "OSError"]
    store = LocalStore(tmp_path / "models")
    assert store.versions("m") == ("1",)
    assert litter(store.path) == []
    assert json.loads((store.path / "m/1/.manifest.json").read_text())["source"] == "bytes"
