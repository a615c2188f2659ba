"""Open Inference Protocol v2 over REST: health, metadata, repository index.

Bodies only, as JSON. Inference messages are in `modelserve.codecs.oip`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelserve.errors import InvalidInput
from modelserve.protocols import VersionInfo
from modelserve.tensors import Signature, TensorSpec

from ._json import Buffer, dumps, loads
from ._tensors import short

__all__ = [
    "decode_index",
    "decode_index_request",
    "decode_metadata",
    "decode_ready",
    "describe_model",
    "encode_index",
    "encode_index_request",
    "encode_live",
    "encode_metadata",
    "encode_models",
    "encode_ready",
    "encode_server",
]


def _document(body: Buffer) -> dict[str, Any]:
    try:
        document = loads(bytes(body))
    except ValueError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None
    if type(document) is not dict:
        raise InvalidInput(f"expected a JSON object, got {short(document)}")
    return document


def encode_live() -> bytes:
    """Return the body that says the server is alive."""
    return dumps({"live": True})


def encode_ready(ready: bool, *, model: str = "") -> bytes:
    """Return the body that says whether the server, or one model, is ready."""
    return dumps({"name": model, "ready": ready} if model else {"ready": ready})


def decode_ready(body: Buffer) -> bool:
    """Return what a readiness body says; False for anything that says nothing.

    An empty body, as some servers send with status 200, says yes.
    """
    if not body:
        return True
    try:
        return _document(body).get("ready") is True
    except InvalidInput:
        return False


def encode_server(name: str, version: str, extensions: Iterable[str]) -> bytes:
    """Return the body of the server's own metadata."""
    return dumps({"name": name, "version": version, "extensions": list(extensions)})


def _specs(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    documents = []
    for spec in specs:
        document: dict[str, Any] = {
            "name": spec.name,
            "datatype": spec.datatype,
            # The protocol has no word for an open number of axes; null keeps clients from
            # taking one for granted.
            "shape": spec.shape,
        }
        if spec.optional:
            document["optional"] = True
        documents.append(document)
    return documents


def encode_metadata(info: VersionInfo) -> bytes:
    """Return the body of a model's metadata; see `describe_model`."""
    return dumps(describe_model(info))


def describe_model(info: VersionInfo) -> dict[str, Any]:
    """Return a model's metadata as a JSON value.

    What the protocol has no member for stands in `parameters`: `max_batch_size`, `batching`,
    `labels` (separated by commas), and `streams` where it answers with a stream.
    """
    signature = info.signature
    document: dict[str, Any] = {
        "name": info.model,
        "versions": list(info.versions or ((info.version,) if info.version else ())),
        "platform": info.platform,
        "inputs": _specs(signature.inputs) if signature else [],
        "outputs": _specs(signature.outputs) if signature else [],
    }
    parameters: dict[str, Any] = {"max_batch_size": info.max_batch_size, "version": info.version}
    if info.batching:
        parameters["batching"] = info.batching
    if info.labels:
        parameters["labels"] = ",".join(info.labels)
    if info.streams:
        parameters["streams"] = True
    document["parameters"] = parameters
    return document


def _spec(document: Any, place: str) -> TensorSpec:
    if type(document) is not dict:
        raise InvalidInput(f"expected an object, got {short(document)}", path=place)
    shape = document.get("shape")
    if shape is not None and (
        type(shape) is not list or any(type(size) is not int for size in shape)
    ):
        raise InvalidInput(f"expected a list of sizes, got {short(shape)}", path=f"{place}.shape")
    try:
        return TensorSpec(
            document.get("name", ""),
            document.get("datatype", ""),
            None if shape is None else tuple(shape),
            optional=document.get("optional") is True,
        )
    except ValueError as error:
        raise InvalidInput(str(error), path=place) from None


def _list(document: Mapping[str, Any], member: str) -> list[Any]:
    value = document.get(member, [])
    if type(value) is not list:
        raise InvalidInput(f"expected a list, got {short(value)}", path=member)
    return value


def decode_metadata(body: Buffer) -> VersionInfo:
    """Return a model's description from a metadata body, ours or another server's.

    Raises:
        InvalidInput: The body is not a model's metadata.
    """
    document = _document(body)
    versions = tuple(str(version) for version in _list(document, "versions"))
    parameters = document.get("parameters")
    if type(parameters) is not dict:
        parameters = {}
    rows = parameters.get("max_batch_size", 0)
    labels = str(parameters.get("labels", ""))
    specs = {
        side: [_spec(spec, f"{side}[{i}]") for i, spec in enumerate(_list(document, side))]
        for side in ("inputs", "outputs")
    }
    try:
        signature = Signature(specs["inputs"], specs["outputs"])
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    return VersionInfo(
        model=str(document.get("name", "")),
        version=str(parameters.get("version", versions[-1] if versions else "")),
        state="READY",
        signature=signature,
        platform=str(document.get("platform", "")),
        max_batch_size=rows if type(rows) is int else 0,
        batching=str(parameters.get("batching", "")),
        labels=tuple(labels.split(",")) if labels else (),
        versions=versions,
        streams=parameters.get("streams") is True,
    )


def encode_models(names: Iterable[str]) -> bytes:
    """Return the body of the list of models, as KServe's servers have it."""
    return dumps({"models": list(names)})


def encode_index(infos: Iterable[VersionInfo]) -> bytes:
    """Return the body of the repository index."""
    return dumps(
        [
            {"name": i.model, "version": i.version, "state": i.state, "reason": i.reason}
            for i in infos
        ]
    )


def decode_index(body: Buffer) -> list[VersionInfo]:
    """Return the entries of a repository index.

    Raises:
        InvalidInput: The body is not an index.
    """
    try:
        documents = loads(bytes(body))
    except ValueError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None
    if type(documents) is not list:
        raise InvalidInput(f"expected a list, got {short(documents)}")
    infos = []
    for index, document in enumerate(documents):
        if type(document) is not dict:
            raise InvalidInput(f"expected an object, got {short(document)}", path=f"[{index}]")
        # Triton leaves the state out for models it never tried to load.
        state = document.get("state", "UNAVAILABLE")
        if state not in ("LOADING", "READY", "UNLOADING", "UNAVAILABLE"):
            raise InvalidInput(f"unknown state {short(state)}", path=f"[{index}].state")
        infos.append(
            VersionInfo(
                model=str(document.get("name", "")),
                version=str(document.get("version", "")),
                state=state,
                reason=str(document.get("reason", "")),
            )
        )
    return infos


def encode_index_request(*, ready: bool = False) -> bytes:
    """Return the body that asks for the index, of ready versions only if so wished."""
    return dumps({"ready": ready})


def decode_index_request(body: Buffer) -> bool:
    """Tell whether a request for the index wants ready versions only; an empty body does not.

    Raises:
        InvalidInput: The body is not such a request.
    """
    if not body:
        return False
    ready = _document(body).get("ready", False)
    if type(ready) is not bool:
        raise InvalidInput(f"expected true or false, got {short(ready)}", path="ready")
    return ready
