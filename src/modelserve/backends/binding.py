"""Tensors in and out of a session without numpy in between: devices by DLPack, BF16 by pointer.

Written against ONNX Runtime's IOBinding. The same code runs on the CPU device, where it is tested;
on a GPU it has not yet been run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final

import numpy as np

from modelserve.tensors import Tensor, numpy_dtype

__all__ = ["run_bound"]

_BFLOAT16: Final = 16  # onnx.TensorProto.BFLOAT16
_DLPACK_CPU: Final = 1
_DLPACK_CUDA: Final = 2


def run_bound(
    runtime: Any,
    session: Any,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    device: tuple[str, int],
) -> list[Tensor]:
    """Run a session through an I/O binding and return its outputs in the order of the names.

    Args:
        runtime: The `onnxruntime` module.
        session: The `onnxruntime.InferenceSession`.
        inputs: numpy arrays, or arrays with `__dlpack__` that lie on the session's device.
        outputs: Names of the outputs wanted.
        device: Where the outputs shall lie, e.g. ``("cuda", 0)``.
    """
    binding = session.io_binding()
    for name, tensor in inputs.items():
        if isinstance(tensor, np.ndarray) and tensor.dtype.name != "bfloat16":
            binding.bind_cpu_input(name, tensor)
        else:
            binding.bind_ortvalue_input(name, _to_ort(runtime, tensor))
    for name in outputs:
        binding.bind_output(name, *device)
    session.run_with_iobinding(binding)
    return [_from_ort(value) for value in binding.get_outputs()]


def _to_ort(runtime: Any, tensor: Tensor) -> Any:
    if isinstance(tensor, np.ndarray):
        contiguous = np.ascontiguousarray(tensor)
        return runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(contiguous, _BFLOAT16)
    if tensor.__dlpack_device__()[0] == _DLPACK_CUDA:
        # The export below orders the tensor's stream before the default stream; the session has a
        # stream of its own, so what is pending must be done before its kernels start.
        value = runtime.OrtValue.from_dlpack(tensor)
        _cupy().cuda.Stream.null.synchronize()
        return value
    return runtime.OrtValue.from_dlpack(tensor)


def _from_ort(value: Any) -> Tensor:
    if not value.is_tensor():
        raise TypeError("only tensors can be bound")
    data_type = value.data_type()
    on_host = value.device_name() == "cpu"
    if data_type == "tensor(bfloat16)" and on_host:
        return _copy_bfloat16(value)
    if data_type == "tensor(string)":
        return value.numpy()
    if on_host:
        return np.from_dlpack(value)
    return _cupy().from_dlpack(value)


def _copy_bfloat16(value: Any) -> np.ndarray[Any, Any]:
    # Neither OrtValue.numpy nor numpy's DLPack import knows BF16, so its bytes are copied.
    size = value.tensor_size_in_bytes()
    out = np.empty(value.shape(), numpy_dtype("BF16"))
    if size:
        ctypes.memmove(out.ctypes.data, value.data_ptr(), size)
    return out


def _cupy() -> Any:
    try:
        return import_module("cupy")
    except ImportError as error:
        raise ImportError('tensors on a GPU need cupy: pip install "modelserve[gpu]"') from error
