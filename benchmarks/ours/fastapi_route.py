"""A model in routes of a FastAPI application, on uvicorn.

    python fastapi_route.py model.onnx --name mlp --port 8000

Two ways on one port: /predict is made by `add_model_route`, /typed is written by hand with the
models of pydantic that `request_model` and `response_model` make.
"""

from __future__ import annotations

import argparse
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI

import modelserve as ms
from modelserve.integrations.fastapi import Predictor, add_model_route
from modelserve.integrations.pydantic import request_model, response_model


def make_app(predictor: Predictor) -> FastAPI:
    """Return the application."""
    app = FastAPI()
    add_model_route(app, "/predict", predictor)
    Answer = response_model(predictor.signature, "Answer")

    async def typed(body: Any, model: Any) -> Any:
        return Answer.from_outputs(await model.predict(body))

    # Annotations are text in this module; FastAPI wants the classes made above.
    typed.__annotations__ = {
        "body": request_model(predictor.signature, "Body"),
        "model": Annotated[Predictor, Depends(predictor)],
        "return": Answer,
    }
    app.post("/typed")(typed)
    return app


def main() -> None:
    """Serve one model, uvicorn set as for FastAPI by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    with ms.ModelRepository() as repository:
        repository.add(arguments.name, arguments.model)
        uvicorn.run(
            make_app(Predictor(repository, arguments.name)),
            port=arguments.port,
            loop="uvloop",
            http="httptools",
            access_log=False,
            log_level="warning",
            lifespan="off",
        )


if __name__ == "__main__":
    main()
