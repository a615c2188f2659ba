"""The OpenAPI document: that it says all there is, and nothing else."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, cast
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelserve as ms
from modelserve.codecs import oip
from modelserve.errors import ModelNotFound
from modelserve.protocols import VersionInfo
from modelserve.security.authentication import APIKeys
from modelserve.tensors import DATATYPES, Signature, TensorSpec
from modelserve.testing import StubModel
from modelserve.transports.routes import PROTOCOLS, Request, Routes
from modelserve.transports.routes.openapi import described_of, document

from . import described_models as models

X = TensorSpec("x", "FP32", (-1, 2))


def served(routes: Routes, path: str = "/openapi.json", **headers: str) -> Any:
    """Return the document as it is served."""

    async def ask() -> Any:
        request = Request("GET", path, headers.get)
        route = routes.open(request)
        return await routes.answer(request, route)

    reply = asyncio.run(ask())
    assert reply.status == 200, bytes(reply.body[0])
    return json.loads(bytes(reply.body[0]))


def described(*infos: VersionInfo, **settings: Any) -> Any:
    """Return the document of some versions, the first of each model being the default."""
    routes = Routes(StubModel(), **settings)
    defaults: dict[str, str] = {}
    for info in infos:
        defaults.setdefault(info.model, info.version)
    found = document(
        routes.table.endpoints,
        infos,
        version="1",
        defaults=defaults,
        schemes=routes.schemes,
        controls=routes.controls,
    )
    return json.loads(json.dumps(found))


def ready(name: str = "m", version: str = "1", *specs: TensorSpec, **more: Any) -> VersionInfo:
    signature = Signature(specs or [X], more.pop("outputs", [X]))
    return VersionInfo(name, version, "READY", signature=signature, **more)


def operations(found: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def infer_schema(found: Any, path: str = "/v2/models/m/infer") -> dict[str, Any]:
    body = found["paths"][path]["post"]["requestBody"]
    assert body["required"] is True
    return cast(dict[str, Any], body["content"]["application/json"])


def validator(found: Any, schema: Any) -> Callable[[Any], bool]:
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    whole = {**schema, "components": found["components"]}
    made = jsonschema_rs.Draft202012Validator(whole)
    return cast(Callable[[Any], bool], made.is_valid)


def take(body: Any, signature: Signature, *, batched: bool) -> None:
    """Read a request as a server does."""
    request = oip.decode_request(json.dumps(body).encode(), model="m")
    signature.validate(request.inputs, batched=batched)


# Every endpoint


@pytest.mark.parametrize("protocols", [PROTOCOLS, ("tfserving",), ("kserve",), ("oip",), ()])
@pytest.mark.parametrize("uploads", [False, True])
def test_every_endpoint_says_what_it_is(protocols: tuple[str, ...], uploads: bool) -> None:
    routes = Routes(StubModel(), protocols=protocols, uploads=uploads)  # type: ignore[arg-type]  # names
    for endpoint in routes.table.endpoints:
        assert endpoint.summary, endpoint
        assert endpoint.described, endpoint
        says = described_of(endpoint)
        assert says.tag, endpoint
        assert bool(says.takes) == (endpoint.max_body != 0), endpoint


def test_every_endpoint_is_an_operation() -> None:
    routes = Routes(StubModel(), admin=True, uploads=True)
    found = served(routes)
    known = {(method, path) for method, path, _ in operations(found)}
    for endpoint in routes.table.endpoints:
        assert (endpoint.method.lower(), endpoint.path or "/") in known


@pytest.mark.parametrize("authenticator", [None, APIKeys({})])
def test_operations_are_whole(authenticator: APIKeys | None) -> None:
    found = described(
        ready(), ready("n", "2", streams=True), admin=True, authenticator=authenticator
    )
    ids = [operation["operationId"] for _, _, operation in operations(found)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z]\w*", one) for one in ids)
    for method, path, operation in operations(found):
        assert operation["summary"], path
        assert operation["tags"][0] in {tag["name"] for tag in found["tags"]}
        named = [p["name"] for p in operation.get("parameters", []) if p["in"] == "path"]
        assert named == re.findall(r"\{(\w+)\}", path)
        assert ("requestBody" in operation) == (method == "post")
        assert {"400", "503"} <= operation["responses"].keys()
        assert "200" in operation["responses"]
        guarded = operation.get("security") != [] and authenticator is not None
        assert ("401" in operation["responses"]) == guarded
        for status, response in operation["responses"].items():
            if status != "200" and "$ref" in response:
                name = response["$ref"].rpartition("/")[2]
                content = found["components"]["responses"][name]["content"]
                schema = {"$ref": "#/components/schemas/Error"}
                assert content == {"application/json": {"schema": schema}}


def test_every_reference_leads_somewhere() -> None:
    found = described(ready(), admin=True)
    references = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(found)))
    assert references
    for reference in references:
        place = found
        for part in reference.split("/"):
            place = place[part]
        assert place


def test_an_endpoint_that_says_nothing_is_described_as_taking_and_giving_anything() -> None:
    from modelserve.transports.routes.table import Endpoint

    async def nothing(*_: Any) -> Any: ...

    endpoint = Endpoint("POST", "/x/{y}", nothing, "infer", max_body=10, records=True)
    found = document([endpoint], [], version="1", defaults={}, schemes={}, controls=False)
    operation = found["paths"]["/x/{y}"]["post"]
    assert operation["requestBody"]["content"] == {"*/*": {}}
    assert {"200", "400", "404", "408", "413", "429", "500", "501", "503", "504"} == set(
        operation["responses"]
    )


def test_servers_are_relative_to_the_document() -> None:
    assert described()["servers"] == [{"url": "."}]


# Who may ask what


def test_control_routes_are_there_where_they_are_offered() -> None:
    load = "/v2/repository/models/{model}/load"
    assert load not in described()["paths"]
    assert load in described(admin=True)["paths"]


def test_a_control_route_that_is_off_is_told_where_its_path_is_shared() -> None:
    off = described()["paths"]["/v2/logging"]["post"]
    assert set(off["responses"]) == {"400", "403", "408", "413", "503"}
    assert "200" in described(admin=True)["paths"]["/v2/logging"]["post"]["responses"]


def test_security_schemes_are_the_authenticators() -> None:
    assert "security" not in described()
    assert "securitySchemes" not in described()["components"]
    found = described(authenticator=APIKeys({}))
    assert found["security"] == [{"bearer": []}, {"key": []}]
    assert found["components"]["securitySchemes"]["key"]["name"] == "X-API-Key"
    assert found["paths"]["/v2/health/live"]["get"]["security"] == []
    assert "`read`" in found["paths"]["/v2/models"]["get"]["description"]


def test_an_authenticator_that_does_not_say_how_is_taken_for_one_of_bearer_tokens() -> None:
    class Everyone:
        def authenticate(self, caller: Any) -> Any: ...

    found = described(authenticator=Everyone())
    assert list(found["components"]["securitySchemes"].values()) == [
        {"type": "http", "scheme": "bearer"}
    ]


def test_the_document_is_for_those_who_may_read() -> None:
    read, infer = (APIKeys.generate() for _ in range(2))
    keys = APIKeys({"ada": (read[1], {"read"}), "bob": (infer[1], {"infer"})})
    routes = Routes(StubModel(), authenticator=keys)
    assert served(routes, **{"x-api-key": read[0]})["openapi"] == "3.1.0"
    with pytest.raises(ms.PermissionDenied):
        served(routes, **{"x-api-key": infer[0]})
    with pytest.raises(ms.Unauthenticated):
        served(routes)


# Models


def test_a_model_has_a_path_and_each_of_several_versions_its_own() -> None:
    found = described(ready("a", "3"), ready("b", "1"), ready("b", "2"))
    own = {path for _, path, operation in operations(found) if "x-model" in operation}
    assert own == {
        "/v2/models/a/infer",
        "/v2/models/b/infer",
        "/v2/models/b/versions/1/infer",
        "/v2/models/b/versions/2/infer",
    }


def test_the_path_without_a_version_is_that_of_the_default() -> None:
    other = ready("b", "2", TensorSpec("y", "INT8", (3,)))
    found = described(ready("b", "1"), other)
    assert "FP32" in json.dumps(infer_schema(found, "/v2/models/b/infer"))
    assert "INT8" in json.dumps(infer_schema(found, "/v2/models/b/versions/2/infer"))
    assert [(one["default"], one["versions"]) for one in found["x-models"]] == [
        (True, ["1"]),
        (False, ["2"]),
    ]


@pytest.mark.parametrize("name", [models.ODD, "a b", "ü", "{model}", "100%", "x:predict", "a?b#c"])
def test_a_name_is_escaped_in_its_path(name: str) -> None:
    found = described(ready(name))
    path = f"/v2/models/{quote(name, safe='')}/infer"
    assert found["paths"][path]["post"]["x-model"] == name
    routes = Routes(StubModel(name=name))
    assert routes.find("POST", f"/v2/models/{name}/infer").model == name


@pytest.mark.parametrize("name", ["a/b", "/", ".", ".."])
def test_a_name_that_no_path_can_hold_has_none(name: str) -> None:
    found = described(ready(name))
    assert not [path for _, path, operation in operations(found) if "x-model" in operation]
    assert [one["name"] for one in found["x-models"]] == [name]


@pytest.mark.parametrize(
    "info",
    [
        ready("m", "1", TensorSpec("x", "BF16", (-1,))),
        ready("m", "1", outputs=[TensorSpec("y", "BF16", (-1,))]),
        VersionInfo("m", "1", "READY"),
        VersionInfo("m", "1", "READY", signature=Signature([])),
    ],
    ids=["bf16 in", "bf16 out", "no signature", "no inputs"],
)
def test_what_no_json_can_ask_is_listed_without_a_path_of_its_own(info: VersionInfo) -> None:
    found = described(info)
    assert "/v2/models/m/infer" not in found["paths"]
    assert len(found["x-models"]) == 1


def test_a_model_that_streams_has_the_path_that_streams() -> None:
    found = described(ready("m", "1", streams=True))
    own = {path for _, path, operation in operations(found) if "x-model" in operation}
    assert own == {"/v2/models/m/generate_stream"}


def test_rows_are_those_that_a_batch_may_have() -> None:
    def rows(most: int, *specs: TensorSpec) -> list[Any]:
        schema = infer_schema(described(ready("m", "1", *specs, max_batch_size=most)))
        inputs = schema["schema"]["properties"]["inputs"]
        choices = inputs.get("anyOf", [inputs])
        return [one["prefixItems"][0]["properties"]["shape"]["const"] for one in choices]

    assert rows(1) == [[1, 2]]
    assert rows(8) == [[1, 2], [2, 2]]
    assert rows(0, TensorSpec("x", "FP32", (3, 4))) == [[3, 4]]
    assert rows(0, TensorSpec("x", "FP32", (3, -1))) == [[3, 8]]
    assert rows(0, TensorSpec("x", "FP32")) == [[1], [2]]
    assert rows(0, TensorSpec("x", "FP32", ())) == [[]]


def test_an_example_of_many_elements_is_left_out() -> None:
    large = infer_schema(described(ready("m", "1", TensorSpec("x", "FP32", (-1, 3, 224, 224)))))
    assert "example" not in large
    assert "example" in infer_schema(described(ready()))


JSON_TYPES = [datatype for datatype in DATATYPES if datatype != "BF16"]
SPECS = st.builds(
    TensorSpec,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4),
    st.sampled_from(JSON_TYPES),
    st.none() | st.lists(st.integers(-1, 3), max_size=3).map(tuple),
    optional=st.booleans(),
)
SIGNATURES = st.lists(SPECS, min_size=1, max_size=3, unique_by=lambda spec: spec.name)


@given(SIGNATURES, st.booleans())
def test_an_example_is_what_its_schema_and_the_model_take(
    specs: list[TensorSpec], batched: bool
) -> None:
    batched = batched and all(spec.shape and spec.shape[0] == -1 for spec in specs)
    found = described(ready("m", "1", *specs, max_batch_size=2 if batched else 0))
    body = infer_schema(found)
    take(body["example"], Signature(specs), batched=batched)
    assert validator(found, body["schema"])(body["example"])


@given(st.data())
def test_a_schema_takes_what_fits_flat_or_nested_and_nothing_of_another_size(
    data: st.DataObject,
) -> None:
    rows = data.draw(st.integers(1, 2))
    array = np.arange(rows * 6, dtype=np.float32).reshape(rows, 2, 3)
    found = described(ready("m", "1", TensorSpec("x", "FP32", (-1, 2, 3)), max_batch_size=4))
    valid = validator(found, infer_schema(found)["schema"])

    def body(shape: list[int], values: Any) -> Any:
        return {"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": values}]}

    nested, flat = array.tolist(), array.ravel().tolist()
    assert valid(body([rows, 2, 3], nested))
    assert valid(body([rows, 2, 3], flat))
    for shape, values in (
        ([rows, 3, 2], flat),
        ([3 - rows, 2, 3], nested),
        ([rows, 2, 3], flat[1:]),
        ([rows, 2, 3], [*flat, 1.0]),
        ([rows, 2, 3], [*flat[1:], "1"]),
        ([rows, 2, 3], [*flat[1:], 1e39]),
    ):
        wrong = body(shape, values)
        assert not valid(wrong)
        with pytest.raises(ms.InvalidInput):
            take(wrong, Signature([TensorSpec("x", "FP32", (-1, 2, 3))]), batched=True)


@pytest.mark.parametrize(
    ("outputs", "valid"),
    [
        (None, True),
        ([], True),
        (["a"], True),
        (["c", "a", "b"], True),
        (["a", "a"], False),
        (["d"], False),
    ],
)
def test_outputs_are_asked_for_once_and_in_any_order(
    outputs: list[str] | None, valid: bool
) -> None:
    specs = [TensorSpec(name, "FP32", (-1,)) for name in "abc"]
    found = described(ready(outputs=specs))
    body = infer_schema(found)
    asked = None if outputs is None else [{"name": name} for name in outputs]
    assert validator(found, body["schema"])({**body["example"], "outputs": asked}) is valid


def test_versions_that_are_left_out_are_counted() -> None:
    found = document([], [], version="1", defaults={}, schemes={}, controls=False, omitted=7)
    assert "7 versions that are ready are not listed" in found["info"]["description"]


def test_a_repository_tells_which_models_stream() -> None:
    with ms.ModelRepository() as repository:
        repository.add(models.words())
        repository.add(models.fixed())
        paths = served(Routes(repository))["paths"]
    assert "/v2/models/words/generate_stream" in paths
    assert "/v2/models/words/infer" not in paths
    assert "/v2/models/fixed/infer" in paths


# What is ready, as it changes


def names(found: Any) -> list[tuple[str, str]]:
    return [(one["name"], one["parameters"]["version"]) for one in found["x-models"]]


def test_the_document_follows_what_is_loaded() -> None:
    with ms.ModelRepository() as repository:
        routes = Routes(repository)
        assert names(served(routes)) == []
        repository.add("digits", models.digits(1))
        assert names(served(routes)) == [("digits", "1")]
        repository.add(models.fixed())
        assert names(served(routes)) == [("digits", "1"), ("fixed", "1")]
        repository.unload("digits")
        assert names(served(routes)) == [("fixed", "1")]


def test_the_document_is_made_once_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    from modelserve.transports.routes import openapi

    made = []

    def counted(*args: Any, **more: Any) -> dict[str, Any]:
        made.append(1)
        return document(*args, **more)

    monkeypatch.setattr(openapi, "document", counted)
    routes = Routes(StubModel(inputs=[X]))
    assert served(routes) == served(routes)
    assert len(made) == 1


class Changing(StubModel):
    """A catalog of which a version is gone when it is asked for."""

    async def index(self) -> list[VersionInfo]:
        gone = VersionInfo("gone", "1", "READY")
        return [gone, *await super().index(), VersionInfo("late", "1", "LOADING")]

    async def describe(self, model: str, version: str = "") -> VersionInfo:
        if model == "gone":
            raise ModelNotFound("it is gone")
        return await super().describe(model, version)


def test_a_version_that_goes_meanwhile_is_left_out() -> None:
    assert names(served(Routes(Changing()))) == [("stub", "1")]


def test_without_a_catalog_there_are_the_routes() -> None:
    class Bare:
        async def infer(self, request: Any) -> Any: ...

        def stream(self, request: Any) -> Any: ...

    found = served(Routes(Bare()))
    assert found["x-models"] == []
    assert "/v2/models/{model}/infer" in found["paths"]


def test_an_index_without_signatures_is_asked_for_each() -> None:
    class Remote(StubModel):
        async def index(self) -> list[VersionInfo]:
            return [VersionInfo("stub", "1", "READY")]

    found = served(Routes(Remote(inputs=[X])))
    assert found["x-models"][0]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    assert "/v2/models/stub/infer" in found["paths"]


def test_no_more_versions_are_described_than_the_bound() -> None:
    class Many(StubModel):
        asked = 0

        async def index(self) -> list[VersionInfo]:
            return [VersionInfo(f"m{n}", "1", "READY") for n in range(300)]

        async def describe(self, model: str, version: str = "") -> VersionInfo:
            self.asked += 1
            return ready(model)

    many = Many()
    found = served(Routes(many))
    assert (len(found["x-models"]), many.asked) == (256, 256)
    assert "44 versions" in found["info"]["description"]


def test_a_catalog_that_cannot_be_reached_is_told_and_not_taken_for_empty() -> None:
    class Down(StubModel):
        async def index(self) -> list[VersionInfo]:
            raise ms.ModelNotReady("the server behind is down")

    async def ask() -> Any:
        routes = Routes(Down())
        request = Request("GET", "/openapi.json", {}.get)
        return await routes.answer(request, routes.open(request))

    assert asyncio.run(ask()).status == 503


@pytest.mark.parametrize("name", ["digits", "several", "fixed"])
def test_real_models_take_their_examples(name: str) -> None:
    with ms.ModelRepository() as repository:
        repository.add("digits", models.digits(1))
        repository.add(models.several())
        repository.add(models.fixed())
        routes = Routes(repository)
        path = f"/v2/models/{name}/infer"
        example = infer_schema(served(routes), path)["example"]

        async def ask() -> Any:
            request = Request("POST", path, {}.get)
            route = routes.open(request)
            request.body = json.dumps(example).encode()
            return await routes.answer(request, route)

        assert asyncio.run(ask()).status == 200
