"""Proof that axis 0 is a batch: rows give the same answers alone, together and beside others.

Run once when a model is loaded and nothing declares `max_batch_size`. At one batch size a row's
answer must be the same, bit for bit, whatever its neighbours hold; from one batch size to another
it may change by rounding. The hostile neighbour (the same numbers times fifty) finds models whose
activation scales are taken over the whole batch, as dynamically quantized ones do: there one
caller's row changes another's answer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from modelserve.errors import ServeError
from modelserve.protocols import Backend
from modelserve.tensors import Signature, Tensor, TensorSpec, numpy_dtype

__all__ = ["prove_batch_axis", "synthetic_inputs", "synthetic_shape"]

_ROWS: Final = 3
_FREE_SIZE: Final = 8
"""Size tried for an axis that is free and not the batch."""

_TOLERANCE: Final[dict[str, float]] = {"FP16": 2e-2, "BF16": 5e-2, "FP32": 1e-4, "FP64": 1e-6}
"""Largest difference allowed, as a share of the output's largest value."""


def synthetic_inputs(signature: Signature, rows: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Make inputs that fit a signature: floats around 0, integers 0 and 1, short strings.

    Args:
        signature: What the inputs have to fit.
        rows: Size of axis 0 where it is free; other free axes get a small size.
        seed: Of the random numbers.
    """
    numbers = random.Random(seed)
    inputs: dict[str, Tensor] = {}
    for spec in signature.inputs:
        if spec.optional:
            continue
        shape = synthetic_shape(spec, rows)
        if spec.datatype == "BYTES":
            tensor = np.empty(shape, np.object_)
            tensor[...] = b"1"
            inputs[spec.name] = tensor
        elif spec.datatype in ("FP16", "FP32", "FP64", "BF16"):
            inputs[spec.name] = _floats(numbers, shape).astype(numpy_dtype(spec.datatype))
        else:
            bits = np.frombuffer(numbers.randbytes(math.prod(shape)), np.uint8) & 1
            inputs[spec.name] = bits.reshape(shape).astype(numpy_dtype(spec.datatype))
    return inputs


def synthetic_shape(spec: TensorSpec, rows: int) -> tuple[int, ...]:
    """Return the shape of a made-up input; see `synthetic_inputs`."""
    sizes = (-1,) if spec.shape is None else spec.shape
    shape = tuple(_FREE_SIZE if size < 0 else size for size in sizes)
    return (rows, *shape[1:]) if sizes and sizes[0] < 0 else shape


def _floats(numbers: random.Random, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """Return nearly normal numbers: sums of four even ones, of mean 0 and variance 1.

    numpy's generators would do as well; importing them takes 7 ms of every start.
    """
    parts = np.frombuffer(numbers.randbytes(8 * math.prod(shape)), np.uint16).reshape(4, -1)
    total = parts.sum(axis=0, dtype=np.float32) / np.float32(1 << 16)
    found: np.ndarray[Any, Any] = (total - 2) * np.float32(math.sqrt(3))
    return found.reshape(shape)


def prove_batch_axis(backend: Backend, samples: Mapping[str, Tensor] | None = None) -> str:
    """Try whether rows may share a run.

    Args:
        backend: Loaded backend that can be run on this thread.
        samples: Real rows to use instead of made-up ones; fewer than three are repeated.

    Returns:
        Why they may not; empty when they may.
    """
    signature = backend.signature
    if not signature.inputs:
        return "the model has no inputs"
    for side, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            reason = _not_free(side, spec)
            if reason:
                return reason
    together = dict(samples) if samples else synthetic_inputs(signature, _ROWS)
    if any(np.ndim(tensor) == 0 or len(tensor) == 0 for tensor in together.values()):
        return "the rows to try it with are none"
    together = {n: tensor[np.arange(_ROWS) % len(tensor)] for n, tensor in together.items()}
    try:
        return _compare(backend, together)
    except (ServeError, ValueError, TypeError, IndexError) as error:
        return f"the model cannot be run on made-up rows: {type(error).__name__}"


def _not_free(side: str, spec: TensorSpec) -> str:
    if spec.shape is None:
        # What holds with the number of axes tried need not hold with another.
        return f'the number of axes of input "{spec.name}" is open' if side == "input" else ""
    if not spec.shape:
        return f'{side} "{spec.name}" has no axis'
    if spec.shape[0] >= 0:
        return f'axis 0 of {side} "{spec.name}" is fixed at {spec.shape[0]}'
    return ""


def _compare(backend: Backend, together: Mapping[str, Tensor]) -> str:
    alone = [
        backend.run({name: tensor[i : i + 1] for name, tensor in together.items()})
        for i in range(_ROWS)
    ]
    joined = backend.run(together)
    for name, output in joined.items():
        if np.ndim(output) == 0 or len(output) != _ROWS:
            return f'output "{name}" has not as many rows as the inputs'
        if any(np.ndim(one[name]) == 0 or len(one[name]) != 1 for one in alone):
            return f'output "{name}" has not as many rows as the inputs'
    hostile = backend.run(_with_hostile_neighbours(together))
    for name, output in joined.items():
        if not _equal(output[0], hostile[name][0]):
            return f'output "{name}" of a row depends on what its neighbours hold'
    for name, output in joined.items():
        if not all(_same(alone[i][name][0], output[i]) for i in range(_ROWS)):
            return (
                f'output "{name}" of a row changes with the size of the batch by more than '
                "rounding; declare max_batch_size to accept that"
            )
    return ""


def _with_hostile_neighbours(together: Mapping[str, Tensor]) -> dict[str, Tensor]:
    changed = {}
    for name, tensor in together.items():
        if tensor.dtype.kind == "f" or tensor.dtype.name == "bfloat16":
            tensor = tensor.copy()
            tensor[1:] = tensor[1:] * np.asarray(50, tensor.dtype)
        elif tensor.dtype.kind in "biu":
            tensor = tensor.copy()
            tensor[1:] = tensor[1:] == 0
        changed[name] = tensor
    return changed


def _equal(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    both_nan = (one != one) & (other != other)
    return one.shape == other.shape and bool(((one == other) | both_nan).all())


def _same(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape:
        return False
    if one.dtype.kind not in "fc" and one.dtype.name != "bfloat16":
        return bool((one == other).all())
    name = {2: "FP16", 4: "FP32", 8: "FP64"}[one.dtype.itemsize]
    tolerance = _TOLERANCE["BF16" if one.dtype.name == "bfloat16" else name]
    one, other = one.astype(np.float64), other.astype(np.float64)
    differ = ~((one == other) | (np.isnan(one) & np.isnan(other)))
    if not np.isfinite(one[differ]).all() or not np.isfinite(other[differ]).all():
        return False
    scale = float(np.max(np.abs(one[np.isfinite(one)]), initial=0.0))
    largest = float(np.max(np.abs(one[differ] - other[differ]), initial=0.0))
    return largest <= tolerance * scale + 1e-12
