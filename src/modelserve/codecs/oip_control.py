"""Triton's control extensions over REST: loading and unloading, log settings, trace settings.

Bodies only, as JSON. What configurations, files and settings may hold is checked by whoever takes
them; a protocol with typed parameters has the same parts without this JSON around them.
"""

from __future__ import annotations

from base64 import b64encode
from binascii import Error, a2b_base64
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from modelserve.errors import InvalidInput

from ._json import Buffer, dumps, loads
from ._tensors import short

__all__ = [
    "Load",
    "decode_load",
    "decode_settings",
    "decode_unload",
    "encode_load",
    "encode_settings",
    "encode_unload",
    "load_of",
]

_FILE: Final = "file:"
_CHUNK: Final = 1 << 20  # characters; a multiple of 4
_LONGEST_NAME: Final = 80


class Load(NamedTuple):
    """What a request to load a model asks for.

    Args:
        version: Version number, or empty.
        config: The model's configuration in JSON, its text or the object; None for the stored one.
        files: Contents by name relative to the model's directory; None for the stored ones.
    """

    version: str = ""
    config: str | Mapping[str, Any] | None = None
    files: Mapping[str, bytes] | None = None


def load_of(parameters: Mapping[str, Any]) -> Load:
    """Return what the parameters of a request to load a model ask for.

    Args:
        parameters: ``version`` is ours, ``config`` and ``file:NAME`` (bytes) are Triton's.
            Whatever else there is has no effect.

    Raises:
        InvalidInput: One of these is of the wrong kind.
    """
    files: dict[str, bytes] = {}
    for name, value in parameters.items():
        if name.startswith(_FILE):
            if not isinstance(value, bytes):
                raise InvalidInput(f"expected bytes, got {short(value)}", path=_place(name))
            files[name.removeprefix(_FILE)] = value
    config = parameters.get("config")
    if config is not None and not isinstance(config, str | dict):
        raise InvalidInput(
            f"expected a model configuration as a string, got {short(config)}",
            path="parameters.config",
        )
    return Load(_version(parameters), config, files or None)


def decode_load(body: Buffer) -> Load:
    """Return what a request to load a model asks for.

    Takes some 9 ms for each MiB of files. The JSON text is read in one go, with the interpreter to
    itself for 3 ms of them; other threads go on during the rest.

    Raises:
        InvalidInput: The body is not such a request, or a file not in base64.
    """
    parameters = dict(_parameters(body))
    for name, value in parameters.items():
        if name.startswith(_FILE):
            parameters[name] = _decode_base64(value, _place(name))
    return load_of(parameters)


def decode_unload(body: Buffer) -> str:
    """Return the version a request to unload a model names; empty for none.

    Triton's `unload_dependents` is taken: no model here depends on another one's being loaded.

    Raises:
        InvalidInput: The body is not such a request.
    """
    parameters = _parameters(body)
    dependents = parameters.get("unload_dependents", False)
    if type(dependents) is not bool:
        raise InvalidInput(
            f"expected true or false, got {short(dependents)}", path="parameters.unload_dependents"
        )
    return _version(parameters)


def encode_load(
    version: str = "",
    config: str | Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> bytes:
    """Return the body of a request to load a model.

    Raises:
        TypeError: The configuration is nothing JSON can hold, or a file not bytes.
    """
    parameters: dict[str, Any] = {"version": version} if version else {}
    if config is not None:
        parameters["config"] = config if isinstance(config, str) else dumps(dict(config)).decode()
    for name, content in ({} if files is None else files).items():
        parameters[f"{_FILE}{name}"] = b64encode(content).decode("ascii")
    return dumps({"parameters": parameters} if parameters else {})


def encode_unload(version: str = "") -> bytes:
    """Return the body of a request to unload a model."""
    return encode_load(version)


def decode_settings(body: Buffer) -> dict[str, Any]:
    """Return the settings a request asks for, by name; an empty body asks for none.

    Raises:
        InvalidInput: The body is not a JSON object.
    """
    return _document(body) if body else {}


def encode_settings(settings: Mapping[str, Any]) -> bytes:
    """Return the body that shows settings."""
    return dumps(dict(settings))


def _document(body: Buffer) -> dict[str, Any]:
    try:
        document = loads(body)
    except ValueError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None
    if type(document) is not dict:
        raise InvalidInput(f"expected a JSON object, got {short(document)}")
    return document


def _parameters(body: Buffer) -> dict[str, Any]:
    parameters = _document(body).get("parameters") if body else None
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise InvalidInput(f"expected an object, got {short(parameters)}", path="parameters")
    return parameters


def _version(parameters: Mapping[str, Any]) -> str:
    version = parameters.get("version", "")
    if type(version) is not str:
        raise InvalidInput(f"expected a string, got {short(version)}", path="parameters.version")
    return version


def _place(name: str) -> str:
    return f'parameters["{name[:_LONGEST_NAME]}"]'


def _decode_base64(text: Any, place: str) -> bytes:
    if type(text) is not str:
        raise InvalidInput(f"expected base64 as a string, got {short(text)}", path=place)
    parts = []
    for start in range(0, len(text), _CHUNK):
        # One call for all would keep every other thread waiting.
        chunk = text[start : start + _CHUNK]
        try:
            part = a2b_base64(chunk, strict_mode=True)
        except (Error, ValueError) as error:
            raise InvalidInput(f"not base64: {_why(error)}", path=place) from None
        if start + _CHUNK < len(text) and len(part) * 4 != len(chunk) * 3:
            raise InvalidInput("not base64: it goes on behind its padding", path=place)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _why(error: ValueError) -> str:
    text = str(error)
    return f"{text[:1].lower()}{text[1:]}"
