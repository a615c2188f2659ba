"""The examples, beyond what their pages show: edges, refusals, and that their checks can fail."""

import importlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelserve as ms

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = sorted(path.parent for path in EXAMPLES.glob("*/README.md"))


@contextmanager
def server(folder: Path, environment: dict[str, str], *arguments: str) -> Iterator[str]:
    """Run a server of an example until it says its URL; it has to end by itself when asked to."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            printed = ""
            for line in process.stdout:
                printed += line
                said = re.search(r"(?:running|ready) on (http://127\.0\.0\.1:\d+)", line)
                if said:
                    yield said[1]
                    break
            else:
                pytest.fail(f"never said where it listens:\n{printed}")
            process.terminate()
            rest, _ = process.communicate(timeout=15)
            # uvicorn ends by the signal it was sent, `modelserve.serve` by itself.
            assert process.returncode in (0, -signal.SIGTERM), printed + rest
        finally:
            process.kill()


def run(
    folder: Path, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=18,
    )


def test_examples_are_listed() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\w+)\]\(\1/README\.md\) \|", page, re.MULTILINE)
    assert sorted(listed) == [folder.name for folder in FOLDERS]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_introduction_of_an_example_is_short(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in prose.splitlines() if line and not line.startswith("<!--")]
    assert len(lines) <= 10


@contextmanager
def imported(folder: str, module: str) -> Iterator[ModuleType]:
    """A module of an example, under its own name for as long as it is needed."""
    sys.path.insert(0, str(EXAMPLES / folder))
    try:
        yield importlib.import_module(module)
    finally:
        sys.path.remove(str(EXAMPLES / folder))
        sys.modules.pop(module)


# magika


@pytest.fixture(scope="module")
def content_types() -> Iterator[ModuleType]:
    with imported("magika", "content_types") as module:
        yield module


@pytest.fixture(scope="module")
def content_type(
    content_types: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[bytes], tuple[str, float]]]:
    """The type of some content, by the example's models in this process."""
    with ms.ModelRepository(tmp_path_factory.mktemp("models")) as repository:
        repository.publish("magika", content_types.model_file())
        repository.add(content_types.content_type(repository))

        def ask(content: bytes) -> tuple[str, float]:
            inputs = {"head": [content[:4096]], "tail": [content[-4096:]]}
            answer = repository.predict("content_type", inputs)
            return answer["label"][0].decode(), float(answer["score"][0])

        yield ask


@pytest.fixture(scope="module")
def package() -> Any:
    from magika import Magika

    return Magika()


def same_as_the_package(content: bytes, ask: Any, package: Any) -> None:
    expected = package.identify_bytes(content)
    assert ask(content) == (str(expected.output.label), pytest.approx(expected.score, abs=1e-6))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        b"12345678",
        b"\xff\xfe\x00",
        b" \n\t" * 3_000,
        b" " * 4_090 + b"import re",
        b"x = 1\n" * 20 + b" " * 5_000,
        b"import sys\nprint(sys.path)\n" * 38,
        b"\0" * 4_096,
        b"%PDF-1.7\n" + bytes(range(256)) * 40,
    ],
    ids=lambda content: f"{len(content)}-bytes",
)
def test_magika_answers_as_the_package_at_the_edges(
    content: bytes, content_type: Any, package: Any
) -> None:
    same_as_the_package(content, content_type, package)


@settings(max_examples=40)
@given(
    st.binary(max_size=5_000)
    | st.text(" \n#<>{}();=abcimport", max_size=3_000).map(str.encode)
    | st.tuples(st.sampled_from([1, 7, 1_023, 1_024, 4_095, 4_097]), st.binary(max_size=9)).map(
        lambda drawn: b" " * drawn[0] + drawn[1] * 3
    )
)
def test_magika_answers_as_the_package(content_type: Any, package: Any, content: bytes) -> None:
    same_as_the_package(content, content_type, package)


@pytest.fixture
def few_files(tmp_path: Path) -> Path:
    """Files among which one begins with white space, and one is empty."""
    files = tmp_path / "files"
    files.mkdir()
    shutil.copyfile(__file__, files / "source.py")
    (files / "padded").write_bytes(b" " * 4_000 + b"x = 1\n" * 200)
    (files / "numbers.json").write_text('{"numbers": [1, 2, 3], "more": {"name": "one"}}')
    (files / "empty").touch()
    return files


def test_classified_alike_in_process_and_by_a_server(
    few_files: Path, environment: dict[str, str]
) -> None:
    folder = EXAMPLES / "magika"
    here = run(folder, environment, "classify.py", str(few_files))
    assert here.returncode == 0, here.stderr
    with server(folder, environment, "serve.py", "127.0.0.1:0") as url:
        there = run(folder, environment, "classify.py", str(few_files), "--url", url)
    assert there.returncode == 0, there.stderr
    for done in (here, there):
        assert "agreement: 4 of 4 files" in done.stdout
        assert re.search(r"^python +1 .* source\.py$", done.stdout, re.MULTILINE)
        assert re.search(r"^empty +1 .* empty$", done.stdout, re.MULTILINE)
    table = [line for line in here.stdout.splitlines() if " in " not in line]
    assert table == [line for line in there.stdout.splitlines() if " in " not in line]


def test_disagreement_with_the_package_is_seen(
    few_files: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    changed = tmp_path / "magika"
    shutil.copytree(EXAMPLES / "magika", changed)
    code = (changed / "content_types.py").read_text(encoding="utf-8")
    assert code.count('return "empty"') == 1
    (changed / "content_types.py").write_text(
        code.replace('return "empty"', 'return "nothing"'), encoding="utf-8"
    )
    done = run(changed, environment, "classify.py", str(few_files))
    assert done.returncode == 1
    assert f"{few_files / 'empty'}: nothing, the package says empty" in done.stdout
    assert "agreement: 3 of 4 files" in done.stdout


def test_directory_without_files_is_refused(tmp_path: Path, environment: dict[str, str]) -> None:
    done = run(EXAMPLES / "magika", environment, "classify.py", str(tmp_path))
    assert done.returncode == 2
    assert "no files in" in done.stderr


# ocr


def test_repeated_columns_are_one_character_and_blanks_part_two() -> None:
    with imported("ocr", "lines") as lines:
        best = [0, 1, 1, 0, 1, 2, 2, 2, 0, 0, 3]
        scores = np.eye(4, dtype=np.float32)[best]
        assert lines.spell(scores, ["", "a", "b", " "]) == "aab "
        assert lines.spell(scores[:1], ["", "a", "b", " "]) == ""


def test_short_lines_are_filled_with_grey() -> None:
    with imported("ocr", "lines") as lines:
        row = lines.pixels(np.full((48, 300), 255, np.uint8))
        assert row.shape == (1, 3, 48, 320)
        assert np.array_equal(row[0, 2, 47], np.repeat([1.0, 0.0], [300, 20]))
        assert lines.pixels(np.zeros((48, 321), np.uint8)).shape == (1, 3, 48, 321)


def test_line_that_cannot_be_read_is_seen(tmp_path: Path, environment: dict[str, str]) -> None:
    # The font has no such characters and draws the same box for each.
    (tmp_path / "text").write_text(
        "Some plain words, 12 of them.\n\u6f22\u5b57\n", encoding="utf-8"
    )
    done = run(EXAMPLES / "ocr", environment, "read.py", str(tmp_path / "text"))
    assert done.returncode == 1, done.stderr
    assert "as drawn: 1 of 2 lines" in done.stdout
    assert "'\u6f22\u5b57'" in done.stdout


# mounts


def uvicorn(folder: str, app: str, environment: dict[str, str], *arguments: str) -> Any:
    return server(EXAMPLES / folder, environment, "-m", "uvicorn", app, "--port", "0", *arguments)


def test_fastapi_application_keeps_its_own_pages(environment: dict[str, str]) -> None:
    with (
        uvicorn("fastapi", "app:app", environment) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=10) as client,
    ):
        judged = client.post("/readings", json={"values": [21, 45, 1013, 870]})
        assert judged.json() == {"distance": 5.0, "unusual": True}
        assert client.post("/readings", json={"values": [21, 45]}).status_code == 422
        made = client.post("/outlier", json={"x": [21, 45, 1013, 870]})
        assert made.json() == {"distance": 5.0}
        assert client.post("/outlier", json={"x": [21, 45]}).status_code == 422
        assert list(client.get("/openapi.json").json()["paths"]) == ["/outlier", "/readings"]
        with ms.Client(f"{url}/ml") as models:
            x = np.array([[21, 45, 1013, 420], [29, 45, 1013, 420]], np.float32)
            assert models.predict("outlier", {"x": x})["distance"].tolist() == [0.0, 2.0]
            with pytest.raises(ms.InvalidInput, match=r'inputs\[0\] "x".*4'):
                models.predict("outlier", {"x": x[:, :3]})
        # Both ways in are counted together.
        counted = client.get("/ml/metrics").text
        assert 'model="outlier",protocol="inprocess"' in counted
        assert 'model="outlier",protocol="http"' in counted


@pytest.mark.parametrize("lifespan", ["off", "auto"])
def test_django_application_keeps_its_own_pages(environment: dict[str, str], lifespan: str) -> None:
    with (
        uvicorn("django", "asgi:application", environment, "--lifespan", lifespan) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=10) as client,
    ):
        answer = client.get("/index", params={"metres": 2, "kilograms": 80})
        assert answer.json() == {"index": 20.0}
        assert client.get("/index", params={"metres": "tall"}).status_code == 400
        assert client.get("/").status_code == 404
        with ms.Client(f"{url}/ml") as models:
            assert [version.model for version in models.index()] == ["body_mass"]
            assert models.predict("body_mass", {"x": [[2, 80]]})["index"].tolist() == [20.0]
