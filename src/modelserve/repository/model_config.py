"""The configuration of a loaded version, as Triton would tell it.

What its `config.pbtxt` says comes first; what that leaves open is as the version is run. What it
asks for and is not done here (reshaping, sequences, caches) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from modelserve.backends.providers import HOST_PROVIDERS
from modelserve.protocols import ModelConfig
from modelserve.repository.triton_json import completed
from modelserve.tensors import Signature, TensorSpec

if TYPE_CHECKING:
    from modelserve.repository.models import VersionPolicy
    from modelserve.repository.versions import ModelVersion

__all__ = ["model_config", "signature_config"]

_MICROSECONDS: Final = 1e6
_ONNX: Final = ("onnxruntime_onnx", "onnxruntime")
_NOTHING: Final[Mapping[str, Any]] = {}


def model_config(version: ModelVersion, keep: VersionPolicy) -> ModelConfig:
    """Return the configuration of a loaded version.

    Args:
        version: The version.
        keep: Which versions of the model are loaded.
    """
    said = version.options.config
    batcher = version.batcher
    config = signature_config(
        version.model,
        version.signature,
        platform=version.platform,
        max_batch_size=batcher.max_batch_size,
        said=said,
    )
    if version.filename:
        config["default_model_filename"] = version.filename
    config["version_policy"] = _version_policy(keep)
    if batcher.max_batch_size > 1 or "dynamic_batching" in said:
        config["dynamic_batching"] = _dynamic_batching(version, said.get("dynamic_batching"))
    config["instance_group"] = _instance_groups(version, said.get("instance_group", ()))
    if batcher.traits.streams:
        config["model_transaction_policy"] = {"decoupled": True}
    return completed(config)


def signature_config(
    model: str,
    signature: Signature,
    *,
    platform: str,
    max_batch_size: int = 0,
    said: Mapping[str, Any] = _NOTHING,
) -> dict[str, Any]:
    """Return the configuration that a signature tells.

    Args:
        model: Name of the model.
        signature: What it takes and gives.
        platform: What runs it.
        max_batch_size: Most rows of a batch; 0 where it does not batch.
        said: What a configuration file says.
    """
    batched = max_batch_size > 0
    onnx = platform == _ONNX[0]
    kept = {"cc_model_filenames", "metric_tags", "parameters", "model_warmup"}
    pinned = {"input_pinned_memory": {"enable": True}, "output_pinned_memory": {"enable": True}}
    return completed(
        {
            **{name: value for name, value in said.items() if name in kept},
            "name": model,
            "platform": platform if onnx else "",
            "backend": _ONNX[1] if onnx else platform,
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": max_batch_size,
            "input": _tensors(signature.inputs, said.get("input", ()), "Input", batched),
            "output": _tensors(signature.outputs, said.get("output", ()), "Output", batched),
            "optimization": completed({**pinned, **said.get("optimization", {})}, "Optimization"),
        }
    )


def _tensors(
    specs: Sequence[TensorSpec], said: Sequence[Mapping[str, Any]], kind: str, batched: bool
) -> list[dict[str, Any]]:
    """Return the tensors of one side: those of the file in its order, then the others."""
    known = {spec.name: spec for spec in specs}
    found: list[dict[str, Any]] = []
    for document in said:
        spec = known.pop(document["name"], None)
        tensor = dict(document)
        if spec is not None and (tensor.pop("reshape", None) is not None or not tensor["dims"]):
            tensor["dims"] = _dims(spec, batched)
        found.append(tensor)
    for spec in known.values():
        datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
        members: dict[str, Any] = {
            "name": spec.name,
            "data_type": f"TYPE_{datatype}",
            "dims": _dims(spec, batched),
        }
        if spec.optional:
            members["optional"] = True
        found.append(completed(members, kind))
    return found


def _dims(spec: TensorSpec, batched: bool) -> list[int]:
    # Triton has no word for an open number of axes: one that may have any size is the nearest.
    if spec.shape is None:
        return [-1]
    return list(spec.shape[1:] if batched else spec.shape)


def _version_policy(keep: VersionPolicy) -> dict[str, Any]:
    if isinstance(keep, int):
        return {"latest": {"num_versions": keep}}
    if isinstance(keep, str):
        return {"all": {}}
    return {"specific": {"versions": [int(version) for version in keep]}}


def _dynamic_batching(version: ModelVersion, said: Mapping[str, Any] | None) -> dict[str, Any]:
    delay, most = version.options.max_queue_delay, version.options.max_queue_size
    document = dict(said or completed({}, "DynamicBatching"))
    document["max_queue_delay_microseconds"] = round(delay * _MICROSECONDS)
    # As Triton does: where no sizes are preferred, it is the largest.
    rows = version.batcher.max_batch_size
    document["preferred_batch_size"] = document["preferred_batch_size"] or ([rows] if rows else [])
    policy = document.get("default_queue_policy") or completed({}, "QueuePolicy")
    document["default_queue_policy"] = {**policy, "max_queue_size": most}
    return completed(document, "DynamicBatching")


def _instance_groups(
    version: ModelVersion, said: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    providers: Sequence[str] = getattr(version.batcher.backends[0], "providers", ())
    gpu = bool(providers) and providers[0] not in HOST_PROVIDERS
    kind = "KIND_GPU" if gpu else "KIND_CPU"
    if not said:
        count = version.options.instances
        return [
            completed(
                {
                    "name": f"{version.model}_0",
                    "kind": kind,
                    "count": count,
                    "gpus": [0] if gpu else [],
                },
                "InstanceGroup",
            )
        ]
    groups = []
    for number, document in enumerate(said):
        group = {**document, "count": document["count"] or 1}
        group["name"] = group["name"] or f"{version.model}_{number}"
        if group["kind"] == "KIND_AUTO":
            group["kind"] = kind
        groups.append(group)
    return groups
