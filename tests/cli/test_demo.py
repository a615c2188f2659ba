"""`modelserve demo` as a process: real images, and a version changed under load."""

import re
import subprocess
from collections.abc import Callable

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_demo_answers_everything_rightly_while_the_version_changes(cli: Cli) -> None:
    done = cli("demo")
    assert (done.returncode, done.stderr) == (0, "")
    printed = done.stdout
    assert re.search(r"^failed +0, wrong 0$", printed, re.MULTILINE), printed
    assert "450 held-out images" in printed
    # Four ways of asking, one model: the accuracy is the same in each.
    rows = re.findall(r"^(?:in-process|HTTP), .+? (0\.\d{3}) ", printed, re.MULTILINE)
    assert len(rows) == 4
    assert len(set(rows)) == 1
    assert float(rows[0]) > 0.9
    now, before = re.findall(r"(0\.\d{3}) (?:now|before)", printed)
    assert (before, float(now) > float(before)) == (rows[0], True)
    by_1, by_2 = re.findall(r"([\d,]+) by version", printed)
    assert int(by_1.replace(",", "")) > 0
    assert int(by_2.replace(",", "")) > 0
