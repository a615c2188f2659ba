"""Who is measured: how each is started, on which models, and how it is asked."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import install
from models import MODELS, REPOSITORY, Model

HERE = Path(__file__).parent
PEERS = HERE / "peers"
OURS = "modelserve"
"""The contestant that others are compared with."""
_SECRETS = HERE.parent / "build" / "benchmarks" / "secrets"

Command = Callable[[Model, int], list[str]]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server, as it is started and asked."""

    name: str
    command: Command
    wires: Mapping[str, tuple[str, str]]
    """Path (of which {model} is the model's name) and form of the body, for "json", "binary"."""
    models: tuple[str, ...]
    environment: Callable[[Model], dict[str, str]] = field(default=lambda model: {})
    peer: str = ""
    """The environment it runs in, as `peers/install.py` names it; empty: this one."""
    scheme: str = "http"
    headers: Callable[[], dict[str, str]] = field(default=dict)
    pausable: bool = True
    """Whether it outlives being stopped and continued between its turns."""

    @property
    def missing(self) -> str:
        """Say what must be installed first; empty if nothing."""
        if self.peer and not install.is_installed(self.peer):
            return f"python benchmarks/peers/install.py {self.peer}"
        return ""


def tls_context() -> ssl.SSLContext:
    """Return what a client of the contestant with TLS trusts."""
    return ssl.create_default_context(cafile=str(_secrets() / "ca.pem"))


def _secrets() -> Path:
    """Make a certificate and an API key, once; returns their directory."""
    if not (_SECRETS / "keys.toml").exists():
        import trustme

        from modelserve.security.authentication import APIKeys

        _SECRETS.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1", "localhost")
        authority.cert_pem.write_to_path(str(_SECRETS / "ca.pem"))
        issued.private_key_pem.write_to_path(str(_SECRETS / "key.pem"))
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        (_SECRETS / "certificate.pem").write_bytes(chain)
        key, hashed = APIKeys.generate()
        (_SECRETS / "key.txt").write_text(key)
        (_SECRETS / "keys.toml").write_text(
            f'[generator]\nhash = "{hashed}"\nscopes = ["infer", "read"]\n'
        )
    return _SECRETS


def _serve(*options: str) -> Command:
    """Return the command of `modelserve serve` for one model."""

    def command(model: Model, port: int) -> list[str]:
        program = [sys.executable, "-m", "modelserve.cli", "serve", str(REPOSITORY)]
        return [*program, "--http", f"127.0.0.1:{port}", "--model", model.served, *options]

    return command


def _serve_tls(model: Model, port: int) -> list[str]:
    secrets = _secrets()
    options = ["--tls-cert", str(secrets / "certificate.pem")]
    options += ["--tls-key", str(secrets / "key.pem"), "--api-keys", str(secrets / "keys.toml")]
    return _serve(*options)(model, port)


def _program(path: Path, *options: str, peer: str = "", name: bool = False) -> Command:
    """Return the command of a program that takes the ONNX file and a port."""

    def command(model: Model, port: int) -> list[str]:
        file = str(model.path) if model.content is not None else model.name
        python = str(install.python(peer)) if peer else sys.executable
        named = ["--name", model.served] if name else []
        return [python, str(path), file, "--port", str(port), *named, *options]

    return command


def _mosec(model: Model, port: int) -> list[str]:
    program = [str(install.python("mosec")), str(PEERS / "by_mosec.py"), "--port", str(port)]
    # Beyond what waits, Mosec refuses; its log of every request is its own choice.
    return [*program, "--address", "127.0.0.1", "--timeout", "20000", "--log-level", "warning"]


def _mosec_environment(codec: str, batch: int, wait: int) -> Callable[[Model], dict[str, str]]:
    return lambda model: {
        "MODEL_FILE": str(model.path),
        "CODEC": codec,
        "MAX_BATCH_SIZE": str(batch),
        "MAX_WAIT_TIME": str(wait),
    }


def _bentoml(model: Model, port: int) -> list[str]:
    program = str(install.python("bentoml").parent / "bentoml")
    serve = [program, "serve", "by_bentoml:Peer", "--working-dir", str(PEERS)]
    return [*serve, "--host", "127.0.0.1", "--port", str(port)]


def _bentoml_environment(batch: int) -> Callable[[Model], dict[str, str]]:
    return lambda model: {
        "MODEL_FILE": str(model.path) if model.content is not None else model.name,
        "MAX_BATCH_SIZE": str(batch),
        "BENTOML_DO_NOT_TRACK": "True",
    }


_OIP = {
    "json": ("/v2/models/{model}/infer", "oip-json"),
    "binary": ("/v2/models/{model}/infer", "oip-binary"),
}
_ONNX = tuple(name for name, model in MODELS.items() if model.content is not None)


def _plain(path: str) -> dict[str, tuple[str, str]]:
    return {"json": (path, "plain-json")}


def _raw(path: str) -> dict[str, tuple[str, str]]:
    return {"binary": (path, "raw")}


def _ours() -> list[Contestant]:
    mounted = {wire: (f"/ml{path}", form) for wire, (path, form) in _OIP.items()}
    beside = HERE / "ours" / "in_fastapi.py"
    route = HERE / "ours" / "fastapi_route.py"
    return [
        Contestant("floor", _floor, _OIP, ("M1", "M3", "tree")),
        Contestant(OURS, _serve(), _OIP, _ONNX),
        Contestant("modelserve-uvicorn", _serve("--server", "uvicorn"), _OIP, _ONNX),
        Contestant(
            "modelserve-tls",
            _serve_tls,
            _OIP,
            ("M1",),
            scheme="https",
            headers=lambda: {"authorization": f"Bearer {(_secrets() / 'key.txt').read_text()}"},
        ),
        Contestant("modelserve-in-fastapi", _program(beside, name=True), mounted, ("M1", "tree")),
        Contestant(
            "modelserve-beside-fastapi",
            _program(beside, "--beside", name=True),
            mounted,
            ("M1", "tree"),
        ),
        Contestant("modelserve-route", _program(route, name=True), _plain("/predict"), _ONNX),
        Contestant(
            "modelserve-typed", _program(route, name=True), _plain("/typed"), ("M1", "M3", "tree")
        ),
        Contestant("modelserve-function", _function, _OIP, ("sklearn",)),
    ]


def _by_hand() -> list[Contestant]:
    command = _program(PEERS / "by_hand.py")
    few = ("M1", "M3", "tree")
    return [
        Contestant("fastapi", command, _plain("/predict") | _raw("/raw"), few),
        Contestant("fastapi-orjson", command, _plain("/fast"), _ONNX),
        Contestant("fastapi-threads", command, _plain("/threads"), ("M1", "M2")),
    ]


def _mosecs() -> list[Contestant]:
    # Mosec waits a whole number of milliseconds for a batch: half of 64 connections fills one
    # without that wait. For fewer connections it does better without batching.
    settings = [
        ("mosec", "json", 32, 1, _plain("/inference"), ("M1", "M3")),
        ("mosec-orjson", "orjson", 32, 1, _plain("/inference"), ("M1", "M2", "M3")),
        ("mosec-raw", "raw", 32, 1, _raw("/inference"), ("M1", "M2", "M3")),
        ("mosec-orjson-single", "orjson", 1, 0, _plain("/inference"), ("M1",)),
        ("mosec-raw-single", "raw", 1, 0, _raw("/inference"), ("M1",)),
    ]
    return [
        Contestant(
            name,
            _mosec,
            wires,
            served,
            environment=_mosec_environment(codec, batch, wait),
            peer="mosec",
        )
        for name, codec, batch, wait, wires, served in settings
    ]


def _tritons() -> list[Contestant]:
    program = PEERS / "by_triton.py"
    # A batch of 8 is where M2 does most rows a second.
    settings = [
        ("triton", (), ("M1", "M2", "M3")),
        ("triton-8", ("--max-batch-size", "8"), ("M2",)),
    ]
    return [
        Contestant(
            name,
            _program(program, *options, peer="triton", name=True),
            _OIP,
            served,
            peer="triton",
            # Its processes watch one another by time: paused, it dies. Idle it uses nothing.
            pausable=False,
        )
        for name, options, served in settings
    ]


def _others() -> list[Contestant]:
    litserve = PEERS / "by_litserve.py"
    batched = ("--max-batch-size", "32", "--batch-timeout", "0.001")
    plain, bento = _plain("/predict"), {"json": ("/predict", "bento-json")}
    return [
        Contestant(
            "litserve",
            _program(litserve, peer="litserve"),
            plain,
            ("M1", "M2", "M3", "sklearn"),
            peer="litserve",
        ),
        Contestant(
            "litserve-batched",
            _program(litserve, *batched, peer="litserve"),
            plain,
            ("M1", "sklearn"),
            peer="litserve",
        ),
        *(
            Contestant(
                name,
                _bentoml,
                bento,
                ("M1", "sklearn"),
                environment=_bentoml_environment(batch),
                peer="bentoml",
            )
            for name, batch in (("bentoml", 1), ("bentoml-batched", 32))
        ),
        Contestant(
            "mlserver",
            _program(PEERS / "by_mlserver.py", peer="mlserver", name=True),
            {"json": _OIP["json"]},
            ("M1", "M2"),
            peer="mlserver",
        ),
    ]


def _floor(model: Model, port: int) -> list[str]:
    return [sys.executable, str(HERE / "floor.py"), model.name, "--port", str(port)]


def _function(model: Model, port: int) -> list[str]:
    return [sys.executable, str(HERE / "ours" / "function.py"), "--port", str(port)]


def both(small: Model, large: Model) -> Contestant:
    """Return `modelserve serve` of two models; asked about the first, it can be so about both."""
    command = _serve("--model", large.served)
    return Contestant(f"{OURS}-both", command, _OIP, (small.name,))


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (*_ours(), *_by_hand(), *_mosecs(), *_tritons(), *_others())
}


def versions() -> dict[str, str]:
    """Return the versions of what was measured, by package, out of every environment."""
    wanted = ("modelserve", "onnxruntime", "numpy", "uvloop", "httptools", "orjson", "uvicorn")
    found = _versions(None, (*wanted, "fastapi", "pydantic", "scikit-learn"))
    for peer in install.environments():
        if install.is_installed(peer):
            package = {"triton": "nvidia-pytriton"}.get(peer, peer)
            [site] = install.home(peer).glob("lib/python*/site-packages")
            found |= _versions(site, (package,))
    return found


def _versions(site: Path | None, packages: tuple[str, ...]) -> dict[str, str]:
    there = distributions() if site is None else distributions(path=[str(site)])
    return {d.name: d.version for d in there if d.name in packages}
