"""`@ms.model` over scikit-learn's own `predict`.

python function.py --port 8000
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import modelserve as ms

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))

from classifier import classifier

fitted = classifier()


@ms.model(inputs=[ms.TensorSpec("x", "FP32", (-1, 30))], max_batch_size=64)
def classify(x: np.ndarray) -> dict[str, np.ndarray]:
    """Classify."""
    return {"label": fitted.predict(x)}


def main() -> None:
    """Serve the function."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    ms.serve(classify, http=f"127.0.0.1:{parser.parse_args().port}")


if __name__ == "__main__":
    main()
