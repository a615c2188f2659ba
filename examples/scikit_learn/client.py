"""Ask for the growers of the held-out wines, one by one and together: python client.py [URL]"""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from wine import wine

import modelserve as ms


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    data = wine()
    with ms.Client(url) as client, ThreadPoolExecutor(8) as threads:

        def grower(analysis: np.ndarray) -> str:
            # scikit-learn calls its parameter X, and the text of a BYTES tensor is bytes.
            return client.predict("wine", {"X": analysis[np.newaxis]})["output"][0].decode()

        growers = np.array(list(threads.map(grower, data.test)))
        probabilities = client.predict("wine-probabilities", {"X": data.test})["output"]

    right = np.mean(growers == data.test_labels)
    sure = np.median(probabilities.max(axis=1))
    print(f"{len(growers)} wines, {right:.1%} right, median probability {sure:.3f}")
    if right < 0.9:
        sys.exit("fewer are right than this classifier gets")


if __name__ == "__main__":
    main()
