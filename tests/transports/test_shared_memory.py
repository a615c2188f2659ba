"""What clients register: hostile keys, memory that shrinks, names given up, many at once."""

import errno
import gc
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelserve.codecs.shared_memory import RegionInfo
from modelserve.errors import InvalidInput, Overloaded, ServeError, Unsupported
from modelserve.transports.shared_memory import (
    MAX_COPIED,
    NoSuchRegion,
    RegionExists,
    SharedMemory,
    shared_memory_of,
)
from shared_memory import DIRECTORY, Shared, open_in_this_process, shared

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory is for Linux")

PATH = "inputs[0].parameters"


@pytest.fixture
def memory() -> SharedMemory:
    return SharedMemory()


@pytest.fixture
def page() -> Iterator[Shared]:
    with shared(4096) as made:
        yield made


def refused(call: Callable[[], Any], kind: type[ServeError] = InvalidInput) -> str:
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert str(DIRECTORY) not in text
    return text


# Registering


def test_registered_region_is_listed_and_read_and_written(
    memory: SharedMemory, page: Shared
) -> None:
    memory.register("r", page.key, offset=8, byte_size=16)
    assert memory.regions() == memory.regions("r") == [RegionInfo("r", page.key, 8, 16)]
    page.put(b"abcdefgh", 8)
    window = memory.window("r", 2, 4, path=PATH)
    assert bytes(window.read()) == b"cdef"
    window.write(b"12")
    assert page.get(10, 6) == b"\0\0ab12efgh"


def test_key_may_come_without_its_slash(memory: SharedMemory, page: Shared) -> None:
    memory.register("r", page.key[1:], byte_size=4096)
    assert memory.regions("r")[0].key == page.key[1:]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "//",
        ".",
        "..",
        "/..",
        "/../etc/passwd",
        "../shm/x",
        "a/b",
        "/a/b",
        "//etc/passwd",
        "/etc/passwd",
        "a\0b",
        "\0",
        "x" * 256,
        "é" * 128,
    ],
)
def test_key_that_is_no_name_is_refused(memory: SharedMemory, key: str) -> None:
    text = refused(lambda: memory.register("r", key, byte_size=1))
    assert text.startswith("key: expected a name of 1 to 255 bytes")
    assert len(text) < 300
    assert memory.regions() == []


@pytest.mark.parametrize("key", ["/nope", "x" * 255, "a b", "é", "-", "\n", "%s%n", "~", "*"])
def test_key_of_nothing_is_refused(memory: SharedMemory, key: str) -> None:
    text = refused(lambda: memory.register("r", key, byte_size=1))
    assert text.startswith('key: there is no shared memory "')
    assert memory.regions() == []


def test_semaphore_is_refused(memory: SharedMemory) -> None:
    path = DIRECTORY / f"sem.modelserve-test-{os.getpid()}"
    path.write_bytes(bytes(32))
    try:
        text = refused(lambda: memory.register("r", path.name, byte_size=1))
    finally:
        path.unlink()
    assert "not shared memory but a semaphore" in text


@pytest.fixture
def beside(page: Shared) -> Iterator[Path]:
    path = page.path.with_name(page.path.name + "-beside")
    yield path
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()


def make_pipe(path: Path, page: Shared) -> None:
    os.mkfifo(path)


def make_directory(path: Path, page: Shared) -> None:
    path.mkdir()


def make_link(path: Path, page: Shared) -> None:
    path.symlink_to(page.path)


def make_link_elsewhere(path: Path, page: Shared) -> None:
    path.symlink_to("/etc/passwd")


def make_dangling_link(path: Path, page: Shared) -> None:
    path.symlink_to("/nowhere")


def make_socket(path: Path, page: Shared) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize(
    "make",
    [make_pipe, make_directory, make_link, make_link_elsewhere, make_dangling_link, make_socket],
)
def test_what_is_not_plain_memory_is_refused(
    memory: SharedMemory, page: Shared, beside: Path, make: Callable[[Path, Shared], None]
) -> None:
    make(beside, page)
    text = refused(lambda: memory.register("r", beside.name, byte_size=1))
    assert "not shared memory" in text
    gc.collect()
    assert open_in_this_process(beside) == 0


def test_memory_that_may_only_be_read_is_refused(memory: SharedMemory, page: Shared) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everything")
    page.path.chmod(0o400)
    text = refused(lambda: memory.register("r", page.key, byte_size=1))
    assert "the server may not read and write" in text


def test_memory_of_someone_else_is_refused(page: Shared) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become someone else")
    code = """
import os, resource, sys
from modelserve.transports.shared_memory import SharedMemory
memory = SharedMemory()
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    memory.register("r", sys.argv[1], byte_size=1)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, page.key], capture_output=True, text=True, timeout=30
    )
    assert "InvalidInput key: the server may not read and write" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("offset", "byte_size"),
    [
        (0, 4097),
        (1, 4096),
        (4096, 1),
        (4097, 1),
        (0, 2**63 - 1),
        (2**63 - 1, 1),
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_region_beyond_its_memory_is_refused(
    memory: SharedMemory, page: Shared, offset: int, byte_size: int
) -> None:
    text = refused(lambda: memory.register("r", page.key, offset=offset, byte_size=byte_size))
    assert text.startswith("byte_size: expected at most the 4096 bytes of ")
    assert memory.regions() == []
    gc.collect()
    assert open_in_this_process(page.path) == 1  # ours


def test_huge_memory_with_nothing_in_it_can_be_registered(memory: SharedMemory) -> None:
    with shared(2**40) as huge:
        memory.register("r", huge.key, byte_size=2**40)
        assert bytes(memory.window("r", 2**40 - 2, 2, path=PATH).read()) == b"\0\0"
        memory.unregister()


def test_name_is_taken_once(memory: SharedMemory, page: Shared) -> None:
    memory.register("r", page.key, byte_size=4)
    with pytest.raises(RegionExists, match="already registered") as caught:
        memory.register("r", page.key, byte_size=4)
    assert (caught.value.http, caught.value.grpc) == (400, "ALREADY_EXISTS")
    memory.unregister("r")
    memory.register("r", page.key, byte_size=8)
    assert memory.regions("r")[0].byte_size == 8


@pytest.mark.parametrize("name", ["", "n" * 257])
def test_name_has_a_bounded_length(memory: SharedMemory, page: Shared, name: str) -> None:
    assert "at most 256" in refused(lambda: memory.register(name, page.key, byte_size=1))


def test_regions_may_overlap(memory: SharedMemory, page: Shared) -> None:
    memory.register("a", page.key, byte_size=8)
    memory.register("b", page.key, offset=4, byte_size=8)
    memory.window("a", 4, 4, path=PATH).write(b"both")
    assert bytes(memory.window("b", 0, 4, path=PATH).read()) == b"both"


def test_number_of_regions_is_bounded(page: Shared) -> None:
    memory = SharedMemory(max_regions=3)
    for number in range(3):
        memory.register(str(number), page.key, byte_size=1)
    text = refused(lambda: memory.register("more", page.key, byte_size=1), Overloaded)
    assert "3 regions are registered" in text
    memory.unregister("1")
    memory.register("more", page.key, byte_size=1)


def test_regions_leave_files_for_others(memory: SharedMemory, page: Shared) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        for number in range(64):
            memory.register(str(number), page.key, byte_size=1)
        refused(lambda: memory.register("more", page.key, byte_size=1), Overloaded)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_file_left_to_open_is_told(memory: SharedMemory, page: Shared) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011, PT012  # which one follows
            while True:
                taken.append(os.dup(page.descriptor))
        assert caught.value.errno == errno.EMFILE
        text = refused(lambda: memory.register("r", page.key, byte_size=1), Overloaded)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
    assert text == "too many files are open"


def test_bounds_are_not_negative() -> None:
    for wrong in ({"max_regions": -1}, {"max_copied": -1}):
        with pytest.raises(ValueError, match="0 or more"):
            SharedMemory(**wrong)


# Forgetting


def test_unregistered_region_is_closed(memory: SharedMemory, page: Shared) -> None:
    memory.register("r", page.key, byte_size=4)
    memory.register("s", page.key, byte_size=4)
    assert open_in_this_process(page.path) == 3
    memory.unregister("r")
    gc.collect()
    assert open_in_this_process(page.path) == 2
    memory.unregister()
    gc.collect()
    assert open_in_this_process(page.path) == 1
    assert memory.regions() == []


def test_memory_that_goes_closes_its_regions(page: Shared) -> None:
    memory = SharedMemory()
    memory.register("r", page.key, byte_size=4)
    del memory
    gc.collect()
    assert open_in_this_process(page.path) == 1


def test_what_is_not_registered_can_be_unregistered(memory: SharedMemory) -> None:
    memory.unregister("r")
    memory.unregister()


def test_unknown_region_has_no_status(memory: SharedMemory) -> None:
    with pytest.raises(NoSuchRegion, match='no region "r"') as caught:
        memory.regions("r")
    assert (caught.value.http, caught.value.grpc) == (404, "NOT_FOUND")


def test_request_under_way_keeps_its_region(memory: SharedMemory, page: Shared) -> None:
    memory.register("r", page.key, byte_size=8)
    window = memory.window("r", 0, 8, path=PATH)
    memory.unregister()
    memory.register("r", page.key, offset=100, byte_size=8)
    page.unlink()
    window.write(b"the end.")
    assert page.get(8) == b"the end."
    assert bytes(window.read()) == b"the end."


def test_unlinked_memory_goes_on_and_a_new_one_of_its_name_is_another(
    memory: SharedMemory, page: Shared
) -> None:
    memory.register("old", page.key, byte_size=4)
    page.put(b"old!")
    page.unlink()
    page.path.write_bytes(b"new!")
    memory.register("new", page.key, byte_size=4)
    assert bytes(memory.window("old", 0, 4, path=PATH).read()) == b"old!"
    assert bytes(memory.window("new", 0, 4, path=PATH).read()) == b"new!"


# Using


def test_unknown_region_is_told_with_its_place(memory: SharedMemory) -> None:
    text = refused(lambda: memory.window("r", 0, 1, path=PATH))
    assert text == f'{PATH}.shared_memory_region: there is no region "r"; register it first'


def test_copy_is_read_only_and_stays(memory: SharedMemory, page: Shared) -> None:
    page.put(b"abcd")
    memory.register("r", page.key, byte_size=4)
    found = memory.window("r", 0, 4, path=PATH).read()
    page.put(b"wxyz")
    assert found.readonly
    assert bytes(found) == b"abcd"


def test_memory_made_smaller_is_told_and_kills_nobody(memory: SharedMemory, page: Shared) -> None:
    memory.register("r", page.key, byte_size=4096)
    window = memory.window("r", 0, 4096, path=PATH)
    page.truncate(100)
    for call in (window.read, lambda: window.write(bytes(4096))):
        text = refused(call)
        assert text.startswith(f'{PATH}.shared_memory_region: the memory of the region "r" was')
    assert page.size == 100  # and not made larger again
    assert len(memory.window("r", 0, 100, path=PATH).read()) == 100
    page.truncate(4096)
    assert len(window.read()) == 4096


def test_memory_made_smaller_while_it_is_read_kills_nobody(memory: SharedMemory) -> None:
    size = 1 << 20
    with shared(size) as moving:
        memory.register("r", moving.key, byte_size=size)
        window = memory.window("r", 0, size, path=PATH)
        stop = threading.Event()

        def move() -> None:
            while not stop.is_set():
                moving.truncate(5000)
                moving.truncate(size)

        mover = threading.Thread(target=move)
        mover.start()
        outcomes = set()
        try:
            for _ in range(300):
                try:
                    outcomes.add(len(window.read()))
                    window.write(bytes(size))
                except InvalidInput:
                    outcomes.add(0)
        finally:
            stop.set()
            mover.join()
        assert outcomes <= {0, size}


def test_full_machine_is_told(memory: SharedMemory, page: Shared) -> None:
    # A bound on the size of files stands for one on the memory: the kernel refuses both alike.
    memory.register("r", page.key, byte_size=4096)
    window = memory.window("r", 0, 4096, path=PATH)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        text = refused(lambda: window.write(bytes(4096)), Overloaded)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert text == 'the machine has no memory left for what is to be written to "r"'


def test_copies_are_bounded_and_count_until_they_are_gone(page: Shared) -> None:
    memory = SharedMemory(max_copied=100)
    memory.register("r", page.key, byte_size=4096)
    first = memory.window("r", 0, 60, path=PATH).read()
    array = np.frombuffer(first, np.uint8).reshape(6, 10)[2:]
    del first
    text = refused(memory.window("r", 0, 41, path=PATH).read, Overloaded)
    assert "hold 60 bytes" in text
    second = memory.window("r", 0, 40, path=PATH).read()
    del array
    gc.collect()
    third = memory.window("r", 0, 60, path=PATH).read()
    assert (len(second), len(third)) == (40, 60)
    with pytest.raises(Overloaded) as caught:
        memory.window("r", 0, 1, path=PATH).read()
    assert caught.value.retry_after


def test_read_that_fails_counts_for_nothing(page: Shared) -> None:
    memory = SharedMemory(max_copied=4096)
    memory.register("r", page.key, byte_size=4096)
    window = memory.window("r", 0, 4096, path=PATH)
    page.truncate(0)
    for _ in range(3):
        refused(window.read)
    page.truncate(4096)
    gc.collect()
    assert len(window.read()) == 4096


@given(st.data())
def test_windows_are_what_slices_are(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 200))
    content = bytearray(os.urandom(size))
    with shared(size) as made:
        made.put(bytes(content))
        memory = SharedMemory()
        offset = data.draw(st.integers(0, 220))
        byte_size = data.draw(st.integers(1, 220))
        if offset + byte_size > size:
            refused(lambda: memory.register("r", made.key, offset=offset, byte_size=byte_size))
            return
        memory.register("r", made.key, offset=offset, byte_size=byte_size)
        for _ in range(3):
            start = data.draw(st.integers(0, 220))
            length = data.draw(st.integers(0, 220))
            if start + length > byte_size:
                assert "expected at most the" in refused(
                    lambda start=start, length=length: memory.window(  # type: ignore[misc]
                        "r", start, length, path=PATH
                    )
                )
                continue
            window = memory.window("r", start, length, path=PATH)
            first = offset + start
            assert bytes(window.read()) == content[first : first + length]
            written = data.draw(st.binary(max_size=length))
            window.write(written)
            content[first : first + len(written)] = written
        assert made.get(size) == content
        memory.unregister()


def test_many_threads_at_once(page: Shared) -> None:
    memory = SharedMemory(max_regions=8)
    failures: list[BaseException] = []
    start = threading.Barrier(6)

    def work(number: int) -> None:
        start.wait()
        try:
            for turn in range(200):
                name = f"r{turn % 3}"
                with suppress(RegionExists):
                    memory.register(name, page.key, offset=number, byte_size=16)
                with suppress(InvalidInput):
                    window = memory.window(name, 0, 16, path=PATH)
                    assert len(window.read()) == 16
                    window.write(bytes(16))
                memory.unregister(name if turn % 5 else "")
                memory.regions()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    memory.unregister()
    gc.collect()
    assert open_in_this_process(page.path) == 1


# Where it is not offered


def test_refusal_is_told_to_whoever_registers_or_uses(page: Shared) -> None:
    memory = SharedMemory(refusal="not on Sundays")
    register = lambda: memory.register("r", page.key, byte_size=1)  # noqa: E731
    assert refused(register, Unsupported) == "not on Sundays"
    window = lambda: memory.window("r", 0, 1, path=PATH)  # noqa: E731
    assert refused(window, Unsupported) == f"{PATH}: not on Sundays"
    assert memory.regions() == []
    memory.unregister()


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_than_on_linux_it_is_not_offered(
    monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    memory = SharedMemory()
    monkeypatch.undo()
    with pytest.raises(Unsupported, match="on Linux alone"):
        memory.register("r", "/k", byte_size=1)


def test_server_has_the_memory_it_is_given() -> None:
    memory = SharedMemory()
    assert shared_memory_of(memory, 1) is memory
    assert shared_memory_of(True, 1).refusal == ""
    assert shared_memory_of(False, 1).refusal == "shared memory is turned off here"
    large = shared_memory_of(True, 2 * MAX_COPIED)
    assert large._max_copied == 2 * MAX_COPIED
