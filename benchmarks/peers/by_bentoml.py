"""The model, or the scikit-learn classifier, served by BentoML.

    MODEL_FILE=model.onnx bentoml serve by_bentoml:Peer --port 8000     # or MODEL_FILE=sklearn

MAX_BATCH_SIZE above 1 makes the endpoint batchable, MAX_LATENCY is then BentoML's target in ms.
"""

from __future__ import annotations

import os

import bentoml
import numpy as np

MODEL_FILE = os.environ["MODEL_FILE"]
MAX_BATCH_SIZE = int(os.environ.get("MAX_BATCH_SIZE", "1"))
MAX_LATENCY = int(os.environ.get("MAX_LATENCY", "1000"))


def _api(function):
    if MAX_BATCH_SIZE == 1:
        return bentoml.api(function)
    return bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=MAX_LATENCY)(
        function
    )


if MODEL_FILE == "sklearn":
    from classifier import classifier

    @bentoml.service(workers=1, logging={"access": {"enabled": False}})
    class Peer:
        """The classifier's own `predict`."""

        def __init__(self) -> None:
            self.model = classifier()

        @_api
        def predict(self, x: np.ndarray) -> np.ndarray:
            """Classify."""
            return self.model.predict(x)

else:
    from runtime import Session

    @bentoml.service(workers=1, logging={"access": {"enabled": False}})
    class Peer:
        """An ONNX file with one input."""

        def __init__(self) -> None:
            self.session = Session(MODEL_FILE)
            [(self.name, self.dtype)] = self.session.dtypes.items()

        @_api
        def predict(self, x: np.ndarray) -> np.ndarray:
            """Run a batch."""
            return self.session.run({self.name: x.astype(self.dtype, copy=False)})
