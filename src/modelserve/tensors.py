"""Datatypes, tensor specifications and signatures.

A tensor is a `numpy.ndarray`, or on a GPU any array with `__dlpack__`, `dtype` and `shape`. There
is no tensor class here, and nothing about requests or transports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from operator import index
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np

from modelserve.errors import InvalidInput

__all__ = [
    "DATATYPES",
    "Datatype",
    "Signature",
    "Tensor",
    "TensorSpec",
    "as_bytes_tensor",
    "as_tensor",
    "datatype_of",
    "numpy_dtype",
    "refuse_data_frame",
]

Datatype: TypeAlias = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
]
"""The Open Inference Protocol's datatypes, and Triton's BF16."""

DATATYPES: Final[tuple[Datatype, ...]] = get_args(Datatype)

# A device array is duck-typed (dtype, shape, __dlpack__), which no single static type covers.
Tensor: TypeAlias = Any

_NUMPY: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
_DATATYPE: Final[dict[np.dtype[Any], Datatype]] = {v: k for k, v in _NUMPY.items()}  # type: ignore[misc]  # the keys are literals

# What else datatypes are called, by numpy, torch, ONNX and Python.
_MEANT: Final = {
    "bfloat16": '"BF16"',
    "boolean": '"BOOL"',
    "double": '"FP64"',
    "float": '"FP32" or "FP64"',
    "float16": '"FP16"',
    "float32": '"FP32"',
    "float64": '"FP64"',
    "half": '"FP16"',
    "int": '"INT64"',
    "long": '"INT64"',
    "object": '"BYTES"',
    "short": '"INT16"',
    "single": '"FP32"',
    "str": '"BYTES"',
    "string": '"BYTES"',
}


# What an error shows of names that are a request's own.
_MOST_NAMES: Final = 5
_LONGEST_NAME: Final = 80


@cache
def _bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError('BF16 tensors need ml_dtypes: pip install "modelserve[bf16]"') from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """Return the numpy dtype that holds a datatype in memory.

    Raises:
        InvalidInput: The name is not a datatype of the protocol.
        ImportError: BF16 without `ml_dtypes`.
    """
    found = _NUMPY.get(datatype)
    if found is not None:
        return found
    if datatype == "BF16":
        return _bfloat16()
    raise InvalidInput(f'unknown datatype "{datatype}"; {_meant(datatype)}')


def _meant(datatype: object) -> str:
    """Say which datatype something that is none may stand for."""
    name = datatype.__name__ if isinstance(datatype, type) else str(datatype)
    # np.bool_, torch.float32, tensor(float), TYPE_FP32
    name = name.lower().rpartition(".")[2].removeprefix("tensor(").removeprefix("type_")
    name = name.rstrip(")_")
    found = f'"{name.upper()}"' if name.upper() in DATATYPES else _MEANT.get(name)
    return f"use {found}" if found else f"one of {', '.join(DATATYPES)}"


def _named(dtype: Any) -> str:
    """Return a dtype's datatype, or where the protocol has none its own name."""
    try:
        return datatype_of(dtype) if isinstance(dtype, np.dtype) else str(dtype)
    except InvalidInput:
        return str(dtype)


def datatype_of(dtype: Any) -> Datatype:
    """Return the datatype of a numpy dtype (or anything `np.dtype` takes).

    Byte order does not matter here; text (`U`), byte strings (`S`) and objects are BYTES.

    Raises:
        InvalidInput: The protocol has no datatype for it (complex numbers, dates, records).
    """
    dtype = np.dtype(dtype)
    found = _DATATYPE.get(dtype) or _DATATYPE.get(dtype.newbyteorder("="))
    if found is not None:
        return found
    if dtype.kind in "USO":
        return "BYTES"
    if dtype.name == "bfloat16":
        return "BF16"
    raise InvalidInput(f"dtype {dtype} has no datatype in the Open Inference Protocol")


def as_bytes_tensor(array: np.ndarray[Any, Any], *, path: str = "") -> np.ndarray[Any, Any]:
    """Return a BYTES tensor: an object array in which every element is `bytes`.

    `str` elements are encoded as UTF-8. An array that is right already is returned as it is.

    Raises:
        InvalidInput: An element is neither `bytes` nor `str`.
    """
    if array.dtype.kind == "O":
        flat = array.ravel().tolist()
        if all(type(element) is bytes for element in flat):
            return array
    elif array.dtype.kind == "S" or array.dtype.kind == "U":
        flat = array.ravel().tolist()
    else:
        raise InvalidInput(f"expected BYTES, got {_named(array.dtype)}", path=path)
    out = np.empty(len(flat), np.object_)
    for position, element in enumerate(flat):
        if isinstance(element, str):
            out[position] = element.encode()
        elif isinstance(element, bytes | bytearray | memoryview):
            out[position] = bytes(element)
        else:
            raise InvalidInput(
                f"element {position} is {type(element).__name__}; BYTES takes bytes or str",
                path=path,
            )
    return out.reshape(array.shape)


def refuse_data_frame(value: Any, *, path: str = "") -> None:
    """Refuse a data frame: its columns may stand in another order than the model learned them in.

    Raises:
        InvalidInput: Says how to make an array of it.
    """
    if hasattr(value, "columns") and hasattr(value, "to_numpy"):
        raise InvalidInput(
            "a data frame's columns have names, a tensor's have none: choose them in the model's "
            "order, as in frame[names].to_numpy()",
            path=path,
        )


def as_tensor(value: Any, datatype: Datatype, *, path: str = "") -> Tensor:
    """Return `value` as a tensor of `datatype`: arrays must have it, Python values are converted.

    Python numbers and (nested) lists are converted where nothing is lost in kind: an integer may
    become a float, a float never an integer. Arrays are never converted, except text to BYTES.

    Raises:
        InvalidInput: The value cannot be a tensor of this datatype.
    """
    if isinstance(value, np.ndarray):
        if datatype == "BYTES":
            return as_bytes_tensor(value, path=path)
        if not value.dtype.isnative and value.dtype.kind in "biuf":
            return value.astype(value.dtype.newbyteorder("="))
        return value
    if hasattr(value, "__dlpack__") and hasattr(value, "dtype") and hasattr(value, "shape"):
        return value
    refuse_data_frame(value, path=path)
    dtype = numpy_dtype(datatype)
    try:
        if datatype == "BYTES":
            return as_bytes_tensor(np.asarray(value, dtype=np.object_), path=path)
        array = np.asarray(value)
        if array.size == 0 and array.dtype == np.float64:
            return array.astype(dtype)
        castable = array.dtype.kind in "biuf" and np.can_cast(array.dtype, dtype, "same_kind")
        # Python integers are int64 to numpy: let them into unsigned types when they fit.
        if not castable and (array.dtype.kind != "i" or dtype.kind != "u" or (array < 0).any()):
            kind = "Python object" if array.dtype.kind == "O" else _named(array.dtype)
            raise InvalidInput(f"expected {datatype}, got {kind} values", path=path)
        if dtype.kind in "iu" and array.size:
            info = np.iinfo(dtype)
            if int(array.min()) < info.min or int(array.max()) > info.max:
                raise InvalidInput(f"a value is out of the range of {datatype}", path=path)
        return array.astype(dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"cannot be made a {datatype} tensor: {error}", path=path) from error


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, datatype and shape of one input or output.

    Args:
        name: The tensor's name.
        datatype: One of `DATATYPES`, e.g. ``"FP32"``.
        shape: Sizes per axis, -1 where any size will do; for a model that batches, axis 0 is the
            batch and is -1. None where even the number of axes is open.
        optional: Whether a request may leave the tensor out.

    Example:
        >>> TensorSpec("x", "FP32", (-1, 4))
        TensorSpec(name='x', datatype='FP32', shape=(-1, 4), optional=False)
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...] | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a tensor's name is a non-empty str, got {self.name!r}")
        # A numpy dtype compares with any text, and may raise.
        if not isinstance(self.datatype, str) or self.datatype not in DATATYPES:
            raise ValueError(
                f'tensor "{self.name}": unknown datatype {self.datatype!r}; {_meant(self.datatype)}'
            )
        if self.shape is not None:
            object.__setattr__(self, "shape", _sizes(self.name, self.shape))


def _sizes(name: str, shape: Any) -> tuple[int, ...]:
    if isinstance(shape, str) or not isinstance(shape, Iterable):
        raise TypeError(f'tensor "{name}": shape is a tuple, got {shape!r}')
    given = tuple(shape)
    try:
        sizes = tuple(index(size) for size in given)
    except TypeError:
        raise ValueError(
            f'tensor "{name}": sizes are integers, and -1 where any size will do; got {given}'
        ) from None
    if any(size < -1 for size in sizes):
        raise ValueError(f'tensor "{name}": sizes are >= 0 or -1, got {sizes}')
    return sizes


class _Check:
    """One input's expectations, unpacked once so that `validate` only compares."""

    __slots__ = ("bytes", "dtype", "fixed", "name", "ndim", "optional", "row", "single", "spec")

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.name = spec.name
        self.dtype = numpy_dtype(spec.datatype)
        self.bytes = spec.datatype == "BYTES"
        self.optional = spec.optional
        self.ndim = -1 if spec.shape is None else len(spec.shape)
        self.fixed = tuple((i, n) for i, n in enumerate(spec.shape or ()) if n >= 0)
        self.row = spec.shape[1:] if spec.shape and spec.shape[0] == -1 else None
        self.single = None if self.row is None else (1, *self.row)


class Signature:
    """What a version takes and gives.

    Args:
        inputs: Input specifications in order.
        outputs: Output specifications in order; empty where the outputs are not known beforehand.

    Example:
        >>> signature = Signature([TensorSpec("x", "FP32", (-1, 4))], [])
        >>> signature.validate({"x": np.zeros((2, 4), np.float32)}, batched=True)[1]
        2
    """

    __slots__ = ("_checks", "_only", "inputs", "outputs", "regular")

    def __init__(self, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec] = ()) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        for side, specs in (("input", self.inputs), ("output", self.outputs)):
            names = [spec.name for spec in specs]
            if len(set(names)) != len(names):
                raise ValueError(f"two {side}s have the same name: {names}")
        self._checks = tuple(_Check(spec) for spec in self.inputs)
        self.regular = bool(self._checks) and not any(
            check.bytes or check.optional or check.row is None or -1 in check.row
            for check in self._checks
        )
        """Whether all inputs are numbers, in rows of a shape that is known."""
        self._only: tuple[Any, ...] | None = None
        """Name, dtype and shape of one row, where there is one input and it is regular."""
        if self.regular and len(self._checks) == 1:
            only = self._checks[0]
            self._only = (only.name, only.dtype, only.single)

    def __repr__(self) -> str:
        return f"Signature(inputs={list(self.inputs)!r}, outputs={list(self.outputs)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Signature):
            return NotImplemented
        return self.inputs == other.inputs and self.outputs == other.outputs

    def __hash__(self) -> int:
        return hash((self.inputs, self.outputs))

    def rows_of(self, inputs: Mapping[str, Tensor]) -> int:
        """Return the rows of inputs that are plain arrays, just as specified; else -1.

        Says in a third of the time what `validate` does, for most requests: numpy arrays of the
        very dtype, with rows on axis 0 and all other sizes known. Where it says -1 the inputs may
        still be right, or be made so: ask `validate`.
        """
        if self._only is not None:  # one row for one input, as most are: half the time
            name, dtype, single = self._only
            tensor = inputs.get(name)
            if (
                tensor.__class__ is np.ndarray
                and tensor.dtype is dtype
                and tensor.shape == single
                and len(inputs) == 1
            ):
                return 1
        if not self.regular or len(inputs) != len(self._checks):
            return -1
        rows = -1
        for check in self._checks:
            tensor = inputs.get(check.name)
            if tensor.__class__ is not np.ndarray or tensor.dtype is not check.dtype:
                return -1
            shape = tensor.shape
            if shape == check.single:  # most of them: saves the slice
                count = 1
            elif shape and shape[1:] == check.row:
                count = shape[0]
            else:
                return -1
            if count != rows:
                if rows >= 0:
                    return -1
                rows = count
        return rows

    # One pass without calls, since every request goes through it.
    def validate(  # noqa: C901
        self, inputs: Mapping[str, Tensor], *, batched: bool
    ) -> tuple[Mapping[str, Tensor], int]:
        """Check a request's inputs; return them as the backend takes them, and their rows.

        The mapping given is returned itself when nothing needs converting (text to bytes, Python
        lists to arrays).

        Args:
            inputs: Tensors by name.
            batched: Whether axis 0 of every input is the batch; then all agree on its size.

        Raises:
            InvalidInput: A tensor is missing, unknown, or of another datatype or shape.
        """
        rows = -1
        seen = 0
        for check in self._checks:
            tensor = inputs.get(check.name)
            if tensor is None:
                if check.optional and check.name not in inputs:
                    continue
                raise _missing(inputs, self.inputs)
            seen += 1
            if check.bytes or not hasattr(tensor, "dtype"):
                converted = as_tensor(tensor, check.spec.datatype, path=_path(inputs, check.name))
                if converted is not tensor:
                    inputs = {**inputs, check.name: converted}
                    tensor = converted
            elif tensor.dtype != check.dtype:
                tensor = _in_native_order(inputs, check)
                inputs = {**inputs, check.name: tensor}
            shape = tensor.shape
            if check.ndim >= 0:
                if len(shape) != check.ndim:
                    raise _wrong_shape(inputs, check.spec, shape)
                for axis, size in check.fixed:
                    if shape[axis] != size:
                        raise _wrong_shape(inputs, check.spec, shape)
            if batched:
                if rows < 0:
                    if not shape:
                        raise _wrong_shape(inputs, check.spec, shape)
                    rows = shape[0]
                elif not shape or shape[0] != rows:
                    raise InvalidInput(
                        f"expected {rows} rows as in the other inputs, got shape {tuple(shape)}",
                        path=_path(inputs, check.name),
                    )
        if seen != len(inputs):
            known = {check.name for check in self._checks}
            unknown = next(name for name in inputs if name not in known)
            raise InvalidInput(
                f"unknown input; the model takes {', '.join(sorted(known)) or 'none'}",
                path=_path(inputs, unknown),
            )
        return inputs, rows if rows >= 0 else 1


def _path(inputs: Mapping[str, Tensor], name: str) -> str:
    return f'inputs[{list(inputs).index(name)}] "{name[:_LONGEST_NAME]}"'


def _missing(inputs: Mapping[str, Tensor], specs: Iterable[TensorSpec]) -> InvalidInput:
    """Name what is missing and what is there instead: a misspelt name shows in both."""
    known = {spec.name: spec.optional for spec in specs}
    missing = [n for n, optional in known.items() if not optional and inputs.get(n) is None]
    # An optional input given as None counts as missing, too.
    missing += [n for n, optional in known.items() if optional and inputs.get(n, n) is None]
    text = f"{_quoted(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    unknown = [name for name in inputs if name not in known]
    if unknown:
        text += f"; {_quoted(unknown)} {'is' if len(unknown) == 1 else 'are'} unknown"
    return InvalidInput(text, path="inputs")


def _quoted(names: list[str]) -> str:
    shown = ", ".join(f'"{name[:_LONGEST_NAME]}"' for name in names[:_MOST_NAMES])
    return f"{shown}, ..." if len(names) > _MOST_NAMES else shown


def _in_native_order(inputs: Mapping[str, Tensor], check: _Check) -> Tensor:
    """Return a tensor of another dtype than is checked for, if only its byte order differs."""
    tensor = inputs[check.name]
    dtype = tensor.dtype
    if isinstance(dtype, np.dtype):
        if dtype.newbyteorder("=") == check.dtype:
            return tensor.astype(check.dtype)
        castable = dtype.kind in "biuf" and check.dtype.kind in "biuf"
        castable = castable and np.can_cast(dtype, check.dtype, "same_kind")
        hint = f"; convert it with .astype(np.{check.dtype.name})" if castable else ""
    else:
        hint = "; give a numpy array"
    raise InvalidInput(
        f"expected {check.spec.datatype}, got {_named(dtype)}{hint}",
        path=_path(inputs, check.name),
    )


def _wrong_shape(
    inputs: Mapping[str, Tensor], spec: TensorSpec, shape: tuple[int, ...]
) -> InvalidInput:
    expected = "(rows, ...)" if spec.shape is None else spec.shape
    hint = ""
    if spec.shape and spec.shape[0] == -1 and len(shape) == len(spec.shape) - 1:
        hint = "; axis 0 counts the rows: x[None] makes one row of x"
    return InvalidInput(
        f"expected shape {expected}, got {tuple(shape)}{hint}", path=_path(inputs, spec.name)
    )
