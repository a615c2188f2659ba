"""Train the two classifiers that `modelserve demo` serves, and write them as ONNX.

The data are scikit-learn's bundled handwritten digits: 1,797 images of 8 x 8 pixels, values 0 to 16
(UCI Optical Recognition of Handwritten Digits). A quarter is held out; the demo sends just that.

    pip install "modelserve[demo]" onnx
    python make_models.py DIRECTORY
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

HIDDEN = {"1": 32, "2": 128}
SEED = 0


def split():
    """Return training images, held-out images, training labels, held-out labels."""
    digits = load_digits()
    images = digits.data.astype(np.float32)
    return train_test_split(
        images, digits.target, test_size=0.25, random_state=SEED, stratify=digits.target
    )


def as_onnx(classifier: MLPClassifier) -> onnx.ModelProto:
    """Write a fitted network as a graph: image -> label, probabilities."""
    weights = [matrix.astype(np.float32) for matrix in classifier.coefs_]
    biases = [vector.astype(np.float32) for vector in classifier.intercepts_]
    constants = [numpy_helper.from_array(np.float32(1 / 16), "scale")]
    nodes = [helper.make_node("Mul", ["image", "scale"], ["scaled"])]
    before = "scaled"
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        constants.append(numpy_helper.from_array(weight, f"weight{layer}"))
        constants.append(numpy_helper.from_array(bias, f"bias{layer}"))
        after = f"layer{layer}"
        nodes.append(helper.make_node("Gemm", [before, f"weight{layer}", f"bias{layer}"], [after]))
        if layer < len(weights) - 1:
            nodes.append(helper.make_node("Relu", [after], [f"{after}_relu"]))
            after = f"{after}_relu"
        before = after
    nodes.append(helper.make_node("Softmax", [before], ["probabilities"], axis=1))
    nodes.append(helper.make_node("ArgMax", [before], ["label"], axis=1, keepdims=0))
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["rows", 64])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["rows"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 10]),
        ],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="digits"
    )
    onnx.checker.check_model(model)
    return model


def main() -> None:
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    directory.mkdir(parents=True, exist_ok=True)
    train_images, held_out_images, train_labels, held_out_labels = split()
    for version, hidden in HIDDEN.items():
        classifier = MLPClassifier((hidden,), max_iter=400, random_state=SEED)
        classifier.fit(train_images / 16, train_labels)
        accuracy = classifier.score(held_out_images / 16, held_out_labels)
        path = directory / f"digits-{version}.onnx"
        onnx.save(as_onnx(classifier), path)
        print(f"{path.name}: {hidden} hidden units, accuracy on held-out images {accuracy:.3f}")


if __name__ == "__main__":
    main()
