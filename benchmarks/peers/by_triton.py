"""The model served by Triton 2.51 with its Python backend, which calls onnxruntime.

    python by_triton.py model.onnx --name mlp --port 8000

The server comes out of the wheel nvidia-pytriton, which carries no onnxruntime backend. Its dynamic
batching waits for nothing unless `--delay` says so.
"""

from __future__ import annotations

import argparse
import os
import sysconfig
import tempfile
from pathlib import Path

import onnxruntime
from triton_server import command, environment, write_backends

_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}

_MODEL = """
import sys

sys.path[:0] = {path!r}

import numpy as np
import triton_python_backend_utils as backend

from runtime import Session


class TritonPythonModel:
    def initialize(self, args):
        self.session = Session({model!r})

    def execute(self, requests):
        names = list(self.session.dtypes)
        inputs = [
            [backend.get_input_tensor_by_name(r, name).as_numpy() for name in names]
            for r in requests
        ]
        if len(inputs) == 1:
            feeds = dict(zip(names, inputs[0]))
        else:
            feeds = {{n: np.concatenate(c) for n, c in zip(names, zip(*inputs))}}
        y = self.session.run(feeds)
        answers, start = [], 0
        for arrays in inputs:
            end = start + len(arrays[0])
            tensor = backend.Tensor(self.session.output, y[start:end])
            answers.append(backend.InferenceResponse([tensor]))
            start = end
        return answers
"""


def _tensors(kind: str, arguments: list) -> str:
    described = [
        f'{{ name: "{a.name}" data_type: {_TYPES[a.type]} dims: [{width}] }}'
        for a, width in arguments
    ]
    return f"{kind} [ {', '.join(described)} ]"


def write_repository(directory: Path, name: str, model: str, delay: int, batch: int) -> None:
    """Write a repository of one model."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    given = session.get_inputs()
    # The encoder's length is free; a request here has 64 tokens, and -1 takes any.
    inputs = [(a, a.shape[1] if isinstance(a.shape[1], int) else -1) for a in given]
    outputs = [(a, a.shape[1]) for a in session.get_outputs()]
    folder = directory / name
    (folder / "1").mkdir(parents=True)
    # The stub is no interpreter of the environment: it is told where the packages are.
    path = [str(Path(__file__).parent), sysconfig.get_path("purelib")]
    (folder / "1" / "model.py").write_text(_MODEL.format(path=path, model=model))
    batching = f"dynamic_batching {{ max_queue_delay_microseconds: {delay} }}"
    (folder / "config.pbtxt").write_text(
        "\n".join(
            [
                f'name: "{name}"',
                'backend: "python"',
                f"max_batch_size: {batch}",
                _tensors("input", inputs),
                _tensors("output", outputs),
                batching if batch else "",
                "instance_group [ { kind: KIND_CPU count: 1 } ]",
            ]
        )
    )


def main() -> None:
    """Serve one model; becomes the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--delay", type=int, default=0, help="us to wait for a batch")
    parser.add_argument("--max-batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=8, help="threads that answer HTTP")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="triton-"))
    write_backends(directory / "backends")
    write_repository(
        directory / "models",
        arguments.name,
        arguments.model,
        arguments.delay,
        arguments.max_batch_size,
    )
    run = command(directory, arguments.port)
    run += [f"--http-thread-count={arguments.threads}", "--disable-auto-complete-config"]
    os.execve(run[0], run, environment())


if __name__ == "__main__":
    main()
