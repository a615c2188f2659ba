"""Triton's shared memory extension over HTTP, on both servers: control, inference, and attacks."""

import gc
import gzip
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

import onnx_models
import serving
from gated import GatedBackend, wait_until
from modelserve.codecs._plans import FRAMES, HEADS
from modelserve.repository.repository import ModelRepository
from modelserve.security.authentication import APIKeys
from modelserve.testing import StubModel
from modelserve.transports.asgi import ASGIApp
from modelserve.transports.serving import HTTPServer
from modelserve.transports.shared_memory import SharedMemory
from shared_memory import DIRECTORY, Shared, open_in_this_process, shared

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory is for Linux")

SYSTEM = "/v2/systemsharedmemory"
CUDA = "/v2/cudasharedmemory"
SIZE = 4096

Serve = Callable[..., AbstractContextManager[httpx.Client]]


@contextmanager
def over_http1(servable: Any, **options: Any) -> Iterator[httpx.Client]:
    server = HTTPServer(servable, http="127.0.0.1:0", **options)
    with serving.on_http1(server) as url, httpx.Client(base_url=url) as client:
        yield client


@contextmanager
def over_asgi(servable: Any, **options: Any) -> Iterator[httpx.Client]:
    app = ASGIApp(servable, **{"admin": True, **options})
    with serving.on_uvicorn(app) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(params=[over_http1, over_asgi])
def serve(request: pytest.FixtureRequest) -> Serve:
    found: Serve = request.param
    return found


@pytest.fixture
def stub() -> StubModel:
    return StubModel(name="echo")


@pytest.fixture
def client(serve: Serve, stub: StubModel) -> Iterator[httpx.Client]:
    with serve(stub) as made:
        yield made


@pytest.fixture
def page() -> Iterator[Shared]:
    with shared(SIZE) as made:
        yield made


def register(
    client: httpx.Client, page: Shared, name: str = "r", byte_size: int = SIZE, offset: int = 0
) -> None:
    body = {"key": page.key, "offset": offset, "byte_size": byte_size}
    answer = client.post(f"{SYSTEM}/region/{name}/register", json=body)
    assert (answer.status_code, answer.content) == (200, b"")


def placed(size: int, offset: int = 0, region: str = "r") -> dict[str, Any]:
    found = {"shared_memory_region": region, "shared_memory_byte_size": size}
    return {**found, "shared_memory_offset": offset} if offset else found


def document(
    shape: list[int], parameters: Any, output: Any = None, name: str = "x"
) -> dict[str, Any]:
    tensor = {"name": name, "datatype": "FP32", "shape": shape, "parameters": parameters}
    outputs = [] if output is None else [{"name": name, "parameters": output}]
    return {"inputs": [tensor], "outputs": outputs}


def infer(client: httpx.Client, body: Any, model: str = "echo", **options: Any) -> httpx.Response:
    return client.post(f"/v2/models/{model}/infer", json=body, **options)


def told(answer: httpx.Response, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert list(found) == ["error"]
    assert "/dev/shm" not in found["error"]
    return str(found["error"])


# Control


def test_regions_are_registered_listed_and_forgotten(client: httpx.Client, page: Shared) -> None:
    assert client.get(f"{SYSTEM}/status").json() == []
    register(client, page, "a", 100)
    register(client, page, "b", 50, offset=6)
    a = {"name": "a", "key": page.key, "offset": 0, "byte_size": 100}
    b = {"name": "b", "key": page.key, "offset": 6, "byte_size": 50}
    assert client.get(f"{SYSTEM}/status").json() == [a, b]
    assert client.get(f"{SYSTEM}/region/b/status").json() == [b]
    answer = client.post(f"{SYSTEM}/region/a/unregister")
    assert (answer.status_code, answer.content) == (200, b"")
    assert client.get(f"{SYSTEM}/status").json() == [b]
    assert client.post(f"{SYSTEM}/unregister").status_code == 200
    assert client.get(f"{SYSTEM}/status").json() == []


def test_what_is_not_there_is_404_to_status_and_nothing_to_unregister(
    client: httpx.Client,
) -> None:
    assert told(client.get(f"{SYSTEM}/region/a/status"), 404) == 'there is no region "a"'
    assert client.post(f"{SYSTEM}/region/a/unregister").status_code == 200
    assert client.post(f"{SYSTEM}/unregister").status_code == 200


def test_second_registration_of_a_name_is_400(client: httpx.Client, page: Shared) -> None:
    register(client, page)
    answer = client.post(f"{SYSTEM}/region/r/register", json={"key": page.key, "byte_size": 1})
    assert "already registered" in told(answer)
    assert client.get(f"{SYSTEM}/status").json()[0]["byte_size"] == SIZE


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "not valid JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"key":"/etc/passwd","byte_size":1}', "key: expected a name"),
        (b'{"key":"../../etc/passwd","byte_size":1}', "key: expected a name"),
        (b'{"key":"..","byte_size":1}', "key: expected a name"),
        (b'{"key":"a\\u0000b","byte_size":1}', "key: expected a name"),
        (b'{"key":"modelserve-is-not-there","byte_size":1}', "key: there is no shared memory"),
        (b'{"key":"modelserve-is-not-there"}', "byte_size: expected a number of bytes, got null"),
        (b"\xff\xfe", "not valid JSON"),
    ],
)
def test_hostile_registrations_are_400(client: httpx.Client, body: bytes, text: str) -> None:
    assert text in told(client.post(f"{SYSTEM}/region/r/register", content=body))
    assert client.get(f"{SYSTEM}/status").json() == []


def test_huge_registration_is_400(client: httpx.Client, page: Shared) -> None:
    body = {"key": page.key, "offset": 2**62, "byte_size": 2**62}
    text = told(client.post(f"{SYSTEM}/region/r/register", json=body))
    assert text.startswith(f"byte_size: expected at most the {SIZE} bytes")


def test_body_of_a_registration_is_bounded(client: httpx.Client) -> None:
    told(client.post(f"{SYSTEM}/region/r/register", content=b" " * (65 << 10)), 413)


@pytest.mark.parametrize(
    ("path", "name"), [("a%20b", "a b"), ("status", "status"), ("a:b", "a:b"), ("%C3%A9", "é")]
)
def test_region_may_have_any_name(client: httpx.Client, page: Shared, path: str, name: str) -> None:
    register(client, page, path)
    assert client.get(f"{SYSTEM}/region/{path}/status").json()[0]["name"] == name
    page.put(np.float32(3).tobytes())
    answer = infer(client, document([1], placed(4, region=name)))
    assert answer.json()["outputs"][0]["data"] == [3.0]


@pytest.mark.parametrize("name", ["a%2Fb", "", "a/b"])
def test_what_is_no_name_has_no_path(client: httpx.Client, page: Shared, name: str) -> None:
    answer = client.post(f"{SYSTEM}/region/{name}/register", json={"key": page.key})
    assert answer.status_code == 404


def test_long_name_is_400(client: httpx.Client, page: Shared) -> None:
    body = {"key": page.key, "byte_size": 1}
    answer = client.post(f"{SYSTEM}/region/{'n' * 257}/register", json=body)
    assert "at most 256" in told(answer)


def test_other_methods_are_405(client: httpx.Client) -> None:
    assert told(client.post(f"{SYSTEM}/status"), 405)
    assert told(client.get(f"{SYSTEM}/region/r/register"), 405)
    assert client.head(f"{SYSTEM}/status").status_code == 200


def test_cuda_has_nothing_to_list_and_nothing_to_take(client: httpx.Client, page: Shared) -> None:
    register(client, page)
    assert client.get(f"{CUDA}/status").json() == []
    assert "CUDA" in told(client.get(f"{CUDA}/region/r/status"), 404)
    body = {"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 4}
    text = told(client.post(f"{CUDA}/region/r/register", json=body), 501)
    assert "handles of GPU memory are not taken" in text
    for path in ("/unregister", "/region/r/unregister"):
        assert client.post(CUDA + path).status_code == 200
    assert len(client.get(f"{SYSTEM}/status").json()) == 1


def test_server_says_that_it_has_the_extension(client: httpx.Client) -> None:
    extensions = client.get("/v2").json()["extensions"]
    assert "system_shared_memory" in extensions
    assert "cuda_shared_memory" not in extensions


CALLS = [
    ("GET", "/status"),
    ("GET", "/region/r/status"),
    ("POST", "/region/r/register"),
    ("POST", "/region/r/unregister"),
    ("POST", "/unregister"),
]


@pytest.mark.parametrize("root", [SYSTEM, CUDA])
def test_they_are_control_routes(serve: Serve, stub: StubModel, root: str) -> None:
    with serve(stub, admin=False) as client:
        for method, path in CALLS:
            assert "control routes are off" in told(client.request(method, root + path), 403)
        assert "system_shared_memory" not in client.get("/v2").json()["extensions"]


@pytest.mark.parametrize("root", [SYSTEM, CUDA])
def test_they_need_the_scope_admin(serve: Serve, stub: StubModel, root: str) -> None:
    key, hashed = APIKeys.generate()
    keys = APIKeys({"reader": (hashed, {"infer", "read"})})
    with serve(stub, authenticator=keys) as client:
        for method, path in CALLS:
            told(client.request(method, root + path), 401)
            headers = {"authorization": f"Bearer {key}"}
            assert "scope" in told(client.request(method, root + path, headers=headers), 403)


def test_page_in_a_browser_may_not_use_them(serve: Serve, stub: StubModel) -> None:
    with over_http1(stub) as client:
        answer = client.get(f"{SYSTEM}/status", headers={"origin": "http://evil.example"})
        assert "web page" in told(answer, 403)


def test_it_can_be_turned_off_alone(serve: Serve, stub: StubModel, page: Shared) -> None:
    with serve(stub, shared_memory=False) as client:
        body = {"key": page.key, "byte_size": 1}
        answer = client.post(f"{SYSTEM}/region/r/register", json=body)
        assert told(answer, 501) == "shared memory is turned off here"
        assert "turned off here" in told(infer(client, document([1], placed(4))), 501)
        assert client.get(f"{SYSTEM}/status").json() == []
        assert "system_shared_memory" not in client.get("/v2").json()["extensions"]


def test_two_servers_may_have_the_same_memory(stub: StubModel, page: Shared) -> None:
    memory = SharedMemory()
    with (
        over_http1(stub, shared_memory=memory) as one,
        over_asgi(stub, shared_memory=memory) as other,
    ):
        register(one, page)
        assert len(other.get(f"{SYSTEM}/status").json()) == 1
    assert len(memory.regions()) == 1  # not closed with a server
    memory.unregister()


def test_own_memory_is_given_up_with_the_server(stub: StubModel, page: Shared) -> None:
    with over_http1(stub) as client:
        register(client, page)
        assert open_in_this_process(page.path) == 2
    gc.collect()
    assert open_in_this_process(page.path) == 1


def test_one_of_many_registrations_at_once_gets_the_name(
    client: httpx.Client, page: Shared
) -> None:
    body = {"key": page.key, "byte_size": 8}
    path = f"{SYSTEM}/region/r/register"
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: client.post(path, json=body), range(24)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 23


# Inference


def test_input_and_output_in_memory(client: httpx.Client, page: Shared, stub: StubModel) -> None:
    register(client, page)
    for turn in range(6):
        x = np.arange(8, dtype=np.float32).reshape(2, 4) + turn
        page.put(x.tobytes(), 64)
        answer = infer(client, document([2, 4], placed(32, 64), placed(40, 128)))
        assert answer.json()["outputs"] == [
            {"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": placed(32, 128)}
        ]
        assert page.get(32, 128) == x.tobytes()
    # What says where it was is not the model's, and parts no batches.
    request = stub.requests[-1]
    assert (request.input_parameters, request.output_parameters) == ({}, {})


def test_beside_binary_tensors(client: httpx.Client, page: Shared) -> None:
    register(client, page)
    page.put(np.float32([1, 2]).tobytes())
    ints = {"datatype": "INT32", "shape": [2], "parameters": {"binary_data_size": 8}}
    body = {
        "inputs": [
            {"name": "first", **ints},
            {"name": "x", "datatype": "FP32", "shape": [2], "parameters": placed(8)},
            {"name": "last", **ints},
        ],
        "outputs": [
            {"name": "first", "parameters": placed(8, 32)},
            {"name": "x", "parameters": {"binary_data": True}},
            {"name": "last"},
        ],
    }
    head = json.dumps(body).encode()
    blobs = np.arange(4, dtype=np.int32).tobytes()
    for _ in range(4):
        answer = client.post(
            "/v2/models/echo/infer",
            content=head + blobs,
            headers={"inference-header-content-length": str(len(head))},
        )
        size = int(answer.headers["inference-header-content-length"])
        first, x, last = json.loads(answer.content[:size])["outputs"]
        assert (first["parameters"], "data" in first) == (placed(8, 32), False)
        assert x["parameters"] == {"binary_data_size": 8}
        assert answer.content[size:] == np.float32([1, 2]).tobytes()
        assert last["data"] == [2, 3]
        assert page.get(8, 32) == blobs[:8]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (document([1], placed(4, region="q")), "inputs[0].parameters.shared_memory_region: there"),
        (document([1], placed(8)), "inputs[0].parameters.shared_memory_byte_size: expected 4 byt"),
        (document([1025], placed(4100)), "inputs[0].parameters.shared_memory_byte_size: expected"),
        (document([1], placed(4, SIZE)), "inputs[0].parameters.shared_memory_byte_size: expected"),
        (document([1], placed(4, 2**62)), "inputs[0].parameters.shared_memory_byte_size: expect"),
        (
            document([2], placed(8), placed(7)),
            'outputs[0].parameters.shared_memory_byte_size: expected at least 8 bytes for "x"',
        ),
        (
            document([2], placed(8), placed(8, SIZE - 4)),
            "outputs[0].parameters.shared_memory_byte_size: expected at most the 4096 bytes",
        ),
        (
            document([2], placed(8), placed(8, region="q")),
            "outputs[0].parameters.shared_memory_region: there is no region",
        ),
    ],
)
def test_what_does_not_fit_is_400_with_its_place(
    client: httpx.Client, page: Shared, body: Any, text: str
) -> None:
    register(client, page)
    assert told(infer(client, body)).startswith(text)
    assert page.get(SIZE) == bytes(SIZE)


def test_without_regions_the_request_is_told_to_register(client: httpx.Client) -> None:
    text = told(infer(client, document([1], placed(4))))
    assert text.endswith('there is no region "r"; register it first')


def test_that_there_is_no_model_comes_first(serve: Serve) -> None:
    with ModelRepository() as repository, serve(repository) as client:
        assert "nope" in told(infer(client, document([1], placed(4)), "nope"), 404)


def test_inputs_of_a_request_are_bounded_together(serve: Serve, stub: StubModel) -> None:
    with shared(1 << 20) as memory, serve(stub, max_body_size=1000) as client:
        register(client, memory, byte_size=1 << 20)
        assert infer(client, document([250], placed(1000))).status_code == 200
        text = told(infer(client, document([251], placed(1004))), 413)
        assert "more than the 1000 bytes allowed" in text


def test_compressed_request(client: httpx.Client, page: Shared) -> None:
    register(client, page)
    page.put(np.float32(5).tobytes())
    answer = client.post(
        "/v2/models/echo/infer",
        content=gzip.compress(json.dumps(document([1], placed(4))).encode()),
        headers={"content-encoding": "gzip"},
    )
    assert answer.json()["outputs"][0]["data"] == [5.0]


def test_request_may_ask_where_its_time_went(client: httpx.Client, page: Shared) -> None:
    register(client, page)
    for body, headers in (
        (document([1], placed(4), placed(4, 8)), {"x-explain": "1"}),
        ({**document([1], placed(4), placed(4, 8)), "parameters": {"explain": True}}, {}),
    ):
        answer = infer(client, body, headers=headers)
        assert "explain_decode_us" in answer.json()["parameters"]
        assert "server-timing" in answer.headers
        assert answer.json()["outputs"][0]["parameters"] == placed(4, 8)


def test_region_is_closed_when_its_requests_are_answered(
    client: httpx.Client, page: Shared, stub: StubModel
) -> None:
    register(client, page)
    # On a connection that stays.
    assert infer(client, document([1], placed(4), placed(4, 8))).status_code == 200
    assert infer(client, document([2], placed(8), placed(4, 8))).status_code == 400
    assert client.post(f"{SYSTEM}/region/r/unregister").status_code == 200

    def closed() -> bool:
        gc.collect()
        return open_in_this_process(page.path) == 1

    wait_until(closed, "the end of the region")


def test_under_uvicorn_it_is_the_same(stub: StubModel, page: Shared) -> None:
    with over_http1(stub, server="uvicorn") as client:
        register(client, page)
        assert infer(client, document([1], placed(4), placed(4, 8))).status_code == 200
    gc.collect()
    assert open_in_this_process(page.path) == 1


# Memory that goes, and clients that do


def test_memory_made_smaller_is_400_and_the_server_lives(
    client: httpx.Client, page: Shared
) -> None:
    register(client, page)
    body = document([1024], placed(SIZE))
    assert infer(client, body).status_code == 200
    page.truncate(100)
    assert "was made smaller" in told(infer(client, body))
    plain = {"name": "x", "datatype": "FP32", "shape": [1024], "data": [0.0] * 1024}
    outputs = [{"name": "x", "parameters": placed(SIZE)}]
    answer = infer(client, {"inputs": [plain], "outputs": outputs})
    assert told(answer).startswith("outputs[0].parameters.shared_memory_region: the memory of")
    assert page.size == 100
    page.truncate(SIZE)
    assert infer(client, body).status_code == 200


@pytest.fixture
def gated(serve: Serve) -> Iterator[tuple[GatedBackend, httpx.Client]]:
    backend = GatedBackend()
    with ModelRepository() as repository:
        repository.add("gated", backend)
        try:
            with serve(repository) as client:
                yield backend, client
        finally:
            backend.release()


BOTH = {
    "inputs": document([1, 1], placed(4))["inputs"],
    "outputs": [{"name": "y", "parameters": placed(4, 8)}],
}


def test_unregistering_leaves_requests_under_way_what_they_use(
    gated: tuple[GatedBackend, httpx.Client], page: Shared
) -> None:
    backend, client = gated
    register(client, page)
    page.put(np.float32(21).tobytes())
    backend.hold()
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(infer, client, BOTH, "gated")
        backend.wait_inside()
        assert client.post(f"{SYSTEM}/unregister").status_code == 200
        page.put(np.float32(99).tobytes())
        backend.release()
        assert answer.result().status_code == 200
    assert page.get(4, 8) == np.float32(42).tobytes()
    told(infer(client, BOTH, "gated"))


def test_memory_made_smaller_while_the_model_runs(
    gated: tuple[GatedBackend, httpx.Client], page: Shared
) -> None:
    backend, client = gated
    register(client, page)
    backend.hold()
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(infer, client, BOTH, "gated")
        backend.wait_inside()
        page.truncate(0)
        backend.release()
        assert "was made smaller" in told(answer.result())
    assert page.size == 0
    assert client.get("/v2/health/live").status_code == 200


def test_nothing_is_written_for_a_client_that_went_away(
    gated: tuple[GatedBackend, httpx.Client], page: Shared
) -> None:
    backend, client = gated
    register(client, page)
    page.put(np.float32(21).tobytes())
    backend.hold()
    content = json.dumps(BOTH).encode()
    url = client.base_url
    with socket.create_connection((url.host, url.port)) as raw:
        raw.sendall(
            b"POST /v2/models/gated/infer HTTP/1.1\r\nhost: a\r\ncontent-length: "
            b"%d\r\n\r\n%s" % (len(content), content)
        )
        backend.wait_inside()
    wait_until(lambda: "CANCELLED" in client.get("/metrics").text, "the end of the client")
    backend.release()
    assert infer(client, document([1, 1], placed(4)), "gated").status_code == 200
    assert page.get(4, 8) == bytes(4)


KILLED = """
import json, mmap, os, sys, time, urllib.request
key, url = sys.argv[1:]
descriptor = os.open("/dev/shm" + key, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
os.ftruncate(descriptor, 4096)
mapped = mmap.mmap(descriptor, 4096)
mapped[:4] = bytes((0, 0, 128, 63))
body = json.dumps({"key": key, "byte_size": 4096}).encode()
urllib.request.urlopen(urllib.request.Request(url, body, method="POST"))
print("registered", flush=True)
time.sleep(600)
"""


def test_killed_client_leaves_its_regions_in_order(client: httpx.Client, page: Shared) -> None:
    key = f"{page.key}-killed"
    url = str(client.base_url.join(f"{SYSTEM}/region/k/register"))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, key, url], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "registered\n"
        finally:
            process.kill()
            process.wait(10)
            (DIRECTORY / key[1:]).unlink(missing_ok=True)
    assert client.get(f"{SYSTEM}/status").json()[0]["key"] == key
    answer = infer(client, document([1], placed(4, region="k")))
    assert answer.json()["outputs"][0]["data"] == [1.0]
    assert client.post(f"{SYSTEM}/region/k/unregister").status_code == 200


def test_everything_at_once(client: httpx.Client, page: Shared) -> None:
    """Registrations, truncations and requests from many threads: every answer is a right one."""
    page.put(np.ones(1024, np.float32).tobytes())
    stop = threading.Event()
    seen: set[int] = set()

    def disturb() -> None:
        while not stop.is_set():
            page.truncate(2000)
            page.truncate(SIZE)

    def change() -> None:
        body = {"key": page.key, "byte_size": SIZE}
        for _ in range(40):
            client.post(f"{SYSTEM}/region/r/register", json=body)
            client.post(f"{SYSTEM}/region/r/unregister")

    def ask() -> None:
        for _ in range(40):
            answer = infer(client, document([1024], placed(SIZE), placed(SIZE)))
            seen.add(answer.status_code)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        with ThreadPoolExecutor(6) as threads:
            for future in [threads.submit(work) for work in (change, ask, ask, change, ask)]:
                future.result()
    finally:
        stop.set()
        disturber.join()
    assert seen <= {200, 400}
    assert client.get("/v2/health/live").status_code == 200


# Beside requests that are answered together


def test_requests_in_memory_among_those_that_are_gathered(serve: Serve) -> None:
    FRAMES.clear()
    HEADS.clear()
    with ModelRepository() as repository, shared(SIZE) as page, serve(repository) as client:
        repository.add("add", onnx_models.add_one(), max_batch_size=8)
        for size in (1, 2, 4, 8) * 40:  # known as short, whatever it took here and now
            repository._entries["add"].default.batcher.pacing.learn(size, 2e-6)
        register(client, page)

        def plain(number: int) -> list[float]:
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [number] * 4}
            answer = infer(client, {"inputs": [tensor]}, "add")
            return [answer.json()["outputs"][0]["data"], [number + 1.0] * 4]

        def in_memory(number: int) -> list[Any]:
            at = 32 * number
            page.put(np.full(4, number, np.float32).tobytes(), at)
            body = document([1, 4], placed(16, at), None)
            body["outputs"] = [{"name": "y", "parameters": placed(16, at + 16)}]
            answer = infer(client, body, "add")
            assert "data" not in answer.json()["outputs"][0]
            found = np.frombuffer(page.get(16, at + 16), np.float32).tolist()
            return [found, [number + 1.0] * 4]

        with ThreadPoolExecutor(8) as threads:
            for _ in range(4):
                calls = [
                    threads.submit(plain if number % 2 else in_memory, number)
                    for number in range(48)
                ]
                for call in calls:
                    found, wanted = call.result()
                    assert found == wanted
