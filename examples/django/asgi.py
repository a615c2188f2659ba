"""A Django application with models in it: mounted for clients, and asked by a view of its own.

In a project of several files the settings and the view stand elsewhere; `application` stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

import modelserve as ms

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"], SECRET_KEY="only here")


@ms.model(
    inputs=[ms.TensorSpec("x", "FP32", (-1, 2))],
    outputs=[ms.TensorSpec("index", "FP32", (-1,))],
    max_batch_size=64,
)
def body_mass(x: np.ndarray[Any, Any]) -> Any:
    """Return the body mass index for rows of metres and kilograms."""
    return x[:, 1] / x[:, 0] ** 2


repository = ms.ModelRepository()
repository.add(body_mass)  # a file does as well: repository.add("body_mass", "model.onnx")


async def index(request: HttpRequest) -> JsonResponse:
    """Answer /index?metres=1.8&kilograms=75."""
    try:
        row = [float(request.GET[name]) for name in ("metres", "kilograms")]
    except (KeyError, ValueError):
        return JsonResponse({"error": "metres and kilograms are numbers"}, status=400)
    x = np.array([row], np.float32)
    response = await repository.infer(ms.InferRequest("body_mass", {"x": x}))
    return JsonResponse({"index": float(response.outputs["index"][0])})


urlpatterns = [path("index", index)]

application = ms.mount(get_asgi_application(), "/ml", repository)
