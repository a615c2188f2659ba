"""The model served by Mosec: as it comes (JSON), with orjson in its place, or with raw bytes.

python by_mosec.py --port 8000 with MODEL_FILE, CODEC (json, orjson, raw), MAX_BATCH_SIZE and
MAX_WAIT_TIME (ms) in the environment: Mosec reads the command line itself.
"""

from __future__ import annotations

import os
from typing import Any

import orjson
from mosec import Server, Worker
from runtime import Session

MAX_BATCH_SIZE = int(os.environ.get("MAX_BATCH_SIZE", "1"))


class Plain(Worker):
    """JSON by Mosec's own codec."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(os.environ["MODEL_FILE"])

    def forward(self, data: Any) -> Any:
        """Run a batch, or one request where batching is off."""
        if MAX_BATCH_SIZE == 1:
            return {self.session.output: self.session.run_lists([data]).tolist()}
        return [{self.session.output: [row]} for row in self.session.run_lists(data).tolist()]


class Orjson(Worker):
    """JSON by orjson, straight out of the array."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(os.environ["MODEL_FILE"])

    def deserialize(self, data: bytes) -> Any:
        """Read a body."""
        return orjson.loads(data)

    def serialize(self, data: Any) -> bytes:
        """Write an answer's body."""
        return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)

    def forward(self, data: Any) -> Any:
        """Run a batch, or one request where batching is off."""
        if MAX_BATCH_SIZE == 1:
            return {self.session.output: self.session.run_lists([data])}
        output = self.session.output
        return [{output: [row]} for row in self.session.run_lists(data)]


class Raw(Worker):
    """Bytes both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(os.environ["MODEL_FILE"])

    def deserialize(self, data: bytes) -> bytes:
        """Take a body as it is."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """Give an answer as it is."""
        return data

    def forward(self, data: Any) -> Any:
        """Run a batch, or one request where batching is off."""
        if MAX_BATCH_SIZE == 1:
            return self.session.run_bytes([data]).tobytes()
        y = self.session.run_bytes(data)
        content, size = y.tobytes(), y.itemsize * y.shape[1]
        return [content[start : start + size] for start in range(0, len(content), size)]


def main() -> None:
    """Serve one model with one worker process."""
    server = Server()
    server.append_worker(
        {"json": Plain, "orjson": Orjson, "raw": Raw}[os.environ.get("CODEC", "json")],
        num=1,
        max_batch_size=MAX_BATCH_SIZE,
        max_wait_time=int(os.environ.get("MAX_WAIT_TIME", "0")),
    )
    server.run()


if __name__ == "__main__":
    main()
