"""`ASGIApp` mounted in a FastAPI application, on uvicorn.

python in_fastapi.py model.onnx --name mlp --port 8000
"""

from __future__ import annotations

import argparse

import uvicorn
from fastapi import FastAPI

import modelserve as ms


def main() -> None:
    """Serve one model below /ml, uvicorn set as for FastAPI by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--beside", action="store_true")
    arguments = parser.parse_args()
    with ms.ModelRepository() as repository:
        repository.add(arguments.name, arguments.model)
        app = FastAPI()
        if arguments.beside:
            served = ms.mount(app, "/ml", repository)
        else:
            app.mount("/ml", ms.ASGIApp(repository))
            served = app
        uvicorn.run(
            served,
            port=arguments.port,
            loop="uvloop",
            http="httptools",
            access_log=False,
            log_level="warning",
            lifespan="off",
        )


if __name__ == "__main__":
    main()
