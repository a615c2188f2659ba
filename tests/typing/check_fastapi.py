"""What type checkers make of routes of FastAPI: checked by mypy, never run."""

from collections.abc import Mapping
from typing import Annotated, Any, assert_type

import numpy as np
from fastapi import Depends, FastAPI
from numpy.typing import NDArray
from pydantic import BaseModel

import modelserve as ms
from modelserve.integrations.fastapi import ERRORS, Predictor, add_model_route, install_errors
from modelserve.integrations.pydantic import (
    JSONTensor,
    RequestModel,
    ResponseModel,
    request_model,
    response_model,
)

repository = ms.ModelRepository()
iris = Predictor(repository, "iris", timeout=1.0)
app = FastAPI()
install_errors(app)
add_model_route(app, "/iris", iris, per_row=True, tags=["models"])


class Flower(BaseModel):
    name: str
    x: Annotated[NDArray[np.float32], JSONTensor("FP32", (-1, 4))]


@app.post("/flowers", responses=ERRORS)
async def classify(flower: Flower, iris: Annotated[Predictor, Depends(iris)]) -> list[int]:
    assert_type(flower.x, NDArray[np.float32])
    outputs = await iris.predict({"x": flower.x}, outputs=["label"])
    assert_type(outputs, Mapping[str, Any])
    response = await iris.infer({"x": flower.x}, timeout=0.5)
    assert_type(response, ms.InferResponse)
    labels: list[int] = outputs["label"].tolist()
    return labels


def models_are_classes() -> None:
    assert_type(request_model(iris.signature, "Question"), type[RequestModel])
    answer = response_model(iris.signature, "Answer")
    assert_type(answer, type[ResponseModel])
    assert_type(answer.from_outputs({}), ResponseModel)
