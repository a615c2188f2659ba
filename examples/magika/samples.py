"""Collect files of many kinds from this machine: python samples.py DIRECTORY

Sources and texts of the standard library, files that installed packages carry, and archives,
sounds, tables and arrays that the standard library and numpy write.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
import plistlib
import shutil
import sqlite3
import sys
import sysconfig
import tarfile
import wave
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

EACH = 1
"""Files taken of each suffix that packages have."""
SOURCES = 20
LARGEST = 1 << 20


def copy_sources(target: Path) -> None:
    """Copy modules of the standard library."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("[a-z]*.py"))[:SOURCES]:
        shutil.copyfile(path, target / f"stdlib-{path.name}")


def copy_from_packages(target: Path) -> None:
    """Copy a few files of every suffix that installed packages have."""
    taken: Counter[str] = Counter({"": EACH, ".py": EACH})
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.*")):
        suffix = path.suffix.lower()
        if taken[suffix] < EACH and path.is_file() and path.stat().st_size <= LARGEST:
            shutil.copyfile(path, target / f"package-{taken[suffix]}-{path.name}")
            taken[suffix] += 1


def write_files(target: Path) -> None:
    """Write files in formats of the standard library and numpy, and some too short to tell."""
    text = Path(json.__file__).read_bytes()
    (target / "made.gz").write_bytes(gzip.compress(text))
    (target / "made.bz2").write_bytes(bz2.compress(text))
    (target / "made.xz").write_bytes(lzma.compress(text))
    (target / "made.pickle").write_bytes(pickle.dumps({"text": text, "numbers": list(range(99))}))
    (target / "made.plist").write_bytes(plistlib.dumps({"text": "one", "numbers": [1, 2, 3]}))
    (target / "made.json").write_text(json.dumps({"numbers": list(range(200))}), "utf-8")
    with zipfile.ZipFile(target / "made.zip", "w") as archive:
        archive.writestr("source.py", text)
    with tarfile.open(target / "made.tar", "w") as archive:
        archive.add(json.__file__, "source.py")
    with wave.open(str(target / "made.wav"), "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        tone = np.sin(np.arange(16_000) * 0.1) * 9_000
        sound.writeframes(tone.astype("<i2").tobytes())
    connection = sqlite3.connect(target / "made.sqlite")
    connection.execute("create table numbers (one integer, two text)")
    connection.executemany("insert into numbers values (?, ?)", [(n, str(n)) for n in range(99)])
    connection.commit()
    connection.close()
    np.save(target / "made.npy", np.arange(5_000))
    np.savez(target / "made.npz", one=np.arange(500), two=np.ones(9))
    rows = io.StringIO()
    csv.writer(rows).writerows([n, n * n, f"name {n}"] for n in range(300))
    (target / "made.csv").write_text(rows.getvalue(), "utf-8")
    random = np.random.default_rng(0)
    (target / "random.bin").write_bytes(random.bytes(20_000))
    (target / "spaces.txt").write_bytes(b" \n" * 3_000)
    (target / "padded.txt").write_bytes(b" " * 5_000 + b"x = 1\n" * 40 + b" " * 5_000)
    (target / "short.txt").write_bytes(b"hello")
    (target / "short.bin").write_bytes(b"\xff\xfe\x00")
    (target / "empty").write_bytes(b"")
    shutil.copyfile(Path(sys.executable).resolve(), target / "interpreter")


def main() -> None:
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    copy_sources(target)
    copy_from_packages(target)
    write_files(target)
    print(f"{sum(1 for _ in target.iterdir())} files in {target}")


if __name__ == "__main__":
    main()
