"""Shared memory that clients registered, for inputs and outputs of requests on the same machine.

A region is read and written through its file descriptor, never mapped: a client may make its memory
smaller at any time, and touching a page that is gone, or for which the machine has no memory left,
ends the process (SIGBUS), where a read just ends early and a write fails. Inputs are copied once,
for what is validated must be what runs. What mapping would save is measured by
`benchmarks/bench_shared_memory.py`.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections import deque
from threading import Lock
from typing import Final
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from modelserve.codecs.shared_memory import RegionInfo
from modelserve.errors import ClientError, Conflict, InvalidInput, Overloaded, Unsupported

__all__ = [
    "MAX_COPIED",
    "MAX_REGIONS",
    "NoSuchRegion",
    "RegionExists",
    "SharedMemory",
    "shared_memory_of",
]

MAX_REGIONS: Final = 1024
"""Default for how many regions may be registered at once."""
MAX_COPIED: Final = 2**30
"""Default for the bytes of inputs that may be held at once, 1 GiB."""

_DIRECTORY: Final = "/dev/shm"
"""Where Linux has what `shm_open` opens."""
_LONGEST_NAME: Final = 256
_LONGEST_KEY: Final = 255
# POSIX semaphores are files beside the shared memory, and nothing to write tensors into.
_SEMAPHORE: Final = "sem."
_FLAGS: Final = os.O_RDWR | sum(
    # Neither a link is followed, nor is a pipe waited for, nor does a child get it.
    getattr(os, name, 0)
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY")
)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG)
_RETRY_AFTER: Final = 1.0


class RegionExists(Conflict):
    """A region of this name is registered. Over HTTP it is the 400 that Triton's clients know."""

    http = 400


class NoSuchRegion(ClientError):
    """No region of this name is registered."""

    http = 404
    grpc = "NOT_FOUND"


class SharedMemory:
    """The regions that the clients of one server registered; they are used by name in requests.

    May be used by several threads, event loops and transports at once. What is registered is kept
    open, so it goes on working after its client has unlinked it or ended. Whoever may register may
    have this process read and write whatever shared memory it may.

    Args:
        refusal: Why nothing may be registered here; empty: it may. Elsewhere than on Linux there
            is always a reason.
        max_regions: How many regions there may be at once. There may be no more, either, than a
            quarter of the files this process may open.
        max_copied: Bytes of inputs read from shared memory that may be held at once.

    Raises:
        ValueError: A bound is negative.

    Example:
        >>> memory = SharedMemory(max_regions=8)
        >>> memory.regions()
        []
    """

    __slots__ = (
        "_copied",
        "_freed",
        "_lock",
        "_max_copied",
        "_max_regions",
        "_refs",
        "_regions",
        "refusal",
    )

    def __init__(
        self,
        *,
        refusal: str = "",
        max_regions: int = MAX_REGIONS,
        max_copied: int = MAX_COPIED,
    ) -> None:
        if max_regions < 0 or max_copied < 0:
            raise ValueError("max_regions and max_copied are 0 or more")
        if not refusal and sys.platform != "linux":
            refusal = "shared memory is offered on Linux alone"
        self.refusal = refusal
        """Why nothing may be registered here; empty: it may."""
        self._max_regions = max_regions
        self._max_copied = max_copied
        self._regions: dict[str, _Region] = {}
        self._lock = Lock()
        self._copied = 0
        self._freed: deque[int] = deque()
        self._refs: dict[int, ref[NDArray[np.uint8]]] = {}

    def register(self, name: str, key: str, *, offset: int = 0, byte_size: int) -> None:
        """Let requests use a part of a shared memory object.

        Args:
            name: Name of the region, at most 256 characters.
            key: Name of the object, as `shm_open` has it; a leading "/" is let be.
            offset: Bytes of the object before the region.
            byte_size: Bytes of the region.

        Raises:
            InvalidInput: There is no such object, it cannot be opened, or it is smaller.
            RegionExists: The name is taken.
            Overloaded: There are as many regions, or open files, as there may be.
            Unsupported: Shared memory is not offered here.
        """
        if self.refusal:
            raise Unsupported(self.refusal)
        if not 0 < len(name) <= _LONGEST_NAME:
            raise InvalidInput(f"a region's name has at most {_LONGEST_NAME} characters")
        path = os.path.join(_DIRECTORY, _checked_key(key))
        with self._lock:
            if name in self._regions:
                raise RegionExists(f'the region "{name}" is already registered; unregister it')
            most = min(self._max_regions, _most_files() // 4)
            if len(self._regions) >= most:
                raise Overloaded(f"{most} regions are registered, as many as there may be")
            region = _Region(RegionInfo(name, key, offset, byte_size), _opened(path, key))
            region.check()
            self._regions[name] = region

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all of them; one that is not there is let be, as Triton does.

        Requests under way keep what they use.

        Args:
            name: Name of the region; empty for all.
        """
        with self._lock:
            if name:
                self._regions.pop(name, None)
            else:
                self._regions = {}

    def regions(self, name: str = "") -> list[RegionInfo]:
        """Return what is registered.

        Args:
            name: Name of the only region to return; empty for all.

        Raises:
            NoSuchRegion: There is none of this name.
        """
        with self._lock:
            if not name:
                return [region.info for region in self._regions.values()]
            region = self._regions.get(name)
        if region is None:
            raise NoSuchRegion(f'there is no region "{name[:80]}"')
        return [region.info]

    def window(self, region: str, offset: int, size: int, *, path: str) -> _Window:
        """Return a part of a region; it stays what it is when the region is unregistered.

        Args:
            region: Name of the region.
            offset: Bytes of the region before it.
            size: Its bytes.
            path: Where a request says so, for error texts.

        Raises:
            InvalidInput: There is no such region, or it is smaller.
            Unsupported: Shared memory is not offered here.
        """
        found = self._regions.get(region)
        if found is None:
            if self.refusal:
                raise Unsupported(f"{path}: {self.refusal}")
            raise InvalidInput(
                f'there is no region "{region[:80]}"; register it first',
                path=f"{path}.shared_memory_region",
            )
        if offset + size > found.info.byte_size:
            raise InvalidInput(
                f"expected at most the {found.info.byte_size} bytes of the region "
                f'"{region[:80]}", got {size} behind {offset}',
                path=f"{path}.shared_memory_byte_size",
            )
        return _Window(self, found, offset, size, path)

    def hold(self, size: int) -> NDArray[np.uint8]:
        """Return memory for a copy of an input; it counts until nothing refers to it.

        Raises:
            Overloaded: Too much is held already.
        """
        with self._lock:
            freed = self._freed
            while freed:
                self._copied -= freed.popleft()
            if self._copied + size > self._max_copied:
                raise Overloaded(
                    f"inputs from shared memory hold {self._copied} bytes, and {size} more would "
                    f"be over the {self._max_copied} allowed",
                    retry_after=_RETRY_AFTER,
                )
            self._copied += size
        # Outside of the lock: what is freed meanwhile calls back, in this thread, too.
        try:
            copy = np.empty(size, np.uint8)
        except MemoryError:
            self._freed.append(size)
            raise Overloaded(
                f"there is no memory for {size} bytes of input", retry_after=_RETRY_AFTER
            ) from None
        freed, refs = self._freed, self._refs

        def free(known: ref[NDArray[np.uint8]]) -> None:
            del refs[id(known)]
            freed.append(size)

        # Neither the copy nor a reference to it has a hash.
        known = ref(copy, free)
        refs[id(known)] = known
        return copy


def shared_memory_of(wanted: SharedMemory | bool, max_body_size: int) -> SharedMemory:
    """Return what a server keeps its clients' shared memory in.

    Args:
        wanted: It, or whether clients may register any.
        max_body_size: Bytes that one request's inputs may have.
    """
    if isinstance(wanted, SharedMemory):
        return wanted
    refusal = "" if wanted else "shared memory is turned off here"
    return SharedMemory(refusal=refusal, max_copied=max(MAX_COPIED, max_body_size))


class _Region:
    """A registered region, open as long as anything refers to it."""

    __slots__ = ("descriptor", "info")

    def __init__(self, info: RegionInfo, descriptor: int) -> None:
        self.info = info
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)

    def check(self) -> None:
        """Raise where the region is not in the object, or that is not shared memory."""
        status = os.fstat(self.descriptor)
        key, info = self.info.key, self.info
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput(f'"{key[:80]}" is not shared memory', path="key")
        if info.offset + info.byte_size > status.st_size:
            raise InvalidInput(
                f'expected at most the {status.st_size} bytes of "{key[:80]}", got '
                f"{info.byte_size} behind {info.offset}",
                path="byte_size",
            )


class _Window:
    """A part of a region that a request uses."""

    __slots__ = ("_memory", "_path", "_region", "_size", "_start")

    def __init__(
        self, memory: SharedMemory, region: _Region, offset: int, size: int, path: str
    ) -> None:
        self._memory = memory
        self._region = region
        self._start = region.info.offset + offset
        self._size = size
        self._path = path

    def read(self) -> memoryview:
        """Return a read-only copy of its bytes."""
        # Before room is made for them: it may be a file of which almost nothing is there.
        self._check(self._size)
        copy = self._memory.hold(self._size)
        left, start = copy.data, self._start
        while left:
            count = os.preadv(self._region.descriptor, [left], start)
            if count <= 0:
                raise self._gone()
            left, start = left[count:], start + count
        copy.flags.writeable = False
        return copy.data

    def write(self, content: bytes | bytearray | memoryview) -> None:
        """Write bytes from the beginning on, at most as many as it has."""
        left = memoryview(content).cast("B")
        # A write would make the object larger again.
        self._check(len(left))
        start = self._start
        while left:
            try:
                count = os.pwrite(self._region.descriptor, left, start)
            except OSError as error:
                if error.errno not in _FULL:
                    raise self._gone() from None
                raise Overloaded(
                    "the machine has no memory left for what is to be written to "
                    f'"{self._region.info.name[:80]}"',
                    retry_after=_RETRY_AFTER,
                ) from None
            left, start = left[count:], start + count

    def _check(self, size: int) -> None:
        if os.fstat(self._region.descriptor).st_size < self._start + size:
            raise self._gone()

    def _gone(self) -> InvalidInput:
        return InvalidInput(
            f'the memory of the region "{self._region.info.name[:80]}" was made smaller after it '
            "was registered",
            path=f"{self._path}.shared_memory_region",
        )


def _checked_key(key: str) -> str:
    """Return the name of the file that a key stands for."""
    name = key.removeprefix("/")
    size = len(name.encode(errors="replace"))
    if not 0 < size <= _LONGEST_KEY or "/" in name or "\0" in name or name in (".", ".."):
        raise InvalidInput(
            f"expected a name of 1 to {_LONGEST_KEY} bytes without a / but at its beginning, got "
            f'"{key[:80]}"',
            path="key",
        )
    if name.startswith(_SEMAPHORE):
        raise InvalidInput(f'"{key[:80]}" is not shared memory but a semaphore', path="key")
    return name


def _opened(path: str, key: str) -> int:
    try:
        return os.open(path, _FLAGS)
    except FileNotFoundError:
        why = "there is no shared memory"
    except PermissionError:
        why = "the server may not read and write"
    except (OSError, ValueError) as error:  # a link, a directory, a device, a name that is none
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise Overloaded("too many files are open", retry_after=_RETRY_AFTER) from None
        why = "not shared memory:"
    raise InvalidInput(f'{why} "{key[:80]}"', path="key")


def _most_files() -> int:
    import resource  # there is none on Windows

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
