"""Metrics: exact counts, bounded labels, and an exposition that parses back."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from threading import Barrier, Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from modelserve.messages import BatchRecord, Exchange
from modelserve.observe.metrics import DURATION_BUCKETS, Metrics
from modelserve.observe.recorder import Recorder

IRIS = {"model": "iris", "version": "1"}


def exchange(
    model: str = "iris",
    version: str = "1",
    *,
    protocol: str = "http",
    code: str = "OK",
    rows: int = 1,
    batch: tuple[int, int] = (1, 1),
    reason: str = "idle",
    total: float = 0.002,
    queue: float = 0.0004,
    run: float = 0.0007,
) -> Exchange:
    """Make a closed exchange; `batch` is its batch's requests and rows."""
    made = Exchange(protocol, model)
    made.version = version
    made.code = code
    made.rows = rows
    made.batch_requests, made.batch_rows = batch
    made.reason = reason
    made.total, made.queue, made.run = total, queue, run
    return made


def rejected(model: str, code: str, *, version: str = "") -> Exchange:
    """Make an exchange that reached no batcher."""
    return exchange(model, version, code=code, rows=0, batch=(0, 0), reason="")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(metrics)
    return registry.get_sample_value(name, labels)


def samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """All samples of a name: values by label values, in the order of the label names."""
    text = metrics.render()[0].decode()
    return {
        tuple(label for _, label in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_requests_count_by_model_version_protocol_and_code() -> None:
    metrics = Metrics()
    metrics.observe([exchange(), exchange(), exchange(protocol="grpc")])
    metrics.observe([exchange(code="DEADLINE_EXCEEDED"), exchange(version="2")])
    assert samples(metrics, "modelserve_requests_total") == {
        ("OK", "iris", "http", "1"): 2,
        ("OK", "iris", "grpc", "1"): 1,
        ("DEADLINE_EXCEEDED", "iris", "http", "1"): 1,
        ("OK", "iris", "http", "2"): 1,
    }


@pytest.mark.parametrize(("name", "expected"), [("request", 3.0), ("queue", 0.75), ("run", 1.5)])
def test_duration_sums_are_the_sums(name: str, expected: float) -> None:
    metrics = Metrics()
    metrics.observe([exchange(total=1.0, queue=0.25, run=0.5) for _ in range(3)])
    assert value(metrics, f"modelserve_{name}_duration_seconds_sum", **IRIS) == expected
    assert value(metrics, f"modelserve_{name}_duration_seconds_count", **IRIS) == 3


def test_a_bucket_holds_what_is_at_most_its_bound() -> None:
    metrics = Metrics(buckets=(0.1, 1.0))
    metrics.observe([exchange(total=t) for t in (0.05, 0.1, 0.100001, 1.0, 1.5)])
    name = "modelserve_request_duration_seconds_bucket"
    assert [value(metrics, name, le=le, **IRIS) for le in ("0.1", "1.0", "+Inf")] == [2, 4, 5]


def test_request_that_expired_in_the_queue_counts_no_run() -> None:
    metrics = Metrics()
    metrics.observe([exchange(code="DEADLINE_EXCEEDED", rows=2, batch=(0, 0), reason="")])
    assert value(metrics, "modelserve_queue_duration_seconds_count", **IRIS) == 1
    assert value(metrics, "modelserve_run_duration_seconds_count", **IRIS) == 0
    assert samples(metrics, "modelserve_batches_total") == {}


def test_a_batch_counts_once_whatever_its_members() -> None:
    metrics = Metrics()
    members = [exchange(batch=(3, 7), reason="full") for _ in range(3)]
    metrics.observe([*members, exchange(batch=(1, 4), reason="idle")])
    assert value(metrics, "modelserve_batch_size_count", **IRIS) == 2
    assert value(metrics, "modelserve_batch_size_sum", **IRIS) == 11
    assert value(metrics, "modelserve_batch_size_bucket", le="4.0", **IRIS) == 1
    assert value(metrics, "modelserve_batch_size_bucket", le="8.0", **IRIS) == 2
    assert samples(metrics, "modelserve_batches_total") == {
        ("iris", "full", "1"): 1,
        ("iris", "idle", "1"): 1,
    }


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 40), min_size=1, max_size=9), st.sampled_from(["idle", "full"])
        ),
        max_size=30,
    ),
    st.randoms(use_true_random=False),
)
def test_batches_are_exact_in_any_order_and_folding(
    batches: list[tuple[list[int], str]], random: object
) -> None:
    exchanges = [
        exchange(rows=rows, batch=(len(members), sum(members)), reason=reason)
        for members, reason in batches
        for rows in members
    ]
    random.shuffle(exchanges)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    metrics = Metrics()
    metrics.declare("iris", "1")
    for start in range(0, len(exchanges), 7):
        metrics.observe(exchanges[start : start + 7])
    assert value(metrics, "modelserve_batch_size_count", **IRIS) == len(batches)
    total = sum(sum(members) for members, _ in batches)
    assert value(metrics, "modelserve_batch_size_sum", **IRIS) == pytest.approx(total)
    by_reason = samples(metrics, "modelserve_batches_total")
    for reason in ("idle", "full"):
        expected = sum(why == reason for _, why in batches)
        assert by_reason.get(("iris", reason, "1"), 0) == expected


def test_counts_are_exact_under_threads_and_scrapes() -> None:
    metrics = Metrics()
    recorder = Recorder([metrics])
    metrics.before_collect(recorder.flush)
    start = Barrier(5)

    def run() -> None:
        start.wait()
        for index in range(4000):
            recorder.record(exchange(version=str(index % 3), batch=(2, 5)))

    threads = [Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    seen = [0.0]
    while any(thread.is_alive() for thread in threads):
        seen.append(sum(samples(metrics, "modelserve_requests_total").values()))
    for thread in threads:
        thread.join()
    assert seen == sorted(seen)
    assert sum(samples(metrics, "modelserve_requests_total").values()) == 16000
    assert sum(samples(metrics, "modelserve_request_duration_seconds_count").values()) == 16000
    assert sum(samples(metrics, "modelserve_batch_size_count").values()) == 8000
    assert sum(samples(metrics, "modelserve_batch_size_sum").values()) == 40000


@pytest.mark.parametrize("code", ["NOT_FOUND", "UNAUTHENTICATED", "INVALID_ARGUMENT"])
def test_invented_names_make_no_series(code: str) -> None:
    metrics = Metrics()
    metrics.observe([rejected(f"m{index}", code, version=str(index)) for index in range(5000)])
    assert samples(metrics, "modelserve_requests_total") == {(code, "", "http", ""): 5000}
    assert value(
        metrics, "modelserve_request_duration_seconds_count", model="", version=""
    ) == pytest.approx(5000)


def test_unknown_version_of_a_known_model_counts_without_version() -> None:
    metrics = Metrics()
    metrics.declare("iris", "1")
    metrics.observe([rejected("iris", "NOT_FOUND", version="99")])
    assert samples(metrics, "modelserve_requests_total") == {("NOT_FOUND", "iris", "http", ""): 1}


def test_series_are_bounded_even_when_every_name_answers() -> None:
    metrics = Metrics(max_series=10)
    metrics.observe([exchange(f"m{index}") for index in range(100)])
    counts = samples(metrics, "modelserve_requests_total")
    assert len(counts) == 11
    assert counts["OK", "", "http", ""] == 90


def test_name_that_is_not_unicode_is_exposed_escaped() -> None:
    metrics = Metrics()
    metrics.observe([exchange('a\ud800"\n')])
    assert samples(metrics, "modelserve_requests_total") == {("OK", 'a\\ud800"\n', "http", "1"): 1}


def test_declared_version_starts_at_zero() -> None:
    metrics = Metrics()
    metrics.declare("iris", "1")
    assert value(metrics, "modelserve_request_duration_seconds_count", **IRIS) == 0


def test_forgotten_version_is_exposed_no_more() -> None:
    metrics = Metrics()
    metrics.observe([exchange(), exchange(version="2")])
    metrics.forget("iris", "1")
    assert samples(metrics, "modelserve_requests_total") == {("OK", "iris", "http", "2"): 1}


def test_gauge_is_read_at_the_scrape_until_removed() -> None:
    metrics = Metrics()
    depth = 3

    def read() -> Iterable[tuple[Sequence[str], float]]:
        return [(("iris", "1"), depth)]

    remove = metrics.add_gauge("modelserve_queue_depth", "Requests.", ["model", "version"], read)
    assert samples(metrics, "modelserve_queue_depth") == {("iris", "1"): 3}
    depth = 5
    assert samples(metrics, "modelserve_queue_depth") == {("iris", "1"): 5}
    remove()
    assert b"modelserve_queue_depth" not in metrics.render()[0]


def test_two_sources_share_a_gauge() -> None:
    metrics = Metrics()
    for name in ("a", "b"):
        metrics.add_gauge("modelserve_queue_depth", "R.", ["model"], lambda n=name: [((n,), 1.0)])
    assert samples(metrics, "modelserve_queue_depth") == {("a",): 1, ("b",): 1}


def test_gauge_with_other_labels_is_refused() -> None:
    metrics = Metrics()
    metrics.add_gauge("modelserve_queue_depth", "R.", ["model"], list)
    with pytest.raises(ValueError, match="has labels"):
        metrics.add_gauge("modelserve_queue_depth", "R.", ["version"], list)


def test_gauge_that_raises_is_logged_and_the_rest_exposed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()

    def broken() -> Iterable[tuple[Sequence[str], float]]:
        raise RuntimeError("gone")

    metrics.add_gauge("modelserve_queue_depth", "R.", ["model"], broken)
    metrics.observe([exchange()])
    with caplog.at_level(logging.ERROR):
        assert len(samples(metrics, "modelserve_requests_total")) == 1
    assert "modelserve_queue_depth" in caplog.text


def test_gauge_may_observe_while_it_is_read() -> None:
    metrics = Metrics()

    def read() -> Iterable[tuple[Sequence[str], float]]:
        metrics.observe([exchange()])
        return [((), 1.0)]

    metrics.add_gauge("modelserve_up", "R.", [], read)
    assert samples(metrics, "modelserve_up") == {(): 1}


def test_scrape_flushes_the_recorder() -> None:
    metrics = Metrics()
    recorder = Recorder([metrics])
    metrics.before_collect(recorder.flush)
    recorder.record(exchange())
    assert sum(samples(metrics, "modelserve_requests_total").values()) == 1


def test_names_keep_prometheus_conventions() -> None:
    metrics = Metrics()
    metrics.observe([exchange()])
    families = list(text_string_to_metric_families(metrics.render()[0].decode()))
    ours = [family for family in families if not family.name.startswith("nv_")]
    assert len(ours) == 6
    for family in ours:
        assert re.fullmatch(r"modelserve(_[a-z]+)+", family.name)
        assert family.documentation.endswith(".")
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        elif "duration" in family.name:
            assert family.name.endswith("_seconds")


def test_what_triton_counts_has_triton_s_names() -> None:
    metrics = Metrics()
    shared = BatchRecord(4, 2, "next", 5.0, 0.25, 0.125, 0.0625)
    for _ in range(2):
        made = Exchange("http", "iris")
        made.version, made.rows, made.batch, made.enqueued = "1", 2, shared, 4.5
        made.total, made.decode, made.encode = 1.0, 0.5, 0.25
        metrics.observe([made])
    failed = [exchange(code=code) for code in ("UNAVAILABLE", "CANCELLED", "INTERNAL", "ABORTED")]
    metrics.observe([*failed, exchange(code="INVALID_ARGUMENT")])
    found = {
        name: samples(metrics, name)
        for name in {
            sample.name
            for family in text_string_to_metric_families(metrics.render()[0].decode())
            for sample in family.samples
            if sample.name.startswith("nv_")
        }
    }
    assert found == {
        "nv_inference_request_success": {("iris", "1"): 2},
        "nv_inference_request_failure": {
            ("iris", "REJECTED", "1"): 1,
            ("iris", "CANCELED", "1"): 1,
            ("iris", "BACKEND", "1"): 1,
            ("iris", "OTHER", "1"): 2,
        },
        "nv_inference_count": {("iris", "1"): 4},
        "nv_inference_exec_count": {("iris", "1"): 6},
        "nv_inference_request_duration_us": {("iris", "1"): 2e6},
        "nv_inference_queue_duration_us": {("iris", "1"): 1e6},
        "nv_inference_compute_input_duration_us": {("iris", "1"): 1.25e6},
        "nv_inference_compute_infer_duration_us": {("iris", "1"): 0.25e6},
        "nv_inference_compute_output_duration_us": {("iris", "1"): 0.625e6},
    }


def test_histograms_are_cumulative_and_end_with_the_count() -> None:
    metrics = Metrics()
    metrics.observe([exchange(total=10.0**-exponent) for exponent in range(-2, 6)])
    family = next(
        family
        for family in text_string_to_metric_families(metrics.render()[0].decode())
        if family.name == "modelserve_request_duration_seconds"
    )
    buckets = [s.value for s in family.samples if s.name.endswith("_bucket")]
    assert len(buckets) == len(DURATION_BUCKETS) + 1
    assert buckets == sorted(buckets)
    assert buckets[-1] == 8


def test_openmetrics_is_written_where_it_is_accepted() -> None:
    metrics = Metrics()
    metrics.observe([exchange()])
    text, content_type = metrics.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(text.decode())}
    assert "modelserve_requests" in names


def test_plain_text_is_the_default() -> None:
    assert Metrics().render()[1].startswith("text/plain; version=")


def test_two_metrics_count_apart_and_leave_the_global_registry_alone() -> None:
    one, two = Metrics(), Metrics()
    one.observe([exchange()])
    one.render()
    two.render()
    assert sum(samples(one, "modelserve_requests_total").values()) == 1
    assert samples(two, "modelserve_requests_total") == {}
    assert not any(family.name.startswith("modelserve") for family in REGISTRY.collect())


def test_second_metrics_in_one_registry_is_refused() -> None:
    registry = CollectorRegistry()
    registry.register(Metrics())
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(Metrics())


def test_observing_does_not_load_prometheus_client(fresh_python: Callable[..., str]) -> None:
    fresh_python(
        "import sys\n"
        "from modelserve.observe.metrics import Metrics\n"
        "from modelserve.messages import Exchange\n"
        "metrics = Metrics(); metrics.observe([Exchange('http')])\n"
        "assert 'prometheus_client' not in sys.modules\n"
        "sys.modules['prometheus_client'] = None\n"
        "try: metrics.render()\n"
        "except ImportError as error: assert 'modelserve[serve]' in str(error)\n"
        "else: raise SystemExit('no ImportError')\n"
        "try: list(metrics.collect())\n"
        "except ImportError as error: assert 'modelserve[serve]' in str(error)\n"
        "else: raise SystemExit('no ImportError')\n"
    )


@pytest.mark.parametrize("buckets", [(), (1.0, 1.0), (2.0, 1.0), (1.0, float("inf"))])
def test_buckets_that_do_not_ascend_are_refused(buckets: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        Metrics(buckets=buckets)


def test_forgotten_model_is_unknown_again() -> None:
    metrics = Metrics()
    metrics.observe([exchange(), rejected("iris", "NOT_FOUND", version="9")])
    metrics.forget("iris", "1")
    metrics.observe([rejected("iris", "NOT_FOUND")])
    assert samples(metrics, "modelserve_requests_total") == {("NOT_FOUND", "", "http", ""): 1}


def test_removed_call_is_not_made_before_a_scrape() -> None:
    metrics = Metrics()
    calls: list[str] = []
    remove = metrics.before_collect(lambda: calls.append("scrape"))
    metrics.render()
    remove()
    metrics.render()
    assert calls == ["scrape"]


def test_many_kinds_of_batches_are_counted_exactly() -> None:
    metrics = Metrics()
    sizes = range(1, 3001)
    metrics.observe([exchange(rows=size, batch=(1, size)) for size in sizes])
    assert value(metrics, "modelserve_batch_size_count", **IRIS) == 3000
    assert value(metrics, "modelserve_batch_size_sum", **IRIS) == sum(sizes)
    assert value(metrics, "modelserve_request_duration_seconds_count", **IRIS) == 3000


def test_codes_and_reasons_without_end_are_counted_as_others() -> None:
    metrics = Metrics()
    for index in range(300):
        metrics.observe([exchange(code=f"CODE{index}", reason=f"why{index}")])
    requests = samples(metrics, "modelserve_requests_total")
    assert requests["CODE0", "iris", "http", "1"] == 1
    assert requests["UNKNOWN", "iris", "other", "1"] == 300 - 127
    batches = samples(metrics, "modelserve_batches_total")
    assert batches["iris", "why0", "1"] == 1
    assert batches["iris", "other", "1"] == 300 - 15
    assert value(metrics, "modelserve_request_duration_seconds_count", **IRIS) == 300
    assert value(metrics, "modelserve_batch_size_sum", **IRIS) == 300


def test_batch_whose_member_never_came_counts_all_the_same() -> None:
    metrics = Metrics()
    metrics.observe([exchange(batch=(3, 3)), exchange(batch=(3, 3))])
    assert value(metrics, "modelserve_batch_size_count", **IRIS) == 1
    metrics.observe([exchange(batch=(3, 3)), exchange(batch=(3, 3))])
    assert value(metrics, "modelserve_batch_size_count", **IRIS) == 2


def test_members_that_come_together_are_folded_as_those_that_come_alone() -> None:
    shared = exchange(batch=(4, 4), total=0.5, queue=0.25, run=0.125).batch
    together, alone = Metrics(), Metrics()
    members = []
    for _ in range(4):
        member = exchange(total=0.5)
        member.batch = shared
        members.append(member)
    together.observe(members)
    for _ in range(4):
        alone.observe([exchange(batch=(4, 4), total=0.5, queue=0.25, run=0.125)])
    assert together.render() == alone.render()
