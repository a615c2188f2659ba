"""Tell who is calling: API keys, hashed at rest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from hmac import compare_digest
from os import PathLike
from pathlib import Path
from secrets import token_urlsafe
from typing import Any, ClassVar, Final

from modelserve.errors import Unauthenticated
from modelserve.messages import Principal
from modelserve.protocols import Caller

__all__ = ["SCOPES", "APIKeys", "checked_scopes"]

SCOPES: Final = frozenset({"infer", "read", "admin"})
"""What a caller may be allowed: ask for predictions, read descriptions and metrics, change what
is served."""

# Headers that were right, with whatever stood beside the key in them.
_MOST_PROVEN: Final = 4096

_PREFIX: Final = "sha256:"
# Longer ones are not keys of ours; hashing them would be work for nothing.
_MAX_KEY: Final = 512


class APIKeys:
    """Authenticates callers by a key in `Authorization: Bearer KEY` or `X-API-Key: KEY`.

    Only hashes are kept. They are plain SHA-256: `generate` makes keys of 256 random bits, which
    no amount of hashing makes harder to guess, and a slow hash would be paid for every request.
    Do not use it for passwords people chose.

    Nothing in a key names its owner, so there is no identifier whose existence timing could tell:
    a key is found by its hash, which a caller cannot steer, and compared in constant time.

    Args:
        keys: Hash and scopes by the caller's name. Scopes are any of ``"infer"``, ``"read"`` and
            ``"admin"``; none implies another.

    Raises:
        ValueError: A hash or scope is malformed, or two names have one key.

    Example:
        >>> from types import SimpleNamespace
        >>> key, hashed = APIKeys.generate()
        >>> keys = APIKeys({"ada": (hashed, {"infer", "read"})})
        >>> caller = SimpleNamespace(header={"x-api-key": key}.get, certificate=None)
        >>> keys.authenticate(caller).name
        'ada'
    """

    __slots__ = ("_principals", "_proven")

    schemes: ClassVar = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    """How a key is given, as OpenAPI has it."""

    def __init__(self, keys: Mapping[str, tuple[str, Iterable[str]]]) -> None:
        self._principals: dict[bytes, tuple[bytes, Principal]] = {}
        self._proven: dict[tuple[str | None, str | None], Principal] = {}
        """Whose headers were right before: clients send the same ones over and over."""
        for name, (hashed, scopes) in keys.items():
            digest = _digest(name, hashed)
            if digest in self._principals:
                other = self._principals[digest][1].name
                raise ValueError(f'"{name}" and "{other}" have the same key')
            self._principals[digest] = (digest, Principal(name, checked_scopes(name, scopes)))

    def __repr__(self) -> str:
        return f"<APIKeys of {len(self._principals)} callers>"

    @staticmethod
    def generate() -> tuple[str, str]:
        """Return a new key, to be given to its owner and forgotten, and its hash, to be kept."""
        key = token_urlsafe(32)
        return key, APIKeys.hash(key)

    @staticmethod
    def hash(key: str) -> str:
        """Return the hash of a key, as the constructor takes it."""
        return _PREFIX + sha256(key.encode()).hexdigest()

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> APIKeys:
        """Read keys from a `.toml` or `.json` file.

        A table per caller: ``[ada]``, ``hash = "sha256:..."``, ``scopes = ["infer", "read"]``.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is not such a file; the text says where.
        """
        path = Path(path)
        text = path.read_text("utf-8")
        if path.suffix == ".toml":
            import tomllib  # only a server with keys in this form pays for it: 1.4 ms

            document: Any = tomllib.loads(text)
        elif path.suffix == ".json":
            document = json.loads(text)
        else:
            raise ValueError(f'"{path.name}": expected a .toml or .json file')
        if not isinstance(document, dict):
            raise ValueError(f'"{path.name}": expected a table per caller')
        return cls({name: _entry(name, entry) for name, entry in document.items()})

    def authenticate(self, caller: Caller) -> Principal:
        """Return whose key a caller's headers hold.

        Args:
            caller: Whose headers are looked at.

        Raises:
            Unauthenticated: There is no key, or it is not known.
        """
        header = caller.header
        sent = header("authorization"), header("x-api-key")
        # A key that is right is looked up by itself and no more by its hash: saves 1 us. How long
        # that takes tells nothing, for Python hashes text with a secret of the process.
        proven = self._proven.get(sent)
        return proven if proven is not None else self._prove(*sent)

    def _prove(self, authorization: str | None, api_key: str | None) -> Principal:
        key = _bearer(authorization) or api_key
        if not key:
            raise Unauthenticated(
                "an API key is needed, as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
            )
        digest = sha256(key[:_MAX_KEY].encode(errors="replace")).digest()
        known, principal = self._principals.get(digest, (b"\0" * 32, _NOBODY))
        if not compare_digest(known, digest) or len(key) > _MAX_KEY:
            raise Unauthenticated("the API key is not known")
        if len(self._proven) >= _MOST_PROVEN:
            self._proven.clear()
        self._proven[authorization, api_key] = principal
        return principal


_NOBODY: Final = Principal("")


def _bearer(value: str | None) -> str:
    scheme, _, credentials = (value or "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else ""


def _digest(name: str, hashed: str) -> bytes:
    text = hashed.removeprefix(_PREFIX)
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32 or len(text) != 64 or text == hashed:
        raise ValueError(
            f'"{name}": expected "sha256:" and 64 hexadecimal digits, as APIKeys.hash gives'
        )
    return digest


def checked_scopes(name: str, scopes: Iterable[str]) -> frozenset[str]:
    """Return the scopes given to a caller.

    Raises:
        TypeError: They are one string.
        ValueError: There is no such scope.
    """
    if isinstance(scopes, str):
        raise TypeError(f'"{name}": scopes are a collection of names, not a str')
    found = frozenset(scopes)
    if not found <= SCOPES:
        unknown = sorted(map(str, found - SCOPES))
        raise ValueError(
            f'"{name}": unknown scope {", ".join(unknown)}; any of {", ".join(sorted(SCOPES))}'
        )
    return found


def _entry(name: str, entry: Any) -> tuple[str, list[str]]:
    if not isinstance(entry, dict) or set(entry) != {"hash", "scopes"}:
        raise ValueError(f'"{name}": expected exactly "hash" and "scopes"')
    hashed, scopes = entry["hash"], entry["scopes"]
    if not isinstance(hashed, str):
        raise ValueError(f'"{name}.hash": expected a string')
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise ValueError(f'"{name}.scopes": expected a list of strings')
    return hashed, scopes
