"""The OpenAPI 3.1 document of a table of endpoints and of the models behind it.

Only what the endpoints say of themselves is written down: no protocol is known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, Final
from urllib.parse import quote

from modelserve.codecs.oip_catalog import describe_model
from modelserve.protocols import VersionInfo

from .schemas.described import ERROR, JSON_TYPE, Content, Described, Header, ModelCall, Schema
from .table import Endpoint

__all__ = ["described_of", "document"]

_NAMED: Final = re.compile(r"\{(\w+)\}")
_NO_NAME: Final = re.compile(r"\W+", re.ASCII)

_ANYTHING: Final = Described("other", gives={"*/*": {}}, takes={"*/*": {}}, optional=True)
"""What an endpoint that says nothing may do."""

_PARTS: Final = {
    "model": "Name of the model.",
    "version": "Number of the version, or a label.",
    "label": "A label of a version.",
    "region": "Name of the region.",
}

_STATUSES: Final = {
    400: "The request is malformed or does not fit the model; the text says where.",
    401: "The caller did not prove who it is.",
    403: "The caller may not do this.",
    404: "There is no such model or version.",
    408: "The body did not arrive in time.",
    409: "It exists already, or is being changed by someone else.",
    413: "The body is larger than allowed.",
    429: "The caller used up its share.",
    500: "The server or the model failed.",
    501: "What is served here does not offer this.",
    503: "It may work later or elsewhere.",
    504: "The deadline passed before an answer was there.",
}

_RETRY: Final = Header("Retry-After", {"type": "integer"}, "Seconds until another try may pass.")
_CHALLENGE: Final = Header("WWW-Authenticate", {"type": "string"}, "How to authenticate.")
_HEADERS: Final[Mapping[int, tuple[Header, ...]]] = {
    401: (_CHALLENGE,),
    429: (_RETRY,),
    503: (_RETRY,),
}

_ABOUT: Final = (
    'Every error is `{"error": "..."}` in JSON. What is no HTTP as this server takes it is refused '
    "before an operation is found, with 400, 408, 413, 414, 417, 431, 501 or 505; a method that a "
    "path does not have with 405 and `Allow`. `HEAD` is answered wherever `GET` is."
)


def described_of(endpoint: Endpoint) -> Described:
    """Return what an endpoint says of itself."""
    if not endpoint.described:
        return _ANYTHING
    module, _, name = endpoint.described.partition(".")
    found = getattr(import_module(f".schemas.{module}", __package__), name)
    assert isinstance(found, Described)
    return found


def document(
    endpoints: Iterable[Endpoint],
    infos: Sequence[VersionInfo],
    *,
    version: str,
    defaults: Mapping[str, str],
    schemes: Mapping[str, Mapping[str, Any]],
    controls: bool,
    omitted: int = 0,
) -> dict[str, Any]:
    """Return the document, as a JSON value.

    Args:
        endpoints: Every endpoint there is.
        infos: The versions that are ready, with their signatures.
        version: Of the server's software.
        defaults: The version of each model that answers by default.
        schemes: Security schemes by name; empty where everyone is admitted.
        controls: Whether control routes are offered.
        omitted: How many versions that are ready are not among the `infos`.
    """
    every = tuple(endpoints)
    shown = [e for e in every if controls or e.scope != "admin"]
    writer = _Writer(schemes, infos, defaults)
    for endpoint in shown:
        writer.add(endpoint)
    paths = {endpoint.path for endpoint in shown}
    for endpoint in every:
        # A path tells all of its methods to whoever asks with another one.
        if endpoint not in shown and endpoint.path in paths:
            writer.add_refused(endpoint)
    for info in infos:
        for endpoint in shown:
            writer.add_model(endpoint, info)
    about = _ABOUT
    if omitted:
        about += f" {omitted} versions that are ready are not listed here; they are answered alike."
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "modelserve", "version": version, "description": about},
        # Relative to where the document is: whatever it is mounted below.
        "servers": [{"url": "."}],
        "tags": [{"name": tag} for tag in writer.tags],
        "paths": writer.paths,
        "components": {
            "schemas": writer.schemas,
            "responses": writer.responses,
            "headers": {"X-Request-Id": _header(_ID)},
        },
        "x-models": [
            {**describe_model(info), "default": defaults.get(info.model) == info.version}
            for info in infos
        ],
    }
    if schemes:
        found["components"]["securitySchemes"] = dict(schemes)
        found["security"] = [{name: []} for name in schemes]
    return found


_ID: Final = Header("X-Request-Id", {"type": "string"}, "The request's id; made where it had none.")
_ID_REFERENCE: Final = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}


def _header(header: Header) -> dict[str, Any]:
    return {"description": header.text, "schema": header.schema}


class _Writer:
    """Writes operations, and collects what they refer to."""

    def __init__(
        self,
        schemes: Mapping[str, Mapping[str, Any]],
        infos: Sequence[VersionInfo],
        defaults: Mapping[str, str],
    ) -> None:
        self.paths: dict[str, dict[str, Any]] = {}
        self.schemas: dict[str, Any] = {}
        self.responses: dict[str, Any] = {}
        self.tags: dict[str, None] = {}
        self._schemes = schemes
        self._infos = infos
        self._several: dict[str, int] = {}
        for info in infos:
            self._several[info.model] = self._several.get(info.model, 0) + 1
        self._defaults = defaults
        self._ids: set[str] = set()

    def add(self, endpoint: Endpoint) -> None:
        """Write the operation of an endpoint."""
        described = described_of(endpoint)
        operation = self._operation(endpoint, described, endpoint.path)
        takes = described.takes or _ANYTHING.takes
        if endpoint.max_body != 0:
            operation["requestBody"] = self._body(takes, required=not described.optional)
        operation["responses"] = self._responses(endpoint, described, described.gives)
        # A request with a body has to fit the model: no name is an example for any body.
        known = self._infos[:1] if endpoint.method == "GET" else []
        parameters = [_part(name, known, described) for name in _NAMED.findall(endpoint.path)]
        parameters += [
            {"name": header.name, "in": "header", **_header(header)} for header in described.asked
        ]
        if parameters:
            operation["parameters"] = parameters
        self._put(endpoint.path, endpoint.method, operation)

    def add_refused(self, endpoint: Endpoint) -> None:
        """Write the operation of a control route that is off."""
        described = Described(
            described_of(endpoint).tag,
            gives={},
            text="A control route, which is off here: it is refused with 403.",
        )
        operation = self._operation(endpoint, described, endpoint.path)
        operation["requestBody"] = self._body(_ANYTHING.takes, required=False)
        refusals = (400, 401, 403, 408, 413, 503) if self._schemes else (400, 403, 408, 413, 503)
        operation["responses"] = {str(status): self._error(status) for status in refusals}
        parameters = [_part(name, (), described) for name in _NAMED.findall(endpoint.path)]
        if parameters:
            operation["parameters"] = parameters
        self._put(endpoint.path, endpoint.method, operation)

    def add_model(self, endpoint: Endpoint, info: VersionInfo) -> None:
        """Write an operation of an endpoint for a version of a model, if it has one."""
        described = described_of(endpoint)
        if described.of_model is None:
            return
        names = _NAMED.findall(endpoint.path)
        default = self._defaults.get(info.model) == info.version
        # One version has the path without its number, several have theirs.
        if names == ["model"]:
            named = default
        else:
            named = names == ["model", "version"] and self._several[info.model] > 1
        path = _of_model(endpoint.path, info)
        call = described.of_model(info) if named and path else None
        if call is None:
            return
        operation = self._operation(endpoint, described, path)
        operation["summary"] = f"{info.model}: {endpoint.summary}"
        if call.text:
            operation["description"] = f"{operation['description']}\n\n{call.text}".strip()
        operation["requestBody"] = self._call_body(call)
        operation["responses"] = self._responses(endpoint, described, call.gives)
        operation["x-model"] = info.model
        operation["x-version"] = "" if names == ["model"] else info.version
        self._put(path, endpoint.method, operation)

    def _put(self, path: str, method: str, operation: dict[str, Any]) -> None:
        self.paths.setdefault(path or "/", {})[method.lower()] = operation

    def _operation(self, endpoint: Endpoint, described: Described, path: str) -> dict[str, Any]:
        self.tags[described.tag] = None
        texts = [described.text]
        operation: dict[str, Any] = {
            "operationId": self._id(endpoint.method.lower() + path),
            "tags": [described.tag],
            "summary": endpoint.summary,
        }
        if self._schemes:
            if endpoint.scope:
                also = " or `infer`" if endpoint.describes else ""
                texts.append(f"Needs the scope `{endpoint.scope}`{also}.")
            else:
                operation["security"] = []
        operation["description"] = "\n\n".join(filter(None, texts))
        return operation

    def _id(self, text: str) -> str:
        name = wanted = _NO_NAME.sub("_", text).strip("_")
        number = 1
        while name in self._ids:
            number += 1
            name = f"{wanted}_{number}"
        self._ids.add(name)
        return name

    def _call_body(self, call: ModelCall) -> dict[str, Any]:
        body = self._body(call.takes, required=True)
        if call.example is not None:
            next(iter(body["content"].values()))["example"] = call.example
        return body

    def _body(self, takes: Content, *, required: bool) -> dict[str, Any]:
        return {"required": required, "content": self._content(takes)}

    def _content(self, content: Content) -> dict[str, Any]:
        return {
            kind: {"schema": self._refer(schema)} if schema else {}
            for kind, schema in content.items()
        }

    def _responses(
        self, endpoint: Endpoint, described: Described, gives: Content
    ) -> dict[str, Any]:
        told = {header.name: _header(header) for header in described.told}
        found: dict[str, Any] = {"200": self._reply(endpoint.summary, gives, told)}
        for status in sorted(_errors(endpoint, described, authenticates=bool(self._schemes))):
            found[str(status)] = self._error(status)
        for status, content in described.others.items():
            kinds = {**content}
            # The same status may come of an error, too.
            if str(status) in found and JSON_TYPE in kinds:
                schema = {"anyOf": [kinds[JSON_TYPE], ERROR]}
                kinds[JSON_TYPE] = schema
            told = {header.name: _header(header) for header in _HEADERS.get(status, ())}
            found[str(status)] = self._reply(_STATUSES[status], kinds, told)
        return dict(sorted(found.items()))

    def _reply(self, text: str, content: Content, told: Mapping[str, Any]) -> dict[str, Any]:
        reply: dict[str, Any] = {"description": text, "headers": {**_ID_REFERENCE, **told}}
        if content:
            reply["content"] = self._content(content)
        return reply

    def _error(self, status: int) -> dict[str, str]:
        name = f"Error{status}"
        if name not in self.responses:
            told = {header.name: _header(header) for header in _HEADERS.get(status, ())}
            self.responses[name] = self._reply(_STATUSES[status], {JSON_TYPE: ERROR}, told)
        return {"$ref": f"#/components/responses/{name}"}

    def _refer(self, definition: Any) -> Any:
        """Return a schema with references in place of those that have names."""
        if isinstance(definition, Schema):
            if definition.name not in self.schemas:
                self.schemas[definition.name] = None  # it may refer to itself
                self.schemas[definition.name] = self._refer(definition.definition)
            return {"$ref": f"#/components/schemas/{definition.name}"}
        if isinstance(definition, Mapping):
            return {key: self._refer(value) for key, value in definition.items()}
        if isinstance(definition, list | tuple):
            return [self._refer(value) for value in definition]
        return definition


def _errors(endpoint: Endpoint, described: Described, *, authenticates: bool) -> set[int]:
    """Return the statuses of all errors of an endpoint."""
    found = {400, 500, 503, *described.errors}
    if endpoint.max_body != 0:
        found |= {408, 413}
    if "{" in endpoint.path:
        found.add(404)
    if endpoint.scope:
        found.add(501)
        if authenticates:
            found |= {401, 403}
    if endpoint.scope == "admin":
        found.add(403)
    if endpoint.records:
        found |= {429, 504}
    return found


def _part(name: str, known: Sequence[VersionInfo], described: Described) -> dict[str, Any]:
    part: dict[str, Any] = {
        "name": name,
        "in": "path",
        "required": True,
        "description": _PARTS.get(name, f"The {name}."),
        "schema": described.parts.get(name, {"type": "string", "minLength": 1}),
    }
    for info in known:
        if name in ("model", "version"):
            part["example"] = info.model if name == "model" else info.version
    return part


def _of_model(path: str, info: VersionInfo) -> str:
    """Return the path of a model's own, or nothing where no request could have it."""
    names = {"model": info.model, "version": info.version}
    if "/" in info.model or info.model in (".", ".."):
        return ""
    return _NAMED.sub(lambda part: quote(names.get(part[1], ""), safe=""), path)
