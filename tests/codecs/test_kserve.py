"""KServe's first protocol: lists, readiness, CloudEvents."""

import json
from typing import Any

import numpy as np
import pytest

from modelserve.codecs import kserve
from modelserve.errors import InvalidInput

EVENT = {
    "specversion": "1.0",
    "id": "36077800",
    "source": "https://example.com/event-producer",
    "type": "com.example.sampletype1",
    "time": "2021-01-28T21:04:43.144141+00:00",
}
HEADERS = {f"ce-{name}": value for name, value in EVENT.items()}


def test_plain_answers() -> None:
    assert json.loads(kserve.encode_alive()) == {"status": "alive"}
    assert json.loads(kserve.encode_models(["a", "b"])) == {"models": ["a", "b"]}
    assert json.loads(kserve.encode_ready("a", True)) == {"name": "a", "ready": True}


@pytest.mark.parametrize(
    ("content_type", "structured"),
    [
        ("application/cloudevents+json", True),
        ("Application/CloudEvents+JSON; charset=utf-8", True),
        ("application/json", False),
        ("application/cloudevents-batch+json", False),
        ("", False),
    ],
)
def test_structured_event_is_told_by_its_content_type(content_type: str, structured: bool) -> None:
    assert kserve.is_structured_event(content_type) is structured


@pytest.mark.parametrize(
    "data",
    [
        {"data": {"instances": [1]}},
        {"data_base64": "eyJpbnN0YW5jZXMiOiBbMV19"},
        {"data": {"instances": [1]}, "extension": 5},
    ],
)
def test_data_of_an_event_is_the_request(data: Any) -> None:
    assert kserve.decode_event({**EVENT, **data}) == {"instances": [1]}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"specversion": None}, 'specversion: expected "1.0", got null'),
        ({"specversion": "2.0"}, 'specversion: expected "1.0", got "2.0"'),
        ({"id": ""}, 'id: expected a text, got ""'),
        ({"id": 5}, "id: expected a text, got 5"),
        ({"source": None}, "source: expected a text, got null"),
        ({"type": []}, "type: expected a text, got a list"),
        ({"data": [1]}, "data: expected an object, got a list"),
        ({"data": None}, "data: expected an object, got null"),
    ],
)
def test_what_is_no_event_is_refused(change: Any, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        kserve.decode_event({**EVENT, "data": {}, **change})
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({}, "expected data, or data_base64, in the event"),
        ({"data_base64": 5}, "expected data, or data_base64, in the event"),
        ({"data_base64": "%"}, "data_base64: expected base64: "),
        ({"data_base64": "é"}, "data_base64: expected base64: "),
        ({"data_base64": "W10="}, "expected a JSON object, got a list"),
    ],
)
def test_event_without_data_is_refused(data: Any, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        kserve.decode_event({**EVENT, **data})
    assert str(caught.value).startswith(text)


def test_headers_of_a_binary_event_are_checked() -> None:
    kserve.check_event_headers(HEADERS.get)
    for name, text in [
        ("ce-specversion", 'header ce-specversion: expected "1.0", got null'),
        ("ce-id", "header ce-id: expected a text, got null"),
        ("ce-source", "header ce-source: expected a text, got null"),
        ("ce-type", "header ce-type: expected a text, got null"),
    ]:
        with pytest.raises(InvalidInput) as caught:
            kserve.check_event_headers({**HEADERS, name: None}.get)
        assert str(caught.value) == text


def test_answer_is_an_event_of_its_own() -> None:
    attributes = kserve.event_attributes("my model/é\n", "7", "2021-01-28T21:04:43+00:00")
    assert attributes["source"] == "io.kserve.inference.my%20model%2F%C3%A9%0A"
    event = json.loads(kserve.encode_event(attributes, b'{"predictions":[1]}'))
    assert event == {
        **attributes,
        "datacontenttype": "application/json",
        "data": {"predictions": [1]},
    }
    assert kserve.decode_event(event) == {"predictions": [1]}


def test_explanations_are_written_as_predictions_are() -> None:
    outputs = {"y": np.array([0.5, np.nan], np.float32)}
    assert kserve.encode_explanations(outputs, rows=True) == b'{"explanations":[0.5,NaN]}'
