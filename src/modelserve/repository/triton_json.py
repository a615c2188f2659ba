"""Model configurations as Triton writes them in JSON: every member, those left out as well.

That is the JSON form of the message `ModelConfig` of Triton's `model_config.proto`, in its order,
with 64-bit numbers as numbers. Here is what of it is known; what of it holds for a version is
`repository.model_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from modelserve.repository.config_fields import Fields

__all__ = ["completed", "read_document"]

# A kind is a scalar's, the name of an enumeration or of another message; after "*" comes what
# stands in a list, after "%" what stands in a map by name. "?" is before what is there or not,
# as messages always are: it has no default.
_MESSAGES: Final[Mapping[str, Mapping[str, str]]] = {
    "ModelConfig": {
        "name": "string",
        "platform": "string",
        "backend": "string",
        "runtime": "string",
        "version_policy": "?VersionPolicy",
        "max_batch_size": "int",
        "input": "*Input",
        "output": "*Output",
        "batch_input": "*Nothing",
        "batch_output": "*Nothing",
        "optimization": "?Optimization",
        "dynamic_batching": "?DynamicBatching",
        "instance_group": "*InstanceGroup",
        "default_model_filename": "string",
        "cc_model_filenames": "%string",
        "metric_tags": "%string",
        "parameters": "%Parameter",
        "model_warmup": "*Warmup",
        "model_transaction_policy": "?TransactionPolicy",
    },
    "Nothing": {},
    "VersionPolicy": {"latest": "?Latest", "all": "?Nothing", "specific": "?Specific"},
    "Latest": {"num_versions": "int"},
    "Specific": {"versions": "*int"},
    "Input": {
        "name": "string",
        "data_type": "DataType",
        "format": "Format",
        "dims": "*int",
        "reshape": "?Reshape",
        "is_shape_tensor": "bool",
        "allow_ragged_batch": "bool",
        "optional": "bool",
        "is_non_linear_format_io": "bool",
    },
    "Output": {
        "name": "string",
        "data_type": "DataType",
        "dims": "*int",
        "reshape": "?Reshape",
        "label_filename": "string",
        "is_shape_tensor": "bool",
        "is_non_linear_format_io": "bool",
    },
    "Reshape": {"shape": "*int"},
    "Optimization": {
        "graph": "?Graph",
        "priority": "Priority",
        "cuda": "?Cuda",
        "execution_accelerators": "?Accelerators",
        "input_pinned_memory": "?PinnedMemory",
        "output_pinned_memory": "?PinnedMemory",
        "gather_kernel_buffer_threshold": "int",
        "eager_batching": "bool",
    },
    "Graph": {"level": "int"},
    "Cuda": {
        "graphs": "bool",
        "busy_wait_events": "bool",
        "graph_spec": "*GraphSpec",
        "output_copy_stream": "bool",
    },
    "GraphSpec": {
        "batch_size": "int",
        "input": "%GraphShape",
        "graph_lower_bound": "?GraphBound",
    },
    "GraphShape": {"dim": "*int"},
    "GraphBound": {"batch_size": "int", "input": "%GraphShape"},
    "Accelerators": {
        "gpu_execution_accelerator": "*Accelerator",
        "cpu_execution_accelerator": "*Accelerator",
    },
    "Accelerator": {"name": "string", "parameters": "%string"},
    "PinnedMemory": {"enable": "bool"},
    "DynamicBatching": {
        "preferred_batch_size": "*int",
        "max_queue_delay_microseconds": "int",
        "preserve_ordering": "bool",
        "priority_levels": "int",
        "default_priority_level": "int",
        "default_queue_policy": "?QueuePolicy",
        # By number, of a priority: none is told apart here.
        "priority_queue_policy": "%Nothing",
    },
    "QueuePolicy": {
        "timeout_action": "TimeoutAction",
        "default_timeout_microseconds": "int",
        "allow_timeout_override": "bool",
        "max_queue_size": "int",
    },
    "InstanceGroup": {
        "name": "string",
        "kind": "InstanceKind",
        "count": "int",
        "rate_limiter": "?RateLimiter",
        "gpus": "*int",
        "secondary_devices": "*SecondaryDevice",
        "profile": "*string",
        "passive": "bool",
        "host_policy": "string",
    },
    "RateLimiter": {"resources": "*Resource", "priority": "int"},
    "Resource": {"name": "string", "global": "bool", "count": "int"},
    "SecondaryDevice": {"kind": "SecondaryKind", "device_id": "int"},
    "Parameter": {"string_value": "string"},
    "Warmup": {
        "name": "string",
        "batch_size": "int",
        "inputs": "%WarmupInput",
        "count": "int",
    },
    "WarmupInput": {
        "data_type": "DataType",
        "dims": "*int",
        "zero_data": "?bool",
        "random_data": "?bool",
        "input_data_file": "?string",
    },
    "TransactionPolicy": {"decoupled": "bool"},
}
_ENUMS: Final[Mapping[str, tuple[str, ...]]] = {
    "DataType": tuple(
        f"TYPE_{name}"
        for name in (
            *("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32"),
            *("INT64", "FP16", "FP32", "FP64", "STRING", "BF16"),
        )
    ),
    "Format": ("FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW"),
    "Priority": ("PRIORITY_DEFAULT", "PRIORITY_MAX", "PRIORITY_MIN"),
    "TimeoutAction": ("REJECT", "DELAY"),
    "InstanceKind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
    "SecondaryKind": ("KIND_NVDLA",),
}
_SCALARS: Final[Mapping[str, Any]] = {"string": "", "int": 0, "bool": False}
_MOST: Final = 2**64 - 1


def completed(found: Mapping[str, Any], kind: str = "ModelConfig") -> dict[str, Any]:
    """Return a message's members in order, with the defaults of those that are left out.

    Args:
        found: Its members; messages among them are complete.
        kind: What message it is.
    """
    document: dict[str, Any] = {}
    for name, member in _MESSAGES[kind].items():
        if name in found:
            document[name] = found[name]
        elif member[0] == "*":
            document[name] = []
        elif member[0] == "%":
            document[name] = {}
        elif member[0] != "?":
            document[name] = _SCALARS[member] if member in _SCALARS else _ENUMS[member][0]
    return document


def read_document(fields: Fields, kind: str = "ModelConfig") -> dict[str, Any]:
    """Return what a configuration says, completed; members not known here are left out.

    Args:
        fields: The fields of a message.
        kind: What message it is.

    Raises:
        ServeError: A member holds what it must not; with its place and what was expected.
    """
    known = _MESSAGES[kind]
    return completed(
        {name: _read(fields, name, known[name]) for name in known if fields.has(name)}, kind
    )


def _read(fields: Fields, name: str, member: str) -> Any:
    if member[0] == "%":
        return _read_map(fields, name, member[1:])
    if member[0] == "*":
        return _read_list(fields, name, member[1:])
    kind = member.removeprefix("?")
    if kind in _ENUMS:
        names = _ENUMS[kind]
        choices: dict[str | int, str] = {**{one: one for one in names}, **dict(enumerate(names))}
        return fields.choice(name, choices) or names[0]
    if kind in _MESSAGES:
        found = fields.message(name)
        return completed({}, kind) if found is None else read_document(found, kind)
    if kind == "int":
        return fields.integer(name, -_MOST, _MOST)
    return fields.boolean(name) if kind == "bool" else fields.text(name)


def _read_list(fields: Fields, name: str, kind: str) -> list[Any]:
    if kind == "int":
        return list(fields.integers(name, -_MOST, _MOST) or ())
    if kind == "string":
        return list(fields.texts(name))
    return [read_document(found, kind) for found in fields.messages(name)]


def _read_map(fields: Fields, name: str, kind: str) -> dict[str, Any]:
    if kind == "Nothing":
        return {}
    if kind == "string":
        return dict(fields.pairs(name))
    return {key: read_document(found, kind) for key, found in fields.entries(name)}
