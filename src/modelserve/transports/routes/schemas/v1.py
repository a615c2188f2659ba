"""What the endpoints of TensorFlow Serving and of KServe's first protocol say of themselves."""

from __future__ import annotations

from typing import Any, Final

from .described import NOTHING, Described, Schema, json_of
from .infer import ASKED, TOLD
from .parts import FLAG, NAME, STRING, array_of, object_of

__all__ = [
    "ALIVE",
    "CLASSIFY",
    "EXPLAIN",
    "METADATA",
    "MODELS",
    "NO_MODEL",
    "PREDICT",
    "READY",
    "REGRESS",
    "STATUS",
]

_SIGNATURE: Final = {
    "type": ["string", "null"],
    "description": "A model has one signature here, `serving_default`.",
}

# More would not fit into 64 bits.
_PARTS: Final = {"version": {"type": "string", "pattern": "^[0-9]{1,18}$"}}

_PREDICT: Final = Schema(
    "PredictRequest",
    {
        **object_of(
            {
                "signature_name": _SIGNATURE,
                "instances": {
                    "type": "array",
                    "minItems": 1,
                    "description": (
                        "Rows: each a value, a nested list, or an object of inputs by name. "
                        'Bytes are `{"b64": "..."}`.'
                    ),
                },
                "inputs": {"description": "Columns: each input whole, by name."},
            }
        ),
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
    },
)

_PREDICTED: Final = Schema(
    "PredictResponse",
    {
        **object_of(
            {
                "predictions": array_of({}, description="For `instances`: a value a row."),
                "outputs": {"description": "For `inputs`: each output whole."},
            }
        ),
        "oneOf": [{"required": ["predictions"]}, {"required": ["outputs"]}],
    },
)

_EXAMPLES: Final = Schema(
    "ExamplesRequest",
    object_of(
        {
            "signature_name": _SIGNATURE,
            "context": {"type": ["object", "null"], "description": "Inputs of every example."},
            "examples": array_of({"type": "object"}, description="Inputs by name."),
        },
        "examples",
    ),
)

PREDICT: Final = Described(
    "version 1",
    parts=_PARTS,
    gives=json_of(_PREDICTED),
    takes=json_of(_PREDICT),
    text="Numbers that are none stand in answers as the tokens NaN and Infinity.",
    asked=ASKED,
    told=TOLD,
)


def _results(item: Any) -> Any:
    return object_of({"results": array_of(item)}, "results")


CLASSIFY: Final = Described(
    "version 1",
    parts=_PARTS,
    gives=json_of(
        Schema(
            "ClassifyResponse",
            _results(array_of({"type": "array"}, description="Pairs of a class and its score.")),
        )
    ),
    takes=json_of(_EXAMPLES),
    asked=ASKED,
    told=TOLD,
)

REGRESS: Final = Described(
    "version 1",
    parts=_PARTS,
    gives=json_of(Schema("RegressResponse", _results({"type": "number"}))),
    takes=json_of(_EXAMPLES),
    asked=ASKED,
    told=TOLD,
)

EXPLAIN: Final = Described(
    "version 1",
    gives=json_of(Schema("ExplainResponse", object_of({"explanations": {}}, "explanations"))),
    takes=json_of(_PREDICT),
    asked=ASKED,
    told=TOLD,
)

STATUS: Final = Described(
    "version 1",
    parts=_PARTS,
    gives=json_of(
        Schema(
            "ModelStatus",
            object_of(
                {
                    "model_version_status": array_of(
                        object_of(
                            {
                                "version": STRING,
                                "state": {
                                    "enum": ["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
                                },
                                "status": object_of(
                                    {"error_code": STRING, "error_message": STRING}
                                ),
                            },
                            *("version", "state"),
                        )
                    ),
                    "name": STRING,
                    "ready": FLAG,
                },
                "model_version_status",
            ),
        )
    ),
)

METADATA: Final = Described(
    "version 1",
    parts=_PARTS,
    gives=json_of(
        Schema(
            "SignatureMetadata",
            object_of(
                {"model_spec": object_of({"name": NAME}), "metadata": {"type": "object"}},
                *("model_spec", "metadata"),
            ),
        )
    ),
)

READY: Final = Described(
    "version 1",
    gives=json_of(Schema("ModelReady1", object_of({"name": STRING, "ready": FLAG}, "name"))),
)

ALIVE: Final = Described(
    "version 1",
    gives=json_of(Schema("Alive", object_of({"status": {"const": "alive"}}, "status"))),
)

MODELS: Final = Described(
    "version 1",
    gives=json_of(Schema("ModelNames", object_of({"models": array_of(STRING)}, "models"))),
)

NO_MODEL: Final = Described("version 1", gives=NOTHING, text="Refused: a model has to be named.")
