"""The model, or the scikit-learn classifier, served by LitServe.

    python by_litserve.py model.onnx --port 8000        # or: sklearn in place of the file

`decode_request` has no annotations: LitServe would take the body for a query by them.
"""

from __future__ import annotations

import argparse
from typing import Any

import litserve
import numpy as np
from runtime import Session


class Onnx(litserve.LitAPI):
    """An ONNX file; one request is one row of each input."""

    path = ""

    def setup(self, device: str) -> None:
        """Load the model in the worker process."""
        self.session = Session(self.path)

    def decode_request(self, request) -> dict[str, Any]:
        """Take the body as it is: a batch is made of all bodies at once."""
        return request

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Leave the joining to `predict`."""
        return inputs

    def predict(self, inputs: Any) -> Any:
        """Run one request or a batch of them."""
        one = isinstance(inputs, dict)
        return self.session.run_lists([inputs] if one else inputs)

    def unbatch(self, output: Any) -> list[Any]:
        """Give every request its row."""
        return [row[None] for row in output]

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        """Return the answer's body."""
        return {self.session.output: output.tolist()}


class Sklearn(litserve.LitAPI):
    """The classifier's own `predict`."""

    path = ""

    def setup(self, device: str) -> None:
        """Fit the model in the worker process."""
        from classifier import classifier

        self.model = classifier()

    def decode_request(self, request) -> np.ndarray:
        """Return the rows in the body."""
        return np.array(request["x"], np.float32)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Join rows."""
        return np.concatenate(inputs)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Classify."""
        return self.model.predict(x)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        """Give every request its row."""
        return list(output[:, None])

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        """Return the answer's body."""
        return {"label": output.tolist()}


def main() -> None:
    """Serve one model with one worker process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-batch-size", type=int, default=1)
    parser.add_argument("--batch-timeout", type=float, default=0.0, help="s to wait for a batch")
    arguments = parser.parse_args()
    kind = Sklearn if arguments.model == "sklearn" else Onnx
    api = kind(max_batch_size=arguments.max_batch_size, batch_timeout=arguments.batch_timeout)
    api.path = arguments.model
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=1,
    )
    server.run(
        host="127.0.0.1",
        port=arguments.port,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
        pretty_logs=False,
    )


if __name__ == "__main__":
    main()
