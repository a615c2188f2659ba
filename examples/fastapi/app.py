"""A FastAPI application with a model: mounted, as a made route, and asked by one of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI
from pydantic import BaseModel, Field

import modelserve as ms
from modelserve.integrations.fastapi import Predictor, add_model_route, install_errors

USUAL = np.array([21.0, 45.0, 1013.0, 420.0], np.float32)
SPREAD = np.array([4.0, 15.0, 12.0, 90.0], np.float32)


@ms.model(
    inputs=[ms.TensorSpec("x", "FP32", (-1, 4))],
    outputs=[ms.TensorSpec("distance", "FP32", (-1,))],
    max_batch_size=64,
)
def outlier(x: np.ndarray[Any, Any]) -> Any:
    """Tell how far from usual rows of temperature, humidity, pressure and carbon dioxide are."""
    return np.abs((x - USUAL) / SPREAD).max(axis=1)


repository = ms.ModelRepository()
repository.add(outlier)  # a file does as well: repository.add("outlier", "outlier.onnx")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with repository:
        yield


app = FastAPI(lifespan=lifespan)
install_errors(app)
app.mount("/ml", ms.ASGIApp(repository))
predictor = Predictor(repository, "outlier", timeout=1.0)
add_model_route(
    app, "/outlier", predictor, per_row=True, examples={"x": [21.0, 45.0, 1013.0, 870.0]}
)


class Reading(BaseModel):
    values: Annotated[list[float], Field(min_length=4, max_length=4)]


@app.post("/readings")
async def judge(
    reading: Reading, outlier: Annotated[Predictor, Depends(predictor)]
) -> dict[str, Any]:
    """Judge one reading; what arrives together, here and on the other ways, shares a batch."""
    outputs = await outlier.predict({"x": np.array([reading.values], np.float32)})
    distance = float(outputs["distance"][0])
    return {"distance": distance, "unusual": distance > 3}
