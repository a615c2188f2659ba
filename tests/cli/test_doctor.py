"""`modelserve doctor`, in an environment as it should be and in ones that lack something."""

import subprocess
import sys
from collections.abc import Callable

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]

_WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

missing = set(sys.argv[1].split(","))
for name in missing:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())

import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in missing else find_spec(name, *rest)

from modelserve.cli import main
sys.exit(main(["doctor"]))
"""


@pytest.fixture
def without(environment: dict[str, str]) -> Cli:
    """Run the doctor where some modules are not there."""

    def run(*modules: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", _WITHOUT, ",".join(modules)],
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=15,
        )

    return run


def finding(printed: str, subject: str) -> tuple[str, str, str]:
    """Return a subject's level, text, and the remedy on the line below."""
    lines = printed.splitlines()
    for number, line in enumerate(lines):
        words = line.split(maxsplit=2)
        if words[1:2] == [subject]:
            below = lines[number + 1].strip() if number + 1 < len(lines) else ""
            return words[0], words[2], below.removeprefix("-> ") if "->" in below else ""
    raise AssertionError(f"nothing about {subject} in:\n{printed}")


def test_installation_as_it_should_be(cli: Cli) -> None:
    import onnxruntime

    done = cli("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert finding(done.stdout, "onnxruntime") == ("ok", onnxruntime.__version__, "")
    assert finding(done.stdout, "inference") == ("ok", "a model of one node runs", "")
    assert "CPU" in finding(done.stdout, "providers")[1]
    assert "1 thread unless told otherwise" in finding(done.stdout, "cores")[1]


def test_missing_runtime_is_a_failure_with_its_remedy(without: Cli) -> None:
    done = without("onnxruntime")
    assert (done.returncode, done.stderr) == (1, "")
    level, text, remedy = finding(done.stdout, "onnxruntime")
    assert level == "FAIL"
    assert "needs ONNX Runtime" in text
    assert remedy == 'pip install "modelserve[cpu]", or "modelserve[gpu]" for NVIDIA GPUs'


@pytest.mark.parametrize(
    ("module", "subject", "remedy"),
    [
        ("orjson", "orjson", "pip install orjson"),
        ("uvicorn", "uvicorn", 'pip install "modelserve[serve]"'),
        ("prometheus_client", "prometheus-client", 'pip install "modelserve[serve]"'),
        ("httpcore", "httpcore", 'pip install "modelserve[client]"'),
        ("ml_dtypes", "ml-dtypes", 'pip install "modelserve[bf16]"'),
    ],
)
def test_missing_option_is_told_with_its_remedy_and_is_no_failure(
    without: Cli, module: str, subject: str, remedy: str
) -> None:
    done = without(module)
    assert (done.returncode, done.stderr) == (0, "")
    level, text, shown = finding(done.stdout, subject)
    assert (level, shown) == ("missing", remedy)
    assert text.startswith("needed for ")
