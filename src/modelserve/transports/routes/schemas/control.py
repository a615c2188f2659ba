"""What the endpoints of Triton's control and shared memory extensions say of themselves."""

from __future__ import annotations

from typing import Any, Final

from .described import NOTHING, Described, Schema, json_of
from .parts import FLAG, STRING, array_of, nullable, object_of

__all__ = [
    "LOAD",
    "REGION",
    "REGIONS",
    "REGISTER",
    "REGISTER_CUDA",
    "SET_LOGGING",
    "SET_TRACE",
    "SHOW_LOGGING",
    "SHOW_TRACE",
    "UNLOAD",
    "UNREGISTER",
]

_VERSION: Final = {**STRING, "description": "A version's number."}


def _parameters(**properties: Any) -> dict[str, Any]:
    return object_of({"parameters": nullable(object_of(properties))})


LOAD: Final = Described(
    "repository",
    gives=NOTHING,
    takes=json_of(
        Schema(
            "LoadRequest",
            object_of(
                {
                    "parameters": {
                        **nullable(
                            object_of(
                                {
                                    "version": _VERSION,
                                    "config": {
                                        "type": ["string", "object", "null"],
                                        "description": (
                                            "The model's configuration as JSON, in place of the "
                                            "stored one."
                                        ),
                                    },
                                }
                            )
                        ),
                        "patternProperties": {
                            "^file:": {
                                **STRING,
                                "contentEncoding": "base64",
                                "description": "A file of the model, by its name.",
                            }
                        },
                    }
                }
            ),
        )
    ),
    optional=True,
    errors=(409,),
)

UNLOAD: Final = Described(
    "repository",
    gives=NOTHING,
    takes=json_of(
        Schema("UnloadRequest", _parameters(version=_VERSION, unload_dependents=FLAG)),
    ),
    optional=True,
    errors=(409,),
)

# ---------------------------------------------------------------------- settings

_LOGGING: Final[dict[str, dict[str, Any]]] = {
    "log_info": FLAG,
    "log_warning": FLAG,
    "log_error": FLAG,
    "log_verbose_level": {"type": "integer", "minimum": 0},
    "log_format": STRING,
}

SHOW_LOGGING: Final = Described(
    "settings",
    gives=json_of(Schema("LogSettings", object_of({**_LOGGING, "log_file": STRING}))),
)

SET_LOGGING: Final = Described(
    "settings",
    gives=SHOW_LOGGING.gives,
    takes=json_of(
        Schema(
            "LogSettingsRequest",
            object_of(
                {name: nullable(schema) for name, schema in _LOGGING.items()},
                additionalProperties=False,
            ),
        )
    ),
    optional=True,
)

_COUNT: Final = {"type": ["integer", "string", "null"]}

SHOW_TRACE: Final = Described(
    "settings",
    gives=json_of(
        Schema(
            "TraceSettings",
            object_of(
                {
                    "trace_level": array_of(STRING),
                    "trace_rate": STRING,
                    "trace_count": STRING,
                    "log_frequency": STRING,
                    "trace_file": STRING,
                    "trace_mode": STRING,
                }
            ),
        )
    ),
)

SET_TRACE: Final = Described(
    "settings",
    gives=SHOW_TRACE.gives,
    takes=json_of(
        Schema(
            "TraceSettingsRequest",
            object_of(
                {
                    "trace_level": {
                        **nullable(array_of({"enum": ["TIMESTAMPS", "OFF"]})),
                        "description": "null takes a setting back.",
                    },
                    "trace_rate": _COUNT,
                    "trace_count": _COUNT,
                    "log_frequency": _COUNT,
                    "trace_mode": {"enum": ["triton", None]},
                },
                additionalProperties=False,
            ),
        )
    ),
    optional=True,
)

# ---------------------------------------------------------------------- shared memory

_SIZE: Final = {"type": "integer", "minimum": 0}
_REGION: Final = Schema(
    "Region",
    object_of(
        {"name": STRING, "key": STRING, "offset": _SIZE, "byte_size": _SIZE},
        *("name", "key", "offset", "byte_size"),
    ),
)

REGIONS: Final = Described("shared memory", gives=json_of(array_of(_REGION)))
REGION: Final = Described("shared memory", gives=json_of(array_of(_REGION)), errors=(404,))

REGISTER: Final = Described(
    "shared memory",
    gives=NOTHING,
    takes=json_of(
        Schema(
            "RegistrationRequest",
            object_of(
                {
                    "key": {
                        **STRING,
                        "minLength": 1,
                        "description": "Name of the shared memory object on the server's machine.",
                    },
                    "offset": {**nullable(_SIZE), "description": "Bytes before the region."},
                    "byte_size": {**_SIZE, "description": "Bytes of the region."},
                },
                *("key", "byte_size"),
            ),
        )
    ),
    errors=(409,),
)

REGISTER_CUDA: Final = Described(
    "shared memory",
    gives=NOTHING,
    takes=json_of({"type": "object"}),
    text="Refused: handles of GPU memory are not taken here.",
)

UNREGISTER: Final = Described(
    "shared memory", gives=NOTHING, takes=json_of({}), text="The body is not read.", optional=True
)
