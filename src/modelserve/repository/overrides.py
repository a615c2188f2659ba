"""A configuration and files that a request to load a model brings along, instead of what is stored.

Nothing of it reaches the store. Which versions of a model are loaded and when is `control`.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from modelserve.errors import InvalidInput, LoadError
from modelserve.repository.onnx_files import external_files
from modelserve.repository.staging import discard, said
from modelserve.repository.store import is_version, name_fault
from modelserve.tensors import numpy_dtype

if TYPE_CHECKING:
    from modelserve.repository.triton_config import TritonConfig

__all__ = ["Config", "Files", "Override", "unpacked"]

Config: TypeAlias = str | Mapping[str, Any]
"""A model configuration in JSON: its text, or the object it stands for."""

Files: TypeAlias = Mapping[str, bytes]
"""Contents by name relative to the model's directory, such as ``1/model.onnx``."""

_MOST_FILES: Final = 1000
_LONGEST_NAME: Final = 512
_MOST_PARTS: Final = 16
_MODEL: Final = "model.onnx"
_WARM_UP: Final = "warmup"

# A few bytes of configuration must not ask for any amount of threads, memory or time.
_MOST_INSTANCES: Final = 64
_MOST_ROWS: Final = 1 << 16
_MOST_WARM_UP: Final = 64 << 20
_MOST_AXES: Final = 32


@dataclass(frozen=True, slots=True)
class Override:
    """What a load brought along, checked; holds until the model is loaded without it.

    Args:
        config: The model's configuration.
        versions: Versions whose files came along, ascending; empty where they are the stored ones.
    """

    config: TritonConfig
    versions: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Config | None, files: Files | None) -> Override | None:
        """Check what came along; None where nothing did.

        Args:
            config: The model's configuration in JSON.
            files: The files of its versions, all there are.

        Raises:
            InvalidInput: The configuration is malformed or asks for too much; files came without
                it, or their names are not those of a model's directory, or a version among them
                has no model or misses a file of it.
        """
        if config is None:
            if files is None:
                return None
            raise InvalidInput(
                "files need the model's configuration beside them; give config, {} if nothing is "
                "to be said",
                path="config",
            )
        # Imported here: most models have no such configuration.
        from modelserve.repository.triton_config import read_json_config

        read = read_json_config(config)
        _check_bounds(read)
        return cls(read, () if files is None else _versions_of(files))


def _check_bounds(config: TritonConfig) -> None:
    instances = sum(group.count or 1 for group in config.instance_groups)
    if instances > _MOST_INSTANCES:
        raise InvalidInput(
            f"expected at most {_MOST_INSTANCES} instances in all, got {instances}",
            path="config.instance_group",
        )
    if config.max_batch_size > _MOST_ROWS:
        raise InvalidInput(
            f"expected at most {_MOST_ROWS} rows, got {config.max_batch_size}",
            path="config.max_batch_size",
        )
    for warmup in config.warmup[:1]:  # the others are not run
        rows = max(1, warmup.batch_size)
        size = 0
        for item in warmup.inputs:
            if len(item.dims) >= _MOST_AXES:
                raise InvalidInput(
                    f"expected fewer than {_MOST_AXES} axes, got {len(item.dims)}",
                    path=f'config.model_warmup[0].inputs "{item.name}"',
                )
            size += rows * prod(item.dims) * numpy_dtype(item.datatype).itemsize
        if size > _MOST_WARM_UP:
            raise InvalidInput(
                f"expected inputs of at most {_MOST_WARM_UP} bytes in all, got {size}",
                path="config.model_warmup[0]",
            )


def _versions_of(files: Files) -> tuple[str, ...]:
    """Check names and that each version is whole; return the versions, ascending."""
    if not files:
        raise InvalidInput(
            "expected at least one file such as 1/model.onnx, got none", path="files"
        )
    if len(files) > _MOST_FILES:
        raise InvalidInput(f"expected at most {_MOST_FILES} files, got {len(files)}", path="files")
    versions: set[str] = set()
    taken: dict[str, str] = {}
    directories: dict[str, str] = {}
    for name in files:
        version = _check_name(name)
        if version != _WARM_UP:
            versions.add(version)
        # Where a file system takes two names for one, so does this.
        plain = unicodedata.normalize("NFC", name).casefold()
        if plain in taken:
            raise InvalidInput(f'the same file as "{taken[plain]}"', path=_place(name))
        taken[plain] = name
        parents = plain.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            directories.setdefault("/".join(parents[:depth]), name)
    for plain, name in taken.items():
        if plain in directories:
            raise InvalidInput(
                f'a file and, for "{directories[plain]}", a directory', path=_place(name)
            )
    if not versions:
        raise InvalidInput("expected a version such as 1/model.onnx, got none", path="files")
    for version in versions:
        _check_version(version, files)
    return tuple(sorted(versions, key=int))


def _check_name(name: str) -> str:
    """Return the first part of a file's name: a version, or the directory of warm-up data."""
    if not isinstance(name, str):
        raise InvalidInput(f"expected a name, got {type(name).__name__}", path="files")
    place = _place(name)
    if len(name) > _LONGEST_NAME:
        raise InvalidInput(
            f"expected a name of at most {_LONGEST_NAME} characters, got {len(name)}", path=place
        )
    parts = name.split("/")
    if not 2 <= len(parts) <= _MOST_PARTS:
        raise InvalidInput(
            f"expected VERSION/NAME such as 1/model.onnx, with at most {_MOST_PARTS} parts",
            path=place,
        )
    for part in parts:
        # This refuses "..", what begins with a dot, and every separator and drive of Windows.
        fault = name_fault(part)
        if fault:
            raise InvalidInput(f"{part!a} cannot be part of a name: {fault}", path=place)
    if parts[0] != _WARM_UP and not is_version(parts[0]):
        raise InvalidInput(
            f"expected a version number such as 1 before the first slash, got {parts[0]!a}",
            path=place,
        )
    return parts[0]


def _check_version(version: str, files: Files) -> None:
    content = files.get(f"{version}/{_MODEL}")
    if content is None:
        raise InvalidInput(f"version {version} has no {_MODEL}", path="files")
    place = _place(f"{version}/{_MODEL}")
    try:
        # A model may name files it keeps tensors in. They are read by the runtime, which is not
        # to be sent to any file of this machine.
        names = external_files(io.BytesIO(content))
    except LoadError as error:
        raise InvalidInput(str(error), path=place) from error
    for name in names:
        if f"{version}/{name}" not in files:
            raise InvalidInput(
                f"it keeps tensors in {ascii(name)[:200]}, which did not come along", path=place
            )


def _place(name: str) -> str:
    return f"files[{name[:80]!a}]"


@contextmanager
def unpacked(model: str, files: Files) -> Iterator[Path]:
    """Write files into a directory for this user alone, which is removed when the block ends.

    Args:
        model: Name of the model, for errors.
        files: What to write; names as `Override.of` has let them pass.

    Raises:
        LoadError: The file system refuses, such as for want of space.
    """
    doing = f'unpacking the files of "{model}"'
    with said(doing):
        import tempfile  # a start need not wait for it

        root = Path(tempfile.mkdtemp(prefix="modelserve-load-"))
    try:
        with said(doing):
            for name, content in files.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                # What is there was made here: nothing is overwritten, and no link is followed.
                with open(path, "xb") as file:
                    file.write(content)
        yield root
    finally:
        discard(root)
