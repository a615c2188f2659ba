"""Where versions live: a local directory `<model>/<version>/...`, as Triton lays it out.

Publishes, verifies, labels and deletes versions. Loads nothing and runs nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import stat
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from modelserve.errors import Conflict, IntegrityError, InvalidInput, LoadError, ModelNotFound
from modelserve.protocols import StoredVersion
from modelserve.repository.onnx_files import external_files, relative_name
from modelserve.repository.staging import (
    Progress,
    Staging,
    copy_files,
    discard,
    exclusive,
    hidden_name,
    leftovers,
    said,
    sync_directory,
    write_file,
)

__all__ = ["STABLE", "LocalStore", "is_version", "name_fault"]

STABLE: Final = "stable"
"""The label of the version that answers when a request names none."""

_MODEL: Final = "model.onnx"
_MANIFEST: Final = ".manifest.json"
_LABELS: Final = ".labels.json"
_FORMAT: Final = 1
_CONFIGS: Final = ("config.pbtxt", "model.toml", "labels.txt", _LABELS)

_VERSION: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_MAX_VERSION: Final = 2**63 - 1
_LABEL: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_MAX_NAME: Final = 255
_RESERVED: Final = frozenset('/\\<>:"|?*')

_log: Final = logging.getLogger("modelserve.repository")


class LocalStore:
    """Keeps versions in a local directory; any number of threads and processes may share it.

    A directory made for Triton or TF Serving is read as it is. Names that begin with a dot, and
    version directories that are no plain number, are not seen. A publication is copied, hashed and
    flushed beside its place and renamed into it under a lock, so a reader finds a whole version or
    none, whatever becomes of the publisher. What dead publishers left is removed when a store is
    constructed and before each publication; a live publisher's files are not touched. Reading
    takes no lock and writes nothing. The lock is the file `.lock`; on a network file system it
    needs `flock` to work there.

    Args:
        path: The directory; made by the first `put`.
        verify: Whether `open` checks the sha256 of every file; without, only the sizes.

    Raises:
        ValueError: `path` is there and is no directory.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     store = LocalStore(directory)
        ...     version = store.put("tiny", bytes([0x3A, 0x00])).version  # an empty graph
        ...     store.label("tiny", {"stable": version})
        {'stable': '1'}
    """

    __slots__ = ("_verify", "path")

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = True) -> None:
        self.path = Path(os.path.abspath(path))
        self._verify = verify
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f'"{self.path.name}" is not a directory')
        try:
            self._sweep([self.path, *(self.path / name for name in _names(self.path))])
        except OSError as error:
            # One who may only read serves on; the next publisher cleans up.
            _log.info("leftovers of dead publishers stay: %s", error.strerror)

    def __repr__(self) -> str:
        return f"LocalStore({str(self.path)!r})"

    def models(self) -> tuple[str, ...]:
        """Names of all models with at least one version, sorted."""
        return tuple(sorted(n for n in _names(self.path) if self._versions(self.path / n)))

    def versions(self, model: str) -> tuple[str, ...]:
        """Versions of a model in ascending order; empty when there is no such model.

        Raises:
            InvalidInput: It cannot be the name of a model.
        """
        return self._versions(self._directory(model))

    def config(self, model: str) -> Path | None:
        """Path of the model's `config.pbtxt`, or None where it has none."""
        path = self._directory(model) / "config.pbtxt"
        return path if path.is_file() else None

    def open(self, model: str, version: str) -> StoredVersion:
        """Find a version and verify its files against its manifest.

        A directory without a manifest, made by hand or for another server, is taken as it is, and
        so are files the manifest does not name. Any number of threads may call.

        Raises:
            InvalidInput: It cannot be the name of a model.
            ModelNotFound: No such version.
            IntegrityError: A file is missing or differs from what was published.
        """
        directory = self._directory(model) / version
        if not is_version(version) or not directory.is_dir():
            raise _unknown(model, version)
        before = _times(directory)
        try:
            manifest = _read_manifest(directory)
            for name, expected in manifest.get("files", {}).items():
                _check_file(directory, name, expected, content=self._verify)
        except IntegrityError as error:
            # Deleted, perhaps published anew, while it was read: what was seen is no one version.
            if _times(directory) != before:
                return self.open(model, version)
            raise IntegrityError(f'model "{model}" version {version}: {error}') from error
        return StoredVersion(model, version, directory, manifest)

    def put(
        self,
        model: str,
        source: Any,
        *,
        version: str = "",
        label: str = "",
        metadata: Mapping[str, Any] = {},
        progress: Progress | None = None,
    ) -> StoredVersion:
        """Publish files as a new version, all or nothing.

        Copies outside the lock, so publications of any size run side by side. Any number of
        threads may call.

        Args:
            model: Name of the model.
            source: Path of an ONNX file (the files it keeps tensors in go along), path of a
                directory that holds `model.onnx` (links in it are copied as the files they point
                at), or a serialized model as `bytes`.
            version: The number to use; empty for the highest there is plus one.
            label: Moves to the new version with its appearance: nobody sees a canary that is not
                labelled yet, and would be taken for the newest.
            metadata: Recorded in the manifest; anything JSON can hold.
            progress: Called after every chunk with the bytes copied and the bytes to copy.

        Raises:
            InvalidInput: It cannot be the name of a model, the number of a version, or a label.
            Conflict: The version exists already.
            LoadError: The source is no model, misses a file, or cannot be copied (no space left).
            TypeError, ValueError: `source` is none of these, or `metadata` is not for JSON.
        """
        directory = self._directory(model)
        if version and not is_version(version):
            raise InvalidInput(f'"{version}" is not a version; expected a number such as "3"')
        if label:
            _check_label(label)
        recorded = json.loads(json.dumps(dict(metadata), allow_nan=False))
        with said(f'publishing "{model}"'):
            name, files = _files_of(source)
            self.path.mkdir(parents=True, exist_ok=True)
            self._sweep([self.path, directory])
            with exclusive(self.path):
                self._check_free(directory, version)
                # Beside its place, which may be on another file system than the root.
                staging = Staging(directory if directory.is_dir() else self.path)
            try:
                manifest = {
                    "format": _FORMAT,
                    "files": copy_files(files, staging.content, progress),
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "source": name,
                    "metadata": recorded,
                }
                write_file(staging.content / _MANIFEST, _json(manifest))
                sync_directory(staging.content)
                with exclusive(self.path):
                    number = self._check_free(directory, version)
                    self._appear(model, staging, directory, number, label)
            finally:
                staging.close()
        return StoredVersion(model, number, directory / number, manifest)

    def _appear(
        self, model: str, staging: Staging, directory: Path, number: str, label: str
    ) -> None:
        """Move a version to its place, with its label; under the lock."""
        known = directory.is_dir()
        labels = self.labels(model)
        versions = self._versions(directory)
        # A publisher that died left a label for a number that is given out anew.
        living = {k: v for k, v in labels.items() if v in versions}
        wanted = {**living, label: number} if label else living
        # A label without its version is nothing to readers. Only "stable" must not leave the one
        # that answers before the other is there.
        first = living if label == STABLE else wanted
        if known and first != labels:
            self._write_labels(directory, first)
        try:
            _move_in(staging, directory, number)
        except BaseException:
            if known and first != living:
                self._write_labels(directory, living)
            raise
        if wanted != (first if known else {}):
            self._write_labels(directory, wanted)

    def delete(self, model: str, version: str) -> None:
        """Remove a version, all or nothing.

        Raises:
            InvalidInput: It cannot be the name of a model.
            ModelNotFound: No such version.
            Conflict: A label points at it.
            LoadError: The file system refuses.
        """
        directory = self._directory(model)
        with said(f'deleting "{model}" version {version}'):
            self._check_exists(model, version)
            with exclusive(self.path):
                self._check_exists(model, version)
                labels = sorted(k for k, v in self.labels(model).items() if v == version)
                if labels:
                    raise Conflict(
                        f'model "{model}" version {version} is labelled {", ".join(labels)}; '
                        f"move the label first"
                    )
                hidden = self._hide(directory, version)
            discard(hidden)

    def collect(self, model: str, keep: int, protect: Collection[str] = ()) -> tuple[str, ...]:
        """Delete all but the newest versions; return the numbers of the deleted ones, ascending.

        Args:
            model: Name of the model.
            keep: How many of the newest versions stay, at least 0.
            protect: Versions that stay besides; those with a label stay in any case.

        Raises:
            InvalidInput: It cannot be the name of a model.
            LoadError: The file system refuses.
            ValueError: `keep` is negative.
        """
        if keep < 0:
            raise ValueError(f"keep: expected 0 or more, got {keep}")
        directory = self._directory(model)
        if not self._versions(directory):
            return ()
        hidden: list[Path] = []
        with said(f'collecting "{model}"'):
            try:
                with exclusive(self.path):
                    versions = self._versions(directory)
                    old = versions[: max(0, len(versions) - keep)]
                    staying = {*protect, *self.labels(model).values()}
                    deleted = tuple(version for version in old if version not in staying)
                    for version in deleted:
                        hidden.append(self._hide(directory, version))  # noqa: PERF401  # may fail half way
            finally:
                for path in hidden:
                    discard(path)
        return deleted

    def labels(self, model: str) -> dict[str, str]:
        """Versions by label; empty when there is no such model.

        Raises:
            InvalidInput: It cannot be the name of a model.
            IntegrityError: The file of the labels is damaged.
        """
        try:
            data = (self._directory(model) / _LABELS).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found = _parse(data, _LABELS).get("labels")
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise IntegrityError(f'model "{model}": {_LABELS}: expected versions by label')
        return found

    def label(self, model: str, changes: Mapping[str, str | None]) -> dict[str, str]:
        """Move, add or (None) remove labels in one step; returns all labels.

        Removing a label that is not there changes nothing.

        Args:
            model: Name of the model.
            changes: Version by label, such as ``{"stable": "4", "canary": None}``.

        Raises:
            InvalidInput: It cannot be the name of a model, or a label.
            ModelNotFound: No such version.
            LoadError: The file system refuses.
        """
        directory = self._directory(model)
        for name in changes:
            _check_label(name)
        if not self._versions(directory):
            raise ModelNotFound(f'no model "{model}"')
        with said(f'labelling "{model}"'), exclusive(self.path):
            for version in changes.values():
                if version is not None:
                    self._check_exists(model, version)
            merged = {**self.labels(model), **changes}
            labels = {k: v for k, v in sorted(merged.items()) if v is not None}
            self._write_labels(directory, labels)
        return labels

    def fingerprint(self) -> dict[str, tuple[Any, ...]]:
        """Return a value per model that changes when its versions, files or labels do.

        Reads names and times only, so it may be polled. Equal values twice in a row tell that a
        copy made by hand is no longer growing.
        """
        return {
            name: fingerprint
            for name in _names(self.path)
            if (fingerprint := self._fingerprint(self.path / name))
        }

    def _fingerprint(self, directory: Path) -> tuple[Any, ...]:
        versions = self._versions(directory)
        if not versions:
            return ()
        files = (file for version in versions for file in _files_by_hand(directory, version))
        paths = [*_CONFIGS, *versions, *files]
        return tuple((path, *_times(directory / path)) for path in paths)

    def _directory(self, model: str) -> Path:
        reason = name_fault(model)
        if reason:
            raise InvalidInput(f"{model!r} cannot be the name of a model: {reason}")
        return self.path / model

    def _versions(self, directory: Path) -> tuple[str, ...]:
        found = [n for n in _numbers(directory) if os.path.isdir(directory / n)]
        return tuple(sorted(found, key=int))

    def _check_exists(self, model: str, version: str) -> None:
        if not is_version(version) or not (self._directory(model) / version).is_dir():
            raise _unknown(model, version)

    def _check_free(self, directory: Path, version: str) -> str:
        """Return the number to use: the one asked for, or the next."""
        if not version:
            # Whatever has the name of a version, a file or a dead link, takes the number.
            version = str(max(map(int, _numbers(directory)), default=0) + 1)
        if os.path.lexists(directory / version):
            raise Conflict(f'model "{directory.name}" has a version {version} already')
        return version

    def _hide(self, directory: Path, version: str) -> Path:
        """Rename a version out of sight, with its model's directory where nothing else is in it."""
        alone = os.listdir(directory) == [version] and not directory.is_symlink()
        source, parent = (directory, self.path) if alone else (directory / version, directory)
        hidden = parent / hidden_name("delete")
        source.rename(hidden)
        sync_directory(parent)
        return hidden

    def _write_labels(self, directory: Path, labels: Mapping[str, str]) -> None:
        if labels:
            temporary = directory / hidden_name("labels")
            try:
                write_file(temporary, _json({"format": _FORMAT, "labels": labels}))
                temporary.replace(directory / _LABELS)
            except OSError:
                discard(temporary)
                raise
        else:
            (directory / _LABELS).unlink(missing_ok=True)
        sync_directory(directory)

    def _sweep(self, parents: Sequence[Path]) -> None:
        """Remove what dead publishers left in these directories."""
        if not leftovers(parents, dead=False):
            return
        with exclusive(self.path):
            dead = leftovers(parents, dead=True)
        for path in dead:
            discard(path)


def _unknown(model: str, version: str) -> ModelNotFound:
    return ModelNotFound(f'model "{model}" has no version {version!r}')


def name_fault(name: str) -> str:
    """Say why this cannot be the name of a model; empty when it can."""
    if not name:
        return "it is empty"
    if name.startswith("."):
        return "it begins with a dot"
    if name.endswith((".", " ")):
        return "it ends with a dot or a space, which Windows drops"
    for character in name:
        if character in _RESERVED:
            return f'"{character}" is reserved'
        if unicodedata.category(character) in ("Cc", "Cs"):
            return f"it holds the control character {character!r}"
    if len(name.encode()) > _MAX_NAME:
        return f"it is over {_MAX_NAME} bytes long"
    return ""


def _check_label(name: str) -> None:
    if not _LABEL.fullmatch(name):
        raise InvalidInput(
            f"{name!r} is not a label; expected a letter, then up to 63 letters, digits "
            f'or any of "_.-"'
        )


def is_version(version: str) -> bool:
    """Tell whether a directory of this name is a version."""
    return bool(_VERSION.fullmatch(version)) and int(version) <= _MAX_VERSION


def _names(directory: Path) -> list[str]:
    try:
        return [name for name in os.listdir(directory) if not name_fault(name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _numbers(directory: Path) -> list[str]:
    return [name for name in _names(directory) if is_version(name)]


def _times(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _files_by_hand(directory: Path, version: str) -> list[str]:
    """List what may still be growing: the files of a version that was not published as a whole."""
    if (directory / version / _MANIFEST).is_file():
        return [f"{version}/{_MODEL}"]
    return sorted(
        os.path.relpath(os.path.join(parent, name), directory)
        for parent, _, names in os.walk(directory / version)
        for name in names
    )


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def _parse(data: bytes, name: str) -> dict[str, Any]:
    """Read one of the store's own JSON files."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{name}: not JSON") from error
    if not isinstance(value, dict) or not isinstance(value.get("format"), int):
        raise IntegrityError(f"{name}: expected an object with a format number")
    if value["format"] > _FORMAT:
        raise IntegrityError(
            f"{name}: format {value['format']} is newer than the {_FORMAT} known here"
        )
    return value


def _read_manifest(directory: Path) -> dict[str, Any]:
    try:
        data = (directory / _MANIFEST).read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise IntegrityError(f"{_MANIFEST}: {error.strerror}") from error
    manifest = _parse(data, _MANIFEST)
    if not isinstance(manifest.get("files"), dict):
        raise IntegrityError(f"{_MANIFEST}: expected files by name")
    return manifest


def _check_file(directory: Path, name: str, expected: Any, *, content: bool) -> None:
    """Compare one file with its entry in the manifest."""
    if relative_name(name) is None:
        raise IntegrityError(f"{_MANIFEST}: {name!r} is not inside the version")
    if not isinstance(expected, dict) or not {"size", "sha256"} <= expected.keys():
        raise IntegrityError(f"{_MANIFEST}: {name}: expected a size and a sha256")
    path = directory / name
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise IntegrityError(f"{name}: not a regular file")
        if found.st_size != expected["size"]:
            raise IntegrityError(
                f"{name}: {found.st_size} bytes, published with {expected['size']}"
            )
        if not content:
            return
        with open(path, "rb", buffering=0) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise IntegrityError(f"{name}: missing") from error
    except OSError as error:
        raise IntegrityError(f"{name}: cannot be read: {error.strerror}") from error
    if digest != expected["sha256"]:
        raise IntegrityError(f"{name}: sha256 {digest}, published with {expected['sha256']}")


def _files_of(source: Any) -> tuple[str, dict[str, Path | bytes]]:
    """Find what to publish: the source's name for the record, and files by relative name."""
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        names = external_files(io.BytesIO(data))
        if names:
            raise LoadError(
                f'the model keeps tensors in "{names[0]}", which bytes cannot bring along; '
                f"publish it from its path"
            )
        return "bytes", {_MODEL: data}
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"source: expected a path or bytes, got {type(source).__name__}")
    path = Path(source)
    if path.is_dir():
        return path.resolve().name, _directory_files(path)
    return path.name, _model_files(path)


def _model_files(path: Path) -> dict[str, Path | bytes]:
    files: dict[str, Path | bytes] = {_MODEL: path}
    for name in _external(path):
        if name in (_MODEL, _MANIFEST):
            raise LoadError(f'"{path.name}" keeps tensors in "{name}", a name that is taken')
        files[name] = path.parent / name
        _check_regular(path.parent / name, name)
    return files


def _directory_files(directory: Path) -> dict[str, Path | bytes]:
    files: dict[str, Path | bytes] = dict(_tree(directory, directory, ()))
    files.pop(_MANIFEST, None)
    if _MODEL not in files:
        raise LoadError(f'directory "{directory.name}" holds no {_MODEL}')
    for name in _external(directory / _MODEL):
        if name not in files:
            raise LoadError(f'"{name}", in which {_MODEL} keeps tensors, is missing')
    return files


def _external(path: Path) -> tuple[str, ...]:
    _check_regular(path, path.name)
    with open(path, "rb", buffering=0) as file:
        return external_files(file)


def _check_regular(path: Path, name: str) -> None:
    # Before any open: a pipe would wait for its other end.
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise LoadError(f'no file "{name}"') from error
    if not stat.S_ISREG(mode):
        raise LoadError(f'"{name}" is not a regular file')


def _tree(
    root: Path, directory: Path, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, Path]]:
    """Walk a directory, through links, refusing loops and what is neither file nor directory."""
    found = directory.stat()
    here = (found.st_dev, found.st_ino)
    if here in above:
        raise LoadError(f'"{directory.relative_to(root).as_posix()}" links to a directory above it')
    for path in sorted(directory.iterdir()):
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            yield from _tree(root, path, (*above, here))
        else:
            _check_regular(path, name)
            yield name, path


def _move_in(staging: Staging, directory: Path, number: str) -> None:
    """Rename a finished version into its place, under the lock."""
    if directory.is_dir():
        staging.content.rename(directory / number)
        sync_directory(directory)
        return
    # A new model appears together with its first version, in one rename.
    shell = staging.path / "model"
    shell.mkdir()
    staging.content.rename(shell / number)
    sync_directory(shell)
    shell.rename(directory)
    sync_directory(directory.parent)
