"""Which endpoint a path leads to."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelserve.errors import MethodNotAllowed
from modelserve.transports.routes.messages import NoSuchPath
from modelserve.transports.routes.table import Endpoint, Table


async def _nothing(*_: Any) -> Any:
    raise AssertionError("a table only finds")


def _table(*paths: str, method: str = "GET") -> Table:
    return Table([Endpoint(method, path, _nothing) for path in paths], 100)


MODELS = _table(
    "/models/stats",
    "/models/{model}",
    "/models/{model}/stats",
    "/models/{model}/versions/{version}",
    "/models/{model}:predict",
    "/models/{model}/versions/{version}:predict",
)


@pytest.mark.parametrize(
    ("path", "found", "names"),
    [
        ("/models/stats", "/models/stats", {}),
        ("/models/stats/", "/models/stats", {}),
        ("/models/stats/stats", "/models/{model}/stats", {"model": "stats"}),
        (
            "/models/stats/versions/2",
            "/models/{model}/versions/{version}",
            {"model": "stats", "version": "2"},
        ),
        ("/models/a", "/models/{model}", {"model": "a"}),
        ("/models/a:predict", "/models/{model}:predict", {"model": "a"}),
        ("/models/a:b:predict", "/models/{model}:predict", {"model": "a:b"}),
        ("/models/A:PreDict", "/models/{model}:predict", {"model": "A"}),
        ("/models/a:other", "/models/{model}", {"model": "a:other"}),
        ("/models/a:b/stats", "/models/{model}/stats", {"model": "a:b"}),
        (
            "/models/a/versions/3:predict",
            "/models/{model}/versions/{version}:predict",
            {"model": "a", "version": "3"},
        ),
    ],
)
def test_a_path_leads_to_its_endpoint(path: str, found: str, names: dict[str, str]) -> None:
    route = MODELS.find("GET", path)

    assert route.endpoint.path == found
    assert dict(route.names) == names


@pytest.mark.parametrize(
    "path",
    ["", "/", "/models", "/models/", "/models//stats", "/models/:predict", "/models/a/b/c/" * 9],
)
def test_another_path_leads_nowhere(path: str) -> None:
    with pytest.raises(NoSuchPath):
        MODELS.find("GET", path)


def test_a_path_may_have_an_endpoint_for_each_method() -> None:
    table = Table([Endpoint(method, "/a", _nothing) for method in ("GET", "POST")], 100)

    assert table.find("POST", "/a").endpoint.method == "POST"
    assert table.find("HEAD", "/a").endpoint.method == "GET"
    with pytest.raises(MethodNotAllowed) as refused:
        table.find("DELETE", "/a")
    assert refused.value.allow == ("GET", "HEAD", "POST")


def test_a_verb_there_is_not_is_no_path() -> None:
    table = Table(
        [
            Endpoint("GET", "/models/{model}", _nothing),
            Endpoint("POST", "/models/{model}:predict", _nothing),
        ],
        100,
    )

    assert table.find("GET", "/models/a:other").model == "a:other"
    with pytest.raises(NoSuchPath, match=r'there is no verb ":other" here; expected :predict'):
        table.find("POST", "/models/a:other")
    with pytest.raises(MethodNotAllowed):
        table.find("POST", "/models/a")
    with pytest.raises(MethodNotAllowed):
        table.find("GET", "/models/a:predict")


def test_what_could_not_be_decoded_is_not_the_root() -> None:
    table = _table("")

    assert table.find("GET", "/").endpoint.path == ""
    with pytest.raises(NoSuchPath):
        table.find("GET", "")


@given(
    model=st.text(min_size=1).filter(lambda text: "/" not in text and ":" not in text),
    version=st.text(string.digits, min_size=1),
)
def test_names_come_back_as_they_were(model: str, version: str) -> None:
    route = MODELS.find("GET", f"/models/{model}/versions/{version}:predict")

    assert (route.model, route.version) == (model, version)


@given(st.text(), st.sampled_from(["GET", "HEAD", "POST", "", "get"]))
def test_any_path_is_found_or_refused(path: str, method: str) -> None:
    try:
        MODELS.find(method, path)
    except (NoSuchPath, MethodNotAllowed) as refused:
        str(refused).encode("utf-8", "replace")


def test_a_limit_holds_where_an_endpoint_has_none() -> None:
    table = Table(
        [Endpoint("POST", "/a", _nothing, max_body=None), Endpoint("POST", "/b", _nothing)], 7
    )

    assert table.find("POST", "/a").max_body == 7
    assert table.find("POST", "/b").max_body == 0
