"""The clients against real servers: every verb, over TCP, TLS and Unix sockets, and a gateway."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any

import numpy as np
import pytest
import trustme

from modelserve import errors
from modelserve.client import AsyncClient, Client
from modelserve.messages import InferRequest, InferResponse
from modelserve.protocols import Admin, Catalog, Servable
from modelserve.repository.repository import ModelRepository
from modelserve.security.authentication import APIKeys
from modelserve.tensors import TensorSpec
from modelserve.testing import StubModel
from modelserve.transports.asgi import ASGIApp, mount
from versioned_models import ROWS, added, adds, answer, tree

Ask = Callable[..., Any]
Serve = Callable[..., str]

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def double(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"y": inputs["x"] * 2, "z": inputs["x"].sum(axis=1)}


def stub(**options: Any) -> StubModel:
    defaults: dict[str, Any] = {
        "inputs": [TensorSpec("x", "FP32", (-1, 4))],
        "outputs": [TensorSpec("y", "FP32", (-1, 4)), TensorSpec("z", "FP32", (-1,))],
        "name": "double",
        "version": "3",
        "labels": ["stable"],
    }
    return StubModel(double, **{**defaults, **options})


@pytest.mark.parametrize("binary", [True, False])
def test_predict(ask: Ask, serve: Serve, binary: bool) -> None:
    url = serve(ASGIApp(stub()))
    outputs = ask(url, "predict", "double", {"x": X}, options={"binary": binary})
    assert list(outputs) == ["y", "z"]
    np.testing.assert_array_equal(outputs["y"], X * 2)
    assert outputs["y"].dtype == np.float32


def test_predict_takes_lists(ask: Ask, serve: Serve) -> None:
    outputs = ask(serve(ASGIApp(stub())), "predict", "double", {"x": [[1, 2, 3, 4]]})
    assert outputs["z"].tolist() == [10.0]


@pytest.mark.parametrize("x", [X, X.tolist()])
def test_predict_takes_the_array_of_a_model_of_one_input(ask: Ask, serve: Serve, x: Any) -> None:
    outputs = ask(serve(ASGIApp(stub())), "predict", "double", x)
    np.testing.assert_array_equal(outputs["y"], X * 2)


def test_predict_without_names_tells_the_inputs_of_a_model_of_several(
    ask: Ask, serve: Serve
) -> None:
    model = StubModel(name="two", inputs=[TensorSpec("a", "FP32"), TensorSpec("b", "FP32")])
    expected = '^model "two" takes the inputs "a", "b": give arrays by name$'
    with pytest.raises(TypeError, match=expected):
        ask(serve(ASGIApp(model)), "predict", "two", X)
    assert model.count == 0


def test_predict_without_names_needs_a_model_that_is_described(ask: Ask, serve: Serve) -> None:
    with pytest.raises(TypeError, match='does not say what model "echo" takes'):
        ask(serve(ASGIApp(StubModel(name="echo"))), "predict", "echo", X)


def test_predict_gives_the_outputs_asked_for(ask: Ask, serve: Serve) -> None:
    url = serve(ASGIApp(stub()))
    assert list(ask(url, "predict", "double", {"x": X}, outputs=["z"])) == ["z"]


def test_predict_sends_version_parameters_priority_and_time(ask: Ask, serve: Serve) -> None:
    model = stub()
    options: dict[str, Any] = {"version": "stable", "parameters": {"k": 5}, "priority": 2}
    ask(serve(ASGIApp(model)), "predict", "double", {"x": X}, timeout=60.0, **options)
    seen = model.requests[0]
    assert (seen.version, seen.parameters["k"], seen.priority) == ("stable", 5, 2)
    assert seen.deadline is not None


@pytest.mark.parametrize("binary", [True, False])
def test_text_goes_there_and_back(ask: Ask, serve: Serve, binary: bool) -> None:
    url = serve(ASGIApp(StubModel(name="echo")))
    x = np.array(["a", "ü", ""])
    outputs = ask(url, "predict", "echo", {"x": x}, options={"binary": binary})
    assert outputs["x"].tolist() == [b"a", "ü".encode(), b""]


def test_infer_keeps_the_id_and_names_the_version(ask: Ask, serve: Serve) -> None:
    response = ask(serve(ASGIApp(stub())), "infer", InferRequest("double", {"x": X}, id="r-1"))
    assert isinstance(response, InferResponse)
    assert (response.model, response.version, response.id) == ("double", "3", "r-1")


def test_large_tensors_go_there_and_back(ask: Ask, serve: Serve) -> None:
    x = np.random.default_rng(0).random((1 << 18, 4), np.float32)
    outputs = ask(serve(ASGIApp(stub())), "predict", "double", {"x": x})
    np.testing.assert_array_equal(outputs["y"], x * 2)


def test_servers_refusal_has_its_class_and_text(ask: Ask, serve: Serve) -> None:
    url = serve(ASGIApp(stub()))
    with pytest.raises(errors.InvalidInput, match=r'^inputs\[0\] "x": expected shape'):
        ask(url, "predict", "double", {"x": X[:, :3]})


def test_unknown_model_is_not_found(ask: Ask, serve: Serve) -> None:
    with pytest.raises(errors.ModelNotFound, match="nope"):
        ask(serve(ASGIApp(stub())), "predict", "nope", {"x": X})


def test_model_whose_name_needs_quoting_is_found(ask: Ask, serve: Serve) -> None:
    url = serve(ASGIApp(stub(name="ä b?#%41")))
    assert ask(url, "ready", "ä b?#%41") is True


def test_server_out_of_queue_says_when_to_come_back(ask: Ask, serve: Serve) -> None:
    model = stub(fail_every=1, error=errors.QueueFull("64 requests wait", retry_after=7))
    with pytest.raises(errors.Overloaded, match="64 requests wait") as caught:
        ask(serve(ASGIApp(model)), "predict", "double", {"x": X}, timeout=5.0)
    assert caught.value.retry_after == 7
    assert model.count == 1


def test_index(ask: Ask, serve: Serve) -> None:
    (info,) = ask(serve(ASGIApp(stub())), "index")
    assert (info.model, info.version, info.state) == ("double", "3", "READY")


def test_describe(ask: Ask, serve: Serve) -> None:
    model = stub()
    info = ask(serve(ASGIApp(model)), "describe", "double", "stable")
    assert info.signature == model.signature
    assert (info.version, info.labels, info.platform) == ("3", ("stable",), "python")


def test_load_and_unload(ask: Ask, serve: Serve) -> None:
    url = serve(ASGIApp(stub(), admin=True))
    assert ask(url, "ready", "double") is True
    ask(url, "unload", "double")
    assert ask(url, "ready", "double") is False
    assert ask(url, "load", "double") == "3"
    assert ask(url, "ready", "double", "3") is True


def test_load_with_a_configuration_and_files(
    ask: Ask, serve: Serve, tmp_path: Path, directory: Any
) -> None:
    with ModelRepository(tree(tmp_path, {"m": {"1": 1}})) as repository:
        app = ASGIApp(repository, admin=True, uploads=True)
        url = serve(app)
        assert ask(url, "load", "m", config={"maxBatchSize": 4}) == "1"
        assert ask(url, "describe", "m").batching == "declared: up to 4 rows"
        files = {"6/model.onnx": adds(6), "7/model.onnx": adds(7)}
        assert ask(url, "load", "m", config="{}", files=files) == "7"
        assert added(ask(url, "predict", "m", {"x": ROWS})) == 7
        assert ask(url, "load", "m", "6", config="{}", files=files) == "6"
        with pytest.raises(errors.InvalidInput, match="not an ONNX model"):
            ask(url, "load", "m", config={}, files={"1/model.onnx": b"no"})
        assert added(ask(url, "predict", "m", {"x": ROWS})) == 6
        assert ask(url, "load", "m") == "1"
        off = serve(ASGIApp(repository, admin=True))
        with pytest.raises(errors.PermissionDenied, match="uploads=True"):
            ask(off, "load", "m", config={})
        # A gateway takes them for the server behind it.
        behind = AsyncClient(url)
        gateway = serve(ASGIApp(behind, admin=True, uploads=True))
        assert ask(gateway, "load", "m", config={}, files=files) == "7"
        directory.run(behind.aclose())
        assert answer(repository) == 7


def test_control_routes_that_are_off_say_so(ask: Ask, serve: Serve) -> None:
    with pytest.raises(errors.PermissionDenied, match="admin=True"):
        ask(serve(ASGIApp(stub())), "unload", "double")


def test_ready_is_false_where_no_server_is(ask: Ask) -> None:
    assert ask("http://127.0.0.1:9", "ready") is False


@pytest.mark.parametrize("verb", ["ready", "index"])
def test_wrong_prefix_is_told_without_the_prefix(ask: Ask, serve: Serve, verb: str) -> None:
    url = serve(ASGIApp(stub()))
    with pytest.raises(errors.ServeError, match="the server answered, but has no") as caught:
        ask(f"{url}/a-secret", verb)
    assert "check the prefix in the client's URL" in str(caught.value)
    assert "a-secret" not in str(caught.value) + "".join(caught.value.__notes__)


def test_server_behind_a_path_prefix(ask: Ask, serve: Serve) -> None:
    url = serve(mount(None, "/ml", ASGIApp(stub())))
    assert ask(f"{url}/ml/", "ready", "double") is True


def test_api_key_admits(ask: Ask, serve: Serve) -> None:
    key, key_hash = APIKeys.generate()
    url = serve(ASGIApp(stub(), authenticator=APIKeys({"me": (key_hash, {"infer", "read"})})))
    with pytest.raises(errors.Unauthenticated):
        ask(url, "describe", "double")
    assert ask(url, "describe", "double", options={"api_key": key}).version == "3"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(serve: Serve, authority: trustme.CA, tmp_path: Path) -> str:
    certificate = authority.issue_cert("localhost")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    certificate.private_key_pem.write_to_path(str(key))
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(chain), append=True)
    return serve(ASGIApp(stub()), ssl_keyfile=str(key), ssl_certfile=str(chain))


def test_tls_with_a_file_of_authorities(
    ask: Ask, secure: str, authority: trustme.CA, tmp_path: Path
) -> None:
    file = tmp_path / "authorities.pem"
    authority.cert_pem.write_to_path(str(file))
    assert ask(secure, "ready", options={"verify": file}) is True
    assert ask(secure, "ready", options={"verify": str(file)}) is True


def test_verify_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="verify is True, False, a file of authorities or an"):
        Client("https://127.0.0.1:1", verify=1)  # type: ignore[arg-type]


def test_tls_with_a_known_authority(ask: Ask, secure: str, authority: trustme.CA) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    outputs = ask(secure, "predict", "double", {"x": X}, options={"verify": context})
    np.testing.assert_array_equal(outputs["y"], X * 2)


def test_tls_with_an_unknown_authority_is_refused(ask: Ask, secure: str) -> None:
    with pytest.raises(errors.UnavailableError, match="secure connection"):
        ask(secure, "predict", "double", {"x": X})


def test_tls_unverified(ask: Ask, secure: str) -> None:
    assert ask(secure, "ready", options={"verify": False}) is True


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets for this")
def test_unix_socket(ask: Ask, serve: Serve, tmp_path: Path) -> None:
    url = serve(ASGIApp(stub()), uds=str(tmp_path / "s"))
    assert ask(url, "describe", "double").version == "3"


def test_threads_share_a_client(serve: Serve) -> None:
    url = serve(ASGIApp(stub()))
    start = Barrier(8)
    wrong: list[object] = []

    with Client(url, max_connections=3) as client:

        def run(value: int) -> None:
            start.wait()
            for _ in range(20):
                x = np.full((1, 4), value, np.float32)
                outputs = client.predict("double", {"x": x})
                if not (outputs["y"] == 2 * value).all():
                    wrong.append(outputs)

        threads = [Thread(target=run, args=(value,)) for value in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_tasks_share_a_client(serve: Serve) -> None:
    url = serve(ASGIApp(stub()))

    async def main() -> list[dict[str, Any]]:
        async with AsyncClient(url, max_connections=3) as client:
            calls = (
                client.predict("double", {"x": np.full((1, 4), value, np.float32)})
                for value in range(50)
            )
            return await asyncio.gather(*calls)

    assert [answer["y"][0, 0] for answer in asyncio.run(main())] == [2 * v for v in range(50)]


def test_one_async_client_on_two_event_loops(serve: Serve) -> None:
    client = AsyncClient(serve(ASGIApp(stub())))
    with asyncio.Runner() as one, asyncio.Runner() as two:
        answers = [runner.run(client.ready("double")) for runner in (one, two, one, two)]
        for runner in (one, two):
            runner.run(client.aclose())
    assert answers == [True] * 4


def test_closed_client_refuses() -> None:
    client = Client("http://127.0.0.1:9")
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.ready()


def test_closed_async_client_refuses() -> None:
    async def main() -> None:
        client = AsyncClient("http://127.0.0.1:9")
        await client.aclose()
        await client.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await client.ready()

    asyncio.run(main())


def test_streams_and_routes_are_unsupported() -> None:
    client = AsyncClient("http://127.0.0.1:9")
    with pytest.raises(errors.Unsupported):
        client.stream(InferRequest("double", {"x": X}))
    with pytest.raises(errors.Unsupported):
        asyncio.run(client.aroute("double", None))


def test_cancelled_call_leaves_the_client_usable(serve: Serve) -> None:
    entered = Event()

    async def held(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        entered.set()
        await asyncio.sleep(30)
        return inputs

    url = serve(ASGIApp(StubModel(held, name="double")))

    async def main() -> bool:
        async with AsyncClient(url, max_connections=1) as client:
            call = asyncio.create_task(client.predict("double", {"x": X}))
            assert await asyncio.to_thread(entered.wait, 10)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            return await client.ready()

    assert asyncio.run(main()) is True


# A gateway: the client is what an application serves.


@pytest.fixture
def behind() -> StubModel:
    return stub()


@pytest.fixture
def gateway(serve: Serve, behind: StubModel, directory: Any) -> Iterator[str]:
    client = AsyncClient(serve(ASGIApp(behind, admin=True)))
    yield serve(ASGIApp(client, admin=True))
    directory.run(client.aclose())


def test_client_has_the_protocols_of_a_gateway() -> None:
    client = AsyncClient("http://127.0.0.1:9")
    servable: Servable = client
    catalog: Catalog = client
    admin: Admin = client
    assert servable is catalog is admin


@pytest.mark.parametrize("binary", [True, False])
def test_gateway_answers_as_the_server_behind_it(ask: Ask, gateway: str, binary: bool) -> None:
    options = {"binary": binary}
    outputs = ask(gateway, "predict", "double", {"x": X}, outputs=["y"], options=options)
    assert list(outputs) == ["y"]
    np.testing.assert_array_equal(outputs["y"], X * 2)


def test_gateway_passes_on_what_a_request_says(ask: Ask, gateway: str, behind: StubModel) -> None:
    request = InferRequest(
        "double",
        {"x": X},
        id="r-1",
        priority=2,
        parameters={"k": "v"},
        timeout=20.0,
        trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        idempotency_key="once",
    )
    ask(gateway, "infer", request)
    seen = behind.requests[0]
    assert (seen.id, seen.priority, seen.parameters["k"]) == ("r-1", 2, "v")
    assert (seen.trace, seen.idempotency_key) == (request.trace, "once")
    assert seen.deadline == pytest.approx(request.deadline, abs=5.0)


def test_gateway_describes_what_is_behind_it(ask: Ask, gateway: str, behind: StubModel) -> None:
    info = ask(gateway, "describe", "double")
    assert (info.signature, info.version) == (behind.signature, "3")


def test_gateway_loads_and_unloads(ask: Ask, gateway: str, behind: StubModel) -> None:
    ask(gateway, "unload", "double")
    assert behind.state != "READY"
    assert ask(gateway, "load", "double") == "3"


def test_gateway_passes_errors_on(ask: Ask, gateway: str) -> None:
    with pytest.raises(errors.InvalidInput, match=r'^inputs\[0\] "x": expected shape'):
        ask(gateway, "predict", "double", {"x": X[:, :3]})


def test_gateway_without_a_server_is_unavailable_and_names_no_address(
    ask: Ask, serve: Serve
) -> None:
    url = serve(ASGIApp(AsyncClient("http://127.0.0.1:9", retries=0)))
    with pytest.raises(
        errors.UnavailableError, match=r"^the server cannot be reached: connection refused$"
    ):
        ask(url, "predict", "double", {"x": X})


def test_call_steps_without_a_task(serve: Serve) -> None:
    """A transport may step an answer's coroutine from a callback, where no task is current."""
    url = serve(ASGIApp(stub()))

    async def main() -> bool:
        client = AsyncClient(url)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool] = loop.create_future()
        coroutine = client.ready("double")

        def step(_: object = None) -> None:
            try:
                waited = coroutine.send(None)
            except StopIteration as stop:
                done.set_result(stop.value)
            else:
                waited._asyncio_future_blocking = False
                waited.add_done_callback(step)

        loop.call_soon(step)
        ready = await done
        await client.aclose()
        return ready

    assert asyncio.run(main()) is True


def test_missing_extra_names_its_command(fresh_python: Callable[..., str]) -> None:
    printed = fresh_python(
        "import sys\n"
        "from modelserve.client import AsyncClient, Client\n"
        "assert 'httpcore' not in sys.modules\n"
        "sys.modules['httpcore'] = None\n"
        "for kind in (Client, AsyncClient):\n"
        "    try: kind('http://h')\n"
        "    except ImportError as error: print(error)\n"
    )
    assert printed.count('pip install "modelserve[client]"') == 2
