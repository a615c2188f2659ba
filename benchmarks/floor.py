"""The bare sketch of a model server, as fast as one process of CPython honestly answers HTTP.

    python benchmarks/floor.py M1 --port 8000

It speaks the Open Inference Protocol, JSON and binary on one port, for a model of one FP32 input
and one FP32 output, one row a request. The requests that one turn of the event loop brought are one
batch: one `run`, and one write each. It is a measuring stick and no server: it checks nothing,
limits nothing, counts nothing, knows neither pipelining nor errors.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import httptools
import numpy as np
import orjson
import uvloop
from models import MODELS, Model

Waiting = tuple[asyncio.WriteTransport, Any]


class Batches:
    """Requests of this turn of the event loop, answered at its end."""

    def __init__(self, model: Model, loop: asyncio.AbstractEventLoop) -> None:
        session = model.session()
        self.session = session  # keeps alive what `run` is a method of
        # The binding below `InferenceSession.run`: 1 us less of argument checking.
        self.run = session._sess.run
        self.loop = loop
        self.input = session.get_inputs()[0].name
        self.names = [model.output]
        self.features = session.get_inputs()[0].shape[1]
        width = session.get_outputs()[0].shape[1]
        self.json: list[Waiting] = []
        self.binary: list[Waiting] = []
        self.documents: dict[bytes, Any] = {}
        opening = (
            f'{{"model_name":"{model.served}","model_version":"1","outputs":'
            f'[{{"name":"{model.output}","datatype":"FP32","shape":[1,{width}],'
        )
        self.json_opening = f'{opening}"data":['.encode()
        self.json_closing = b"]}]}"
        document = f'{opening}"parameters":{{"binary_data_size":{4 * width}}}}}]}}'
        self.row_size = 4 * width
        self.binary_head = (
            "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n"
            f"inference-header-content-length: {len(document)}\r\n"
            f"content-length: {len(document) + self.row_size}\r\n\r\n{document}"
        ).encode()

    def add(self, transport: asyncio.WriteTransport, body: bytes, head_length: int) -> None:
        """Take a request into this turn's batch."""
        if not self.json and not self.binary:
            self.loop.call_soon(self.flush)
        if head_length:
            head = body[:head_length]
            if head not in self.documents:  # clients repeat themselves
                self.documents[head] = orjson.loads(head)
            self.binary.append((transport, body[head_length:]))
        else:
            self.json.append((transport, orjson.loads(body)["inputs"][0]["data"]))

    def flush(self) -> None:
        """Run and answer what has come."""
        if self.json:
            waiting, self.json = self.json, []
            x = np.array([data for _, data in waiting], np.float32)
            y = self.run(self.names, {self.input: x}, None)[0]
            rows = orjson.dumps(y, option=orjson.OPT_SERIALIZE_NUMPY)[2:-2].split(b"],[")
            size = len(self.json_opening) + len(self.json_closing)
            for (transport, _), row in zip(waiting, rows, strict=True):
                transport.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
                    b"%d\r\n\r\n%b%b%b"
                    % (size + len(row), self.json_opening, row, self.json_closing)
                )
        if self.binary:
            waiting, self.binary = self.binary, []
            joined = b"".join([data for _, data in waiting])
            x = np.frombuffer(joined, np.float32).reshape(-1, self.features)
            content = self.run(self.names, {self.input: x}, None)[0].tobytes()
            head, size, start = self.binary_head, self.row_size, 0
            for transport, _ in waiting:
                transport.write(head + content[start : start + size])
                start += size


class Connection(asyncio.Protocol):
    """One client."""

    __slots__ = ("batches", "body", "head_length", "parser", "transport")

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.head_length = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take the one header that matters; the others are parsed and dropped."""
        # By length first: no other header of this length is common.
        if len(name) == 31 and name.lower() == b"inference-header-content-length":
            self.head_length = int(value)

    def on_body(self, body: bytes) -> None:
        """Gather the body."""
        self.body = self.body + body if self.body else body

    def on_message_complete(self) -> None:
        """Pass the request on; one without a body asks whether the model is ready."""
        if self.body:
            self.batches.add(self.transport, self.body, self.head_length)
            self.body, self.head_length = b"", 0
        else:
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")


async def serve(model: Model, port: int) -> None:
    """Serve a model on the loopback address until cancelled."""
    loop = asyncio.get_running_loop()
    batches = Batches(model, loop)
    server = await loop.create_server(lambda: Connection(batches), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["M1", "M3", "tree"])
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    uvloop.run(serve(MODELS[arguments.model], arguments.port))


if __name__ == "__main__":
    main()
