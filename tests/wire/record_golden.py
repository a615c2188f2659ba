"""Record what Triton answers to the corpus of requests: the files in golden/.

    python benchmarks/peers/install.py triton
    build/peers/triton/bin/python -m pip install "tritonclient[http]"
    PYTHONPATH=tests:benchmarks/peers build/peers/triton/bin/python tests/wire/record_golden.py

Starts the Triton of the wheel nvidia-pytriton with the models of `golden_models`, sends the
requests of `golden_requests` and makes the calls of `golden_calls`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from triton_server import command, environment, write_backends

from wire import golden_calls
from wire.golden_asks import Ask
from wire.golden_client import send
from wire.golden_models import MODELS, Model, Spec
from wire.golden_requests import corpus, region

HERE = Path(__file__).parent
PORT = 18100

_MODEL = """
import json
import sys

sys.path[:0] = {path!r}

import triton_python_backend_utils as backend

from wire.golden_models import MODELS

MODEL = next(model for model in MODELS if model.name == {name!r})


class TritonPythonModel:
    def execute(self, requests):
        if MODEL.streams:
            for request in requests:
                self.stream(request)
            return None
        return [self.answer(request) for request in requests]

    def call(self, request):
        inputs = {{
            spec.name: backend.get_input_tensor_by_name(request, spec.name).as_numpy()
            for spec in MODEL.inputs
        }}
        return MODEL.function(inputs, json.loads(request.parameters() or "{{}}"))

    def answer(self, request):
        try:
            return self.response(self.call(request))
        except Exception as error:
            return self.failure(error)

    def stream(self, request):
        sender = request.get_response_sender()
        try:
            for outputs in self.call(request):
                sender.send(self.response(outputs))
        except Exception as error:
            sender.send(self.failure(error))
        sender.send(flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def response(self, outputs):
        return backend.InferenceResponse(
            [backend.Tensor(name, array) for name, array in outputs.items()]
        )

    def failure(self, error):
        return backend.InferenceResponse([], backend.TritonError(str(error)))
"""


def _type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def _tensors(side: str, specs: tuple[Spec, ...], labels: bool) -> str:
    described = []
    for number, spec in enumerate(specs):
        text = f'name: "{spec.name}" data_type: {_type(spec.datatype)} dims: {list(spec.shape)}'
        if labels and number == 0:
            text += ' label_filename: "labels.txt"'
        described.append(f"{{ {text} }}")
    return f"{side} [ {', '.join(described)} ]"


def _write(model: Model, directory: Path) -> None:
    folder = directory / model.name
    for version in model.versions:
        (folder / version).mkdir(parents=True)
        # The stub is no interpreter of the environment: it is told where the packages are.
        path = [str(HERE.parent), sysconfig.get_path("purelib")]
        code = _MODEL.format(path=path, name=model.name)
        (folder / version / "model.py").write_text(code)
    if model.labels:
        (folder / "labels.txt").write_text("\n".join(model.labels) + "\n")
    lines = [
        f'name: "{model.name}"',
        'backend: "python"',
        f"max_batch_size: {model.max_batch_size}",
        _tensors("input", model.inputs, False),
        _tensors("output", model.outputs, bool(model.labels)),
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
    ]
    if model.streams:
        lines.append("model_transaction_policy { decoupled: true }")
    if len(model.versions) > 1:
        lines.append("version_policy: { all { } }")
    (folder / "config.pbtxt").write_text("\n".join(lines) + "\n")


class Triton:
    """A running server of the models, started again whenever a request ended it."""

    def __init__(self, directory: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        write_backends(directory / "backends")
        for model in MODELS:
            _write(model, directory / "models")
        self._command = command(directory, port)
        self._command += ["--model-control-mode=explicit", "--load-model=*", "--log-error=false"]
        self._command += ["--log-info=false"]
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self._command, env=environment())
        for _ in range(600):
            if process.poll() is not None:
                sys.exit(f"Triton ended with status {process.returncode}")
            try:
                urllib.request.urlopen(f"{self.url}/v2/health/ready").close()
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
            else:
                return process
        sys.exit("Triton is not ready after two minutes")

    def ask(self, ask: Ask) -> dict[str, Any]:
        """Return what it answers; status 0 where it does not."""
        try:
            answer = send(self.url, ask).shown()
            if ask.path.endswith("/unload"):
                self._wait_until_unloaded()
            return answer
        except (OSError, http.client.HTTPException) as error:
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                return {"status": 0, "text": f"no answer: {type(error).__name__}"}
            self.process = self._start()
            return {"status": 0, "text": "the server ended"}

    def _wait_until_unloaded(self) -> None:
        """Wait for what goes on after the answer."""
        for _ in range(100):
            with urllib.request.urlopen(f"{self.url}/v2/repository/index", b"") as answer:
                if b"UNLOADING" not in answer.read():
                    return
            time.sleep(0.2)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def _save(group: str, version: str, recorded: dict[str, Any]) -> None:
    """Write one file, an exchange a line at a time."""
    lines = [f"  {json.dumps('triton')}: {json.dumps(version)}"]
    for name, found in recorded.items():
        members = ",\n".join(
            f"    {json.dumps(k)}: {json.dumps(v, ensure_ascii=True)}" for k, v in found.items()
        )
        lines.append(f"  {json.dumps(name)}: {{\n{members}\n  }}")
    path = HERE / "golden" / f"{group}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def record(triton: Triton) -> None:
    """Ask everything of Triton and write its answers."""
    with urllib.request.urlopen(f"{triton.url}/v2") as answer:
        version = json.load(answer)["version"]
    for group, asks in corpus().items():
        with region():
            recorded = {ask.name: {"request": ask.shown(), **triton.ask(ask)} for ask in asks}
        _save(group, version, recorded)
        print(f"{group}: {len(recorded)}", flush=True)
    outcomes = golden_calls.outcomes(triton.url)
    _save("tritonclient", version, outcomes)
    print(f"tritonclient: {len(outcomes)}")


def main() -> None:
    """Start Triton, record, and end it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--keep", action="store_true", help="only serve, until interrupted")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="triton-") as name:
        triton = Triton(Path(name), arguments.port)
        try:
            if arguments.keep:
                triton.process.wait()
            else:
                record(triton)
        finally:
            triton.stop()


if __name__ == "__main__":
    main()
