"""Train a scikit-learn classifier and serve it over HTTP: python server.py [HOST:PORT]"""

import sys

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from wine import wine

import modelserve as ms


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8000"
    data = wine()
    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    classifier.fit(data.learn, data.learn_labels)

    with ms.ModelRepository() as repository:
        # The example tells what the method takes, and by running it what it returns.
        example = data.learn[:1]
        for name, method in (("wine", "predict"), ("wine-probabilities", "predict_proba")):
            predict = getattr(classifier, method)
            repository.add(ms.model(predict, name=name, example=example, max_batch_size=64))
        ms.serve(
            repository, http=address, on_ready=lambda url: print(f"ready on {url}", flush=True)
        )


if __name__ == "__main__":
    main()
