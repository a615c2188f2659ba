"""`modelserve inspect`: what a model takes and gives, and whether its rows may share a batch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from modelserve.backends.onnxruntime import InferenceSession
from modelserve.cli.arguments import existing_model
from modelserve.execution.proof import prove_batch_axis
from modelserve.tensors import TensorSpec

__all__ = ["declare"]


def declare(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "inspect",
        help="show what a model takes and gives",
        description=(
            "Load an ONNX model and show its inputs and outputs, its metadata, the execution "
            "providers, and whether its rows may share a batch."
        ),
    )
    parser.add_argument(
        "model", metavar="MODEL.onnx", type=Path, help="ONNX file, or a version's directory"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    path = existing_model(arguments.model)
    session = InferenceSession(path)
    refusal = prove_batch_axis(session)
    signature = session.signature
    size = path.stat().st_size
    if arguments.json:
        print(
            json.dumps(
                {
                    "inputs": [_as_json(spec) for spec in signature.inputs],
                    "outputs": [_as_json(spec) for spec in signature.outputs],
                    "batching": not refusal,
                    "batching_reason": refusal,
                    "providers": list(session.providers),
                    "bytes": size,
                    "metadata": session.metadata,
                },
                indent=2,
            )
        )
        return 0
    print(f"{path.name}  {f'{size / 1e6:.1f} MB' if size >= 1e6 else f'{size / 1e3:.1f} kB'}")
    for title, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        print(title)
        for spec in specs:
            shape = "any shape" if spec.shape is None else list(spec.shape)
            print(f"  {spec.name}  {spec.datatype}  {shape}{'  optional' if spec.optional else ''}")
    print(f"batching   {'no: ' + refusal if refusal else 'yes, proven by running rows together'}")
    print(f"providers  {', '.join(session.providers)}")
    for name, value in session.metadata.items():
        text = " ".join(str(value).split())
        print(f"{name}  {text if len(text) <= 100 else text[:99] + '…'}")
    return 0


def _as_json(spec: TensorSpec) -> dict[str, Any]:
    shape = None if spec.shape is None else list(spec.shape)
    return {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": shape,
        "optional": spec.optional,
    }
