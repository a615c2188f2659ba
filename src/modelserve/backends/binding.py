"""Tensors in and out of a session by address: those on a GPU stay there, and BF16 gets through.

Written against ONNX Runtime's IOBinding. Host arrays take the same way as device arrays, by
address, so that it is tested without a GPU; on a GPU it has not yet been run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import numpy as np

from modelserve.tensors import Datatype, Tensor, numpy_dtype

__all__ = ["on_host", "run_bound"]

_BFLOAT16: Final = 16  # onnx.TensorProto.BFLOAT16
_DLPACK_HOST: Final = frozenset({1, 3})  # kDLCPU, kDLCUDAHost


def on_host(tensor: Tensor) -> bool:
    """Tell whether an array with `__dlpack__` lies in host memory."""
    return int(tensor.__dlpack_device__()[0]) in _DLPACK_HOST


def run_bound(
    session: Any,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Datatype],
    device: tuple[str, int],
    outputs_on_device: bool,
) -> list[Tensor]:
    """Run a session through an I/O binding and return its outputs in the order of the names.

    Args:
        session: The `onnxruntime.InferenceSession`.
        inputs: numpy arrays, and arrays with `__dlpack__` that lie on the session's device.
        outputs: Datatypes of the outputs wanted, by name.
        device: The session's device, e.g. ``("cuda", 0)``.
        outputs_on_device: Leave the outputs on that device: cupy arrays where it is a GPU.
    """
    binding = session.io_binding()
    # Kept to the end of the run: the binding knows addresses only.
    held = [_bind_input(binding, name, tensor, device) for name, tensor in inputs.items()]
    for name in outputs:
        binding.bind_output(name, *(device if outputs_on_device else ("cpu", 0)))
    session.run_with_iobinding(binding)
    del held
    return [
        _from_ort(value, datatype)
        for value, datatype in zip(binding.get_outputs(), outputs.values(), strict=True)
    ]


def _bind_input(binding: Any, name: str, tensor: Tensor, device: tuple[str, int]) -> Tensor:
    if isinstance(tensor, np.ndarray):
        array = tensor if tensor.flags.c_contiguous else tensor.copy(order="C")
        address, place = array.ctypes.data, ("cpu", 0)
    else:
        cupy = _cupy()
        # The import orders the producer's stream before cupy's current one; the session has a
        # stream of its own, so what is pending must be done before its kernels start.
        array = cupy.ascontiguousarray(cupy.from_dlpack(tensor))
        cupy.cuda.get_current_stream().synchronize()
        address, place = array.data.ptr, device
    element: Any = _BFLOAT16 if array.dtype.name == "bfloat16" else array.dtype.type
    binding.bind_input(name, *place, element, array.shape, address)
    return array


def _from_ort(value: Any, datatype: Datatype) -> Tensor:
    if datatype == "BYTES":
        return value.numpy()
    shape, dtype = tuple(value.shape()), numpy_dtype(datatype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if value.device_name() != "cpu":
        cupy = _cupy()
        memory = cupy.cuda.UnownedMemory(value.data_ptr(), size, value)
        return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))
    if not size:
        return np.empty(shape, dtype)
    # By address, as OrtValue.numpy copies, and knows no BF16. The array holds the buffer, and the
    # buffer the value.
    buffer: Any = (ctypes.c_byte * size).from_address(value.data_ptr())
    buffer.value = value
    return np.frombuffer(buffer, dtype).reshape(shape)


def _cupy() -> Any:
    try:
        return import_module("cupy")
    except ImportError as error:
        raise ImportError('tensors on a GPU need cupy: pip install "modelserve[gpu]"') from error
