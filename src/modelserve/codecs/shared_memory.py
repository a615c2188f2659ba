"""Tensors in shared memory, as Triton's extension has them; whatever the wire that names them.

A message names a registered region and a place in it. What such parameters mean is here, and the
bodies of the control calls over REST; where the memory is, and how it is read, is the transports'
matter: they hand in `Regions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from modelserve.errors import InvalidInput, PayloadTooLarge, Unsupported
from modelserve.messages import Parameters
from modelserve.tensors import Tensor

from ._json import Buffer, dumps, loads
from ._tensors import from_bytes, short, wire_dtype

__all__ = [
    "PARAMETERS",
    "Placements",
    "RegionInfo",
    "Regions",
    "SharedMemoryNeeded",
    "Window",
    "decode_registration",
    "encode_regions",
]

_REGION: Final = "shared_memory_region"
_SIZE: Final = "shared_memory_byte_size"
_OFFSET: Final = "shared_memory_offset"
PARAMETERS: Final = frozenset((_REGION, _SIZE, _OFFSET))
"""Names of the parameters that say where in shared memory a tensor is."""

_MOST: Final = 2**63 - 1


class SharedMemoryNeeded(Unsupported):
    """A request names shared memory, and was decoded without any."""


class RegionInfo(NamedTuple):
    """A registered region.

    Args:
        name: Its name in requests.
        key: Name of the shared memory object it is a part of.
        offset: Bytes of the object before the region.
        byte_size: Bytes of the region.
    """

    name: str
    key: str
    offset: int
    byte_size: int


class Window(Protocol):
    """A part of a region; it stays what it is when the region's name is given up."""

    def read(self) -> Buffer:
        """Return a copy of the bytes, which nobody changes any more.

        Raises:
            InvalidInput: The memory is not there any more.
            Overloaded: There are too many such copies.
        """
        ...

    def write(self, content: Buffer) -> None:
        """Write bytes from the beginning on; there are at most as many as the window has.

        Raises:
            InvalidInput: The memory is not there any more.
            Overloaded: The machine has no memory left for it.
        """
        ...


class Regions(Protocol):
    """Finds registered memory."""

    def window(self, region: str, offset: int, size: int, *, path: str) -> Window:
        """Return a part of a region.

        Args:
            region: Name of the region.
            offset: Bytes of the region before the window.
            size: Bytes of the window.
            path: Where the request says so, for error texts.

        Raises:
            InvalidInput: There is no such region, or it is smaller.
            Unsupported: Shared memory is not offered.
        """
        ...


class _Output(NamedTuple):
    region: str
    offset: int
    size: int
    window: Window
    path: str


class Placements:
    """Where in shared memory the tensors of one request are: read now, written with the answer.

    Args:
        regions: What is registered.
        limit: Bytes of input that one request may take from it.
    """

    __slots__ = ("_left", "_limit", "_outputs", "_regions")

    def __init__(self, regions: Regions, limit: int) -> None:
        self._regions = regions
        self._limit = self._left = limit
        self._outputs: dict[str, _Output] = {}

    def __contains__(self, output: str) -> bool:
        return output in self._outputs

    def __len__(self) -> int:
        return len(self._outputs)

    def read(
        self,
        parameters: dict[str, Any],
        datatype: str,
        shape: tuple[int, ...],
        count: int,
        place: str,
    ) -> Tensor:
        """Return an input, a read-only copy; its parameters are taken out of `parameters`.

        Args:
            parameters: Parameters of the input.
            datatype: A known datatype.
            shape: The tensor's shape.
            count: The shape's number of elements.
            place: Where the tensor stands, for error texts.

        Raises:
            InvalidInput: A parameter is wrong, or the bytes are no such tensor.
            PayloadTooLarge: The request's inputs are over the limit.
            Overloaded: Too much is being read at once.
        """
        region, offset, size = _taken(parameters, place)
        path = f"{place}.parameters"
        if datatype != "BYTES":
            wanted = count * wire_dtype(datatype).itemsize
            if size != wanted:
                raise InvalidInput(
                    f"expected {wanted} bytes for {datatype} of shape {list(shape)}, got {size}",
                    path=f"{path}.{_SIZE}",
                )
        window = self._regions.window(region, offset, size, path=path)
        self._left -= size
        if self._left < 0:
            raise PayloadTooLarge(
                f"the request's inputs in shared memory have more than the {self._limit} bytes "
                "allowed"
            )
        return from_bytes(window.read() if size else b"", 0, size, datatype, shape, count, place)

    def note(self, output: str, parameters: dict[str, Any], place: str) -> None:
        """Remember where an output is to go; its parameters are taken out of `parameters`.

        Raises:
            InvalidInput: A parameter is wrong.
        """
        region, offset, size = _taken(parameters, place)
        path = f"{place}.parameters"
        window = self._regions.window(region, offset, size, path=path)
        self._outputs[output] = _Output(region, offset, size, window, path)

    def described(
        self, output: str, content: Buffer, datatype: str, shape: tuple[int, ...]
    ) -> dict[str, Any]:
        """Return the parameters an answer has for an output that goes to shared memory.

        Args:
            output: Its name.
            content: Its bytes.
            datatype: Its datatype.
            shape: Its shape.

        Raises:
            InvalidInput: There is not enough room for it.
        """
        placed = self._outputs[output]
        size = len(content)
        if size > placed.size:
            raise InvalidInput(
                f'expected at least {size} bytes for "{output[:80]}", {datatype} of shape '
                f"{list(shape)}, got {placed.size}",
                path=f"{placed.path}.{_SIZE}",
            )
        found: dict[str, Any] = {_REGION: placed.region, _SIZE: size}
        if placed.offset:
            found[_OFFSET] = placed.offset
        return found

    def write(self, contents: Mapping[str, Buffer]) -> None:
        """Write outputs, all of which have been `described`.

        Raises:
            InvalidInput: The memory is not there any more.
            Overloaded: The machine has no memory left for it.
        """
        for output, content in contents.items():
            if len(content):
                self._outputs[output].window.write(content)


def _taken(parameters: dict[str, Any], place: str) -> tuple[str, int, int]:
    """Take out of a tensor's parameters the region, the offset and the size."""
    path = f"{place}.parameters"
    region = parameters.pop(_REGION, None)
    if type(region) is not str or not region:
        raise InvalidInput(f"expected the name of a region, got {short(region)}", path=_at(path))
    size = _number(parameters.pop(_SIZE, None), f"{path}.{_SIZE}")
    return region, _number(parameters.pop(_OFFSET, 0), f"{path}.{_OFFSET}"), size


def _at(path: str) -> str:
    return f"{path}.{_REGION}"


def _number(value: Any, path: str, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= _MOST:
        raise InvalidInput(f"expected a number of bytes, got {short(value)}", path=path)
    return value


def refuse_with(parameters: Parameters, other: str, place: str) -> None:
    """Refuse shared memory beside another form of the same tensor's data.

    Raises:
        InvalidInput: Both are given.
    """
    if not PARAMETERS.isdisjoint(parameters):
        raise InvalidInput(f"expected {other} or shared memory, got both", path=place)


def decode_registration(body: Buffer) -> tuple[str, int, int]:
    """Return the key, offset and size of a region to be registered.

    Raises:
        InvalidInput: The body does not say them.
    """
    try:
        document = loads(bytes(body))
    except ValueError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None
    if type(document) is not dict:
        raise InvalidInput(f"expected a JSON object, got {short(document)}")
    key = document.get("key")
    if type(key) is not str or not key:
        raise InvalidInput(f"expected the name of shared memory, got {short(key)}", path="key")
    offset = document.get("offset")
    return (
        key,
        0 if offset is None else _number(offset, "offset"),
        _number(document.get("byte_size"), "byte_size", 1),
    )


def encode_regions(regions: Iterable[RegionInfo]) -> bytes:
    """Return the body that lists regions."""
    return dumps([region._asdict() for region in regions])
