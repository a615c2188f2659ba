"""The client of pydantic-open-inference: models of pydantic for what goes in and out."""

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import pytest

import serving
from modelserve.transports.asgi import ASGIApp
from modelserve.transports.serving import HTTPServer
from wire import golden_repository

package = pytest.importorskip("pydantic_open_inference")
InputsBaseModel: Any = package.InputsBaseModel
OutputsBaseModel: Any = package.OutputsBaseModel


class Four(NamedTuple):
    a: float
    b: float
    c: float
    d: float


class Two(NamedTuple):
    a: float
    b: float


class Integers(NamedTuple):
    a: int
    b: int


class Row(InputsBaseModel):
    x: list[Four]


class RowOut(OutputsBaseModel):
    y: list[Four]


class Pair(InputsBaseModel):
    a: list[Two]
    b: list[Integers]


class Doubled(OutputsBaseModel):
    doubled: list[Integers]


class Text(InputsBaseModel):
    x: str


class TextOut(OutputsBaseModel):
    y: str


class Number(InputsBaseModel):
    x: Annotated[int, package.DatatypeOverride("INT32")]


class NumberOut(OutputsBaseModel):
    y: int


class Wide(InputsBaseModel):
    x: list[Two]


@pytest.fixture(scope="module", params=["http1", "asgi"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("models")
    golden_repository.write(directory)
    with golden_repository.repository(directory) as repo:
        if request.param == "asgi":
            running = serving.on_uvicorn(ASGIApp(repo))
        else:
            running = serving.on_http1(HTTPServer(repo, http="127.0.0.1:0"))
        with running as url:
            yield url


def remote(url: str, name: str, inputs: type, outputs: type, version: str | None = None) -> Any:
    return package.RemoteModel(
        model_name=name,
        inputs_model=inputs,
        outputs_model=outputs,
        server_url=url,
        model_version=version,
        request_timeout_seconds=10,
    )


def test_models_of_pydantic_agree_with_the_metadata(url: str) -> None:
    remote(url, "add_one", Row, RowOut).validate()
    remote(url, "arithmetic", Pair, Doubled).validate()
    remote(url, "text", Text, TextOut).validate()
    remote(url, "versions", Number, NumberOut, "3").validate()


def test_a_model_that_does_not_agree_is_told_apart(url: str) -> None:
    with pytest.raises(package.IncompatibleTensorError, match="Shape mismatch"):
        remote(url, "add_one", Wide, RowOut).validate()
    with pytest.raises(package.BadStatusCodeFromServerError, match="404"):
        remote(url, "nope", Row, RowOut).validate()


def test_rows_go_there_and_back(url: str) -> None:
    answer = remote(url, "add_one", Row, RowOut).infer(Row(x=[(1, 2, 3, 4), (5, 6, 7, 8)]))
    assert answer.y == [(2, 3, 4, 5), (6, 7, 8, 9)]


def test_outputs_are_those_of_the_model_of_pydantic(url: str) -> None:
    answer = remote(url, "arithmetic", Pair, Doubled).infer(Pair(a=[(1, 2)], b=[(2**62, -3)]))
    assert answer.doubled == [(-(2**63), -6)]


def test_text_goes_there_and_back(url: str) -> None:
    assert remote(url, "text", Text, TextOut).infer(Text(x="grüß\n")).y == "grüß\n"


@pytest.mark.parametrize("version", [None, "1", "3"])
def test_versions_are_asked_for(url: str, version: str | None) -> None:
    assert remote(url, "versions", Number, NumberOut, version).infer(Number(x=7)).y == 7


def test_readiness_is_read(url: str) -> None:
    assert remote(url, "add_one", Row, RowOut).is_ready()
    assert not remote(url, "nope", Row, RowOut).is_ready()
    assert not remote(url, "versions", Number, NumberOut, "2").is_ready()


def test_an_error_has_its_status(url: str) -> None:
    with pytest.raises(package.BadStatusCodeFromServerError) as caught:
        remote(url, "versions", Number, NumberOut, "2").infer(Number(x=7))
    assert caught.value.status_code == 404
    with pytest.raises(package.BadStatusCodeFromServerError) as caught:
        remote(url, "add_one", Wide, RowOut).infer(Wide(x=[(1, 2)]))
    assert caught.value.status_code == 400
