"""Triton's requests for control, there and back."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelserve.codecs import oip_control
from modelserve.codecs.oip_control import Load
from modelserve.errors import InvalidInput

MIB = 1 << 20


def body(**parameters: Any) -> bytes:
    return json.dumps({"parameters": parameters}).encode()


@given(
    st.sampled_from(["", "7"]),
    st.none() | st.text(),
    st.none() | st.dictionaries(st.text(max_size=9), st.binary(max_size=50), min_size=1),
)
def test_a_load_survives_the_way(version: str, config: str | None, files: Any) -> None:
    load = Load(version, config, files)
    assert oip_control.decode_load(oip_control.encode_load(*load)) == load


def test_a_configuration_may_be_an_object_on_either_side() -> None:
    config = {"maxBatchSize": 4}
    assert oip_control.decode_load(body(config=config)).config == config
    found = oip_control.decode_load(oip_control.encode_load(config=config)).config
    assert json.loads(found) == config  # type: ignore[arg-type]  # text


@pytest.mark.parametrize("size", [0, 1, 2, 3, 3 * MIB // 4, 3 * MIB // 4 + 1, 2 * MIB])
def test_files_of_any_size_are_read(size: int) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    found = oip_control.decode_load(oip_control.encode_load(config="{}", files={"1/a": content}))
    assert found.files == {"1/a": content}


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a===",
        "====",
        "YQ",
        "YQ=",
        "YQ==YQ==",
        "YQ==\n",
        " YQ==",
        "YW\nJj",
        "YW-_",
        "é" * 4,
        "A" * (MIB - 4) + "YQ==" + "AAAA",
        "A" * MIB + "*",
    ],
    ids=range(13),
)
def test_what_is_not_base64_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(InvalidInput, match=r'^parameters\["file:1/a"\]: not base64: '):
        oip_control.decode_load(body(**{"config": "{}", "file:1/a": text}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"config": 1}, "parameters.config: expected a model configuration as a string"),
        ({"config": []}, "parameters.config: expected a model configuration"),
        ({"version": 1}, "parameters.version: expected a string"),
        ({"file:1/a": 1}, 'parameters["file:1/a"]: expected base64 as a string'),
        ({"file:1/a": None}, 'parameters["file:1/a"]: expected base64 as a string'),
        ({"file:1/a": {"b64": ""}}, 'parameters["file:1/a"]: expected base64 as a string'),
        ({"file:" + "x" * 500: 1}, 'parameters["file:xxx'),
    ],
    ids=range(7),
)
def test_wrong_kind_is_refused_with_its_place(given: Any, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        oip_control.decode_load(body(**given))
    assert str(caught.value).startswith(said)
    assert len(str(caught.value)) < 300


def test_typed_parameters_mean_the_same() -> None:
    load = oip_control.load_of({"version": "2", "config": "{}", "file:1/a": b"x", "other": 1})
    assert load == Load("2", "{}", {"1/a": b"x"})
    with pytest.raises(InvalidInput, match=r'parameters\["file:1/a"\]: expected bytes'):
        oip_control.load_of({"config": "{}", "file:1/a": "eA=="})


@pytest.mark.parametrize("given", [b"", b"{}", b'{"parameters":null}', b'{"parameters":{}}'])
def test_a_change_need_say_nothing(given: bytes) -> None:
    assert oip_control.decode_load(given) == Load()
    assert oip_control.decode_unload(given) == ""


@pytest.mark.parametrize("given", [b"[]", b"{", b'{"parameters":1}', b'{"parameters":[]}', b"\xff"])
def test_malformed_change_is_refused(given: bytes) -> None:
    with pytest.raises(InvalidInput):
        oip_control.decode_load(given)
    with pytest.raises(InvalidInput):
        oip_control.decode_unload(given)


def test_an_unload_survives_the_way() -> None:
    assert oip_control.decode_unload(oip_control.encode_unload("7")) == "7"
    assert oip_control.decode_unload(oip_control.encode_unload()) == ""


@pytest.mark.parametrize("value", [True, False])
def test_dependents_may_be_named(value: bool) -> None:
    assert oip_control.decode_unload(body(unload_dependents=value, version="3")) == "3"


@pytest.mark.parametrize("value", [None, 0, 1, "true", [], {}])
def test_dependents_of_the_wrong_kind_are_refused(value: Any) -> None:
    with pytest.raises(
        InvalidInput, match=r"parameters\.unload_dependents: expected true or false"
    ):
        oip_control.decode_unload(body(unload_dependents=value))


def test_settings_are_an_object() -> None:
    assert oip_control.decode_settings(b"") == {}
    settings = {"log_info": True, "trace_level": ["OFF"], "trace_rate": None}
    assert oip_control.decode_settings(oip_control.encode_settings(settings)) == settings
    with pytest.raises(InvalidInput, match="expected a JSON object"):
        oip_control.decode_settings(b"[]")


def test_files_are_taken_as_triton_writes_them() -> None:
    written = {"file:1/model.onnx": base64.b64encode(b"\x08\x07").decode()}
    found = oip_control.decode_load(body(config='{"name": "m"}', **written))
    assert found == Load("", '{"name": "m"}', {"1/model.onnx": b"\x08\x07"})
