"""`modelserve serve` as a process: when it is ready, how it ends, what it refuses."""

import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from time import monotonic
from typing import Any

import httpx
import pytest
import trustme

from modelserve.security.authentication import APIKeys
from processes import half_a_request, wait_until_refused

Cli = Callable[..., subprocess.CompletedProcess[str]]
Serve = Callable[..., AbstractContextManager[Any]]

ROW = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}
BODY = {"inputs": [ROW]}
SUM = [2.0, 3.0, 4.0, 5.0]

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")


def infer(url: str, model: str = "add", **options: Any) -> httpx.Response:
    return httpx.post(
        f"{url}/v2/models/{model}/infer", json=BODY, trust_env=False, timeout=10, **options
    )


def unload(url: str, **options: Any) -> int:
    url = f"{url}/v2/repository/models/add/unload"
    return httpx.post(url, trust_env=False, timeout=10, **options).status_code


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str, str]:
    process.send_signal(number)
    printed, errors = process.communicate(timeout=15)
    return process.returncode, printed, errors


# Ready, and the end


def test_first_request_after_the_address_was_said_is_answered(serve: Serve, models: Path) -> None:
    with serve(models) as serving:
        answer = infer(serving.url)
        assert answer.status_code == 200
        assert answer.json()["outputs"][0]["data"] == SUM
        assert serving.printed.startswith("add version 1 (stable) ready; batching proven")


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_request_under_way_at_a_signal_is_answered(
    serve: Serve, models: Path, number: signal.Signals
) -> None:
    body = json.dumps(BODY).encode()
    with serve(models) as serving:
        with half_a_request(serving.port, "/v2/models/add/infer", body) as connection:
            serving.process.send_signal(number)
            wait_until_refused(serving.port)
            assert serving.process.poll() is None
            connection.sendall(body)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        printed, errors = serving.process.communicate(timeout=15)
        assert (serving.process.returncode, printed, errors) == (0, "drained\n", "")


@posix
def test_drain_bounds_how_long_a_request_holds_the_end_up(serve: Serve, models: Path) -> None:
    with (
        serve(models, "--drain", "0.1") as serving,
        half_a_request(serving.port, "/v2/models/add/infer", b"{}") as connection,
    ):
        status, printed, errors = end(serving.process)  # the body never comes
        assert (status, printed) == (0, "drained\n")
        assert "Traceback" not in errors
        answer = connection.recv(1000)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"the server is stopping" in answer


# What is served


def test_watch_picks_up_what_is_published(
    serve: Serve, cli: Cli, models: Path, model: Path
) -> None:
    with serve(models, "--watch") as serving:
        assert infer(serving.url).json()["model_version"] == "1"
        assert cli("publish", models, "add", model).returncode == 0
        until = monotonic() + 10
        while (version := infer(serving.url).json()["model_version"]) == "1":
            assert monotonic() < until
            Event().wait(0.05)
        assert version == "2"


def test_watched_directory_may_be_empty_at_first(
    serve: Serve, cli: Cli, model: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "later"
    directory.mkdir()
    with serve(directory, "--watch") as serving:
        assert infer(serving.url).status_code == 404
        assert cli("publish", directory, "add", model).returncode == 0
        until = monotonic() + 10
        while (status := infer(serving.url).status_code) != 200:
            assert status in (404, 503)
            assert monotonic() < until
            Event().wait(0.05)


def test_model_names_what_is_loaded(serve: Serve, broken: Path) -> None:
    with serve(broken, "--model", "good") as serving:
        assert infer(serving.url, "good").status_code == 200
        assert infer(serving.url, "bad").status_code == 404
        assert serving.printed.count("ready") == 1


def test_keep_going_serves_what_there_is(serve: Serve, broken: Path) -> None:
    with serve(broken, "--keep-going") as serving:
        assert infer(serving.url, "good").status_code == 200
        ready = httpx.get(f"{serving.url}/v2/health/ready", trust_env=False)
        assert ready.status_code == 503
        if sys.platform != "win32":
            _, _, errors = end(serving.process)
            assert errors.splitlines() == [
                'bad version 1 cannot be served: "model.onnx" is not an ONNX model, '
                "or not a whole one"
            ]


def test_uvicorn_answers_alike(serve: Serve, models: Path) -> None:
    with serve(models, "--server", "uvicorn") as serving:
        answer = infer(serving.url)
        assert (answer.status_code, answer.json()["outputs"][0]["data"]) == (200, SUM)
        assert "server" not in answer.headers


@pytest.fixture
def pems(tmp_path: Path) -> dict[str, Path]:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    client = authority.issue_cert("shop", common_name="shop")
    paths = {name: tmp_path / f"{name}.pem" for name in ("cert", "key", "ca", "client")}
    issued.cert_chain_pems[0].write_to_path(paths["cert"])
    issued.private_key_pem.write_to_path(paths["key"])
    authority.cert_pem.write_to_path(paths["ca"])
    client.private_key_and_cert_chain_pem.write_to_path(paths["client"])
    return paths


@pytest.mark.parametrize("server", ["http1", "uvicorn"])
def test_certificate_makes_it_https(
    serve: Serve, models: Path, pems: dict[str, Path], server: str
) -> None:
    options = ("--tls-cert", pems["cert"], "--tls-key", pems["key"], "--server", server)
    with serve(models, *options) as serving:
        assert serving.url.startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=str(pems["ca"]))
        assert infer(serving.url, verify=trusted).status_code == 200


@pytest.mark.parametrize("server", ["http1", "uvicorn"])
def test_authorities_let_in_only_whom_they_vouch_for(
    serve: Serve, models: Path, pems: dict[str, Path], server: str
) -> None:
    options = ("--tls-cert", pems["cert"], "--tls-key", pems["key"], "--tls-client-ca", pems["ca"])
    with serve(models, *options, "--server", server) as serving:
        trusted = ssl.create_default_context(cafile=str(pems["ca"]))
        with pytest.raises(httpx.TransportError):
            infer(serving.url, verify=trusted)
        trusted.load_cert_chain(pems["client"])
        assert infer(serving.url, verify=trusted).status_code == 200


def test_tls_needs_certificate_and_key(command: Cli, models: Path, pems: dict[str, Path]) -> None:
    done = command("serve", models, "--tls-cert", pems["cert"])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "modelserve serve: TLS needs both --tls-cert and --tls-key\n"


@posix
def test_unix_socket(serve: Serve, models: Path) -> None:
    # Its path may have about a hundred characters; pytest's directories take more.
    with TemporaryDirectory(prefix="ms-") as directory:
        path = Path(directory) / "s"
        with serve(models, http=f"unix:{path}") as serving:
            assert serving.url == f"unix:{path}"
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
                assert client.post("http://x/v2/models/add/infer", json=BODY).status_code == 200
            assert end(serving.process) == (0, "drained\n", "")
        assert not path.exists()


# Who may do what


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A file of keys, and the headers of one who may do everything."""
    key, hashed = APIKeys.generate()
    path = tmp_path / "keys.toml"
    path.write_text(f'[ada]\nhash = "{hashed}"\nscopes = ["infer", "read", "admin"]\n')
    return path, {"authorization": f"Bearer {key}"}


def test_keys_are_asked_for(serve: Serve, models: Path, keys: tuple[Path, dict[str, str]]) -> None:
    with serve(models, "--api-keys", keys[0]) as serving:
        assert infer(serving.url).status_code == 401
        assert infer(serving.url, headers=keys[1]).status_code == 200


def test_control_routes_are_on_at_a_loopback_address(serve: Serve, models: Path) -> None:
    with serve(models) as serving:
        assert unload(serving.url) == 200
        assert infer(serving.url).status_code == 503


def test_control_routes_can_be_turned_off(serve: Serve, models: Path) -> None:
    with serve(models, "--admin", "off") as serving:
        assert unload(serving.url) == 403
        assert infer(serving.url).status_code == 200


def test_control_routes_are_off_at_other_addresses(serve: Serve, models: Path) -> None:
    with serve(models, http="0.0.0.0:0") as serving:
        assert unload(f"http://127.0.0.1:{serving.port}") == 403


def test_control_routes_are_on_at_other_addresses_with_keys(
    serve: Serve, models: Path, keys: tuple[Path, dict[str, str]]
) -> None:
    with serve(models, "--api-keys", keys[0], "--admin", "on", http="0.0.0.0:0") as serving:
        url = f"http://127.0.0.1:{serving.port}"
        assert unload(url) == 401
        assert unload(url, headers=keys[1]) == 200


def load(url: str, **parameters: Any) -> int:
    url = f"{url}/v2/repository/models/add/load"
    body = {"parameters": parameters}
    return httpx.post(url, json=body, trust_env=False, timeout=10).status_code


@pytest.mark.parametrize(("arguments", "status"), [((), 403), (("--uploads",), 200)])
def test_a_load_may_bring_its_configuration_where_it_is_allowed(
    serve: Serve, models: Path, arguments: tuple[str, ...], status: int
) -> None:
    with serve(models, *arguments) as serving:
        assert load(serving.url, config="{}") == status
        assert load(serving.url) == 200
        assert infer(serving.url).status_code == 200


def test_lines_per_request_go_to_the_error_stream(serve: Serve, models: Path) -> None:
    with serve(models) as serving:
        url = f"{serving.url}/v2/logging"
        assert httpx.get(url, trust_env=False).json()["log_info"] is True
        httpx.post(url, json={"log_verbose_level": 1}, trust_env=False).raise_for_status()
        assert infer(serving.url).status_code == 200
        errors = end(serving.process)[2]
    assert 'INFO modelserve.access: protocol=http model="add"' in errors


# What it refuses: with one sentence, and nothing else


@pytest.fixture
def files(tmp_path: Path, models: Path, broken: Path) -> Path:
    """What the refusals below name, in one directory."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "wrong.toml").write_text("[ada\n")
    (tmp_path / "lacking.json").write_text('{"ada": {}}')
    (tmp_path / "keys.txt").write_text("")
    (tmp_path / "binary.toml").write_bytes(b"\xff")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere is not a directory; give the directory of the models"),
        (["file"], "file is not a directory; give the directory of the models"),
        (
            ["empty"],
            "empty holds no models; expected DIR/<model>/<version>/model.onnx, as `modelserve "
            "publish` makes",
        ),
        (
            ["models", "--http", "8000"],
            '"8000" is no address; expected HOST:PORT such as 127.0.0.1:8000, or unix:PATH',
        ),
        (
            ["models", "--http", "0.0.0.0:0", "--admin", "on"],
            "--admin on at http://0.0.0.0:0 would let anyone load and unload models: give "
            "--api-keys, or listen on 127.0.0.1",
        ),
        (["models", "--model", "nope"], 'the store has no model "nope"'),
        (["models", "--api-keys", "none.toml"], "none.toml: No such file or directory"),
        (
            ["models", "--api-keys", "lacking.json"],
            'lacking.json holds no API keys: "ada": expected exactly "hash" and "scopes"',
        ),
        (
            ["models", "--api-keys", "keys.txt"],
            'keys.txt holds no API keys: "keys.txt": expected a .toml or .json file',
        ),
    ],
)
def test_refusal_is_one_sentence(
    cli: Cli, files: Path, arguments: list[str], sentence: str
) -> None:
    # Not the default port: something else may have it.
    address = [] if "--http" in arguments else ["--http", "127.0.0.1:0"]
    done = cli("serve", *arguments, *address)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"modelserve serve: {sentence}\n"


@pytest.mark.parametrize("name", ["wrong.toml", "binary.toml"])
def test_damaged_file_of_keys_is_named(command: Cli, files: Path, name: str) -> None:
    done = command("serve", "models", "--http", "127.0.0.1:0", "--api-keys", name)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"modelserve serve: {name} holds no API keys: ")
    assert done.stderr.count("\n") == 1


def test_taken_port_is_refused_before_models_are_loaded(cli: Cli, models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = cli("serve", models, "--http", address)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"modelserve serve: cannot listen on http://{address}: ")
    assert done.stderr.count("\n") == 1


def test_model_that_does_not_load_is_named_and_nothing_is_served(cli: Cli, broken: Path) -> None:
    done = cli("serve", broken, "--http", "127.0.0.1:0")
    assert done.returncode == 1
    assert "serving" not in done.stdout
    assert done.stderr.splitlines() == [
        'bad version 1 cannot be served: "model.onnx" is not an ONNX model, or not a whole one',
        "modelserve serve: not every model could be loaded; --keep-going serves what there is",
    ]


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--instances", "0", "a whole number from 1 on"),
        ("--instances", "two", "a whole number from 1 on"),
        ("--drain", "-1", "seconds such as 30 or 0.5"),
        ("--drain", "nan", "seconds such as 30 or 0.5"),
    ],
)
def test_wrong_value_of_an_option_is_refused(
    command: Cli, option: str, value: str, expected: str
) -> None:
    done = command("serve", "models", f"{option}={value}")
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.endswith(f'error: argument {option}: expected {expected}, got "{value}"')
