"""Finds the files an ONNX model keeps its weights in, by walking the protobuf wire format.

Reads field headers only and skips the tensors, so a model of many gigabytes costs milliseconds and
no memory. Does not import onnx, and does not check that a model is valid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import BinaryIO, Final

from modelserve.errors import LoadError

__all__ = ["external_files", "relative_name"]

_WINDOW: Final = 16 * 1024
_MAX_DEPTH: Final = 256
_MAX_TEXT: Final = 4096
_MAX_VARINT: Final = 10
_EXTERNAL: Final = 1

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5

_KEY: Final = 1
_VALUE: Final = 2
_GRAPH: Final = 7
_DATA_LOCATION: Final = 14

# Message kind -> field number -> kind of the message in that field. What is not here is skipped.
_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "model": {_GRAPH: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}


@dataclass(slots=True)
class _Message:
    """One message being walked, and what was seen of it so far."""

    kind: str
    end: int
    children: dict[int, str]
    external: bool = False
    located: bool = False
    key: str = ""
    value: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class _Walk:
    """A position in the file, with the bytes around it."""

    file: BinaryIO
    size: int
    window: bytes = b""
    start: int = 0
    graphs: int = 0
    names: set[str] = field(default_factory=set)

    def byte(self, position: int) -> int:
        offset = position - self.start
        if not 0 <= offset < len(self.window):
            self.file.seek(position)
            self.window = self.file.read(_WINDOW)
            self.start = position
            offset = 0
            if not self.window:
                raise LoadError(f"not an ONNX model: ends at byte {position}, inside a field")
        return self.window[offset]

    def varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for index in range(_MAX_VARINT):
            if position >= end:
                raise LoadError(f"not an ONNX model: a number is cut off at byte {position}")
            byte = self.byte(position)
            position += 1
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, position
        raise LoadError(f"not an ONNX model: a number of over {_MAX_VARINT} bytes at {position}")

    def text(self, position: int, length: int) -> str:
        if length > _MAX_TEXT:
            raise LoadError(f"not an ONNX model: a name of {length} bytes at byte {position}")
        self.file.seek(position)
        try:
            return self.file.read(length).decode()
        except UnicodeDecodeError as error:
            raise LoadError(f"not an ONNX model: text at byte {position} is not UTF-8") from error


def relative_name(name: str) -> str | None:
    """Return a file name in its plain form (`a/b`), or None where it may leave its directory.

    Both kinds of separator count as one, whatever the machine: a model travels.
    """
    if not name or "\0" in name or name.startswith(("/", "\\")) or PureWindowsPath(name).drive:
        return None
    if ".." in name.replace("\\", "/").split("/"):
        return None
    plain = str(PurePosixPath(name))
    return None if plain == "." else plain


def external_files(file: BinaryIO) -> tuple[str, ...]:
    """Return the relative names of the files a model keeps tensors in, sorted.

    Args:
        file: A serialized `ModelProto`, seekable; read from its beginning.

    Raises:
        LoadError: The bytes are no ONNX model, or name a file by an absolute path or outside of
            the model's directory.
    """
    size = file.seek(0, 2)
    walk = _Walk(file, size)
    stack = [_Message("model", size, _CHILDREN["model"])]
    position = 0
    while True:
        while position == stack[-1].end:
            _leave(walk, stack.pop())
            if not stack:
                return tuple(sorted(walk.names))
        position = _field(walk, stack, position)


def _field(walk: _Walk, stack: list[_Message], position: int) -> int:
    """Read one field's header; return where to go on: inside it, or behind it."""
    message = stack[-1]
    at = position
    tag, position = walk.varint(position, message.end)
    number, wire = tag >> 3, tag & 7
    if not 0 < number < 1 << 29:
        raise LoadError(f"not an ONNX model: field number {number} at byte {at}")
    if wire == _BYTES:
        length, position = walk.varint(position, message.end)
        if position + length > message.end:
            raise LoadError(
                f"not an ONNX model: a field of {length} bytes at byte {at} ends behind its message"
            )
        return _enter(walk, stack, number, position, length)
    if wire == _VARINT:
        value, position = walk.varint(position, message.end)
        if number == _DATA_LOCATION and message.kind == "tensor":
            message.external = value == _EXTERNAL
        return position
    if wire not in (_FIXED64, _FIXED32):
        raise LoadError(f"not an ONNX model: wire type {wire} at byte {at}")
    position += 8 if wire == _FIXED64 else 4
    if position > message.end:
        raise LoadError(f"not an ONNX model: a number is cut off at byte {at}")
    return position


def _enter(walk: _Walk, stack: list[_Message], number: int, position: int, length: int) -> int:
    message = stack[-1]
    kind = message.children.get(number)
    if kind is not None:
        if len(stack) >= _MAX_DEPTH:
            raise LoadError(f"not an ONNX model: over {_MAX_DEPTH} messages deep")
        walk.graphs += kind == "graph" and message.kind == "model"
        stack.append(_Message(kind, position + length, _CHILDREN[kind]))
        return position
    if message.kind == "entry":
        if number == _KEY:
            message.key = walk.text(position, length) if length <= _MAX_TEXT else ""
        elif number == _VALUE:
            message.value = (position, length)
        if message.key == "location" and message.value[0]:
            stack[-2].located = True
    return position + length


def _leave(walk: _Walk, message: _Message) -> None:
    if message.kind == "entry" and message.key == "location":
        location = walk.text(*message.value)
        name = relative_name(location)
        if name is None:
            raise LoadError(
                f"external data is named {location!r}; expected a path inside the model's directory"
            )
        walk.names.add(name)
    elif message.kind == "tensor" and message.external and not message.located:
        raise LoadError("a tensor's data is said to be external, and no file is named")
    elif message.kind == "model" and not walk.graphs:
        raise LoadError("not an ONNX model: it holds no graph")
