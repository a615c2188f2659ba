"""The clients' common core: when a request is tried again, and what an answer means. No I/O."""

from __future__ import annotations

import json
import socket
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from time import monotonic
from typing import Any

import numpy as np
import pytest

from modelserve import errors
from modelserve.client.core import Answer, Core, Lost, Outcome, Retries, Send, Step, Wait
from modelserve.codecs import oip
from modelserve.messages import InferRequest, InferResponse

X = np.arange(4, dtype=np.float32).reshape(1, 4)


def core(url: str = "http://h:8000", **options: Any) -> Core:
    defaults: dict[str, Any] = {
        "timeout": 30.0,
        "retries": Retries(2, base=0.1, random=lambda: 1.0),
        "binary": True,
        "api_key": None,
        "headers": None,
        "max_response_size": 1000,
    }
    return Core(url, **{**defaults, **options})


def request(**options: Any) -> InferRequest:
    return InferRequest("iris", {"x": X}, **options)


def refused(status: int, text: str = "no", **headers: str) -> Answer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, names, oip.encode_error(text))


def answered() -> Answer:
    parts, length = oip.encode_response(InferResponse("iris", "3", {"y": X}))
    assert length is None
    return Answer(200, {}, b"".join(parts))


def play(steps: Any, *outcomes: Outcome) -> tuple[list[Step], Any]:
    """Carry out steps with the outcomes given to their sends; returns the steps and the end."""
    taken: list[Step] = []
    left = list(outcomes)
    outcome: Outcome = None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as done:
            assert not left, "fewer requests were sent than expected"
            return taken, done.value
        except errors.ServeError as error:
            assert not left, "fewer requests were sent than expected"
            return taken, error
        taken.append(step)
        outcome = left.pop(0) if isinstance(step, Send) else None


def pauses(steps: list[Step]) -> list[float]:
    return [step.seconds for step in steps if isinstance(step, Wait)]


def sent(steps: list[Step]) -> list[Send]:
    return [step for step in steps if isinstance(step, Send)]


def document(step: Send) -> Any:
    body = b"".join(step.body)
    length = dict(step.headers).get(oip.HEADER.encode())
    return json.loads(body if length is None else body[: int(length)])


# Retries


@pytest.mark.parametrize(
    "outcome",
    [
        Lost("refused"),
        Lost("reset"),
        refused(503, retry_after="0"),
        refused(429, retry_after="0"),
    ],
)
def test_safe_failure_is_tried_again(outcome: Outcome) -> None:
    steps, end = play(core().infer(request()), outcome, outcome, answered())
    assert len(sent(steps)) == 3
    assert end.version == "3"


@pytest.mark.parametrize(
    "outcome",
    [
        Lost("broken"),
        Lost("timeout"),
        Lost("insecure"),
        Lost("unsendable"),
        Lost("too large"),
        refused(503),
        refused(429),
        *(refused(status) for status in (400, 401, 404, 409, 413, 499, 500, 501, 502, 504)),
    ],
)
def test_other_failure_is_not_tried_again(outcome: Outcome) -> None:
    steps, end = play(core().infer(request()), outcome)
    assert isinstance(end, errors.ServeError)
    assert len(steps) == 1


def test_pauses_grow_and_stay_under_the_cap() -> None:
    retries = Retries(5, base=0.1, cap=0.5, random=lambda: 1.0)
    steps, _ = play(core(retries=retries).infer(request()), *[Lost("refused")] * 5, answered())
    assert pauses(steps) == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_pauses_are_drawn_from_nothing_to_the_bound() -> None:
    numbers = iter([0.0, 0.5])
    retries = Retries(2, base=0.1, random=lambda: next(numbers))
    steps, _ = play(core(retries=retries).infer(request()), *[Lost("refused")] * 2, answered())
    assert pauses(steps) == [0.0, 0.1]


def test_retry_after_comes_before_the_drawn_pause() -> None:
    steps, _ = play(core().infer(request()), refused(503, retry_after="2"), answered())
    assert pauses(steps) == [2.1]


def test_retry_after_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=9), usegmt=True)
    steps, _ = play(core().infer(request()), refused(503, retry_after=date), answered())
    assert 7.0 < pauses(steps)[0] < 9.2


@pytest.mark.parametrize("value", ["9" * 400, "1" + "0" * 30, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_retry_after_beyond_a_year_is_a_year(value: str) -> None:
    _, end = play(core().infer(request(timeout=1.0)), refused(503, retry_after=value))
    assert isinstance(end, errors.Overloaded)
    assert end.retry_after == 365 * 86_400


@pytest.mark.parametrize("value", ["soon", "-1", "1e3", "nan", "", "²"])
def test_unreadable_retry_after_is_none(value: str) -> None:
    steps, end = play(core().infer(request()), refused(503, retry_after=value))
    assert type(end) is errors.UnavailableError
    assert pauses(steps) == []


def test_retry_that_would_miss_the_deadline_is_not_waited_for() -> None:
    outcome = refused(503, "full", retry_after="2")
    _, end = play(core().infer(request(timeout=1.0)), outcome)
    assert isinstance(end, errors.Overloaded)
    assert end.retry_after == 2.0
    assert str(end) == "full"


def test_passed_deadline_sends_nothing() -> None:
    steps, end = play(core().infer(request(deadline=monotonic() - 1)))
    assert isinstance(end, errors.DeadlineExceeded)
    assert steps == []


def test_the_last_error_is_raised_when_the_retries_are_used_up() -> None:
    _, end = play(
        core().infer(request()), Lost("refused"), Lost("refused"), refused(429, retry_after="0")
    )
    assert isinstance(end, errors.RateLimited)


def test_lost_request_of_a_sequence_is_not_sent_twice() -> None:
    steps, end = play(core().infer(request(sequence_id=7)), Lost("reset"))
    assert isinstance(end, errors.UnavailableError)
    assert len(steps) == 1


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_lost_control_call_is_not_sent_twice(verb: str) -> None:
    steps, end = play(getattr(core(), verb)("iris", "3", 5.0), Lost("reset"))
    assert isinstance(end, errors.UnavailableError)
    assert len(steps) == 1


def test_refused_control_call_is_tried_again() -> None:
    steps, end = play(core().load("iris", "3", 5.0), Lost("refused"), Answer(200, {}, b""))
    assert end == "3"
    assert len(sent(steps)) == 2


def test_budget_stops_retries_in_an_outage() -> None:
    one = core(retries=Retries(2, base=0.0, burst=10, ratio=0.1))
    attempts = 0
    for _ in range(200):
        steps = one.infer(request())
        outcome: Outcome = None
        try:
            while True:
                step = steps.send(outcome)
                attempts += isinstance(step, Send)
                outcome = Lost("refused") if isinstance(step, Send) else None
        except errors.UnavailableError:
            continue
    # 10 of the burst and a tenth of 200 requests; the first ones find the bucket full.
    assert 200 + 25 <= attempts <= 200 + 30


def test_budget_is_full_again_after_successes() -> None:
    retries = Retries(2, burst=2, ratio=0.5)
    assert [retries.take(), retries.take(), retries.take()] == [True, True, False]
    for _ in range(100):
        retries.give()
    assert [retries.take(), retries.take(), retries.take()] == [True, True, False]


@pytest.mark.parametrize("options", [{"count": -1}, {"base": -1}, {"ratio": 1.5}, {"burst": -1}])
def test_retries_refuse_numbers_out_of_range(options: Any) -> None:
    with pytest.raises(ValueError, match="retries"):
        Retries(**options)


# What goes out


def test_time_left_is_sent_in_microseconds_and_shrinks_between_tries() -> None:
    retries = Retries(1, base=0.0)
    steps, _ = play(core(retries=retries).infer(request(timeout=5.0)), Lost("refused"), answered())
    first, second = (document(step)["parameters"]["timeout"] for step in sent(steps))
    assert 4_000_000 < second < first <= 5_000_000


def test_clients_timeout_holds_where_the_request_has_none() -> None:
    steps, _ = play(core(timeout=9.0).infer(request()), answered())
    assert 8_000_000 < document(sent(steps)[0])["parameters"]["timeout"] <= 9_000_000


def test_no_timeout_sends_none() -> None:
    steps, _ = play(core(timeout=None).infer(request()), answered())
    assert "timeout" not in document(sent(steps)[0])["parameters"]
    assert sent(steps)[0].deadline is None


def test_priority_and_sequence_are_sent() -> None:
    steps, _ = play(core().infer(request(priority=3, sequence_id="a")), answered())
    parameters = document(sent(steps)[0])["parameters"]
    assert (parameters["priority"], parameters["sequence_id"]) == (3, "a")


@pytest.mark.parametrize(
    ("url", "model", "version", "target"),
    [
        ("http://h", "iris", "", b"/v2/models/iris/infer"),
        ("http://h/", "iris", "3", b"/v2/models/iris/versions/3/infer"),
        ("http://h/ml", "iris", "", b"/ml/v2/models/iris/infer"),
        ("http://h/a%20b/", "a/b c", "ü", b"/a%20b/v2/models/a%2Fb%20c/versions/%C3%BC/infer"),
        ("unix:/run/m.sock", "iris", "", b"/v2/models/iris/infer"),
    ],
)
def test_target(url: str, model: str, version: str, target: bytes) -> None:
    steps, _ = play(core(url).infer(InferRequest(model, {"x": X}, version=version)), answered())
    assert sent(steps)[0].target == target


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://h", b"h"),
        ("http://h:80", b"h"),
        ("http://h:8000", b"h:8000"),
        ("https://h:443/ml", b"h"),
        ("http://[::1]:8000", b"[::1]:8000"),
        ("unix:/run/m.sock", b"localhost"),
    ],
)
def test_host_header(url: str, host: bytes) -> None:
    assert dict(core(url).headers)[b"host"] == host


@pytest.mark.parametrize(
    "url",
    [
        "h:8000",
        "ftp://h",
        "http://",
        "http://h?x=1",
        "http://user:pass@h",
        "unix:",
        "unix://host/x",
        "http://h:99999",
    ],
)
def test_wrong_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"url: expected|[Pp]ort") as caught:
        core(url)
    assert "pass@" not in str(caught.value)


def test_key_and_headers_go_with_every_request() -> None:
    one = core(api_key="secret", headers={"X-Team": "a"})
    steps, _ = play(one.index(), Answer(200, {}, b"[]"))
    headers = dict(sent(steps)[0].headers)
    assert headers[b"authorization"] == b"Bearer secret"
    assert headers[b"X-Team"] == b"a"


def test_requests_own_headers_go_along_but_not_the_reserved_ones() -> None:
    one = request(
        headers={"x-user": "u", "Authorization": "Bearer theirs", "host": "evil"},
        trace="00-11-22-01",
        idempotency_key="k",
    )
    steps, _ = play(core(api_key="ours").infer(one), answered())
    headers = sent(steps)[0].headers
    assert (b"x-user", b"u") in headers
    assert (b"traceparent", b"00-11-22-01") in headers
    assert (b"idempotency-key", b"k") in headers
    assert [v for n, v in headers if n.lower() == b"authorization"] == [b"Bearer ours"]
    assert [v for n, v in headers if n.lower() == b"host"] == [b"h:8000"]


# What answers mean


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.InvalidInput),
        (401, errors.Unauthenticated),
        (403, errors.PermissionDenied),
        (404, errors.ModelNotFound),
        (405, errors.MethodNotAllowed),
        (409, errors.Conflict),
        (413, errors.PayloadTooLarge),
        (418, errors.ClientError),
        (422, errors.InvalidInput),
        (429, errors.RateLimited),
        (499, errors.Cancelled),
        (500, errors.BackendError),
        (501, errors.Unsupported),
        (502, errors.UnavailableError),
        (503, errors.UnavailableError),
        (504, errors.DeadlineExceeded),
        (307, errors.ServeError),
        (599, errors.ServeError),
    ],
)
def test_status_becomes_its_error_with_the_servers_text(
    status: int, kind: type[errors.ServeError]
) -> None:
    _, end = play(core().infer(request()), refused(status, "what it said"))
    assert type(end) is kind
    assert str(end) == "what it said"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error":7}', b'{"error":""}', b"\xff"])
def test_error_without_a_text_names_the_status(body: bytes) -> None:
    _, end = play(core().infer(request()), Answer(500, {}, body))
    assert str(end) == "the server answered with HTTP status 500"


@pytest.mark.parametrize(
    "body", [b"", b"no", b"[]", b"{}", b'{"outputs":3}', b'{"outputs":[{"name":"y"}]}']
)
def test_garbage_for_an_answer_is_the_servers_fault(body: bytes) -> None:
    _, end = play(core().infer(request()), Answer(200, {}, body))
    assert type(end) is errors.ServeError
    assert str(end).startswith("the server's answer is not valid: ")


@pytest.mark.parametrize("verb", ["index", "describe"])
def test_garbage_for_a_catalog_is_the_servers_fault(verb: str) -> None:
    args = ("iris",) if verb == "describe" else ()
    _, end = play(getattr(core(), verb)(*args), Answer(200, {}, b'{"inputs":3}'))
    assert type(end) is errors.ServeError


def test_wrong_length_header_is_the_servers_fault() -> None:
    _, end = play(core().infer(request()), Answer(200, {oip.HEADER: "-1"}, b"{}"))
    assert type(end) is errors.ServeError


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('10.0.0.1', 9)"), "connection refused"),
        (socket.gaierror(-2, "host.internal"), "its name cannot be resolved"),
        (FileNotFoundError(2, "No such file", "/run/m.sock"), "there is no such socket"),
        (PermissionError(13, "Permission denied", "/run/m.sock"), "permission denied"),
    ],
)
def test_why_a_server_is_not_reached_is_told_without_its_address(
    cause: OSError, reason: str
) -> None:
    _, end = play(core(retries=Retries(0)).infer(request()), Lost("refused", cause))
    assert str(end) == f"the server cannot be reached: {reason}"


def test_only_the_first_of_a_chain_of_causes_is_shown() -> None:
    first = ConnectionRefusedError("refused")
    several = ExceptionGroup("several", [first, ConnectionRefusedError("also")])
    outer, outermost = OSError("all failed"), RuntimeError("connect")
    outer.__cause__, outermost.__cause__ = several, outer
    first.__context__ = KeyError("what was done meanwhile")
    _, end = play(core(retries=Retries(0)).infer(request()), Lost("refused", outermost))
    shown = "".join(traceback.format_exception(end))
    assert "ConnectionRefusedError: refused" in shown
    assert "all failed" not in shown
    assert "KeyError" not in shown


def test_answer_404_of_another_server_points_to_the_prefix() -> None:
    _, end = play(core().infer(request()), Answer(404, {}, b'{"detail":"Not Found"}'))
    assert isinstance(end, errors.ModelNotFound)
    assert "check the prefix in the client's URL" in str(end)


def test_error_text_does_not_name_the_server_but_its_note_does() -> None:
    one = core("unix:/run/secret.sock", retries=0)
    _, end = play(one.infer(request()), Lost("refused", OSError("/run/secret.sock")))
    assert str(end) == "the server cannot be reached"
    assert end.__notes__ == ["server: /run/secret.sock"]
    assert isinstance(end.__cause__, OSError)


@pytest.mark.parametrize(
    ("outcome", "ready"),
    [
        (Answer(200, {}, b""), True),
        (Answer(200, {}, b'{"ready":true}'), True),
        (Answer(200, {}, b'{"name":"iris","ready":false}'), False),
        (refused(400), False),
        (refused(503, retry_after="1"), False),
        (Lost("timeout"), False),
    ],
)
def test_readiness(outcome: Outcome, ready: bool) -> None:
    assert play(core().ready("iris"), outcome)[1] is ready


def test_readiness_of_an_unknown_model_is_an_error() -> None:
    assert isinstance(play(core().ready("nope"), refused(404))[1], errors.ModelNotFound)


def test_load_without_a_version_asks_which_it_was() -> None:
    metadata = b'{"name":"iris","versions":["3","4"],"inputs":[],"outputs":[]}'
    steps, end = play(core().load("iris", "", 5.0), Answer(200, {}, b""), Answer(200, {}, metadata))
    assert end == "4"
    assert [step.method for step in sent(steps)] == ["POST", "GET"]


# Lists


METADATA = Answer(
    200,
    {},
    b'{"name":"iris","versions":["3"],"platform":"",'
    b'"inputs":[{"name":"x","datatype":"FP32","shape":[-1,2]}],"outputs":[]}',
)


def test_lists_take_the_models_datatype() -> None:
    steps, _ = play(core(binary=False).infer(lists()), METADATA, answered())
    tensor = document(sent(steps)[1])["inputs"][0]
    assert (tensor["datatype"], tensor["shape"]) == ("FP32", [2, 2])


def test_metadata_is_fetched_once() -> None:
    one = core()
    play(one.infer(lists()), METADATA, answered())
    steps, _ = play(one.infer(lists()), answered())
    assert len(sent(steps)) == 1


def test_array_without_a_name_has_the_metadata_fetched_once() -> None:
    client = core()
    steps, _ = play(client.predict(InferRequest("iris", {}), X), METADATA, answered())
    assert [step.method for step in sent(steps)] == ["GET", "POST"]
    assert document(sent(steps)[1])["inputs"][0]["name"] == "x"
    steps, _ = play(client.predict(InferRequest("iris", {}), X), answered())
    assert [step.method for step in sent(steps)] == ["POST"]


def test_metadata_and_answer_share_one_deadline() -> None:
    steps, _ = play(core().predict(InferRequest("iris", {}), X), METADATA, answered())
    first, second = sent(steps)
    assert first.deadline == second.deadline


def test_arrays_need_no_metadata() -> None:
    assert len(sent(play(core().infer(request()), answered())[0])) == 1


@pytest.mark.parametrize("status", [400, 404])
def test_refused_input_has_the_metadata_fetched_anew(status: int) -> None:
    one = core()
    play(one.infer(lists()), METADATA, refused(status))
    steps, _ = play(one.infer(lists()), METADATA, answered())
    assert [step.method for step in sent(steps)] == ["GET", "POST"]


def test_load_has_the_metadata_fetched_anew() -> None:
    one = core()
    play(one.infer(lists()), METADATA, answered())
    play(one.load("iris", "4", 5.0), Answer(200, {}, b""))
    assert len(sent(play(one.infer(lists()), METADATA, answered())[0])) == 2


def test_list_for_an_unknown_input_names_the_known_ones() -> None:
    _, end = play(core().infer(InferRequest("iris", {"z": [1.0]})), METADATA)
    assert str(end) == 'inputs[0] "z": unknown input; the model takes x'


def test_list_of_the_wrong_kind_names_its_place() -> None:
    _, end = play(core().infer(InferRequest("iris", {"x": ["a"]})), METADATA)
    assert isinstance(end, errors.InvalidInput)
    assert str(end).startswith('inputs[0] "x": ')


def lists() -> InferRequest:
    return InferRequest("iris", {"x": [[1, 2], [3, 4]]})


@pytest.mark.parametrize("options", [{"timeout": 0}, {"headers": {"a": "\u20ac"}}])
def test_wrong_option_is_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=r"timeout|headers"):
        core(**options)
