"""Runs the code blocks of a Markdown page in order, as a reader would. No pytest in here.

Python blocks share one namespace and one event loop, and may use `await` at the top. Bash blocks
run with `bash -e`. In console blocks the lines after ``$ `` run, and what they print is compared
with the lines below (``...`` stands for anything). A comment in front of a block changes that:

    <!-- not run: REASON -->             skipped
    <!-- file: NAME -->                  written to NAME, for a later block to use
    <!-- background: until it prints TEXT -->
                                         a bash block: goes on running while the next blocks run,
                                         and must end when asked to (SIGTERM) after the last one

Ports after `127.0.0.1:`, `localhost:` and `--port` are exchanged for free ones, page by page.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
import re
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

RUN = ("python", "bash", "console")
SHOWN = ("html", "ini", "json", "text", "toml", "yaml")

_FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<info>.*)")
_NOTE = re.compile(r"<!--\s*(?P<verb>not run|file|background)\s*:(?P<text>.*?)-->\s*$")
_PORT = re.compile(r"(?<=127\.0\.0\.1:)\d+|(?<=localhost:)\d+|(?<=--port )\d+")
_BASH_SECONDS = 120
_READY_SECONDS = 30
_END_SECONDS = 15


class PageError(Exception):
    """A page is not written as it should be, or a block did not do what it says."""


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, code, first line of code in the page, and its note."""

    language: str
    code: str
    line: int
    verb: str = ""
    note: str = ""


def blocks(text: str) -> list[Block]:
    """Find the fenced blocks of a page."""
    found: list[Block] = []
    lines = text.splitlines()
    number = 0
    note: re.Match[str] | None = None
    while number < len(lines):
        line = lines[number]
        number += 1
        fence = _FENCE.fullmatch(line)
        if fence is None:
            if line.strip():
                note = _NOTE.fullmatch(line.strip())
            continue
        start, indent = number, len(fence["indent"])
        while number < len(lines) and lines[number].strip() != fence["ticks"]:
            number += 1
        code = [body[indent:] for body in lines[start:number]]
        number += 1
        verb, text_of_note = (note["verb"], note["text"].strip()) if note else ("", "")
        if verb and not text_of_note:
            raise PageError(f"line {start - 1}: `{verb}:` says nothing")
        found.append(
            Block(fence["info"].strip(), "\n".join(code) + "\n", start + 1, verb, text_of_note)
        )
        note = None
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def with_free_ports(text: str) -> str:
    """Exchange every port of this machine for one that is free now."""
    ports: dict[str, str] = {}
    return _PORT.sub(lambda hit: ports.setdefault(hit[0], str(_free_port())), text)


@contextmanager
def _background(code: str, expected: str) -> Iterator[None]:
    """Run a script until the caller is through; it is ready once it has printed `expected`."""
    process = subprocess.Popen(
        ["bash", "-e", "-c", f"exec {code.strip()}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed: list[str] = []
    changed = threading.Condition()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with changed:
                printed.append(line)
                changed.notify_all()
        with changed:
            printed.append("")
            changed.notify_all()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def settled() -> bool:
        return any(expected in line for line in printed) or printed[-1:] == [""]

    with changed:
        changed.wait_for(settled, _READY_SECONDS)
        ready = any(expected in line for line in printed)
    try:
        if not ready:
            raise PageError(f"never printed {expected!r}:\n{''.join(printed)}")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code_at_end = process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise PageError(f"did not end when asked to:\n{''.join(printed)}") from None
        finally:
            reader.join(_END_SECONDS)
    if code_at_end not in (0, -signal.SIGTERM):
        raise PageError(f"ended with status {code_at_end}:\n{''.join(printed)}")


def _bash(code: str) -> str:
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_BASH_SECONDS,
    )
    if done.returncode:
        raise PageError(f"status {done.returncode}:\n{done.stdout}")
    return done.stdout


def _console(code: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        while command.endswith("\\"):
            more, _, expected = expected.partition("\n")
            command += "\n" + more
        printed = _bash(command)
        if expected.strip() and not doctest.OutputChecker().check_output(expected, printed, flags):
            raise PageError(f"$ {command}\nexpected:\n{expected}\ngot:\n{printed}")


def _python(block: Block, page: Path, module: types.ModuleType, loop: asyncio.Runner) -> None:
    # Blank lines in front make the line numbers of tracebacks those of the page.
    source = "\n" * (block.line - 1) + block.code
    code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:

        async def awaited() -> None:
            await eval(code, module.__dict__)

        loop.run(awaited())
    else:
        exec(code, module.__dict__)


def run(page: Path) -> int:
    """Run a page's blocks in the current directory; return how many ran.

    Raises:
        PageError: A shell block failed, or the page is not written as it should be.
    """
    found = blocks(with_free_ports(page.read_text(encoding="utf-8")))
    # A module of its own: annotations and forward references are looked up in `__main__`.
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    ran = 0
    with asyncio.Runner() as loop, ExitStack() as running:
        for block in found:
            if block.verb == "file":
                Path(block.note).write_text(block.code, encoding="utf-8")
                continue
            if block.language not in RUN or block.verb == "not run":
                continue
            ran += 1
            try:
                if block.verb == "background":
                    text = block.note.removeprefix("until it prints").strip()
                    running.enter_context(_background(block.code, text))
                elif block.language == "bash":
                    _bash(block.code)
                elif block.language == "console":
                    _console(block.code)
                else:
                    _python(block, page, module, loop)
            except PageError as error:
                raise PageError(f"{page.name}:{block.line}: {error}") from None
    return ran


if __name__ == "__main__":
    run(Path(sys.argv[1]))
