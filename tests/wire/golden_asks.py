"""One request of the corpus, and what requests are made of.

Nothing here but the standard library, numpy and the models: the recorder runs where Triton is.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

LENGTH: Final = "Inference-Header-Content-Length"


class Ask(NamedTuple):
    """One request as it goes over the wire; `chunks` sends the body so, and not as one piece."""

    name: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    chunks: tuple[int, ...] = ()

    def shown(self) -> dict[str, Any]:
        """Return the request in a form to read, and to tell whether it is still the same."""
        found: dict[str, Any] = {"line": f"{self.method} {self.path}"}
        if self.headers:
            found["headers"] = [f"{name}: {value}" for name, value in self.headers]
        if self.chunks:
            found["chunks"] = list(self.chunks)
        if self.body:
            found["body"] = shown(self.body)
        return found


def shown(data: bytes) -> str:
    """Return bytes as text to read: as they are where that is so, else in base64."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(data).decode()
    return text if len(text) < 2000 else f"{text[:200]}... ({zlib.crc32(data)}, {len(data)} bytes)"


def in_gzip(data: bytes) -> bytes:
    """Return one gzip stream, the same bytes wherever it is made: nothing is made smaller."""
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    return head + in_deflate(data)[2:-4] + struct.pack("<II", zlib.crc32(data), len(data))


def in_deflate(data: bytes) -> bytes:
    """Return one zlib stream, likewise."""
    sizes = struct.pack("<HH", len(data), len(data) ^ 0xFFFF)
    return b"\x78\x01\x01" + sizes + data + struct.pack(">I", zlib.adler32(data))


# What requests are made of.


def values(datatype: str) -> np.ndarray[Any, Any]:
    """Return [2, 2] values of a datatype, with its edges among them."""
    if datatype == "BYTES":
        return np.array([[b"a", 'é"\\\n'.encode()], [b"", b"x" * 300]], np.object_)
    if datatype == "BOOL":
        return np.array([[True, False], [False, True]])
    dtype = np.dtype(f"float{datatype[2:]}" if datatype.startswith("FP") else datatype.lower())
    if dtype.kind == "f":
        return np.array([[0.5, -1.25], [3.0, 100.0]], dtype)
    info = np.iinfo(dtype)
    return np.array([[info.min, info.max], [0, 1]], dtype)


def raw(array: np.ndarray[Any, Any]) -> bytes:
    """Return a tensor's bytes on the wire."""
    if array.dtype.kind == "O":
        return b"".join(struct.pack("<I", len(item)) + item for item in array.ravel())
    return array.tobytes()


def listed(array: np.ndarray[Any, Any]) -> Any:
    """Return a tensor as a nested JSON list."""
    if array.dtype.kind != "O":
        return array.tolist()
    return np.array([item.decode() for item in array.ravel()]).reshape(array.shape).tolist()


def given(
    name: str = "x",
    datatype: str = "FP32",
    shape: Any = (1, 4),
    data: Any = (1.0, 2.0, 3.0, 4.0),
    **parameters: Any,
) -> dict[str, Any]:
    """Return an input of a request, one of the model add_one unless told otherwise."""
    document: dict[str, Any] = {"name": name, "shape": shape, "datatype": datatype}
    if data is not None:
        document["data"] = data
    if parameters:
        document["parameters"] = parameters
    return document


def sized(name: str, array: np.ndarray[Any, Any], datatype: str) -> dict[str, Any]:
    """Return an input whose data follows the JSON."""
    return given(name, datatype, array.shape, None, binary_data_size=len(raw(array)))


def said(*inputs: Any, **members: Any) -> bytes:
    """Return the JSON of a request."""
    return json.dumps({"inputs": list(inputs or (given(),)), **members}).encode()


def infer(
    name: str, body: bytes, *headers: tuple[str, str], model: str = "add_one", **rest: Any
) -> Ask:
    """Return a request for inference."""
    return Ask(name, "POST", f"/v2/models/{model}/infer", headers, body, **rest)


def mixed(
    name: str,
    head: bytes,
    *blobs: bytes,
    model: str = "add_one",
    length: int | str | None = None,
    headers: Sequence[tuple[str, str]] = (),
) -> Ask:
    """Return a request for inference with binary tensors."""
    said_length = str(len(head) if length is None else length)
    return infer(name, b"".join((head, *blobs)), (LENGTH, said_length), *headers, model=model)


def get(name: str, path: str, *headers: tuple[str, str], method: str = "GET") -> Ask:
    """Return a request without a body."""
    return Ask(name, method, path, headers)


def post(name: str, path: str, body: bytes = b"", *headers: tuple[str, str]) -> Ask:
    """Return a request with a body."""
    return Ask(name, "POST", path, headers, body)


ONE = np.array([[1, 2, 3, 4]], np.float32)
TWO = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
BINARY_ONE = sized("x", ONE, "FP32")
