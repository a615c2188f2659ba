"""TensorFlow Serving's REST interface, version 1: predict, model status and metadata.

Bodies only. NaN, Infinity and -Infinity are read and written as these bare tokens, as TensorFlow
Serving has it, though they are no JSON: for finite numbers every body is JSON. Requests to classify
and regress are in `modelserve.codecs.tfserving_examples`.

What a model takes is needed to read a request: the protocol's bodies name no datatypes. A model has
one signature here, under the name of TensorFlow's default one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from modelserve.errors import InvalidInput
from modelserve.protocols import State, VersionInfo
from modelserve.tensors import Datatype, Signature, Tensor, TensorSpec

from ._json import Buffer, dumps, dumps_with_tokens, loads_with_tokens
from ._nested import Place, from_nested, is_binary, rows_of, to_array, to_nested
from ._tensors import short

__all__ = [
    "DEFAULT_SIGNATURE",
    "FLOATS",
    "check_signature_name",
    "decode_predict",
    "encode_metadata",
    "encode_predict",
    "encode_status",
    "nest_outputs",
    "read_document",
    "write_document",
]

DEFAULT_SIGNATURE: Final = "serving_default"
"""The one name a signature has here."""

FLOATS: Final = ("FP16", "FP32", "FP64", "BF16")

_BINARY: Final = "_bytes"
"""How the name of an output ends whose strings are written as base64."""

_STATES: Final[Mapping[State, str]] = {
    "LOADING": "LOADING",
    "READY": "AVAILABLE",
    "UNLOADING": "UNLOADING",
    "UNAVAILABLE": "END",
}
# Reasons that are no failures: somebody wanted it so.
_INTENDED: Final = ("", "unloaded", "not loaded")

_DTYPES: Final[Mapping[Datatype, str]] = {
    "BOOL": "DT_BOOL",
    "UINT8": "DT_UINT8",
    "UINT16": "DT_UINT16",
    "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64",
    "INT8": "DT_INT8",
    "INT16": "DT_INT16",
    "INT32": "DT_INT32",
    "INT64": "DT_INT64",
    "FP16": "DT_HALF",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    "BF16": "DT_BFLOAT16",
    "BYTES": "DT_STRING",
}


def read_document(body: Buffer) -> dict[str, Any]:
    """Return the JSON object in a body; the tokens of numbers that are no JSON are taken.

    Raises:
        InvalidInput: There is none.
    """
    try:
        document = loads_with_tokens(bytes(body))
    except ValueError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None
    if type(document) is not dict:
        raise InvalidInput(f"expected a JSON object, got {short(document)}")
    return document


def check_signature_name(document: Mapping[str, Any], *, known: bool) -> None:
    """Check which signature a request names.

    Args:
        document: The request.
        known: Whether it has to be the one there is.

    Raises:
        InvalidInput: It is no name, or not that one.
    """
    name = document.get("signature_name")
    if name is None:
        return
    if type(name) is not str:
        raise InvalidInput(f"expected a string, got {short(name)}", path="signature_name")
    if known and name not in ("", DEFAULT_SIGNATURE):
        raise InvalidInput(
            f'"{name[:80]}" is not found; a model has one signature here, "{DEFAULT_SIGNATURE}"',
            path="signature_name",
        )


def decode_predict(
    document: Mapping[str, Any], signature: Signature
) -> tuple[dict[str, Tensor], bool]:
    """Return the inputs of a request to predict, and whether it has the row form.

    In the row form `instances` lists one value, list or object of inputs a row; in the column form
    `inputs` has each input whole. Where a model takes one input its name may be left out. Tensors
    are read-only; shapes are those that the lists have.

    Args:
        document: The request, as `read_document` returns it.
        signature: What the model takes.

    Raises:
        InvalidInput: The request is malformed, or does not fit the signature; the text says where.

    Example:
        >>> signature = Signature([TensorSpec("x", "FP32", (-1,))])
        >>> decode_predict({"instances": [1.0, 2.0]}, signature)
        ({'x': array([1., 2.], dtype=float32)}, True)
    """
    check_signature_name(document, known=True)
    rows, columns = "instances" in document, "inputs" in document
    if rows is columns:
        raise InvalidInput(
            f'expected either "instances" or "inputs", got {"both" if rows else "neither"}'
        )
    if not signature.inputs and document.get("inputs") != {}:
        raise InvalidInput(
            "the model does not say what it takes, and the body has no datatypes; use the Open "
            "Inference Protocol"
        )
    if rows:
        return _from_rows(document["instances"], signature.inputs), True
    return _from_columns(document["inputs"], signature.inputs), False


def _from_rows(instances: Any, specs: Sequence[TensorSpec]) -> dict[str, Tensor]:
    if type(instances) is not list:
        raise InvalidInput(f"expected a list, got {short(instances)}", path="instances")
    if not instances:
        raise InvalidInput("expected at least one instance, got none", path="instances")
    if not _are_objects(instances):
        spec = _only(specs, "instances[0]")
        return {spec.name: from_nested(instances, spec, Place("instances", rows=True))}
    keys = instances[0].keys()
    for index, instance in enumerate(instances):
        # Compared with the first one, which alone is held against the signature.
        if not index:
            _check_names(instance, specs, "instances[0]")
        elif instance.keys() != keys:
            raise _other_names(instance, keys, specs, f"instances[{index}]")
    return {
        spec.name: from_nested(
            [instance[spec.name] for instance in instances],
            spec,
            Place("instances", f".{spec.name}", rows=True),
        )
        for spec in specs
        if spec.name in keys
    }


def _are_objects(instances: list[Any]) -> bool:
    """Tell whether instances are objects of inputs, and not each the only input."""
    if dict not in set(map(type, instances)):
        return False
    named = type(instances[0]) is dict and not is_binary(instances[0])
    for index, instance in enumerate(instances):
        if (type(instance) is dict and not is_binary(instance)) is not named:
            raise InvalidInput(
                f"expected {'an object' if named else 'a value or a list'}, as instances[0]; "
                f"got {short(instance)}",
                path=f"instances[{index}]",
            )
    return named


def _from_columns(inputs: Any, specs: Sequence[TensorSpec]) -> dict[str, Tensor]:
    if type(inputs) is not dict or is_binary(inputs):
        spec = _only(specs, "inputs")
        return {spec.name: from_nested(inputs, spec, Place("inputs"))}
    _check_names(inputs, specs, "inputs")
    return {
        spec.name: from_nested(inputs[spec.name], spec, Place(f"inputs.{spec.name}"))
        for spec in specs
        if spec.name in inputs
    }


def _only(specs: Sequence[TensorSpec], place: str) -> TensorSpec:
    """Return the input that a value without a name is for."""
    needed = [spec for spec in specs if not spec.optional]
    if len(specs) == 1:
        return specs[0]
    if len(needed) == 1:
        return needed[0]
    raise InvalidInput(
        f"expected an object, since the model takes more than one input: {_listed(specs)}",
        path=place,
    )


def _check_names(given: Mapping[str, Any], specs: Sequence[TensorSpec], place: str) -> None:
    known = {spec.name for spec in specs}
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise InvalidInput(
            f"unknown input; the model takes {_listed(specs)}", path=f"{place}.{unknown[:80]}"
        )
    missing = next((s.name for s in specs if not s.optional and s.name not in given), None)
    if missing is not None:
        raise InvalidInput(f'"{missing}" is missing', path=place)


def _other_names(
    instance: Mapping[str, Any], keys: Iterable[str], specs: Sequence[TensorSpec], place: str
) -> InvalidInput:
    """Say in what an instance's names differ from the first one's."""
    try:
        _check_names(instance, specs, place)
    except InvalidInput as error:
        return error
    here, there = set(instance), set(keys)
    name = min(here ^ there)
    return InvalidInput(
        f'"{name}" is {"here and not" if name in here else "missing here and"} in instances[0]',
        path=place,
    )


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(spec.name for spec in specs)


def encode_predict(outputs: Mapping[str, Tensor], *, rows: bool) -> bytes:
    """Return the body of the answer to a request to predict.

    One output is written without its name. Strings of outputs whose name ends with ``_bytes``, and
    strings that are not UTF-8, are written as ``{"b64": "..."}``.

    Args:
        outputs: Arrays by name.
        rows: Whether the request had the row form: then the answer has one entry for each row, in
            `predictions`; otherwise each output is whole, in `outputs`.

    Raises:
        InvalidInput: The row form was asked for, and the outputs have no rows, or not the same.
        BackendError: An output is not a tensor of the protocol.

    Example:
        >>> encode_predict({"y": np.array([2.5, 3.0], np.float32)}, rows=True)
        b'{"predictions":[2.5,3.0]}'
    """
    content, finite = nest_outputs(outputs, rows=rows)
    return write_document({"predictions" if rows else "outputs": content}, finite=finite)


def nest_outputs(outputs: Mapping[str, Tensor], *, rows: bool) -> tuple[Any, bool]:
    """Return what writes outputs as `encode_predict` does, and whether their numbers are finite."""
    arrays = {name: to_array(tensor, name) for name, tensor in outputs.items()}
    count = _rows_of(arrays) if rows else 0
    nested = {
        name: to_nested(array, datatype, binary=name.endswith(_BINARY))
        for name, (array, datatype) in arrays.items()
    }
    content: Any
    if len(nested) == 1:
        (content,) = nested.values()
    elif rows:
        columns = {name: rows_of(value) for name, value in nested.items()}
        content = [{name: column[row] for name, column in columns.items()} for row in range(count)]
    else:
        content = nested
    return content, all(_is_finite(array, datatype) for array, datatype in arrays.values())


def _rows_of(arrays: Mapping[str, tuple[np.ndarray[Any, Any], str]]) -> int:
    """Return how many rows outputs have."""
    count = -1
    first = ""
    for name, (array, _) in arrays.items():
        if not array.ndim:
            raise InvalidInput(
                f'instances: the model\'s output "{name}" is one value, not one for each instance; '
                'send "inputs" instead'
            )
        if count < 0:
            count, first = len(array), name
        elif len(array) != count:
            raise InvalidInput(
                f'instances: the model\'s output "{name}" has {len(array)} rows and "{first}" '
                f'{count}; send "inputs" instead'
            )
    return max(count, 0)


def _is_finite(array: np.ndarray[Any, Any], datatype: str) -> bool:
    return datatype not in FLOATS or bool(np.isfinite(array).all())


def write_document(document: Mapping[str, Any], *, finite: bool = True) -> bytes:
    """Return a document as text.

    Args:
        document: What `dumps` writes.
        finite: Whether all numbers in it are finite.
    """
    return dumps(document) if finite else dumps_with_tokens(document)


def encode_status(infos: Iterable[VersionInfo], *, reasons: bool = True, **members: Any) -> bytes:
    """Return the body that tells the states of a model's versions, the newest first.

    Args:
        infos: The versions.
        reasons: Whether it tells why a version failed, and not only that it did.
        members: What else the document has.

    Example:
        >>> encode_status([VersionInfo("m", "1", "READY")]).decode()[:60]
        '{"model_version_status":[{"version":"1","state":"AVAILABLE",'
    """
    ordered = sorted(infos, key=_number, reverse=True)
    statuses = [_status(info, reasons) for info in ordered]
    return dumps({"model_version_status": statuses, **members})


def _number(info: VersionInfo) -> int:
    return int(info.version) if info.version.isdecimal() else -1


def _status(info: VersionInfo, reasons: bool) -> dict[str, Any]:
    failed = info.state == "UNAVAILABLE" and info.reason not in _INTENDED
    return {
        "version": info.version,
        "state": _STATES[info.state],
        "status": {
            "error_code": "FAILED_PRECONDITION" if failed else "OK",
            "error_message": info.reason if failed and reasons else "",
        },
    }


def encode_metadata(info: VersionInfo) -> bytes:
    """Return the body that describes what a version takes and gives."""
    signature = info.signature or Signature([])
    definition = {
        "inputs": {spec.name: _tensor_info(spec) for spec in signature.inputs},
        "outputs": {spec.name: _tensor_info(spec) for spec in signature.outputs},
        "method_name": "tensorflow/serving/predict",
    }
    return dumps(
        {
            "model_spec": {"name": info.model, "signature_name": "", "version": info.version},
            "metadata": {"signature_def": {"signature_def": {DEFAULT_SIGNATURE: definition}}},
        }
    )


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    return {
        "dtype": _DTYPES[spec.datatype],
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in spec.shape or ()],
            "unknown_rank": spec.shape is None,
        },
        "name": spec.name,
    }
