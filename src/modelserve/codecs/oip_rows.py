"""The Open Inference Protocol for many requests at once: one row each, alike but for the data.

What is read here is what `modelserve.codecs._plans` knows from before, and what is written is, byte
for byte, what `modelserve.codecs.oip` writes for each of them. Whatever is not as usual is None,
and for the plain way through that module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import numpy as np

from modelserve.messages import InferResponse
from modelserve.tensors import Tensor

from ._json import dumps
from ._memo import Memo
from ._plans import DATA, FRAMES, HEADS, MAX_FRAMED, MAX_HEAD, OPENINGS, RowKind
from ._templates import row_pieces

__all__ = ["RowKind", "read_row", "write_rows"]


def read_row(
    message: bytes, start: int, json_size: int | str | None
) -> tuple[RowKind, bytes] | None:
    """Return the kind of a request of one row, and the row's bytes; or None.

    Args:
        message: What holds the body, up to its end.
        start: Where the body begins.
        json_size: Bytes of its JSON part where binary data may follow, else None.
    """
    if json_size is None:
        if len(message) - start > MAX_FRAMED:
            return None
        data = message.find(DATA, start, start + MAX_HEAD)
        if data < 0 or message.startswith(OPENINGS, start):
            return None
        for frame in FRAMES.get(message[start:data]) or ():
            if frame is not None and message.endswith(frame.suffix):
                text = message[data + len(DATA) : len(message) - len(frame.suffix)]
                kind = frame.kind
                row = frame.read_row(text) if kind is not None else None
                if kind is not None and row is not None:
                    return kind, row
        return None
    if not isinstance(json_size, int) or not 0 < json_size <= MAX_HEAD:
        return None
    end = start + json_size
    plan = HEADS.get(message[start:end])
    if not plan or plan.kind is None or len(message) != end + plan.size:
        return None
    return plan.kind, message[end:]


@final
class _Rows:
    """Template of responses of one row each, for all outputs in JSON or all as binary data."""

    __slots__ = ("_binary", "_pieces", "size")

    def __init__(self, response: InferResponse, binary: bool) -> None:
        self._pieces = row_pieces(response, binary)
        self._binary = binary
        self.size = sum(map(len, self._pieces))

    def write(self, columns: Sequence[Any], rows: int) -> tuple[list[bytes], int | None] | None:
        if self._binary:
            (head,) = self._pieces
            parts = [_cut(column.tobytes(), rows) for column in columns]
            if len(parts) == 1:
                return [head + part for part in parts[0]], len(head)
            return [head + b"".join(row) for row in zip(*parts, strict=True)], len(head)
        texts = [_texts(column, rows) for column in columns]
        if any(len(text) != rows for text in texts):
            return None  # an empty row, say
        if len(texts) == 1:
            first, last = self._pieces
            return [first + text + last for text in texts[0]], None
        form = b"%b".join([piece.replace(b"%", b"%%") for piece in self._pieces])
        return [form % row for row in zip(*texts, strict=True)], None


def _cut(content: bytes, rows: int) -> list[bytes]:
    size = len(content) // rows
    return [content[start : start + size] for start in range(0, rows * size, size)]


def _texts(column: Any, rows: int) -> list[bytes]:
    """Return the JSON of each row's numbers, without brackets."""
    if column.ndim == 1:
        return dumps(column)[1:-1].split(b",")
    return dumps(column.reshape(rows, -1))[2:-2].split(b"],[")


_TEMPLATES: Final[Memo[tuple[Any, ...], _Rows]] = Memo(entries=512, size=256 * 1024)
"""Templates by model, version, form, and each output's name, dtype and shape of a row."""


def write_rows(
    model: str, version: str, outputs: Mapping[str, Tensor], rows: int, *, binary: bool
) -> tuple[list[bytes], int | None] | None:
    """Return the bodies of responses, one for each row of a batch, without ids; or None.

    Args:
        model: Name of the model.
        version: Version that answered.
        outputs: The batch's outputs; axis 0 has `rows` rows.
        rows: How many there are, at least one.
        binary: Whether all outputs go as binary data, or all in JSON.

    Returns:
        The bodies, and the length of the JSON part of each where binary data follows it.
    """
    key: tuple[Any, ...] = (model, version, binary)
    columns = []
    for name, column in outputs.items():
        dtype = column.dtype
        # Numbers whose digits and bytes are those in memory, in rows that are not empty.
        if dtype.kind not in "iuf" or dtype.itemsize < 4 or not dtype.isnative:
            return None
        if column.shape[:1] != (rows,) or not column.size:
            return None
        key += (name, dtype, column.shape[1:])
        columns.append(column)
    template = _TEMPLATES.get(key)
    if template is None:
        if not columns or np.little_endian is False:
            return None
        single = {name: column[:1] for name, column in outputs.items()}
        template = _Rows(InferResponse(model, version, single), binary)
        _TEMPLATES.keep(key, template, size=template.size)
    return template.write(columns, rows)
