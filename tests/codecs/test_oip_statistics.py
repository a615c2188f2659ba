"""Bodies of model configurations and statistics."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelserve.codecs.oip_statistics import (
    decode_config,
    decode_statistics,
    encode_config,
    encode_statistics,
)
from modelserve.errors import InvalidInput
from modelserve.messages import BatchStatistics, ModelStatistics, Spent

NUMBERS = st.integers(0, 2**64 - 1)
SPENT = st.builds(Spent, NUMBERS, NUMBERS)
BATCHES = st.builds(BatchStatistics, NUMBERS, SPENT, SPENT, SPENT)
NAMES = st.text(st.characters(exclude_categories=["Cs"]))
STATISTICS = st.builds(
    ModelStatistics,
    NAMES,
    NAMES,
    *[NUMBERS] * 3,
    *[SPENT] * 8,
    st.lists(BATCHES, max_size=3).map(tuple),
)


@given(st.lists(STATISTICS, max_size=3))
def test_statistics_are_read_as_they_were_written(statistics: list[ModelStatistics]) -> None:
    assert decode_statistics(encode_statistics(statistics)) == statistics


def test_statistics_are_written_as_triton_writes_them() -> None:
    found = ModelStatistics(
        "iris",
        "1",
        last_inference=7,
        inference_count=4,
        execution_count=1,
        success=Spent(2, 90),
        batches=(BatchStatistics(4, Spent(1, 5), Spent(1, 6), Spent(1, 7)),),
    )
    none = {"count": 0, "ns": 0}
    times = ("compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    assert json.loads(encode_statistics([found])) == {
        "model_stats": [
            {
                "name": "iris",
                "version": "1",
                "last_inference": 7,
                "inference_count": 4,
                "execution_count": 1,
                "inference_stats": {
                    "success": {"count": 2, "ns": 90},
                    "fail": none,
                    "queue": none,
                    **dict.fromkeys(times, none),
                },
                "response_stats": {},
                "batch_stats": [
                    {
                        "batch_size": 4,
                        "compute_input": {"count": 1, "ns": 5},
                        "compute_infer": {"count": 1, "ns": 6},
                        "compute_output": {"count": 1, "ns": 7},
                    }
                ],
                "memory_usage": [],
            }
        ]
    }


def test_what_another_server_leaves_out_is_nothing() -> None:
    assert decode_statistics(b'{"model_stats":[{"name":"m","version":"1"}]}') == [
        ModelStatistics("m", "1")
    ]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "expected an object, got"),
        ({}, "model_stats: expected a list"),
        ({"model_stats": [1]}, r"model_stats\[0\]: expected an object"),
        ({"model_stats": [{"inference_count": -1}]}, r"\[0\]\.inference_count: expected a number"),
        (
            {"model_stats": [{"inference_count": True}]},
            r"\[0\]\.inference_count: expected a number",
        ),
        ({"model_stats": [{"inference_stats": []}]}, r"\[0\]\.inference_stats: expected an object"),
        (
            {"model_stats": [{"inference_stats": {"queue": {"ns": "1"}}}]},
            r"\[0\]\.inference_stats\.queue\.ns: expected a number",
        ),
        ({"model_stats": [{"batch_stats": {}}]}, r"\[0\]\.batch_stats: expected a list"),
        (
            {"model_stats": [{"batch_stats": [{"batch_size": 1.5}]}]},
            r"batch_stats\[0\]\.batch_size: expected a number",
        ),
    ],
)
def test_what_is_no_statistics_is_refused_with_its_place(document: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        decode_statistics(json.dumps(document).encode())


def test_a_configuration_is_passed_on_whole() -> None:
    config = {"name": "m", "input": [{"dims": [-1, 2**53]}], "new_in_triton": {"x": None}}
    assert decode_config(encode_config(config)) == config


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff"])
def test_what_is_no_configuration_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_config(body)
