"""Models whose descriptions hold what is hard to describe, for tests of /openapi.json and /docs."""

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import numpy as np

import modelserve as ms
from modelserve.tensors import TensorSpec

ODD = "<img src=x onerror=\"document.title='broken'\"> %41 {model} ü?#"
"""A name that is markup, an escape, a template, and beyond ASCII."""


def _echo(name: str, *specs: TensorSpec, rows: int) -> Any:
    def function(**inputs: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        return inputs

    decorate = ms.model(name=name, inputs=specs, outputs=specs, max_batch_size=rows)
    return decorate(function)


def digits(version: int = 1) -> Any:
    """Return the path of a model of digits."""
    return files("modelserve.cli") / "digits" / f"digits-{version}.onnx"


def words() -> Any:
    """Return a model that answers with a stream."""

    @ms.model(
        name="words",
        inputs=[TensorSpec("text_input", "BYTES", (1,)), TensorSpec("most", "UINT8", (1,))],
        outputs=[TensorSpec("text_output", "BYTES", (1,))],
    )
    def split(text_input: Any, most: Any) -> Iterator[dict[str, Any]]:
        for word in text_input[0].split()[: most[0] % 4]:
            yield {"text_output": np.array([word], object)}

    return split


def several() -> Any:
    """Return a model of every datatype with a form in JSON, in rows."""
    return _echo(
        "several",
        TensorSpec("yes", "BOOL", (-1,)),
        TensorSpec("tiny", "INT8", (-1, 2, 2)),
        TensorSpec("large", "UINT64", (-1, 3)),
        TensorSpec("half", "FP16", (-1, 1)),
        TensorSpec("text", "BYTES", (-1, 2)),
        rows=4,
    )


def fixed() -> Any:
    """Return a model of sizes that are all known, one of them a scalar."""
    return _echo("fixed", TensorSpec("x", "FP32", (2, 3)), TensorSpec("d", "FP64", ()), rows=0)


def odd() -> Any:
    """Return a model with names that a page could break on; it refuses whatever it is asked."""

    @ms.model(name=ODD, inputs=[TensorSpec(ODD, "FP32", (-1, 2))])
    def refuse(**inputs: Any) -> dict[str, Any]:
        raise ms.InvalidInput(f"{ODD} is refused")

    return refuse
