"""What is looked at before a model is published: does it load, and what does it take and give."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelserve.backends.onnxruntime import InferenceSession
from modelserve.repository.versions import model_file
from modelserve.tensors import Signature, TensorSpec

__all__ = ["described", "signature_of"]


def described(source: str | os.PathLike[str] | bytes) -> dict[str, Any]:
    """Load a model to see that it works; return what the manifest records of it.

    Raises:
        LoadError: It does not load.
    """
    model: Any = source if isinstance(source, bytes) else model_file(Path(source))
    session = InferenceSession(model, providers=["cpu"])
    try:
        signature = session.signature
    finally:
        session.close()
    return {
        "signature": {
            "inputs": [_as_json(spec) for spec in signature.inputs],
            "outputs": [_as_json(spec) for spec in signature.outputs],
        }
    }


def signature_of(manifest: Mapping[str, Any]) -> Signature | None:
    """Return the signature a manifest recorded, or None where it did not."""
    recorded = manifest.get("metadata", {}).get("signature")
    if recorded is None:
        return None
    return Signature(
        *(
            [
                TensorSpec(
                    spec["name"],
                    spec["datatype"],
                    None if spec["shape"] is None else tuple(spec["shape"]),
                    spec.get("optional", False),
                )
                for spec in recorded[side]
            ]
            for side in ("inputs", "outputs")
        )
    )


def _as_json(spec: TensorSpec) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": None if spec.shape is None else list(spec.shape),
    }
    if spec.optional:
        described["optional"] = True
    return described
