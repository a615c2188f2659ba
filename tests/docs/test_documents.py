"""Every code block a reader may copy is run: README, the documentation, the examples."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from documents import RUN, SHOWN, PageError, blocks, run, with_free_ports
from modelserve import errors

ROOT = Path(__file__).parents[2]
RUNNER = ROOT / "tests" / "documents.py"
PAGES = sorted(
    page
    for page in (
        ROOT / "README.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/README.md"),
    )
    if "_build" not in page.parts
)
WITH_CODE = [
    page
    for page in PAGES
    if any(
        block.language in RUN and block.verb != "not run"
        for block in blocks(page.read_text(encoding="utf-8"))
    )
]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.docs
@pytest.mark.timeout(180)
@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_code_blocks_run(page: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    if page.is_relative_to(ROOT / "examples"):
        shutil.copytree(page.parent, tmp_path, dirs_exist_ok=True)
    done = subprocess.run(
        [sys.executable, str(RUNNER), str(page)],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_names_a_known_language(page: Path) -> None:
    languages = {block.language for block in blocks(page.read_text(encoding="utf-8"))}
    # Directives of the documentation builder stand in braces.
    assert {one for one in languages if not one.startswith("{")} <= {*RUN, *SHOWN}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_written_by_a_page_are_used_by_it(page: Path) -> None:
    found = blocks(page.read_text(encoding="utf-8"))
    for index, block in enumerate(found):
        if block.verb == "file":
            later = "".join(one.code for one in found[index + 1 :] if one.verb != "not run")
            assert Path(block.note).stem in later


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s:]+)(?:#[^)\s]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_readme_names_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if line.startswith("python3 -m venv ")]
    assert [command.split()[3] for command in commands] == [".venv", ".venv-test"]
    assert commands[0].endswith(" demo")
    assert commands[1].endswith(" -m pytest -q")


def subclasses(error: type[Exception]) -> list[type[Exception]]:
    """Those of the public errors alone; other modules have their own."""
    return [kind for kind in error.__subclasses__() if kind.__module__ == errors.__name__]


def test_errors_page_has_the_statuses_of_the_classes() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    written = re.findall(r"^\| `(\w+)` \| (\d+) \| (\w+) \|", text, re.MULTILINE)
    found = [
        (name, str(error.http), error.grpc)
        for name in errors.__all__
        if not subclasses(error := getattr(errors, name)) or error is errors.LoadError
    ]
    assert sorted(written) == sorted(found)


# The runner itself.


def write(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


@pytest.fixture
def run_page(tmp_path: Path, environment: dict[str, str]):
    def run_page(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(RUNNER), str(write(tmp_path, text))],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=15,
        )

    return run_page


def test_blocks_share_names_and_one_loop(run_page, tmp_path: Path) -> None:
    done = run_page(
        "```python\nimport asyncio\nasync def double(x): return 2 * x\n"
        "loop = asyncio.get_running_loop() if False else None\n```\n"
        "- in a list\n\n  ```python\n  four = await double(2)\n"
        "  first = asyncio.get_running_loop()\n  ```\n"
        "```python\nassert four == 4\nassert first is asyncio.get_running_loop()\n"
        "await double(1)\nopen('done', 'w').close()\n```\n"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done").exists()


def test_failing_python_names_the_line_of_the_page(run_page) -> None:
    done = run_page("text\n\n```python\nx = 1\nassert x == 2\n```\n")
    assert done.returncode != 0
    assert 'page.md", line 5' in done.stderr


def test_failing_bash_fails_the_page(run_page) -> None:
    done = run_page("```bash\nfalse\ntrue\n```\n")
    assert done.returncode != 0
    assert "page.md:2" in done.stderr


def test_console_output_is_compared(run_page) -> None:
    assert run_page("```console\n$ echo one two\none ...\n```\n").returncode == 0
    assert run_page("```console\n$ echo one two\nthree\n```\n").returncode != 0


def test_background_block_lasts_while_the_page_runs(run_page, tmp_path: Path) -> None:
    done = run_page(
        "<!-- file: server.py -->\n```python\n"
        "import pathlib, signal, sys\n"
        "def stop(*_): pathlib.Path('ended').touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('ready on 127.0.0.1:8000', sys.argv[1:], flush=True)\nsignal.pause()\n```\n"
        "<!-- background: until it prints ready on -->\n```bash\npython server.py\n```\n"
        "```bash\ntest ! -e ended\n```\n"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ended").exists()


def test_background_block_that_is_never_ready_fails(run_page) -> None:
    done = run_page("<!-- background: until it prints ready -->\n```bash\necho no\n```\n")
    assert done.returncode != 0
    assert "never printed 'ready'" in done.stderr


def test_skipping_needs_a_reason() -> None:
    with pytest.raises(PageError, match="says nothing"):
        blocks("<!-- not run: -->\n```bash\nfalse\n```\n")


def test_block_with_a_reason_is_skipped(tmp_path: Path, run_page) -> None:
    assert run_page("<!-- not run: it fails -->\n\n```bash\nfalse\n```\n").returncode == 0


def test_ports_are_exchanged_alike_across_a_page() -> None:
    text = with_free_ports("a 127.0.0.1:8000 b localhost:8000 c 127.0.0.1:8001 d 8000")
    first, second, third = re.findall(r":(\d+)", text)
    assert first == second != third
    assert text.endswith("d 8000")


def test_page_runs_in_this_process_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    assert run(write(tmp_path, "```python\nx = 1\n```\n```json\n{}\n```\n")) == 1
