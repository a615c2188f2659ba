"""Triton's model configuration and statistics over REST. Bodies only, as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from modelserve.errors import InvalidInput
from modelserve.messages import BatchStatistics, ModelStatistics, Spent
from modelserve.protocols import ModelConfig

from ._json import Buffer, dumps, loads
from ._tensors import short

__all__ = ["decode_config", "decode_statistics", "encode_config", "encode_statistics"]

_OF_REQUESTS: Final = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)
_OF_BATCHES: Final = ("compute_input", "compute_infer", "compute_output")
_MOST: Final = 2**64 - 1


def encode_config(config: ModelConfig) -> bytes:
    """Return the body that tells a model's configuration."""
    return dumps(dict(config))


def decode_config(body: Buffer) -> ModelConfig:
    """Return the configuration in a body, ours or another server's.

    Raises:
        InvalidInput: The body is not a JSON object.
    """
    return _object(_parsed(body), "")


def encode_statistics(statistics: Iterable[ModelStatistics]) -> bytes:
    """Return the body that tells what versions have done.

    Example:
        >>> encode_statistics([])
        b'{"model_stats":[]}'
    """
    return dumps({"model_stats": [_version(one) for one in statistics]})


def _version(found: ModelStatistics) -> dict[str, Any]:
    return {
        "name": found.model,
        "version": found.version,
        "last_inference": found.last_inference,
        "inference_count": found.inference_count,
        "execution_count": found.execution_count,
        "inference_stats": {name: _spent(getattr(found, name)) for name in _OF_REQUESTS},
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": batch.batch_size,
                **{name: _spent(getattr(batch, name)) for name in _OF_BATCHES},
            }
            for batch in found.batches
        ],
        "memory_usage": [],
    }


def _spent(spent: Spent) -> dict[str, int]:
    return {"count": spent.count, "ns": spent.ns}


def decode_statistics(body: Buffer) -> list[ModelStatistics]:
    """Return the statistics in a body, ours or another server's; what is left out is 0.

    Raises:
        InvalidInput: The body does not tell statistics; the text says where.
    """
    found = _object(_parsed(body), "").get("model_stats")
    if type(found) is not list:
        raise InvalidInput(f"expected a list, got {short(found)}", path="model_stats")
    return [_read_version(one, f"model_stats[{index}]") for index, one in enumerate(found)]


def _read_version(document: Any, place: str) -> ModelStatistics:
    document = _object(document, place)
    stats = _object(document.get("inference_stats", {}), f"{place}.inference_stats")
    batches = document.get("batch_stats", [])
    if type(batches) is not list:
        raise InvalidInput(f"expected a list, got {short(batches)}", path=f"{place}.batch_stats")
    where = f"{place}.inference_stats"
    spent: dict[str, Any] = {name: _read_spent(stats, name, where) for name in _OF_REQUESTS}
    return ModelStatistics(
        str(document.get("name", "")),
        str(document.get("version", "")),
        last_inference=_natural(document, "last_inference", place),
        inference_count=_natural(document, "inference_count", place),
        execution_count=_natural(document, "execution_count", place),
        batches=tuple(
            _read_batch(batch, f"{place}.batch_stats[{index}]")
            for index, batch in enumerate(batches)
        ),
        **spent,
    )


def _read_batch(document: Any, place: str) -> BatchStatistics:
    document = _object(document, place)
    return BatchStatistics(
        _natural(document, "batch_size", place),
        **{name: _read_spent(document, name, place) for name in _OF_BATCHES},
    )


def _read_spent(document: Mapping[str, Any], name: str, place: str) -> Spent:
    where = f"{place}.{name}"
    found = _object(document.get(name, {}), where)
    return Spent(_natural(found, "count", where), _natural(found, "ns", where))


def _natural(document: Mapping[str, Any], name: str, place: str) -> int:
    value = document.get(name, 0)
    if type(value) is not int or not 0 <= value <= _MOST:
        raise InvalidInput(
            f"expected a number from 0 on, got {short(value)}", path=f"{place}.{name}"
        )
    return value


def _parsed(body: Buffer) -> Any:
    try:
        return loads(bytes(body))
    except ValueError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None


def _object(found: Any, place: str) -> dict[str, Any]:
    if type(found) is not dict:
        raise InvalidInput(f"expected an object, got {short(found)}", path=place)
    return found
