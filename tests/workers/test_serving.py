"""Several processes as one server: real processes, killed, stopped, reloaded, under load."""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

import httpx
import pytest
import trustme

from modelserve import workers
from modelserve.errors import LoadError
from modelserve.security.authentication import APIKeys
from processes import python
from several import BODY, Asking, Several, runs, several, until
from versioned_models import tree

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers need a POSIX system")

MODELS = {"m": {"1": 1.0, "2": 2.0}, "n": {"1": 5.0}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree(tmp_path_factory.mktemp("several") / "models", MODELS)


@pytest.fixture(scope="module")
def server(environment: dict[str, str], models: Path) -> Iterator[Several]:
    """A server of two workers; it heals, so the tests that hurt it share it."""
    with several(environment, models) as running:
        until(lambda: running.complete(2))
        yield running


def test_counts_of_all_workers_are_exact(server: Several) -> None:
    before = server.counted()
    with Asking(server.port) as asking:
        asking.more(300)
        asking.stop()
        assert asking.lost + asking.refused == []
    until(lambda: server.counted() >= before + asking.answered, 2)
    assert {server.counted() for _ in range(10)} == {before + asking.answered}


def test_statistics_are_those_of_all_workers(server: Several) -> None:
    until(lambda: server.complete(2))

    def told() -> dict[str, int]:
        (stats,) = json.loads(server.ask("/v2/models/m/versions/2/stats")[1])["model_stats"]
        sizes = [(b["batch_size"], b["compute_infer"]["count"]) for b in stats["batch_stats"]]
        return {
            "success": stats["inference_stats"]["success"]["count"],
            "rows": stats["inference_count"],
            "batches": stats["execution_count"],
            "batches by size": sum(count for _, count in sizes),
            "rows by size": sum(size * count for size, count in sizes),
        }

    before = told()
    with Asking(server.port) as asking:
        asking.more(300)
        asking.stop()
        assert asking.lost + asking.refused == []
    until(lambda: told()["success"] >= before["success"] + asking.answered, 2)
    for _ in range(10):  # whichever worker answers
        more = {name: number - before[name] for name, number in told().items()}
        assert more["success"] == more["rows"] == more["rows by size"] == asking.answered
        assert 0 < more["batches"] == more["batches by size"] <= asking.answered


def test_killed_worker_is_replaced_and_loses_only_what_was_in_it(server: Several) -> None:
    until(lambda: server.complete(2))
    before = server.counted()
    with Asking(server.port) as asking:
        victim = min(server.pids())
        os.kill(victim, signal.SIGKILL)
        killed = monotonic()
        until(lambda: len(server.pids() - {victim}) == 2)
        took = monotonic() - killed
        asking.more(100)
        asking.stop()
    assert took < 5  # about 0.1 s where the machine is idle; the benchmark says how long
    assert len(asking.lost + asking.refused) <= 4  # one for each connection
    until(lambda: server.complete(2))
    # What it had answered and not yet folded, 64 requests at most, went with it.
    missing = asking.answered - (server.counted() - before)
    assert -4 <= missing <= 64


def test_reload_loses_no_request_and_no_count_and_replaces_all(server: Several) -> None:
    until(lambda: server.complete(2))
    before = server.counted()
    old = server.pids("serving", "loaded")
    with Asking(server.port) as asking:
        server.process.send_signal(signal.SIGHUP)
        until(lambda: server.complete(2) and not old & server.pids("serving", "loaded"))
        asking.more(20)
        asking.stop()
    assert asking.lost + asking.refused == []
    until(lambda: not server.pids("stopping"))
    until(lambda: server.counted() == before + asking.answered, 2)


def test_change_is_seen_by_all_when_it_is_answered(server: Several) -> None:
    until(lambda: server.complete(2))
    with Asking(server.port) as asking:
        assert server.change("load", "m", "1")[0] == 200
        assert server.change("unload", "m", "2")[0] == 200
        assert server.versions() == {"1"}
        assert server.change("unload", "n")[0] == 200
        assert {server.version("n") for _ in range(10)} == {"503"}
        assert server.change("load", "m", "2")[0] == 200
        assert server.versions() == {"2"}
        asking.stop()
    assert asking.lost + asking.refused == []


def test_route_is_seen_by_all_and_refused_where_nothing_is_loaded(server: Several) -> None:
    assert server.change("load", "m", "1")[0] == 200
    workers.route(server.runtime, "m", "1")
    assert server.versions() == {"1"}
    with pytest.raises(LoadError, match='has no version "9"'):
        workers.route(server.runtime, "m", "9")
    assert server.versions() == {"1"}
    workers.route(server.runtime, "m", "")
    assert server.versions() == {"2"}


def test_worker_that_comes_later_serves_what_the_others_do(server: Several) -> None:
    assert server.change("load", "m", "1")[0] == 200
    assert server.change("unload", "m", "2")[0] == 200
    for pid in server.pids("loaded", "starting"):
        os.kill(pid, signal.SIGKILL)
    before = server.pids()
    until(lambda: server.complete(2))
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(server.pids() - before) == 2)
    assert server.versions() == {"1"}
    assert server.change("load", "m", "2")[0] == 200


def test_version_that_cannot_be_loaded_changes_nothing(server: Several, models: Path) -> None:
    until(lambda: server.complete(2))
    before = server.versions()
    broken = models / "m" / "7"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"no model")
    status, text = server.change("load", "m", "7")
    assert status == 500
    assert "not an ONNX model" in text
    assert server.versions() == before
    (broken / "model.onnx").unlink()
    broken.rmdir()


def test_unknown_model_is_refused(server: Several) -> None:
    status, text = server.change("load", "nothing")
    assert status == 404
    assert "the store has no model" in text


def test_shared_memory_is_refused_by_every_worker(server: Several) -> None:
    body = b'{"key": "k", "byte_size": 1}'
    for _ in range(8):
        status, answer = server.ask("/v2/systemsharedmemory/region/r/register", body)
        assert (status, b"several processes serve here" in answer) == (501, True)
        assert server.ask("/v2/systemsharedmemory/status") == (200, b"[]")
        assert b"system_shared_memory" not in server.ask("/v2")[1]


def test_hung_worker_is_replaced(environment: dict[str, str], models: Path) -> None:
    with several(environment, models, hang_timeout=1.0) as server:
        until(lambda: server.complete(2))
        victim = min(server.pids())
        os.kill(victim, signal.SIGSTOP)
        until(lambda: len(server.pids() - {victim}) == 2)
        until(lambda: not runs(victim))
        assert server.versions() == {"2"}


def test_processes_that_end_again_and_again_start_after_longer_and_longer_pauses(
    environment: dict[str, str], models: Path
) -> None:
    with several(environment, models, workers=1) as server:
        for pause in ("0", "0.25", "0.5"):
            victim = until(lambda: server.pids("starting", "loaded")).pop()
            os.kill(victim, signal.SIGKILL)
            ended = f"worker {victim} ended with status -9; the next one starts in {pause} s"
            until(lambda text=ended: text in server.logged())
        until(lambda: server.complete(1))


def test_bloated_worker_is_replaced_without_a_lost_request(
    environment: dict[str, str], models: Path
) -> None:
    with several(environment, models, workers=1, max_rss=1) as server:
        before = server.pids()
        with Asking(server.port, clients=2) as asking:
            until(lambda: server.pids() and not server.pids() & before)
            asking.more(20)
            asking.stop()
        assert asking.lost + asking.refused == []


def test_stopping_server_answers_what_is_under_way_and_leaves_nothing(
    environment: dict[str, str], models: Path
) -> None:
    with several(environment, models) as server:
        pids = server.pids("serving", "loaded", "starting")
        with Asking(server.port) as asking:
            assert server.end() == 0
            asking.stop()
        # New connections are refused then, and those that nobody had accepted are reset.
        assert asking.lost == []
        assert not any(map(runs, pids))
        assert {path.name for path in server.runtime.iterdir()} <= {"lock"}


def test_workers_end_with_their_supervisor(environment: dict[str, str], models: Path) -> None:
    with several(environment, models) as server:
        pids = server.pids("serving", "loaded", "starting")
        assert len(pids) == 3
        server.process.kill()
        until(lambda: not any(map(runs, pids)))


def test_two_servers_know_nothing_of_each_other(
    environment: dict[str, str], server: Several, models: Path
) -> None:
    with several(environment, models, workers=1, spares=0) as other:
        before = server.counted()
        assert other.version() == "2"
        assert until(other.counted, 2) == 1
        assert server.counted() == before
        assert other.change("unload", "m")[0] == 200
        assert other.version() == "503"
        assert server.version() != "503"


def test_workers_share_a_unix_socket(environment: dict[str, str], models: Path) -> None:
    with TemporaryDirectory(prefix="ms-") as directory:
        path = Path(directory) / "s"
        with several(environment, models, http=f"unix:{path}") as server:
            assert server.url == f"unix:{path}"
            for _ in range(5):
                with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
                    answer = client.post("http://x/v2/models/m/infer", content=BODY)
                    assert answer.status_code == 200
        assert not path.exists()


def test_workers_encrypt_and_ask_for_keys(
    environment: dict[str, str], models: Path, tmp_path: Path
) -> None:
    authority = trustme.CA()
    pair = authority.issue_cert("127.0.0.1")
    pair.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in pair.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    key, hashed = APIKeys.generate()
    (tmp_path / "keys.toml").write_text(f'[ada]\nhash = "{hashed}"\nscopes = ["infer"]\n')
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with several(
        environment,
        models,
        tls=[str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"), ""],
        api_keys=str(tmp_path / "keys.toml"),
    ) as server:
        assert server.url.startswith("https://127.0.0.1:")
        url = f"{server.url}/v2/models/m/infer"
        with httpx.Client(verify=context, trust_env=False) as client:
            assert client.post(url, content=BODY).status_code == 401
            headers = {"authorization": f"Bearer {key}"}
            assert client.post(url, content=BODY, headers=headers).status_code == 200


def test_worker_that_cannot_serve_ends_the_start(environment: dict[str, str], models: Path) -> None:
    with (
        pytest.raises(AssertionError, match="did not serve"),
        several(environment, models, workers=1, tls=["nothing.pem", "nothing.pem", ""]),
    ):
        pass


def test_command_line_serves_from_several_processes(
    environment: dict[str, str], models: Path
) -> None:
    command = ["-m", "modelserve.cli", "serve", str(models), "--workers", "2"]
    with python([*command, "--http", "127.0.0.1:0"], environment) as process:
        assert process.stdout is not None
        assert "ready; batching" in process.stdout.readline()
        lines = [process.stdout.readline() for _ in range(2)]
        assert lines[1].startswith("serving on http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        printed, errors = process.communicate(timeout=15)
        assert (process.returncode, printed, errors) == (0, "drained\n", "")


def test_command_line_refuses_what_cannot_be_loaded(
    environment: dict[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "models" / "bad" / "1"
    broken.mkdir(parents=True)
    (broken / "model.onnx").write_bytes(b"no model")
    command = ["-m", "modelserve.cli", "serve", str(tmp_path / "models"), "--workers", "2"]
    with python([*command, "--http", "127.0.0.1:0"], environment) as process:
        printed, errors = process.communicate(timeout=15)
        assert (process.returncode, printed) == (1, "")
        assert "bad version 1 cannot be served" in errors
        assert "Traceback" not in errors


def test_watched_store_is_followed_by_all(environment: dict[str, str], tmp_path: Path) -> None:
    directory = tree(tmp_path / "models", {"m": {"1": 1.0}})
    with several(environment, directory, watch=True, watch_interval=0.1) as server:
        tree(directory, {"m": {"2": 2.0}, "late": {"1": 1.0}})
        until(lambda: server.versions() == {"2"})
        until(lambda: server.version("late") == "1")
        assert server.versions() == {"2"}
