"""Which graph inputs and outputs are scalars, read from the file's protocol buffer.

ONNX Runtime lists a scalar and a tensor of unknown rank alike. Only the few fields needed are
looked at; weights are stepped over.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

__all__ = ["scalars_of"]

_Buffer = bytes | mmap.mmap
_Span = tuple[int, int]

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INPUT, _GRAPH_OUTPUT = 11, 12
_INFO_NAME, _INFO_TYPE = 1, 2
_TYPE_TENSOR = 1
_TENSOR_SHAPE = 2


def scalars_of(model: str | os.PathLike[str] | bytes) -> frozenset[str]:
    """Return the names of inputs and outputs of shape (); none where that cannot be read."""
    try:
        if isinstance(model, bytes):
            return frozenset(_scalars(model))
        with (
            open(model, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return frozenset(_scalars(content))
    except (IndexError, OSError, ValueError):  # ORT format, or a file that has changed meanwhile
        return frozenset()


def _scalars(content: _Buffer) -> Iterator[str]:
    for graph in _messages(content, (0, len(content)), _MODEL_GRAPH):
        for info in _messages(content, graph, _GRAPH_INPUT, _GRAPH_OUTPUT):
            shapes = [
                shape
                for kind in _messages(content, info, _INFO_TYPE)
                for tensor in _messages(content, kind, _TYPE_TENSOR)
                for shape in _messages(content, tensor, _TENSOR_SHAPE)
            ]
            if shapes and all(start == end for start, end in shapes):
                for start, end in _messages(content, info, _INFO_NAME):
                    yield content[start:end].decode()


def _messages(content: _Buffer, span: _Span, *fields: int) -> Iterator[_Span]:
    """Give the spans of length-delimited fields with these numbers."""
    at, end = span
    while at < end:
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 0:
            _, at = _varint(content, at)
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        elif kind == 2:
            size, at = _varint(content, at)
            if at + size > end:
                raise ValueError("a field is longer than what holds it")
            if key >> 3 in fields:
                yield at, at + size
            at += size
        else:
            raise ValueError(f"wire type {kind}")


def _varint(content: _Buffer, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number is longer than ten bytes")
