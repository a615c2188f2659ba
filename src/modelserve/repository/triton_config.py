"""Reads Triton's model configuration: what of it is used here, and the names of what is not.

Decides nothing: versions, batching and instances are the repository's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TypeVar, get_args

from modelserve.errors import InvalidInput, LoadError
from modelserve.repository.config_fields import Fields, JsonFields, TextFields
from modelserve.repository.onnx_files import relative_name
from modelserve.repository.text_proto import TextProto
from modelserve.repository.triton_json import read_document
from modelserve.tensors import Datatype, Signature, TensorSpec

__all__ = [
    "DynamicBatching",
    "InstanceGroup",
    "InstanceKind",
    "TritonConfig",
    "VersionPolicy",
    "Warmup",
    "WarmupData",
    "WarmupInput",
    "read_config",
    "read_json_config",
]

InstanceKind = Literal["AUTO", "GPU", "CPU", "MODEL"]
WarmupData = Literal["zero", "random", "file"]

_T = TypeVar("_T")

_TYPES: Final[tuple[tuple[str, Datatype], ...]] = (
    ("TYPE_BOOL", "BOOL"),
    ("TYPE_UINT8", "UINT8"),
    ("TYPE_UINT16", "UINT16"),
    ("TYPE_UINT32", "UINT32"),
    ("TYPE_UINT64", "UINT64"),
    ("TYPE_INT8", "INT8"),
    ("TYPE_INT16", "INT16"),
    ("TYPE_INT32", "INT32"),
    ("TYPE_INT64", "INT64"),
    ("TYPE_FP16", "FP16"),
    ("TYPE_FP32", "FP32"),
    ("TYPE_FP64", "FP64"),
    ("TYPE_STRING", "BYTES"),
    ("TYPE_BF16", "BF16"),
)
# An enum may be written as its number, too; TYPE_INVALID has number 0.
_DATATYPES: Final[dict[str | int, Datatype]] = {
    **dict(_TYPES),
    **{number: datatype for number, (_, datatype) in enumerate(_TYPES, 1)},
}
_KINDS: Final[dict[str | int, InstanceKind]] = {
    **{f"KIND_{kind}": kind for kind in get_args(InstanceKind)},
    **dict(enumerate(get_args(InstanceKind))),
}

_INT32: Final = 2**31 - 1
_UINT32: Final = 2**32 - 1
_INT64: Final = 2**63 - 1
_UINT64: Final = 2**64 - 1
_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which of a model's versions are served.

    Args:
        kind: ``"latest"``, ``"all"`` or ``"specific"``.
        latest: How many of the newest, for ``"latest"``.
        versions: Which ones, for ``"specific"``.

    Example:
        >>> VersionPolicy("latest", 2).choose(["1", "2", "10"])
        ('2', '10')
    """

    kind: Literal["latest", "all", "specific"] = "latest"
    latest: int = 1
    versions: tuple[str, ...] = ()

    def choose(self, versions: Sequence[str]) -> tuple[str, ...]:
        """Return those of the versions, given in ascending order, that are served."""
        if self.kind == "all":
            return tuple(versions)
        if self.kind == "latest":
            return tuple(versions)[-self.latest :]
        return tuple(version for version in versions if version in self.versions)


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """Instances of one kind.

    Args:
        count: How many, per device; 0 where the file leaves it open.
        kind: Where they run; ``"AUTO"`` where the file leaves it open.
    """

    count: int = 0
    kind: InstanceKind = "AUTO"


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """How requests are gathered to batches, where the file asks for it.

    Args:
        preferred_batch_size: Sizes at which not to wait any longer.
        max_queue_delay: Seconds a request may wait for others.
        max_queue_size: How many requests may wait; 0 for any number.
        default_timeout: Seconds after which a waiting request fails; None for never.
        priority_levels: How many levels there are; 0 for none.
        default_priority_level: The level of a request that names none.
    """

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay: float = 0.0
    max_queue_size: int = 0
    default_timeout: float | None = None
    priority_levels: int = 0
    default_priority_level: int = 0


@dataclass(frozen=True, slots=True)
class WarmupInput:
    """One input of a warm-up request.

    Args:
        name: The input's name.
        datatype: Its datatype.
        dims: Its shape, without the batch axis.
        data: Where the values come from.
        file: For ``"file"``: a relative name inside the model's `warmup` directory.
    """

    name: str
    datatype: Datatype
    dims: tuple[int, ...]
    data: WarmupData
    file: str = ""


@dataclass(frozen=True, slots=True)
class Warmup:
    """A request to run before a version is ready.

    Args:
        name: What it is called.
        batch_size: Rows; 0 where the model does not batch.
        inputs: Its inputs.
        count: How often to run it.
    """

    name: str
    batch_size: int = 0
    inputs: tuple[WarmupInput, ...] = ()
    count: int = 1


@dataclass(frozen=True, slots=True)
class TritonConfig:
    """What a `config.pbtxt` says of a model.

    Args:
        name: Name of the model, or empty.
        platform: E.g. ``"onnxruntime_onnx"``, or empty.
        backend: E.g. ``"onnxruntime"``, or empty.
        max_batch_size: Rows a batch may have; 0 where the model has no batch axis.
        inputs: Inputs as the file has them, so without a batch axis where the model batches; the
            shape is None where the file leaves out `dims`.
        outputs: The outputs, likewise.
        version_policy: Which versions are served.
        instance_groups: Instances, as asked for; empty where the file leaves it open.
        dynamic_batching: How to batch; None where the file does not ask for it.
        warmup: Requests to run at load.
        label_files: Files with the names of classes, by output; relative to the model's directory.
        document: All that the file says, as Triton writes it in JSON.
        ignored: Dotted names of the fields that were not read, each once.

    Example:
        >>> text = 'max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: 4 }'
        >>> config = read_config(text)
        >>> config.inputs[0].shape, config.signature.inputs[0].shape
        ((4,), (-1, 4))
    """

    name: str = ""
    platform: str = ""
    backend: str = ""
    max_batch_size: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    version_policy: VersionPolicy = field(default_factory=VersionPolicy)
    instance_groups: tuple[InstanceGroup, ...] = ()
    dynamic_batching: DynamicBatching | None = None
    warmup: tuple[Warmup, ...] = ()
    label_files: Mapping[str, str] = field(default_factory=dict)
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    ignored: tuple[str, ...] = ()

    @property
    def signature(self) -> Signature:
        """Inputs and outputs as requests have them: with the batch on axis 0 where there is one."""
        return Signature(map(self._batched, self.inputs), map(self._batched, self.outputs))

    def _batched(self, spec: TensorSpec) -> TensorSpec:
        if not self.max_batch_size or spec.shape is None:
            return spec
        return TensorSpec(spec.name, spec.datatype, (-1, *spec.shape), spec.optional)


def read_config(source: str | os.PathLike[str]) -> TritonConfig:
    """Read a model configuration.

    Args:
        source: A `Path` of a file, or the text itself as `str`.

    Raises:
        LoadError: The file cannot be read, is not in protobuf's text format, or a field that is
            used holds what it must not; with line, column and what was expected.
    """
    if isinstance(source, str):
        text, name = source, "config.pbtxt"
    else:
        path = Path(source)
        name = path.name
        try:
            text = path.read_text("utf-8-sig")
        except OSError as error:
            raise LoadError(f"{name}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise LoadError(f"{name}: not UTF-8 at byte {error.start}") from error
    proto = TextProto(text, name)
    message = proto.read()
    config = _config(TextFields(proto, message, "", {}))
    return replace(config, document=read_document(TextFields(proto, message, "", {})))


def read_json_config(source: str | Mapping[str, Any]) -> TritonConfig:
    """Read a model configuration in protobuf's JSON form, as a request to load a model brings it.

    Args:
        source: The JSON text, or the object it stands for.

    Raises:
        InvalidInput: It is not a JSON object, or a field that is used holds what it must not; with
            the field's place (``config.input[0].dims[1]``) and what was expected.

    Example:
        >>> read_json_config('{"maxBatchSize": 8, "parameters": {}}').ignored
        ('parameters',)
    """
    document: Any = source
    if isinstance(source, str):
        try:
            document = json.loads(source, parse_constant=_refuse_constant)
            if "\\u" in source:  # half a surrogate pair passes the parser, and no error's text
                json.dumps(document, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise InvalidInput(f"not valid JSON: {why}", path="config") from None
    if not isinstance(document, Mapping):
        raise InvalidInput(f"expected a JSON object, got {type(document).__name__}", path="config")
    config = _config(JsonFields(document, "config", "", {}))
    return replace(config, document=read_document(JsonFields(document, "config", "", {})))


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON value")


def _config(fields: Fields) -> TritonConfig:
    label_files: dict[str, str] = {}
    config: dict[str, Any] = {
        "name": fields.text("name"),
        "platform": fields.text("platform"),
        "backend": fields.text("backend"),
    }
    max_batch_size = fields.integer("max_batch_size", 0, _INT32)
    inputs = _tensors(fields, "input", {})
    outputs = _tensors(fields, "output", label_files)
    policy = _optional(fields, "version_policy", _version_policy)
    groups = _each(fields, "instance_group", _instance_group)
    batching = _optional(fields, "dynamic_batching", _dynamic_batching)
    warmup = _each(fields, "model_warmup", _warmup)
    fields.close()
    return TritonConfig(
        **config,
        max_batch_size=max_batch_size,
        inputs=inputs,
        outputs=outputs,
        version_policy=policy or VersionPolicy(),
        instance_groups=groups,
        dynamic_batching=batching,
        warmup=warmup,
        label_files=label_files,
        ignored=fields.names_ignored(),
    )


def _each(fields: Fields, name: str, read: Callable[[Fields], _T]) -> tuple[_T, ...]:
    found: list[_T] = []
    for item in fields.messages(name):
        found.append(read(item))
        item.close()
    return tuple(found)


def _optional(fields: Fields, name: str, read: Callable[[Fields], _T]) -> _T | None:
    item = fields.message(name)
    if item is None:
        return None
    found = read(item)
    item.close()
    return found


def _tensors(fields: Fields, side: str, label_files: dict[str, str]) -> tuple[TensorSpec, ...]:
    names: set[str] = set()

    def read(item: Fields) -> TensorSpec:
        spec = _tensor(item, side)
        file = item.text("label_filename") if side == "output" else ""
        if file:
            relative = relative_name(file)
            if relative is None:
                raise item.error("label_filename", item.at, "expected a relative file name")
            label_files[spec.name] = relative
        if spec.name in names:
            raise item.error("name", item.at, f'two tensors are named "{spec.name}"')
        names.add(spec.name)
        return spec

    return _each(fields, side, read)


def _tensor(item: Fields, side: str) -> TensorSpec:
    return TensorSpec(
        _required_name(item, "name"),
        _datatype(item),
        item.integers("dims", -1, _INT64),
        item.boolean("optional") if side == "input" else False,
    )


def _required_name(item: Fields, field_name: str) -> str:
    name = item.text(field_name)
    if not name:
        raise item.error(field_name, item.at, "expected a name, got none")
    return name


def _datatype(item: Fields) -> Datatype:
    datatype = item.choice("data_type", _DATATYPES)
    if datatype is None:
        raise item.error("data_type", item.at, "expected a type such as TYPE_FP32, got none")
    return datatype


def _version_policy(item: Fields) -> VersionPolicy:
    given = [name for name in ("latest", "all", "specific") if item.has(name)]
    if len(given) > 1:
        raise item.error("", item.at, f"expected one policy, got {' and '.join(given)}")
    latest = _optional(item, "latest", lambda f: f.integer("num_versions", 1, _UINT32, 1))
    if latest is not None:
        return VersionPolicy("latest", latest)
    specific = _optional(item, "specific", lambda f: f.integers("versions", 0, _INT64) or ())
    if specific is not None:
        return VersionPolicy("specific", versions=tuple(map(str, specific)))
    everything = _optional(item, "all", lambda f: True)
    return VersionPolicy("all") if everything else VersionPolicy()


def _instance_group(item: Fields) -> InstanceGroup:
    return InstanceGroup(item.integer("count", 0, _INT32), item.choice("kind", _KINDS) or "AUTO")


def _dynamic_batching(item: Fields) -> DynamicBatching:
    sizes = item.integers("preferred_batch_size", 1, _INT32) or ()
    delay = item.integer("max_queue_delay_microseconds", 0, _UINT64)
    levels = item.integer("priority_levels", 0, _UINT64)
    level = item.integer("default_priority_level", 0, _UINT64)
    size, timeout = _optional(item, "default_queue_policy", _queue_policy) or (0, 0)
    return DynamicBatching(
        preferred_batch_size=sizes,
        max_queue_delay=delay / _MICROSECONDS,
        max_queue_size=size,
        default_timeout=timeout / _MICROSECONDS or None,
        priority_levels=levels,
        default_priority_level=level,
    )


def _queue_policy(item: Fields) -> tuple[int, int]:
    return (
        item.integer("max_queue_size", 0, _UINT32),
        item.integer("default_timeout_microseconds", 0, _UINT64),
    )


def _warmup(item: Fields) -> Warmup:
    inputs: list[WarmupInput] = []
    for name, fields in item.entries("inputs"):
        inputs.append(_warmup_input(fields, name))
        fields.close()
    return Warmup(
        name=item.text("name"),
        batch_size=item.integer("batch_size", 0, _UINT32),
        inputs=tuple(inputs),
        count=item.integer("count", 0, _UINT32) or 1,
    )


def _warmup_input(item: Fields, name: str) -> WarmupInput:
    datatype = _datatype(item)
    dims = item.integers("dims", 0, _INT64) or ()
    sources = {"zero_data": "zero", "random_data": "random", "input_data_file": "file"}
    given = [key for key in sources if item.has(key)]
    if len(given) != 1:
        raise item.error(
            "",
            item.at,
            f"expected one of {', '.join(sources)}, got {' and '.join(given) or 'none'}",
        )
    if given[0] == "input_data_file":
        file = relative_name(item.text("input_data_file"))
        if file is None:
            raise item.error("input_data_file", item.at, "expected a relative file name")
        return WarmupInput(name, datatype, dims, "file", file)
    item.boolean(given[0])
    return WarmupInput(name, datatype, dims, "zero" if given[0] == "zero_data" else "random")
