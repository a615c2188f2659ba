"""Trace settings, and traces: what Triton's tools read, of what was measured."""

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from modelserve.errors import InvalidInput, Unsupported
from modelserve.messages import BatchRecord, Exchange
from modelserve.observe.recorder import Recorder
from modelserve.observe.tracing import TraceSettings, trace_of

INITIAL = {
    "trace_file": "",
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_mode": "triton",
}
ON = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1"}


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    logger = logging.getLogger("modelserve.trace")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def settings(recorder: Recorder) -> TraceSettings:
    return TraceSettings(recorder)


def exchange(model: str = "m", version: str = "1", id: str = "") -> Exchange:
    made = Exchange("http", model, id=id)
    made.version = version
    made.enqueued = made.started + 0.001
    made.batch = BatchRecord(8, 2, "idle", made.started + 0.002, 0.004)
    return made


def traces(caplog: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in caplog.messages]


def test_off_at_first_and_then_nothing_looks_at_requests(
    settings: TraceSettings, recorder: Recorder, caplog: Any
) -> None:
    assert settings.current() == INITIAL
    assert not recorder.observed
    recorder.record(exchange())
    recorder.flush()
    settings.update(ON)
    assert recorder.observed
    settings.update({"trace_level": ["OFF"]})
    assert not recorder.observed
    assert caplog.messages == []


def test_a_trace_has_the_times_that_were_measured() -> None:
    made = exchange(id="7")
    made.started, made.enqueued, made.total = 10.0, 10.001, 0.008
    made.batch = BatchRecord(8, 2, "idle", 10.002, 0.004)
    assert trace_of(made) == {
        "model_name": "m",
        "model_version": 1,
        "request_id": "7",
        "code": "OK",
        "timestamps": [
            {"name": "REQUEST_START", "ns": 10_000_000_000},
            {"name": "QUEUE_START", "ns": 10_001_000_000},
            {"name": "COMPUTE_START", "ns": 10_002_000_000},
            {"name": "COMPUTE_INPUT_END", "ns": 10_002_000_000},
            {"name": "COMPUTE_OUTPUT_START", "ns": 10_006_000_000},
            {"name": "COMPUTE_END", "ns": 10_006_000_000},
            {"name": "REQUEST_END", "ns": 10_008_000_000},
        ],
    }


def test_a_request_that_never_ran_has_no_times_of_a_run() -> None:
    made = exchange()
    made.code = "DEADLINE_EXCEEDED"
    made.batch = BatchRecord(0, 0, "", made.started + 0.5, 0.0)
    names = [point["name"] for point in trace_of(made)["timestamps"]]
    assert names == ["REQUEST_START", "QUEUE_START", "REQUEST_END"]
    made.batch = None
    names = [point["name"] for point in trace_of(made)["timestamps"]]
    assert names == ["REQUEST_START", "REQUEST_END"]


def test_every_so_many_requests_are_traced(
    settings: TraceSettings, recorder: Recorder, caplog: Any
) -> None:
    settings.update({**ON, "trace_rate": "3"})
    for number in range(10):
        recorder.record(exchange(id=str(number)))
    assert [trace["request_id"] for trace in traces(caplog)] == ["2", "5", "8"]
    assert [trace["id"] for trace in traces(caplog)] == [1, 2, 3]
    assert {record.name for record in caplog.records} == {"modelserve.trace"}


def test_the_count_is_used_up_and_shown(
    settings: TraceSettings, recorder: Recorder, caplog: Any
) -> None:
    settings.update({**ON, "trace_count": 2})
    assert settings.current()["trace_count"] == "2"
    recorder.record(exchange())
    assert settings.current()["trace_count"] == "1"
    for _ in range(5):
        recorder.record(exchange())
    assert len(caplog.messages) == 2
    assert settings.current()["trace_count"] == "0"
    settings.update({"trace_count": "1"})
    recorder.record(exchange())
    recorder.record(exchange())
    assert len(caplog.messages) == 3


def test_what_found_no_model_is_not_counted(
    settings: TraceSettings, recorder: Recorder, caplog: Any
) -> None:
    settings.update({**ON, "trace_count": "1"})
    recorder.record(exchange(version=""))
    lost = exchange("made up")
    lost.code = "NOT_FOUND"
    recorder.record(lost)
    assert caplog.messages == []
    assert settings.current()["trace_count"] == "1"


def test_a_model_has_settings_of_its_own_and_the_rest_of_all(
    settings: TraceSettings, recorder: Recorder, caplog: Any
) -> None:
    assert settings.update({"trace_level": ["TIMESTAMPS"]}, "m")["trace_rate"] == "1000"
    assert settings.current() == INITIAL
    settings.update({"trace_rate": "2"})
    assert settings.current("m") == {**INITIAL, "trace_level": ["TIMESTAMPS"], "trace_rate": "2"}
    assert settings.current("other")["trace_level"] == ["OFF"]
    for number in range(4):
        recorder.record(exchange(id=str(number)))
        recorder.record(exchange("other"))
    assert [(t["model_name"], t["request_id"]) for t in traces(caplog)] == [("m", "1"), ("m", "3")]


def test_a_model_may_be_left_out(settings: TraceSettings, recorder: Recorder, caplog: Any) -> None:
    settings.update(ON)
    settings.update({"trace_level": ["OFF"]}, "quiet")
    recorder.record(exchange("quiet"))
    recorder.record(exchange("m"))
    assert [trace["model_name"] for trace in traces(caplog)] == ["m"]


def test_counts_are_whose_they_were_set_for(settings: TraceSettings, recorder: Recorder) -> None:
    settings.update({**ON, "trace_count": "10"})
    settings.update({"trace_count": "5"}, "own")
    settings.update({"trace_rate": "1"}, "shared")
    for model in ("own", "own", "shared", "m"):
        recorder.record(exchange(model))
    assert settings.current("own")["trace_count"] == "3"
    assert settings.current()["trace_count"] == settings.current("shared")["trace_count"] == "8"


def test_none_takes_settings_back_as_triton_does(settings: TraceSettings) -> None:
    settings.update({"trace_rate": "12", "log_frequency": "34"}, "simple")
    settings.update({"trace_rate": "56", "trace_count": "78", "trace_level": ["OFF"]})
    cleared = settings.update({"trace_rate": None, "trace_count": None})
    assert cleared == INITIAL
    assert settings.current("simple") == {**INITIAL, "trace_rate": "12", "log_frequency": "34"}
    now = settings.update({"trace_rate": None, "trace_level": None}, "simple")
    assert now == {**INITIAL, "log_frequency": "34"}
    assert settings.update({"log_frequency": None}, "simple") == INITIAL
    assert settings.current() == INITIAL


def test_traces_are_logged_together_where_so_wished(
    settings: TraceSettings, recorder: Recorder, caplog: Any
) -> None:
    settings.update({**ON, "log_frequency": "3"})
    for expected in (0, 0, 3, 3):
        recorder.record(exchange())
        assert len(caplog.messages) == expected
    settings.flush()
    assert len(caplog.messages) == 4
    recorder.record(exchange())
    settings.update({"trace_level": ["OFF"]})
    assert len(caplog.messages) == 5
    settings.update({**ON, "trace_count": "1"})
    recorder.record(exchange())
    assert len(caplog.messages) == 6  # there will be no other one to wait for


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"trace_file": "/tmp/x"}, "trace_file: it cannot be changed here"),
        ({"trace_file": None}, "trace_file: it cannot be changed here"),
        ({"trace_level": []}, "trace_level: expected a list"),
        ({"trace_level": {}}, "trace_level: expected a list"),
        ({"trace_level": 1}, "trace_level: expected a list"),
        ({"trace_level": ["ON"]}, "trace_level[0]: expected OFF or TIMESTAMPS, got 'ON'"),
        ({"trace_level": ["TIMESTAMPS", 1]}, "trace_level[1]: expected OFF or TIMESTAMPS, got int"),
        ({"trace_level": ["OFF", "TIMESTAMPS"]}, "trace_level: expected OFF alone"),
        ({"trace_rate": "0"}, "trace_rate: expected 1 to"),
        ({"trace_rate": "-1"}, "trace_rate: expected 1 to"),
        ({"trace_rate": "1.5"}, "trace_rate: expected a whole number, got '1.5'"),
        ({"trace_rate": ""}, "trace_rate: expected a whole number"),
        ({"trace_rate": "9" * 5000}, "trace_rate: expected a whole number"),
        ({"trace_rate": "²"}, "trace_rate: expected a whole number"),
        ({"trace_rate": 1.0}, "trace_rate: expected a whole number as text, got float"),
        ({"trace_rate": True}, "trace_rate: expected a whole number as text, got bool"),
        ({"trace_rate": ["1"]}, "trace_rate: expected a whole number as text, got list"),
        ({"trace_count": "-2"}, "trace_count: expected -1 to"),
        ({"trace_count": str(2**31)}, "trace_count: expected -1 to"),
        ({"log_frequency": "-1"}, "log_frequency: expected 0 to"),
        ({"log_frequency": "1001"}, "log_frequency: expected 0 to 1000"),
        ({"trace_mode": 1}, "trace_mode: expected a string"),
        ({"traces": "1"}, "unknown setting 'traces': there are trace_file"),
    ],
    ids=range(23),
)
def test_unfit_setting_is_refused_and_changes_none(
    settings: TraceSettings, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        settings.update({"trace_count": "5", **given})
    assert str(caught.value).startswith(said)
    assert len(str(caught.value)) < 300
    assert settings.current() == INITIAL


def test_what_is_not_offered_is_refused_with_a_sentence(settings: TraceSettings) -> None:
    with pytest.raises(Unsupported, match="tensors are not traced here"):
        settings.update({"trace_level": ["TIMESTAMPS", "TENSORS"]})
    with pytest.raises(Unsupported, match='trace_mode: expected "triton"'):
        settings.update({"trace_mode": "opentelemetry"})
    assert settings.update({"trace_mode": "triton"}) == INITIAL


def test_settings_of_models_are_bounded(settings: TraceSettings) -> None:
    for number in range(1024):
        settings.update({"trace_rate": "1"}, f"m{number}")
    with pytest.raises(InvalidInput, match="at most 1024 models"):
        settings.update({"trace_rate": "1"}, "one more")
    settings.update({"trace_rate": "2"}, "m7")
    settings.update({"trace_rate": None}, "m8")
    settings.update({"trace_rate": "1"}, "one more")


def test_settings_that_are_fixed_say_why(recorder: Recorder) -> None:
    fixed = TraceSettings(recorder, fixed="there are several processes")
    assert fixed.update({}) == INITIAL
    with pytest.raises(Unsupported, match="there are several processes"):
        fixed.update(ON)


def test_requests_and_changes_at_once(
    settings: TraceSettings, recorder: Recorder, caplog: Any
) -> None:
    settings.update({**ON, "trace_count": "500"})
    stop = threading.Event()

    def send() -> None:
        for _ in range(400):
            recorder.record(exchange())

    def change() -> None:
        while not stop.is_set():
            settings.update({"trace_rate": "1"})
            settings.update({"trace_level": ["OFF"]}, "other")
            settings.update({"trace_level": None}, "other")

    senders = [threading.Thread(target=send) for _ in range(3)]
    changer = threading.Thread(target=change)
    for thread in (*senders, changer):
        thread.start()
    for thread in senders:
        thread.join()
    stop.set()
    changer.join()
    recorder.flush()
    assert len(caplog.messages) == 500
    assert sorted(trace["id"] for trace in traces(caplog)) == list(range(1, 501))
    assert settings.current()["trace_count"] == "0"
