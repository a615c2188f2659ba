"""What works without rooms and packages one may do without, and what is said where one is missed.

Each test is a fresh interpreter in which some modules cannot be found.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import onnx_models
from modelserve.messages import InferRequest
from modelserve.repository.repository import ModelRepository

Python = Callable[..., str]

_BLOCK = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == one or name.startswith(one + ".") for one in missing):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

missing = [name for name in sys.argv[1].split(",") if name]
assert not any(name in sys.modules for name in missing)
sys.meta_path.insert(0, Missing())
path = sys.argv[2]
"""

PREDICT = """
from modelserve import ModelRepository
with ModelRepository() as repo:
    repo.add("add", path)
    print(repo.predict("add", [[1.0, 2.0, 3.0, 4.0]])["y"].tolist())
"""

PYTHON_MODEL = """
import numpy as np
from modelserve import ModelRepository, TensorSpec, model

@model(inputs=[TensorSpec("x", "FP32", (-1, 4))], max_batch_size=8)
def add(x):
    return {"y": x + 1}

with ModelRepository() as repo:
    repo.add(add)
    print(repo.predict("add", [[1.0, 2.0, 3.0, 4.0]])["y"].tolist())
"""

ASGI = """
import asyncio, json
from modelserve import ASGIApp, ModelRepository

async def main(app):
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    sent = []
    async def receive():
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
    async def send(message):
        sent.append(message)
    scope = {"type": "http", "method": "POST", "path": "/v2/models/add/infer", "headers": []}
    await app(scope, receive, send)
    print(json.loads(sent[1]["body"])["outputs"][0]["data"])

with ModelRepository() as repo:
    repo.add("add", path)
    asyncio.run(main(ASGIApp(repo)))
"""

HTTP = """
import asyncio, json, urllib.request
from modelserve import HTTPServer, ModelRepository

def ask(url):
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    url += "/v2/models/add/infer"
    answer = urllib.request.urlopen(url, json.dumps(body).encode(), 10).read()
    print(json.loads(answer)["outputs"][0]["data"])

async def main(repo):
    async with HTTPServer(repo, http="127.0.0.1:0", server=NAME) as server:
        await asyncio.to_thread(ask, server.url)

with ModelRepository() as repo:
    repo.add("add", path)
    asyncio.run(main(repo))
"""

ROW = "[2.0, 3.0, 4.0, 5.0]\n"


@pytest.fixture(scope="module")
def without(
    fresh_python: Python, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Sequence[str], str], str]:
    """Run code where modules are missing; `path` is that of a model with y = x + 1."""
    path = tmp_path_factory.mktemp("models") / "add.onnx"
    path.write_bytes(onnx_models.add_one())
    return lambda missing, code: fresh_python(_BLOCK + code, ",".join(missing), str(path))


Without = Callable[[Sequence[str], str], str]

# Everything a model in the same process can do without.
OUTER_ROOMS = [
    f"modelserve.{room}" for room in ("transports", "client", "cli", "testing", "security")
]
OPTIONAL = [
    "fastapi", "httpcore", "httptools", "ml_dtypes", "onnx", "orjson", "prometheus_client",
    "pydantic", "rich", "sklearn", "starlette", "uvicorn", "uvloop",
]  # fmt: skip


def test_model_is_served_in_process_without_all_that_is_optional(without: Without) -> None:
    assert without([*OUTER_ROOMS, *OPTIONAL], PREDICT) == f"[{ROW.strip()}]\n"


def test_python_model_needs_no_runtime(without: Without) -> None:
    missing = [*OUTER_ROOMS, *OPTIONAL, "onnxruntime"]
    assert without(missing, PYTHON_MODEL) == f"[{ROW.strip()}]\n"


def test_application_needs_no_server_and_no_optional_package(without: Without) -> None:
    rooms = ["modelserve.transports.serving", "modelserve.client", "modelserve.cli"]
    assert without([*rooms, *OPTIONAL], ASGI) == ROW


@pytest.mark.parametrize(("name", "package"), [("http1", "httptools"), ("uvicorn", "uvicorn")])
def test_server_needs_only_what_parses_http(without: Without, name: str, package: str) -> None:
    missing = ["modelserve.client", "modelserve.cli", *(m for m in OPTIONAL if m != package)]
    assert without(missing, HTTP.replace("NAME", repr(name))) == ROW


def test_client_needs_no_transport_repository_or_runtime(without: Without) -> None:
    rooms = [f"modelserve.{room}" for room in ("transports", "repository", "execution", "backends")]
    printed = without(
        [*rooms, "onnxruntime", "uvicorn", "prometheus_client"],
        "from modelserve import Client\n"
        "with Client('http://127.0.0.1:9') as client:\n"
        "    print(type(client).__name__)\n",
    )
    assert printed == "Client\n"


def test_every_public_name_is_there_without_optional_packages(without: Without) -> None:
    printed = without(
        [*OPTIONAL, "onnxruntime"],
        "import modelserve\n"
        "print(all(getattr(modelserve, name) is not None for name in modelserve.__all__))",
    )
    assert printed == "True\n"


MISSED = {
    "session": "from modelserve import InferenceSession; InferenceSession(path)",
    "model": "from modelserve import ModelRepository; ModelRepository().add('add', path)",
    "server": "from modelserve import HTTPServer; HTTPServer(StubModel())",
    "serve": "from modelserve import serve; serve(StubModel())",
    "metrics": "from modelserve import Metrics; Metrics().render()",
    "client": "from modelserve import Client; Client('http://127.0.0.1:9')",
    "async client": "from modelserve import AsyncClient; AsyncClient('http://127.0.0.1:9')",
    "routes": "import modelserve.integrations.fastapi",
    "pydantic": "import modelserve.integrations.pydantic",
    "bfloat16": "from modelserve.tensors import numpy_dtype; numpy_dtype('BF16')",
}

TRY = """
from modelserve.testing import StubModel
try:
    {code}
except ImportError as error:
    print(error)
else:
    print("nothing was missed")
"""


@pytest.fixture(scope="module")
def said(without: Without) -> dict[str, str]:
    """What is said in each case, without any optional package."""
    code = "".join(TRY.format(code=one) for one in MISSED.values())
    printed = without([*OPTIONAL, "onnxruntime"], code)
    return dict(zip(MISSED, printed.splitlines(), strict=True))


@pytest.mark.parametrize(
    ("case", "command"),
    [
        ("session", 'pip install "modelserve[cpu]", or "modelserve[gpu]" for NVIDIA GPUs'),
        ("model", 'pip install "modelserve[cpu]", or "modelserve[gpu]" for NVIDIA GPUs'),
        ("server", 'pip install "modelserve[serve]"'),
        ("serve", 'pip install "modelserve[serve]"'),
        ("metrics", 'pip install "modelserve[serve]"'),
        ("client", 'pip install "modelserve[client]"'),
        ("async client", 'pip install "modelserve[client]"'),
        ("routes", 'pip install "modelserve[fastapi]"'),
        ("pydantic", 'pip install "modelserve[fastapi]"'),
        ("bfloat16", 'pip install "modelserve[bf16]"'),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_installs_it(
    said: dict[str, str], case: str, command: str
) -> None:
    assert said[case].endswith(f": {command}")


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_command_that_misses_a_package_says_so_in_one_sentence(
    without: Without, command: str
) -> None:
    printed = without(
        ["httptools", "sklearn"],
        "import contextlib, io, pathlib\n"
        "from modelserve.cli import main\n"
        "from modelserve.repository.store import LocalStore\n"
        "root = pathlib.Path(path).parent / 'stored'\n"
        "LocalStore(root).put('add', path)\n"
        "given = {'serve': ['serve', str(root), '--http', '127.0.0.1:0'], 'demo': ['demo']}\n"
        "with contextlib.redirect_stderr(io.StringIO()) as errors:\n"
        f"    status = main(given[{command!r}])\n"
        "print(status, errors.getvalue().count('\\n'))\n"
        "print(errors.getvalue(), end='')\n",
    )
    lines = printed.splitlines()[-2:]
    assert lines[0] == "1 1"
    assert lines[1].startswith(f"modelserve {command}: ")
    assert lines[1].endswith(f'pip install "modelserve[{command}]"')


# Nothing that was not asked for


def test_models_start_no_thread_before_the_first_request(without: Without) -> None:
    printed = without(
        [],
        "import threading\n"
        "from modelserve import ASGIApp, ModelRepository\n"
        "repo = ModelRepository()\n"
        "repo.add('add', path)\n"
        "app = ASGIApp(repo)\n"
        "print([thread.name for thread in threading.enumerate()])\n"
        "repo.close()\n",
    )
    assert printed == "['MainThread']\n"


def test_repositories_with_equal_names_know_nothing_of_each_other(tmp_path: Path) -> None:
    x = np.zeros((1, 4), np.float32)

    def requests(repository: ModelRepository) -> float:
        return sum(
            sample.value
            for family in repository.metrics.collect()
            for sample in family.samples
            if sample.name == "modelserve_requests_total"
        )

    with ModelRepository() as one, ModelRepository() as other:
        one.add("m", onnx_models.add_one())
        other.add("m", onnx_models.identity(shape=("batch", 4)))
        assert one.predict("m", {"x": x})["y"].tolist() == [[1.0] * 4]
        assert one.predict("m", {"x": x})["y"].tolist() == [[1.0] * 4]
        assert other.predict("m", {"x": x})["y"].tolist() == [[0.0] * 4]
        assert (requests(one), requests(other)) == (2, 1)
        one.close()
        answer = asyncio.run(other.infer(InferRequest("m", {"x": x})))
        assert answer.outputs["y"].tolist() == [[0.0] * 4]
        assert requests(other) == 2
