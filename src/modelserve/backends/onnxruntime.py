"""ONNX models as backends: `InferenceSession` runs batches with ONNX Runtime.

ONNX Runtime is imported when the first session is made. No batching and no requests here.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

import numpy as np

from modelserve.backends.binding import on_host, run_bound
from modelserve.backends.memory import file_of, return_free_memory
from modelserve.backends.providers import (
    HOST_PROVIDERS,
    Provider,
    load_runtime,
    resolve_providers,
    short_name,
)
from modelserve.backends.scalars import scalars_of
from modelserve.errors import BackendError, InvalidInput, LoadError
from modelserve.protocols import Traits
from modelserve.tensors import Datatype, Signature, Tensor, TensorSpec, numpy_dtype

__all__ = ["GraphOptimization", "InferenceSession"]

GraphOptimization: TypeAlias = Literal["none", "basic", "extended", "layout", "all"]

_LEVELS: Final = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}

_DATATYPES: Final[dict[str, Datatype]] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": "BYTES",
}

_ZIPMAPS: Final = frozenset({"seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))"})

# Where IOBinding puts outputs for a provider: other providers give host memory.
_OUTPUT_DEVICE: Final = {"CUDA": "cuda", "Tensorrt": "cuda", "MIGraphX": "cuda", "CANN": "cann"}


class InferenceSession:
    """Run an ONNX model with ONNX Runtime; a `Backend`.

    `run` may be called from any thread, by several threads at once on host providers (see
    `traits`). Outputs are what ONNX Runtime gives: BYTES outputs are object arrays of `str`.

    ONNX Runtime falls back to the CPU without a word; this class warns with a `RuntimeWarning`
    when a provider asked for is not in use, and `providers` tells which ones are.

    Args:
        model: Path of an ONNX file (or ORT format, ``.ort``), or its bytes. External data lies
            beside the file.
        providers: Execution providers in order of preference: names with or without
            "ExecutionProvider", in any case (``"cuda"``), or pairs of a name and its options. None
            takes the best available: CUDA, MIGraphX, DML, OpenVINO, CPU. CPU is always last.
        strict_providers: Refuse to load when a provider asked for is not in use.
        intra_op_threads: Threads within an operator. One, unless told otherwise: parallel requests
            use the cores better than parallel loops.
        inter_op_threads: Threads across operators; more than one runs the graph in parallel.
        graph_optimization: How far the graph is rewritten at load.
        session_options: A ready `onnxruntime.SessionOptions`, used as it is (the three arguments
            before are then ignored), or a mapping: keys with a dot are session configuration
            entries (``"session.disable_prepacking": "1"``), others are attributes of
            `SessionOptions` (``"log_severity_level": 2``).
        external_data: Contents of external data files by the name the model gives them, for a
            model given as bytes. Such a model never reads files.
        device_outputs: Leave outputs on the GPU, as cupy arrays, unless `run` says otherwise.

    Raises:
        ImportError: ONNX Runtime is not installed.
        LoadError: The model cannot be loaded, or takes or gives what the protocol cannot carry.
        ValueError: A provider or option is unknown.

    Example:
        >>> with InferenceSession("iris.onnx") as session:
        ...     session.run({"x": np.zeros((1, 4), np.float32)})["y"].shape
        (1, 3)
    """

    platform: Final = "onnxruntime_onnx"

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        *,
        providers: Sequence[Provider] | None = None,
        strict_providers: bool = False,
        intra_op_threads: int = 1,
        inter_op_threads: int = 1,
        graph_optimization: GraphOptimization = "all",
        session_options: Any = None,
        external_data: Mapping[str, bytes] | None = None,
        device_outputs: bool = False,
    ) -> None:
        self._runtime = load_runtime()
        self._label = "model" if isinstance(model, bytes) else Path(os.fspath(model)).name
        if isinstance(session_options, self._runtime.SessionOptions):
            options = session_options
        else:
            options = self._runtime.SessionOptions()
            options.intra_op_num_threads = intra_op_threads
            options.inter_op_num_threads = inter_op_threads
            if inter_op_threads > 1:
                options.execution_mode = self._runtime.ExecutionMode.ORT_PARALLEL
            options.graph_optimization_level = self._level(graph_optimization)
            # Whatever goes wrong is raised; a second copy on stderr is noise the host cannot stop.
            options.log_severity_level = 4
            _apply(options, session_options or {})
        if external_data:
            _attach_external(options, model, external_data)
        self._large = _size(model, external_data) >= _LARGE
        session = _open(self._runtime, model, options, providers, strict_providers, self._label)
        listed = [*session.get_inputs(), *session.get_outputs()]
        listed += session.get_overridable_initializers()
        scalars = scalars_of(model) if any(not arg.shape for arg in listed) else frozenset()
        self._bind(session, scalars)
        self._device_outputs = device_outputs
        if self._large:
            return_free_memory()  # what parsing needed: as much as the model itself

    def _level(self, name: str) -> Any:
        if name not in _LEVELS:
            raise ValueError(f"graph_optimization: one of {', '.join(_LEVELS)}; got {name!r}")
        return getattr(self._runtime.GraphOptimizationLevel, _LEVELS[name])

    def _bind(self, session: Any, scalars: frozenset[str]) -> None:
        given = [_spec(arg, "input", scalars) for arg in session.get_inputs()]
        given += [
            _spec(arg, "input", scalars, optional=True)
            for arg in session.get_overridable_initializers()
        ]
        self._zipmaps = frozenset(a.name for a in session.get_outputs() if a.type in _ZIPMAPS)
        outputs = [_spec(arg, "output", scalars) for arg in session.get_outputs()]
        self.signature = Signature(given, outputs)
        self.providers = tuple(short_name(name) for name in session.get_providers())
        inline = self.providers[0] in HOST_PROVIDERS
        # An accelerator serves one stream: further threads would only wait for it, and the wait
        # would block whoever calls, so it gets a thread of its own.
        self.traits = Traits(inline=inline, shared=inline, repeatable=True, synthetic=True)
        self._device = (_OUTPUT_DEVICE.get(self.providers[0], "cpu"), 0)
        self._session = session
        self._output_names = [spec.name for spec in outputs]
        self._output_datatypes = {spec.name: spec.datatype for spec in outputs}
        self._required = frozenset(spec.name for spec in given if not spec.optional)
        # As many inputs as there are, and none unknown to ONNX Runtime: then none is missing.
        self._count = len(given) if len(given) == len(self._required) else -1
        self._text = frozenset(spec.name for spec in given if spec.datatype == "BYTES")
        self._bound = any(spec.datatype == "BF16" for spec in (*given, *outputs))
        self._unbindable = bool(self._text or self._zipmaps)
        if self._bound and self._unbindable:
            raise LoadError(
                "ONNX Runtime cannot bind BYTES inputs or ZipMap outputs, as BF16 tensors need"
            )
        self._plain = not (self._text or self._bound or self._zipmaps)
        # The C binding itself saves 0.9 us a call: the method around it validates what is checked
        # here. It is not public, hence the way back.
        binding = getattr(session, "_sess", None)
        self._call = getattr(binding, "run", None) or session.run

    @property
    def metadata(self) -> dict[str, str]:
        """What the model says of itself: producer, graph name, description, its own properties.

        Raises:
            BackendError: The session is closed.
        """
        meta = self._open_session().get_modelmeta()
        found = {
            "producer": meta.producer_name,
            "graph": meta.graph_name,
            "domain": meta.domain,
            "description": meta.description,
            "version": str(meta.version) if 0 < meta.version < _UNSET_VERSION else "",
        }
        return {**{k: v for k, v in found.items() if v}, **meta.custom_metadata_map}

    def run(
        self,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str] | None = None,
        *,
        device_outputs: bool | None = None,
    ) -> dict[str, Tensor]:
        """Run one batch.

        The inputs are expected to fit the signature (`Signature.validate`). Tensors with
        `__dlpack__` other than numpy's stay on their device.

        Args:
            inputs: Tensors by name; BYTES as object arrays of `bytes` (UTF-8) or `str`. What was
                computed on a GPU stream other than the current one must be finished.
            outputs: Names of the outputs wanted; None for all.
            device_outputs: Leave outputs on the GPU, as cupy arrays; None for what the constructor
                says. A model that takes BYTES or has a ZipMap gives host
                arrays all the same.

        Raises:
            InvalidInput: An element of a BYTES input is not UTF-8.
            BackendError: The model failed, or the session is closed.
        """
        names = self._output_names if outputs is None else list(outputs)
        on_device = self._device_outputs if device_outputs is None else device_outputs
        if self._plain and not on_device and inputs.__class__ is dict:
            for tensor in inputs.values():
                if tensor.__class__ is not np.ndarray or not tensor.dtype.isnative:
                    break
            else:
                if len(inputs) == self._count or self._required <= inputs.keys():
                    try:
                        return dict(zip(names, self._call(names, inputs, None), strict=True))
                    except Exception as error:
                        raise _failed(error) from error
        return self._run_any(inputs, names, on_device)

    def _run_any(
        self, inputs: Mapping[str, Tensor], names: list[str], on_device: bool
    ) -> dict[str, Tensor]:
        session = self._open_session()
        missing = self._required - inputs.keys()
        if missing:
            raise BackendError(f"inputs {', '.join(sorted(missing))} are missing")
        ready = {name: self._prepare(name, tensor) for name, tensor in inputs.items()}
        foreign = any(tensor.__class__ is not np.ndarray for tensor in ready.values())
        try:
            if self._bound or foreign or (on_device and not self._unbindable):
                wanted = {name: self._output_datatypes[name] for name in names}
                values = run_bound(session, ready, wanted, self._device, on_device)
            else:
                values = self._call(names, ready, None)
        except Exception as error:
            raise _failed(error) from error
        found = dict(zip(names, values, strict=True))
        for name in self._zipmaps.intersection(names):
            found[name] = _columns(found[name])
        return found

    def _prepare(self, name: str, tensor: Tensor) -> Tensor:
        if name in self._text:
            return _as_text(name, tensor)
        if isinstance(tensor, np.ndarray):
            if tensor.dtype.isnative:
                return tensor if tensor.__class__ is np.ndarray else np.asarray(tensor)
            # ONNX Runtime reads foreign byte order as if it were its own.
            return tensor.astype(tensor.dtype.newbyteorder("="))
        if hasattr(tensor, "__dlpack__"):
            return np.from_dlpack(tensor) if on_host(tensor) else tensor
        return np.asarray(tensor)

    def _open_session(self) -> Any:
        if self._session is None:
            raise BackendError("the session is closed")
        return self._session

    def warm_up(self, inputs: Mapping[str, Tensor] | None = None) -> float:
        """Run once, so that the first request does not pay for lazy set-up; return the seconds.

        Without inputs it runs on zeros (empty text) with every open size 1. A model that cannot
        take those is left as it is: `warm_up_skipped` then tells why, and 0.0 is returned.

        Args:
            inputs: What to run on.

        Raises:
            BackendError: The model failed on the inputs given.
        """
        self.warm_up_skipped = ""
        started = time.perf_counter()
        try:
            self.run(self._zeros() if inputs is None else inputs)
        except BackendError as error:
            if inputs is not None or self._session is None:
                raise
            self.warm_up_skipped = f"the model does not take zeros: {error.__cause__ or error}"
            return 0.0
        return time.perf_counter() - started

    warm_up_skipped: str = ""

    def _zeros(self) -> dict[str, Tensor]:
        zeros: dict[str, Tensor] = {}
        for spec in self.signature.inputs:
            if spec.optional:
                continue
            sizes = (1,) if spec.shape is None else spec.shape
            shape = tuple(1 if size < 0 else size for size in sizes)
            if spec.datatype == "BYTES":
                zeros[spec.name] = np.full(shape, "", np.object_)
            else:
                zeros[spec.name] = np.zeros(shape, numpy_dtype(spec.datatype))
        return zeros

    def close(self) -> None:
        """Release the model and its memory. Further calls fail; closing again does nothing.

        ONNX Runtime destroys a session with the GIL held: every Python thread stands still for up
        to 70 us a MB of weights.
        """
        self._session = None
        self._plain = False
        self._call = _closed
        if self._large:
            self._large = False
            return_free_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._session is None else ", ".join(self.providers)
        return f"<InferenceSession {self._label!r} ({state})>"


def _closed(*_: Any) -> Any:
    # Met only by a call that was about to start when the session was closed.
    raise RuntimeError("the session is closed")


def _failed(error: Exception) -> BackendError:
    return BackendError(f"the model failed: {_clean(error)}")


def _apply(options: Any, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if "." in key:
            options.add_session_config_entry(key, str(value))
        elif hasattr(type(options), key):
            setattr(options, key, value)
        else:
            raise ValueError(f"session_options: SessionOptions has no attribute {key!r}")


def _attach_external(
    options: Any, model: str | os.PathLike[str] | bytes, data: Mapping[str, bytes]
) -> None:
    if not isinstance(model, bytes):
        raise ValueError("external_data goes with a model given as bytes, not as a path")
    if not hasattr(options, "add_external_initializers_from_files_in_memory"):
        raise LoadError("external_data needs a newer ONNX Runtime: pip install -U onnxruntime")
    contents = list(data.values())
    options.add_external_initializers_from_files_in_memory(
        list(data), contents, [len(content) for content in contents]
    )


def _size(model: str | os.PathLike[str] | bytes, external_data: Mapping[str, bytes] | None) -> int:
    """Return the bytes a model may hold: an upper bound, as external data lies in its directory."""
    if isinstance(model, bytes):
        return len(model) + sum(map(len, (external_data or {}).values()))
    path = Path(model)
    if not path.is_file():
        raise LoadError(f"{path.name}: no such file") from FileNotFoundError(str(path))
    return sum(entry.stat().st_size for entry in os.scandir(path.parent) if entry.is_file())


def _open(
    runtime: Any,
    model: str | os.PathLike[str] | bytes,
    options: Any,
    wanted: Sequence[Provider] | None,
    strict: bool,
    label: str,
) -> Any:
    chosen, missing = resolve_providers(
        wanted, known=runtime.get_all_providers(), available=runtime.get_available_providers()
    )
    if any(name == "DmlExecutionProvider" for name, _ in chosen):
        options.enable_mem_pattern = False
    try:
        session = _create(runtime, model, options, chosen)
    except Exception as error:
        host = [pair for pair in chosen if short_name(pair[0]) in HOST_PROVIDERS]
        if host == chosen or strict:
            raise _unloadable(label, model, error) from error
        try:
            session = _create(runtime, model, options, host)
        except Exception as second:
            raise _unloadable(label, model, second) from second
    got = session.get_providers()
    missing += [name for name, _ in chosen if name not in got]
    if missing:
        _report_missing(label, missing, got, strict)
    return session


def _unloadable(label: str, model: str | os.PathLike[str] | bytes, error: Exception) -> LoadError:
    text = _clean(error)
    what = "the bytes given are" if isinstance(model, bytes) else f'"{label}" is'
    if text.startswith("Protobuf parsing failed"):
        return LoadError(f"{what} not an ONNX model, or not a whole one")
    if text.startswith("No graph was found"):
        return LoadError(f"{what} not an ONNX model: there is no graph in it")
    return LoadError(f"{label}: {text}")


def _create(
    runtime: Any,
    model: str | os.PathLike[str] | bytes,
    options: Any,
    providers: list[tuple[str, dict[str, str]]],
) -> Any:
    # The fall-back of onnxruntime's own prints to stdout.
    if not isinstance(model, bytes):
        return runtime.InferenceSession(
            os.fspath(model), options, providers=providers, enable_fallback=0
        )
    if model[4:8] == _ORT_FORMAT:
        return runtime.InferenceSession(model, options, providers=providers, enable_fallback=0)
    # Bytes would be copied with the GIL held, 0.1 to 0.5 s for 260 MB; and external data named in
    # them would be read from the working directory.
    with file_of(model) as path:
        return runtime.InferenceSession(path, options, providers=providers, enable_fallback=0)


def _report_missing(label: str, missing: list[str], got: list[str], strict: bool) -> None:
    text = (
        f"{label}: provider {', '.join(map(short_name, missing))} is not in the installed ONNX "
        f"Runtime or failed to start; running on {', '.join(map(short_name, got))}"
    )
    if strict:
        raise LoadError(text)
    warnings.warn(text, RuntimeWarning, stacklevel=4)


def _spec(arg: Any, side: str, scalars: frozenset[str], *, optional: bool = False) -> TensorSpec:
    if side == "output" and arg.type in _ZIPMAPS:
        return TensorSpec(arg.name, "FP32", (-1, -1))
    datatype = _DATATYPES.get(arg.type)
    if datatype is None:
        raise LoadError(f'{side} "{arg.name}" is a {arg.type}, which the protocol cannot carry')
    shape = tuple(n if isinstance(n, int) and n >= 0 else -1 for n in arg.shape)
    known = bool(shape) or arg.name in scalars
    return TensorSpec(arg.name, datatype, shape if known else None, optional)


def _as_text(name: str, tensor: Tensor) -> np.ndarray[Any, Any]:
    # ONNX Runtime takes `bytes` elements as the text of their repr, so they are decoded here.
    flat = np.asarray(tensor).ravel().tolist()
    try:
        for index, element in enumerate(flat):
            if isinstance(element, bytes):
                flat[index] = element.decode()
            elif isinstance(element, str):
                element.encode()
            else:
                raise InvalidInput(
                    f"expected bytes or str, got {type(element).__name__}",
                    path=f'inputs "{name}"[{index}]',
                )
    except UnicodeError as error:
        raise InvalidInput(
            "not UTF-8, which ONNX strings are", path=f'inputs "{name}"[{index}]'
        ) from error
    out = np.empty(len(flat), np.object_)
    out[:] = flat
    return out.reshape(np.shape(tensor))


def _columns(rows: list[dict[Any, float]]) -> np.ndarray[Any, Any]:
    """Turn ZipMap's rows into a matrix, one column a class, ascending."""
    if not rows:
        return np.empty((0, 0), np.float32)
    keys = sorted(rows[0])
    return np.array([[row[key] for key in keys] for row in rows], np.float32)


_LARGE: Final = 4 << 20
_ORT_FORMAT: Final = b"ORTM"
_UNSET_VERSION: Final = 2**63 - 1

_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_LOADING = re.compile(r"^Load model (?:from )?.*? failed[:.] ?")
_SOURCE = re.compile(r"\S*\.(?:cc|h):\d+ (?:.*?\)(?: \[with [^]]*\])? |\w+ )?")
_QUOTED_PATH = re.compile(r'"(?:[A-Za-z]:)?[/\\][^"]*[/\\]([^"/\\]*)"')
_FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[/\\](?:[^/\\\s\"':]+[/\\])*(?=[^/\\\s])")


def _clean(error: BaseException) -> str:
    """Return an ONNX Runtime error without its code, C++ source positions and folders."""
    text = " ".join(str(error).split())
    text = _SOURCE.sub("", _LOADING.sub("", _CODE.sub("", text)))
    return _FOLDERS.sub("", _QUOTED_PATH.sub(r'"\1"', text)) or type(error).__name__
