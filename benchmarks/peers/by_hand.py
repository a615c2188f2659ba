"""The model served by hand with FastAPI: a pydantic body, onnxruntime, an answer.

    python by_hand.py model.onnx --port 8000

Four ways on one port: /predict (`async def`, the answer is a list), /fast (the answer is made by
orjson straight out of the array), /threads (`def`: FastAPI's thread pool), /raw (bytes both ways,
no pydantic).
"""

from __future__ import annotations

import argparse

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, create_model
from runtime import Session


def make_app(path: str) -> FastAPI:
    """Return the application."""
    session = Session(path)
    kinds = {"float32": list[list[float]], "int64": list[list[int]]}
    fields = {name: kinds[dtype.__name__] for name, dtype in session.dtypes.items()}
    Body = create_model("Body", **fields)  # type: ignore[call-overload]
    Answer = create_model("Answer", **{session.output: list[list[float]]})  # type: ignore[call-overload]
    app = FastAPI()

    def feeds(body: BaseModel) -> dict[str, list]:
        return {name: getattr(body, name) for name in session.dtypes}

    async def predict(body: Body) -> Answer:
        return Answer(**{session.output: session.run_lists([feeds(body)]).tolist()})

    async def fast(body: Body) -> Response:
        answer = {session.output: session.run_lists([feeds(body)])}
        return Response(
            orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json"
        )

    def threads(body: Body) -> Answer:
        return Answer(**{session.output: session.run_lists([feeds(body)]).tolist()})

    async def raw(request: Request) -> Response:
        return Response(
            session.run_bytes([await request.body()]).tobytes(),
            media_type="application/octet-stream",
        )

    for name, function in (("body", predict), ("body", fast), ("body", threads)):
        # Annotations are text in this module; FastAPI wants the classes made above.
        function.__annotations__[name] = Body
    predict.__annotations__["return"] = threads.__annotations__["return"] = Answer
    fast.__annotations__["return"] = Response
    app.post("/predict")(predict)
    app.post("/fast")(fast)
    app.post("/threads")(threads)
    app.post("/raw")(raw)
    return app


def main() -> None:
    """Serve one model with uvicorn at its fastest: uvloop, httptools, no access log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    uvicorn.run(
        make_app(arguments.model),
        port=arguments.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        lifespan="off",
    )


if __name__ == "__main__":
    main()
