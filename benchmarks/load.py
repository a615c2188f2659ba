"""Load over HTTP by wrk: one thread, closed loop, requests in turn out of a list.

What it returns was counted by wrk; whether the answers are right is not its matter.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_LONGEST = 120.0
"""Seconds a load may take; cells are much shorter."""

_SCRIPT = """
local paths = {%(bodies)s}
local headers = {%(headers)s}
local requests, turn = {}, 0
function init(arguments)
  for i, path in ipairs(paths) do
    local file = assert(io.open(path, "rb"))
    requests[i] = wrk.format("POST", "%(path)s", headers, file:read("*a"))
    file:close()
  end
end
function request()
  turn = turn %% #requests + 1
  return requests[turn]
end
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\nRESULT {"requests": %%d, "seconds": %%.6f, "p50": %%.1f, "p99": %%.1f, ' ..
    '"refused": %%d, "broken": %%d, "late": %%d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write, errors.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """One cell: what was answered, and how fast."""

    requests: int
    seconds: float
    p50: float
    """us."""
    p99: float
    """us."""
    refused: int
    """Answers with a status of 400 or more."""
    broken: int
    """Connections refused or cut off."""
    late: int
    """Answers that took more than 10 s."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    def check(self) -> None:
        """Raise ValueError if anything but answers came."""
        if self.refused or self.broken or self.late or not self.requests:
            raise ValueError(f"the load did not go well: {self}")


def write_script(
    directory: Path, path: str, headers: Mapping[str, str], bodies: Sequence[bytes]
) -> Path:
    """Write wrk's script and its bodies into a directory; returns the script."""
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for index, body in enumerate(bodies):
        files.append(directory / f"{index}.body")
        files[-1].write_bytes(body)
    script = directory / "requests.lua"
    script.write_text(
        _SCRIPT
        % {
            "bodies": ", ".join(f'"{file}"' for file in files),
            "headers": ", ".join(f'["{name}"] = "{value}"' for name, value in headers.items()),
            "path": path,
        }
    )
    return script


def start(
    url: str, script: Path, *, connections: int, seconds: float, core: int
) -> subprocess.Popen[str]:
    """Start wrk pinned to a core; `result` waits for it."""
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit("wrk is not installed; on Debian: apt-get install wrk")
    command = ["taskset", "-c", str(core), program, "-t1", f"-c{connections}"]
    # wrk takes whole seconds.
    command += [f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(script), url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> Load:
    """Wait for wrk and return what it counted.

    Raises:
        RuntimeError: It failed, or did not end.
    """
    try:
        output, errors = process.communicate(timeout=_LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise RuntimeError(f"wrk did not end within {_LONGEST:g} s") from None
    for line in output.splitlines():
        if line.startswith("RESULT "):
            return Load(**json.loads(line.removeprefix("RESULT ")))
    raise RuntimeError(f"wrk ended with {process.returncode}: {output} {errors}")


def run(url: str, script: Path, *, connections: int, seconds: float, core: int) -> Load:
    """Load a server for a time."""
    return result(start(url, script, connections=connections, seconds=seconds, core=core))
