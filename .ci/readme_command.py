"""Print the README's command that makes the environment named in the first argument."""

import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def command(environment: str) -> str:
    start = f"python3 -m venv {environment} "
    found = [
        line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith(start)
    ]
    if len(found) != 1:
        raise SystemExit(f"README.md: expected one line that starts with {start!r}, got {found}")
    return found[0]


if __name__ == "__main__":
    print(command(sys.argv[1]))
