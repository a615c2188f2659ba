"""The model served by MLServer with a custom runtime.

python by_mlserver.py model.onnx --name mlp --port 8000
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
from pathlib import Path


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main() -> None:
    """Serve one model in one process; becomes the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-batch-size", type=int, default=0)
    parser.add_argument("--max-batch-time", type=float, default=0.0, help="s")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="mlserver-"))
    settings = {
        "host": "127.0.0.1",
        "http_port": arguments.port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        # No processes of its own: they cost it more than the model does.
        "parallel_workers": 0,
        "debug": False,
    }
    (directory / "settings.json").write_text(json.dumps(settings))
    folder = directory / arguments.name
    folder.mkdir()
    model = {
        "name": arguments.name,
        "implementation": "mlserver_runtime.Onnx",
        "parameters": {"uri": arguments.model},
        "max_batch_size": arguments.max_batch_size,
        "max_batch_time": arguments.max_batch_time,
    }
    (folder / "model-settings.json").write_text(json.dumps(model))
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parent))
    program = str(Path(sys.executable).parent / "mlserver")
    os.execve(program, [program, "start", str(directory)], environment)


if __name__ == "__main__":
    main()
