"""How a version comes to the disk: locks, hidden directories under way, copying, clean-up.

Knows nothing of models, numbers or labels; see `modelserve.repository.store` for those.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

from modelserve.errors import LoadError

if sys.platform == "win32":
    import msvcrt
    from time import sleep
else:
    import fcntl

__all__ = [
    "Progress",
    "Staging",
    "copy_files",
    "discard",
    "exclusive",
    "hidden_name",
    "leftovers",
    "said",
    "sync_directory",
    "write_file",
]

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes copied so far and the bytes to copy in all."""

_CHUNK: Final = 1 << 20
_LOCK: Final = ".lock"
_LEFTOVER: Final = re.compile(r"\.(publish|delete|labels)-[0-9a-f]{16}")
_RETRIES: Final = 100

_FULL: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}
)

_log: Final = logging.getLogger("modelserve.repository")


def hidden_name(purpose: str) -> str:
    """Return a name nobody else uses; the clean-up knows it by its form."""
    return f".{purpose}-{secrets.token_hex(8)}"


class _Lock:
    """An exclusive lock on an open file. The kernel drops it when its holder dies."""

    __slots__ = ("_file",)

    def __init__(self, file: int) -> None:
        self._file = file

    @classmethod
    def open(cls, path: Path, *, create: bool) -> _Lock:
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        return cls(os.open(path, flags, 0o666))

    if sys.platform == "win32":

        def acquire(self, *, block: bool) -> bool:
            while True:
                os.lseek(self._file, 0, os.SEEK_SET)
                try:
                    msvcrt.locking(self._file, msvcrt.LK_NBLCK, 1)
                except OSError:
                    if not block:
                        return False
                    sleep(0.01)
                else:
                    return True

        def release(self) -> None:
            os.lseek(self._file, 0, os.SEEK_SET)
            msvcrt.locking(self._file, msvcrt.LK_UNLCK, 1)

    else:

        def acquire(self, *, block: bool) -> bool:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
            except BlockingIOError:
                return False
            return True

        def release(self) -> None:
            # Said aloud, since a forked child may hold the same open file.
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._file)


@contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Keep other threads and processes from changing the store at `root` for a moment.

    The lock is a file that stays: removing it would let two holders in.
    """
    lock = _Lock.open(root / _LOCK, create=True)
    try:
        lock.acquire(block=True)
        try:
            yield
        finally:
            lock.release()
    finally:
        lock.close()


class Staging:
    """A hidden directory whose publisher is alive: it holds a lock in there until `close`.

    To be made under `exclusive`, so that no clean-up sees the directory before its lock.
    """

    __slots__ = ("_lock", "content", "path")

    def __init__(self, parent: Path) -> None:
        self.path = parent / hidden_name("publish")
        self.content = self.path / "content"
        self._lock: _Lock | None = None
        try:
            self.path.mkdir()
            self._lock = _Lock.open(self.path / _LOCK, create=True)
            self._lock.acquire(block=False)
            self.content.mkdir()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drop the lock and remove what is left of the directory."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()
            lock.close()
        discard(self.path)


def _is_live(path: Path) -> bool:
    if not path.name.startswith(".publish-"):
        return False
    try:
        lock = _Lock.open(path / _LOCK, create=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        # Another user's: only that user's next publication can tell, and remove it.
        return True
    try:
        if not lock.acquire(block=False):
            return True
        lock.release()
        return False
    finally:
        lock.close()


def leftovers(parents: Sequence[Path], *, dead: bool) -> list[Path]:
    """List hidden directories and files under way; with `dead` only those nobody works on.

    With `dead`, to be called under `exclusive`.

    Raises:
        OSError: A directory cannot be read.
    """
    found: list[Path] = []
    for parent in parents:
        try:
            names = os.listdir(parent)
        except (FileNotFoundError, NotADirectoryError):
            continue
        paths = [parent / name for name in names if _LEFTOVER.fullmatch(name)]
        found += [path for path in paths if not (dead and _is_live(path))]
    return found


def discard(path: Path) -> None:
    """Remove a file, link or tree. What cannot be removed now is left for the next clean-up."""
    try:
        _remove(path)
    except OSError as error:
        _log.warning("%s is left for the next clean-up: %s", path.name, error.strerror)


def _remove(path: Path) -> None:
    # Two may be removing the same tree: whatever vanished meanwhile is progress.
    for _ in range(_RETRIES):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            if not os.path.lexists(path):
                return
        else:
            return
    raise OSError(0, "something keeps changing it")


@contextmanager
def said(doing: str) -> Iterator[None]:
    """Say in a LoadError what the file system refused, without a path of the machine.

    Args:
        doing: What is being done, for the error's beginning.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        reason = "no space left on the device" if full else error.strerror or type(error).__name__
        raise LoadError(f"{doing}: {reason}") from error
    except LoadError as error:
        raise type(error)(f"{doing}: {error}") from error


def sync_directory(path: Path) -> None:
    """Make the names in a directory last, where the system lets one open a directory."""
    if sys.platform == "win32":
        return
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and make it last."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_files(
    sources: Mapping[str, Path | bytes], target: Path, progress: Progress | None = None
) -> dict[str, dict[str, Any]]:
    """Copy files into a directory, hashing on the way, and make them last.

    Args:
        sources: Path or content by relative name.
        target: An existing directory.
        progress: Called after every chunk.

    Returns:
        The sha256 and size of every file, by name.

    Raises:
        LoadError: A source is no regular file, or changes while it is read.
        OSError: Reading or writing fails.
    """
    total = sum(len(s) if isinstance(s, bytes) else s.stat().st_size for s in sources.values())
    done = 0
    copied: dict[str, dict[str, Any]] = {}
    directories = {target}
    for name, source in sorted(sources.items()):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        directories.update(p for p in path.parents if p.is_relative_to(target))
        digest = hashlib.sha256()
        size = 0
        with _opened(source, name) as reader, open(path, "xb") as writer:
            for chunk in _chunks(reader):
                digest.update(chunk)
                writer.write(chunk)
                size += len(chunk)
                if progress is not None:
                    progress(done + size, total)
            writer.flush()
            os.fsync(writer.fileno())
        done += size
        copied[name] = {"sha256": digest.hexdigest(), "size": size}
    for directory in directories:
        sync_directory(directory)
    return copied


def _chunks(file: BinaryIO) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_CHUNK))
    while count := file.readinto(buffer):  # type: ignore[attr-defined]  # missing in BinaryIO
        yield buffer[:count]


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    # Opening a pipe would wait for its other end.
    if not stat.S_ISREG(source.stat().st_mode):
        raise LoadError(f"{name}: expected a regular file")
    with open(source, "rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        yield file
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise LoadError(f"{name}: changed while it was copied")
