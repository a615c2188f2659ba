"""What every peer's program needs: the ONNX file, run by one thread, and a batch out of requests.

It imports nothing of modelserve and little besides onnxruntime: it runs in the peers' environments.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

_DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class Session:
    """An ONNX file whose inputs are (rows, features) and that has one output."""

    def __init__(self, path: str | Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.output = self.session.get_outputs()[0].name
        self.dtypes = {i.name: _DTYPES[i.type] for i in self.session.get_inputs()}

    def run(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """Run one batch."""
        return self.session.run([self.output], feeds)[0]

    def run_lists(self, requests: Sequence[dict[str, list]]) -> np.ndarray:
        """Run requests of one row each, given as nested lists, as one batch."""
        if len(requests) == 1:
            request = requests[0]
            return self.run({n: np.array(request[n], d) for n, d in self.dtypes.items()})
        return self.run(
            {n: np.array([r[n][0] for r in requests], d) for n, d in self.dtypes.items()}
        )

    def run_bytes(self, requests: Sequence[bytes]) -> np.ndarray:
        """Run requests of one row each, given as their tensors' bytes, as one batch."""
        if len(self.dtypes) == 1:
            [(name, dtype)] = self.dtypes.items()
            joined = np.frombuffer(b"".join(requests), dtype)
            return self.run({name: joined.reshape(len(requests), -1)})
        # Several inputs of one element type and width: the second follows the first in each body.
        [dtype] = set(self.dtypes.values())
        joined = np.frombuffer(b"".join(requests), dtype)
        parts = joined.reshape(len(requests), len(self.dtypes), -1)
        return self.run({n: np.ascontiguousarray(parts[:, i]) for i, n in enumerate(self.dtypes)})
