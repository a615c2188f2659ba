"""What the endpoints of Triton's configuration and statistics extensions say of themselves."""

from __future__ import annotations

from typing import Any, Final

from .described import Described, Schema, json_of
from .parts import NAME, STRING, array_of, object_of

__all__ = ["CONFIG", "STATISTICS"]

_COUNT: Final = {"type": "integer", "minimum": 0}
_SPENT: Final = Schema("Spent", object_of({"count": _COUNT, "ns": _COUNT}, "count", "ns"))


def _spent(*names: str) -> dict[str, Any]:
    return object_of(dict.fromkeys(names, _SPENT))


CONFIG: Final = Described(
    "models",
    gives=json_of(
        Schema(
            "ModelConfig",
            object_of(
                {"name": STRING, "platform": STRING, "backend": STRING},
                text="What `config.pbtxt` says of a model, and what it leaves open.",
            ),
        )
    ),
)

STATISTICS: Final = Described(
    "models",
    gives=json_of(
        Schema(
            "ModelStatistics",
            object_of(
                {
                    "model_stats": array_of(
                        object_of(
                            {
                                "name": NAME,
                                "version": STRING,
                                "last_inference": {
                                    **_COUNT,
                                    "description": "Milliseconds since 1970.",
                                },
                                "inference_count": _COUNT,
                                "execution_count": _COUNT,
                                "inference_stats": _spent(
                                    *("success", "fail", "queue"),
                                    *("compute_input", "compute_infer", "compute_output"),
                                    *("cache_hit", "cache_miss"),
                                ),
                                "response_stats": {"type": "object"},
                                "batch_stats": array_of({"type": "object"}),
                                "memory_usage": {"type": "array"},
                            },
                            *("name", "version", "inference_count", "execution_count"),
                        )
                    )
                },
                "model_stats",
            ),
        )
    ),
)
