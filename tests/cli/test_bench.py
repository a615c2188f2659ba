"""`modelserve bench`: what it measures, what it says of servers that fail, and its arithmetic."""

import io
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

import onnx_models
from modelserve.cli.load.measurements import Measurement, Tally, Times
from modelserve.cli.load.report import Progress, print_tables
from modelserve.repository.store import LocalStore
from modelserve.security.authentication import APIKeys
from processes import python

Cli = Callable[..., subprocess.CompletedProcess[str]]
Serve = Callable[..., AbstractContextManager[Any]]
Respond = Callable[[int, bytes], tuple[int, dict[str, str], bytes]]

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and sockets as POSIX has them")

METADATA = {
    "name": "add",
    "versions": ["1"],
    "platform": "test",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    "parameters": {"max_batch_size": 8},
}
SHORT = ("--warm-up", "0", "--duration", "0.3", "--connections", "4")


def answer(*values: float, **members: Any) -> bytes:
    """The body of an answer that holds these values."""
    tensor = {"name": "y", "datatype": "FP32", "shape": [len(values)], "data": values}
    return json.dumps({"model_name": "add", "outputs": [tensor], **members}).encode()


def error(text: str) -> bytes:
    return json.dumps({"error": text}).encode()


class Scripted:
    """A server that describes a model, and answers inference request n as a function says."""

    def __init__(self, respond: Respond, tls: ssl.SSLContext | None = None) -> None:
        numbers = count()
        scripted = self
        self.bodies: list[bytes] = []
        self.many = threading.Event()
        """Set once 50 requests came."""

        class Connection(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(200, {}, json.dumps(METADATA).encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                number = next(numbers)
                scripted.bodies.append(body)
                if number >= 50:
                    scripted.many.set()
                self._send(*respond(number, body))

            def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
                lines = [f"HTTP/1.1 {status} x", f"content-length: {len(body)}"]
                lines += [f"{name}: {value}" for name, value in headers.items()]
                self.close_connection = headers.get("connection") == "close"
                # In one piece: two would wait for each other's acknowledgement.
                self.wfile.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Stay silent."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: Any, address: Any) -> None:
                """A client that goes away in the middle is part of these tests."""

        self._server = Server(("127.0.0.1", 0), Connection)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> "Scripted":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def right(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, answer(1.0, 2.0)


def bench(command: Cli, url: str, *arguments: str | Path, model: str = "add") -> dict[str, Any]:
    """Run a load that has to be without failures; return what it measured."""
    done = command("bench", url, model, *SHORT, *arguments, "--json", "-")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["failures"], found["ended"]) == ({}, "")
    assert found["right"] == found["requests"] > 0
    return found


# What is measured


@pytest.mark.parametrize("wire", [(), ("--binary",)])
def test_closed_loop_counts_every_answer(
    serve: Serve, models: Path, command: Cli, wire: tuple[str, ...]
) -> None:
    with serve(models) as serving:
        found = bench(command, serving.url, *wire, "--rows", "3", "--version", "stable")
    assert (found["loop"], found["connections"], found["version"]) == ("closed", 4, "1")
    assert found["rows"] == 3
    assert found["latency"]["count"] == found["requests"]
    times = [found["latency"][name] for name in ("p50", "p90", "p95", "p99", "p99.9", "max")]
    assert times[0] > 0
    assert times == sorted(times)
    # Little's law: what four connections were waiting for all the time.
    assert found["latency"]["mean"] * found["answers_per_second"] == pytest.approx(4, rel=0.2)
    assert found["lateness"] is None


def test_open_loop_sends_at_the_rate_and_states_its_own_lateness(
    serve: Serve, models: Path, command: Cli
) -> None:
    with serve(models) as serving:
        found = bench(command, serving.url, "--rate", "400", "--duration", "1")
    assert (found["loop"], found["rate_asked"]) == ("open", 400)
    assert found["requests"] == pytest.approx(400, abs=100)  # five standard deviations
    assert found["lateness"]["count"] == found["requests"]
    assert found["lateness"]["p50"] <= found["lateness"]["max"]


def test_latency_counts_from_the_moment_a_request_was_due(command: Cli) -> None:
    def slow(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        threading.Event().wait(0.05)
        return right(number, body)

    with Scripted(slow) as server:
        found = bench(command, server.url, "--rate", "100", "--connections", "1")
    # One connection answers 20 a second: those that wait for it wait ever longer.
    assert found["waited_for_connection"]["count"] > found["requests"] / 2
    assert found["latency"]["max"] > 0.3
    assert found["rate_sent"] < 50


def test_tables_tell_rates_and_latencies(serve: Serve, models: Path, cli: Cli) -> None:
    with serve(models) as serving:
        done = cli("bench", serving.url, "add", *SHORT, "--rate", "200")
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip())
    assert lines[serving.url] == "add version 1  JSON"
    assert lines["requests"].endswith("4 connections, requests at random moments")
    assert lines["rate"].startswith("asked 200.0/s, sent ")
    assert lines["latency"].startswith("sent late by")
    assert lines["p99.9"].split()[1] in ("us", "ms")


def test_deadline_is_told_to_the_server_and_late_answers_are_no_goodput(command: Cli) -> None:
    def late(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        threading.Event().wait(0.03)
        return right(number, body)

    with Scripted(late) as server:
        found = bench(command, server.url, "--timeout", "0.02")
    assert json.loads(server.bodies[-1])["parameters"] == {"timeout": 20_000}
    assert "parameters" not in json.loads(server.bodies[0])  # the check is in no hurry
    assert (found["deadline"], found["in_time"], found["goodput"]) == (0.02, 0, 0)


def test_servers_own_share_is_read_from_server_timing(command: Cli) -> None:
    def timed(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Server-Timing": 'queue;dur=0.5, run;desc="x";dur=2, odd'}, answer(1.0)

    with Scripted(timed) as server:
        found = bench(command, server.url)
    assert found["server_timing"] == pytest.approx({"queue": 0.0005, "run": 0.002})


def test_connections_the_server_closes_are_opened_again(command: Cli) -> None:
    def closing(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return 200, {"connection": "close"}, answer(1.0)

    with Scripted(closing) as server:
        found = bench(command, server.url)
    assert found["reconnects"] > 4


def test_unix_socket(serve: Serve, models: Path, command: Cli) -> None:
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("no Unix sockets here")
    with TemporaryDirectory() as short:  # the path of a socket has about 100 characters
        address = f"unix:{short}/s"
        with serve(models, http=address) as serving:
            assert serving.url == address
            bench(command, address)


# Inputs


def test_made_inputs_fit_what_the_server_says(serve: Serve, tmp_path: Path, command: Cli) -> None:
    store = LocalStore(tmp_path / "models")
    for name, content in (
        ("two", onnx_models.two_in_three_out()),
        ("text", onnx_models.string_exclaim()),
        ("half", onnx_models.bf16_linear()),
        ("any", onnx_models.identity(shape=("batch", "length"))),
    ):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        store.put(name, path)
    with serve(tmp_path / "models") as serving:
        for name in ("two", "text", "any"):
            bench(command, serving.url, model=name)
        bench(command, serving.url, "--binary", model="half")
        bench(command, serving.url, "--shape", "x:2,7", model="any")
        done = command("bench", serving.url, "any", "--shape", "ids:1,7")
        assert done.returncode == 1
        assert '--shape: unknown input "ids"; model "any" takes x' in done.stderr


def test_rows_cut_a_file_into_requests(command: Cli, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.arange(24, dtype=np.float32).reshape(6, 4))
    with Scripted(right) as server:
        found = bench(command, server.url, "--input", "x.npz", "--rows", "2")
    sent = {tuple(json.loads(body)["inputs"][0]["data"]) for body in server.bodies}
    assert found["rows"] == 2
    assert sent == {tuple(range(start, start + 8)) for start in (0, 8, 16)}


@pytest.mark.parametrize(
    "document",
    [
        {"x": [[1, 2, 3, 4]]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]},
    ],
    ids=["lists", "request"],
)
def test_inputs_of_a_json_file(command: Cli, tmp_path: Path, document: Any) -> None:
    (tmp_path / "x.json").write_text(json.dumps(document), encoding="utf-8")
    with Scripted(right) as server:
        bench(command, server.url, "--input", "x.json")
    assert json.loads(server.bodies[-1])["inputs"][0]["data"] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"z": [[1]]}', 'x.json: unknown input "z"; model "add" takes x'),
        ('{"x": [[1]]}', 'inputs[0] "x": expected shape (-1, 4), got (1, 1)'),
        ("[1]", "x.json: expected an object: a request, or lists by input name"),
        ("{", "x.json: "),
        (None, "x.json: No such file or directory"),
    ],
)
def test_inputs_that_do_not_fit(command: Cli, tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with Scripted(right) as server:
        done = command("bench", server.url, "add", "--input", "x.json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("modelserve bench: ")
    assert says in done.stderr
    assert server.bodies == []


# Servers that cannot be measured


def test_unreachable_server(command: Cli) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        done = command("bench", url, "add")
    expected = f"modelserve bench: {url}: the server cannot be reached: connection refused\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


def test_unknown_model_and_version(serve: Serve, models: Path, command: Cli) -> None:
    with serve(models) as serving:
        model = command("bench", serving.url, "ad")
        version = command("bench", serving.url, "add", "--version", "7")
    assert (model.returncode, version.returncode) == (1, 1)
    assert '"ad"' in model.stderr
    assert model.stderr.endswith("; the server has add\n")
    assert 'no version "7"' in version.stderr


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "unix:", "http://x/?a=1"])
def test_url_that_is_none(command: Cli, url: str) -> None:
    done = command("bench", url, "add")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("modelserve bench: url: expected ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--rate", "0"),
        ("--rate", "nan"),
        ("--timeout", "0"),
        ("--connections", "0"),
        ("--shape", "x"),
        ("--shape", "x:1,a"),
        ("--header", "x"),
    ],
)
def test_wrong_arguments(command: Cli, arguments: tuple[str, str]) -> None:
    done = command("bench", "http://127.0.0.1:1", "add", *arguments)
    assert done.returncode == 2
    assert f"argument {arguments[0]}: expected " in done.stderr


def test_server_that_is_busy_when_asked_first(command: Cli) -> None:
    def busy(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return 503, {"Retry-After": "7"}, error("too much waits already")

    with Scripted(busy) as server:
        done = command("bench", server.url, "add", *SHORT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "modelserve bench: too much waits already (status 503; the server asks to come back in 7 s)"
        "\n"
    )


# Servers that fail while they are measured


def failures(command: Cli, respond: Respond, *arguments: str) -> tuple[int, dict[str, Any]]:
    with Scripted(respond) as server:
        done = command("bench", server.url, "add", *SHORT, *arguments, "--json", "-")
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_refusals_are_counted_by_status(command: Cli) -> None:
    def full(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if number % 2:
            return 503, {"retry-after": "1"}, error("the queue is full")
        return right(number, body)

    status, found = failures(command, full)
    assert status == 1
    assert found["failures"] == {"503": found["failed"]}
    assert found["texts"] == {"503": '{"error": "the queue is full"}'}
    assert found["retry_after"] == "1"
    assert found["failed"] + found["right"] == found["requests"]
    assert found["latency_of_failures"]["count"] == found["failed"] > 0
    assert failures(command, full, "--allow-failures")[0] == 0


def test_answer_that_differs_from_the_first_is_wrong(command: Cli) -> None:
    def odd(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, answer(1.0, 3.0 if number == 9 else 2.0)

    status, found = failures(command, odd)
    assert (status, found["failures"]) == (1, {"wrong": 1})
    assert found["texts"]["wrong"].endswith("[1.0, 3.0]}]}")


def test_any_answer_is_taken_where_they_are_not_compared(command: Cli) -> None:
    def random(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, answer(float(number))

    with Scripted(random) as server:
        bench(command, server.url, "--any-answer")


def test_rounding_of_other_batch_sizes_is_right(command: Cli) -> None:
    def rounded(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, answer(1.0 + (number % 3) * 1e-6, 2.0, id=str(number))

    with Scripted(rounded) as server:
        bench(command, server.url)


def test_binary_answers_may_have_numbers_of_their_own(command: Cli) -> None:
    def numbered(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        parameters = {"binary_data_size": 4}
        tensor = {"name": "y", "datatype": "FP32", "shape": [1], "parameters": parameters}
        head = json.dumps({"id": str(number), "model_name": "add", "outputs": [tensor]}).encode()
        value = 2.0 if number == 9 else 1.0
        headers = {"Inference-Header-Content-Length": str(len(head))}
        return 200, headers, head + np.float32(value).tobytes()

    status, found = failures(command, numbered, "--binary")
    assert (status, found["failures"]) == (1, {"wrong": 1})
    assert found["right"] > 20


def test_connection_lost_in_the_middle_of_an_answer(command: Cli) -> None:
    def torn(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if number == 9:
            raise ConnectionError("away")  # the server drops the connection
        return right(number, body)

    status, found = failures(command, torn)
    assert (status, found["failures"]) == (1, {"connection lost": 1})
    assert found["reconnects"] == 1
    assert found["right"] > 9


def test_answer_that_is_not_http(command: Cli) -> None:
    def garbled(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        # A space in a header's name.
        return (200, {"a b": "c"}, b"") if number == 9 else right(number, body)

    status, found = failures(command, garbled)
    assert (status, found["failures"]) == (1, {"not HTTP": 1})


def test_answer_that_never_comes_is_given_up(command: Cli) -> None:
    forever = threading.Event()

    def stuck(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if number == 9:
            forever.wait(10)
        return right(number, body)

    try:
        status, found = failures(command, stuck, "--timeout", "0.1")
    finally:
        forever.set()
    assert (status, found["failures"]) == (1, {"no answer": 1})
    assert found["texts"] == {"no answer": "none within 1.1 s"}


def test_requests_without_a_free_connection_are_given_up_at_their_deadline(command: Cli) -> None:
    def slow(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        threading.Event().wait(0.1)
        return right(number, body)

    arguments = ("--rate", "200", "--connections", "1", "--timeout", "0.2")
    status, found = failures(command, slow, *arguments)
    assert status == 1
    assert found["failures"].keys() == {"not sent"}
    assert found["latency"]["max"] < 0.5


def test_server_that_dies_is_told_and_the_rest_printed(
    serve: Serve, models: Path, environment: dict[str, str]
) -> None:
    with serve(models) as serving:
        arguments = ["-m", "modelserve.cli", "bench", serving.url, "add", "--warm-up", "0"]
        with python([*arguments, "--duration", "60", "--rate", "200"], environment) as process:
            wait_until_asked(serving.url)
            serving.process.kill()
            printed, errors = process.communicate(timeout=15)
    assert (process.returncode, errors) == (1, "")
    assert re.search("ended early +the server cannot be reached any more: ", printed)
    assert "\np99 " in printed


@posix
def test_interrupt_prints_what_there_is(environment: dict[str, str]) -> None:
    with Scripted(right) as server:
        arguments = ["-m", "modelserve.cli", "bench", server.url, "add", "--warm-up", "0"]
        with python([*arguments, "--duration", "60"], environment) as process:
            assert server.many.wait(10)
            process.send_signal(signal.SIGINT)
            printed, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (130, "")
    assert "ended early  interrupted\n" in printed
    assert "\np99 " in printed
    assert "connection lost" not in printed


def wait_until_asked(url: str) -> None:
    """Wait until a server's model has answered requests of somebody else."""
    import httpx

    for _ in range(200):
        text = httpx.get(f"{url}/metrics", trust_env=False, timeout=10).text
        counts = [
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith("modelserve_requests_total{")
        ]
        if sum(counts) > 20:
            return
        threading.Event().wait(0.05)
    raise AssertionError("nobody asks")


# Keys and certificates


def test_api_key_of_a_file(serve: Serve, models: Path, command: Cli, tmp_path: Path) -> None:
    key, digest = APIKeys.generate()
    keys = {"ci": {"hash": digest, "scopes": ["infer"]}}
    (tmp_path / "keys.json").write_text(json.dumps(keys), encoding="utf-8")
    (tmp_path / "key").write_text(f"{key}\n", encoding="utf-8")
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    with serve(models, "--api-keys", tmp_path / "keys.json") as serving:
        bench(command, serving.url, "--api-key-file", "key")
        without = command("bench", serving.url, "add", *SHORT)
        empty = command("bench", serving.url, "add", "--api-key-file", "empty")
    assert without.returncode == 1
    assert "key" in without.stderr
    assert empty.stderr == "modelserve bench: empty: expected one API key and nothing else\n"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@contextmanager
def secured(authority: trustme.CA) -> Iterator[Scripted]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Scripted(right, context) as server:
        yield server


def test_tls_with_its_authority_or_unchecked(
    authority: trustme.CA, command: Cli, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with secured(authority) as server:
        bench(command, server.url, "--ca", "ca.pem")
        bench(command, server.url, "--insecure")
        unknown = command("bench", server.url, "add")
    assert unknown.returncode == 1
    assert "no secure connection to the server could be made: " in unknown.stderr
    assert unknown.stderr.endswith("; --ca FILE, --insecure\n")


def test_certificates_for_a_url_without_tls(command: Cli) -> None:
    done = command("bench", "http://127.0.0.1:1", "add", "--insecure")
    assert done.returncode == 1
    assert "--ca and --insecure are for a URL that begins with https:" in done.stderr


# Arithmetic


@given(st.lists(st.floats(1e-6, 1e3), min_size=1), st.floats(0, 1))
def test_quantiles_are_within_a_fifth_of_a_percent(values: list[float], share: float) -> None:
    times = Times()
    for value in values:
        times.add([value])
    exact = np.quantile(values, share, method="inverted_cdf")
    assert times.quantile(share) == pytest.approx(exact, rel=0.002)
    assert (times.count, times.maximum) == (len(values), max(values))
    assert times.mean == pytest.approx(np.mean(values))


def test_times_out_of_range_are_counted_at_its_ends() -> None:
    times = Times()
    times.add([0.0, -1e-9, 1e9])
    assert (times.count, times.maximum, times.quantile(1)) == (3, 1e9, pytest.approx(2e4, rel=0.1))


def test_server_timing_that_cannot_be_read_is_left_out() -> None:
    tally = Tally()
    tally.server_timings += ["a;dur=1, b;dur=x, c, ;;=", 'a;DUR="3"', ""]
    tally.fold()
    assert tally.server == {"a": (2, pytest.approx(0.004))}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.1, 10.6])
    monkeypatch.setattr("modelserve.cli.load.report.perf_counter", lambda: next(clock))
    terminal, pipe, tally = Terminal(), io.StringIO(), Tally()
    progress = Progress(terminal, 5)
    for seconds in (0.0, 0.1, 0.6):
        tally.right.append(0.002)
        tally.answered += 300
        tally.fold()
        progress(tally, seconds)
    progress.end()
    assert terminal.getvalue() == (
        "\r\x1b[K0.6 of 5 s   1,000 requests/s   p50 2.00 ms   p99 2.00 ms   0 failed\r\x1b[K"
    )
    assert tally.recent == []
    monkeypatch.setattr("modelserve.cli.load.report.perf_counter", lambda: 0.0)
    silent = Progress(pipe, 5)
    silent(tally, 1.0)
    silent.end()
    assert pipe.getvalue() == ""


def test_tables_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    tally = Tally(0.5)
    tally.right.extend([0.001, 0.9])
    tally.fail("503", "full")
    tally.retry_after = "2"
    tally.fold()
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    print_tables(Measurement(tally, 1.0, 3, 3, 2.0, 4, None, 0.5, ""))
    shown = re.sub("\x1b\\[[0-9;]*m", "", terminal.getvalue())
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0] == "requests 3 in 1.0 s, 4 connections, asking again when answered"
    assert lines[1] == "503 1, Retry-After: 2; the first: full"
    assert "goodput 1.0/s within 500.00 ms; 1 right but late" in lines
    assert "rows/s 6.0" in lines
    assert "max 900.00 ms" in lines


def test_answers_in_pieces_are_put_together(command: Cli) -> None:
    long = answer(*range(100_000))

    def large(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, long

    with Scripted(large) as server:
        bench(command, server.url)


def test_missing_parser_names_the_extra(fresh_python: Callable[..., str]) -> None:
    printed = fresh_python(
        "import sys; sys.modules['httptools'] = None\n"
        "from modelserve.cli.load.generator import Origin, Plan, generate\n"
        "try: generate(Origin('127.0.0.1', 1), [], Plan())\n"
        "except ImportError as error: print(error)"
    )
    assert printed == 'loading a server needs httptools: pip install "modelserve[serve]"\n'
