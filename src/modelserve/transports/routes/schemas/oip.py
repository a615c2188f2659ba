"""What the endpoints of the Open Inference Protocol say of themselves."""

from __future__ import annotations

from typing import Final

from modelserve.tensors import DATATYPES

from .described import (
    BINARY_TYPE,
    JSON_TYPE,
    Described,
    Header,
    Schema,
    json_of,
)
from .infer import ASKED, BINARY_REQUEST, BINARY_RESPONSE, LENGTH, REQUEST, RESPONSE, TOLD
from .models import infer_of
from .parts import FLAG, PARAMETER, STRING, array_of, object_of

__all__ = [
    "INDEX",
    "INFER",
    "LIVE",
    "METADATA",
    "MODELS",
    "MODEL_READY",
    "READY",
    "SERVER",
]

_JSON_LENGTH: Final = Header(
    LENGTH, {"type": "integer", "minimum": 0}, "Bytes of JSON in a binary body."
)

INFER: Final = Described(
    "inference",
    gives={JSON_TYPE: RESPONSE, BINARY_TYPE: BINARY_RESPONSE},
    takes={JSON_TYPE: REQUEST, BINARY_TYPE: BINARY_REQUEST},
    text="Whether a body is binary is told by the header Inference-Header-Content-Length alone.",
    asked=(*ASKED, _JSON_LENGTH),
    told=(*TOLD, _JSON_LENGTH),
    of_model=infer_of,
)

SERVER: Final = Described(
    "server",
    gives=json_of(
        Schema(
            "ServerMetadata",
            object_of(
                {"name": STRING, "version": STRING, "extensions": array_of(STRING)},
                *("name", "version", "extensions"),
            ),
        )
    ),
)

LIVE: Final = Described(
    "health", gives=json_of(Schema("Live", object_of({"live": {"const": True}}, "live")))
)

_READY: Final = Schema("Ready", object_of({"ready": FLAG}, "ready"))
READY: Final = Described(
    "health",
    gives=json_of(_READY),
    others={503: json_of(_READY)},
)

_MODEL_READY: Final = Schema(
    "ModelReady", object_of({"name": STRING, "ready": FLAG}, "name", "ready")
)
MODEL_READY: Final = Described(
    "health", gives=json_of(_MODEL_READY), others={503: json_of(_MODEL_READY)}
)

MODELS: Final = Described(
    "models",
    gives=json_of(Schema("Models", object_of({"models": array_of(STRING)}, "models"))),
)

_TENSOR: Final = Schema(
    "TensorMetadata",
    object_of(
        {
            "name": STRING,
            "datatype": {"enum": list(DATATYPES)},
            "shape": {
                "type": ["array", "null"],
                "items": {"type": "integer", "minimum": -1},
                "description": (
                    "-1 where any size will do; null where the number of axes is open."
                ),
            },
            "optional": {"type": "boolean"},
        },
        *("name", "datatype", "shape"),
    ),
)

METADATA: Final = Described(
    "models",
    gives=json_of(
        Schema(
            "ModelMetadata",
            object_of(
                {
                    "name": STRING,
                    "versions": array_of(STRING),
                    "platform": STRING,
                    "inputs": array_of(_TENSOR),
                    "outputs": array_of(_TENSOR),
                    "parameters": object_of(
                        {
                            "max_batch_size": {"type": "integer", "minimum": 0},
                            "version": STRING,
                            "batching": STRING,
                            "labels": STRING,
                        },
                        additionalProperties=PARAMETER,
                    ),
                },
                *("name", "versions", "platform", "inputs", "outputs"),
            ),
        )
    ),
    errors=(503,),
)

INDEX: Final = Described(
    "repository",
    gives=json_of(
        Schema(
            "RepositoryIndex",
            array_of(
                object_of(
                    {
                        "name": STRING,
                        "version": STRING,
                        "state": {"enum": ["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]},
                        "reason": STRING,
                    },
                    *("name", "version", "state", "reason"),
                )
            ),
        )
    ),
    takes=json_of(
        Schema(
            "RepositoryIndexRequest",
            object_of({"ready": {**FLAG, "description": "Whether to list ready versions only."}}),
        )
    ),
    optional=True,
)
