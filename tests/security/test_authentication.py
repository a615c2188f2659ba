"""API keys: who gets in, what is kept, and how files are read."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modelserve.errors import Unauthenticated
from modelserve.messages import Principal
from modelserve.security.authentication import APIKeys

KEY, HASH = APIKeys.generate()
KEYS = APIKeys({"ada": (HASH, {"infer", "read"})})


def sent(**headers: str) -> Any:
    found = {name.replace("_", "-"): value for name, value in headers.items()}
    return SimpleNamespace(header=found.get, certificate=None)


@pytest.mark.parametrize(
    "headers",
    [
        sent(authorization=f"Bearer {KEY}"),
        sent(authorization=f"bearer   {KEY} "),
        sent(x_api_key=KEY),
        sent(authorization="Basic YTpi", x_api_key=KEY),
    ],
    ids=["bearer", "any case", "x-api-key", "beside basic"],
)
def test_known_key_names_its_owner(headers: Any) -> None:
    assert KEYS.authenticate(headers) == Principal("ada", frozenset({"infer", "read"}))


@pytest.mark.parametrize(
    "headers",
    [sent(), sent(authorization="Basic YTpi"), sent(authorization="Bearer "), sent(x_api_key="")],
    ids=["nothing", "basic", "empty bearer", "empty"],
)
def test_missing_key_is_refused(headers: Any) -> None:
    with pytest.raises(Unauthenticated, match="an API key is needed"):
        KEYS.authenticate(headers)


@pytest.mark.parametrize(
    "key",
    [
        KEY[:-1],
        KEY + "x",
        KEY.swapcase(),
        HASH,
        HASH.removeprefix("sha256:"),
        "é",
        "\ud800",
        KEY * 99,
    ],
    ids=["shorter", "longer", "case", "hash", "digest", "accent", "surrogate", "huge"],
)
def test_unknown_key_is_refused(key: str) -> None:
    with pytest.raises(Unauthenticated, match="the API key is not known"):
        KEYS.authenticate(sent(x_api_key=key))


def test_bearer_key_goes_before_the_other_header() -> None:
    with pytest.raises(Unauthenticated):
        KEYS.authenticate(sent(authorization="Bearer wrong", x_api_key=KEY))


def test_keys_are_not_kept() -> None:
    assert KEY not in repr(KEYS)
    assert KEY.encode() not in b"".join(KEYS._principals)


def test_generated_keys_differ_and_hash_to_their_hash() -> None:
    other, _ = APIKeys.generate()
    assert other != KEY
    assert APIKeys.hash(KEY) == HASH


def test_error_text_does_not_repeat_the_key() -> None:
    with pytest.raises(Unauthenticated) as caught:
        KEYS.authenticate(sent(x_api_key="secret"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "hashed",
    ["", KEY, HASH[:-1], HASH.removeprefix("sha256:"), "sha256:" + "g" * 64, "sha256:" + "a " * 32],
    ids=range(6),
)
def test_malformed_hash_is_refused(hashed: str) -> None:
    with pytest.raises(ValueError, match='"ada": expected "sha256:" and 64 hexadecimal digits'):
        APIKeys({"ada": (hashed, [])})


def test_unknown_scope_is_refused() -> None:
    with pytest.raises(ValueError, match='"ada": unknown scope write; any of admin, infer, read'):
        APIKeys({"ada": (HASH, {"infer", "write"})})


def test_scopes_as_text_are_refused() -> None:
    with pytest.raises(TypeError, match="a collection of names"):
        APIKeys({"ada": (HASH, "infer")})


def test_one_key_for_two_names_is_refused() -> None:
    with pytest.raises(ValueError, match='"bob" and "ada" have the same key'):
        APIKeys({"ada": (HASH, []), "bob": (HASH, [])})


def test_keys_are_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f'[ada]\nhash = "{HASH}"\nscopes = ["admin"]\n')
    principal = APIKeys.from_file(path).authenticate(sent(x_api_key=KEY))
    assert principal == Principal("ada", frozenset({"admin"}))


def test_keys_are_read_from_json(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"ada": {"hash": HASH, "scopes": []}}))
    assert APIKeys.from_file(str(path)).authenticate(sent(x_api_key=KEY)).scopes == frozenset()


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([], "expected a table per caller"),
        ({"ada": 1}, '"ada": expected exactly "hash" and "scopes"'),
        ({"ada": {"hash": HASH}}, '"ada": expected exactly "hash" and "scopes"'),
        ({"ada": {"hash": HASH, "scopes": [], "key": KEY}}, '"ada": expected exactly'),
        ({"ada": {"hash": 1, "scopes": []}}, '"ada.hash": expected a string'),
        ({"ada": {"hash": HASH, "scopes": "infer"}}, '"ada.scopes": expected a list of strings'),
        ({"ada": {"hash": HASH, "scopes": [1]}}, '"ada.scopes": expected a list of strings'),
    ],
    ids=range(7),
)
def test_malformed_file_is_refused(tmp_path: Path, document: Any, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=text):
        APIKeys.from_file(path)


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("")
    with pytest.raises(ValueError, match=r'"keys.yaml": expected a .toml or .json file'):
        APIKeys.from_file(path)


def test_several_callers_are_told_apart() -> None:
    made = {name: APIKeys.generate() for name in ("ada", "bob", "eve")}
    keys = APIKeys({name: (hashed, ["infer"]) for name, (_, hashed) in made.items()})
    for name, (key, _) in made.items():
        assert keys.authenticate(sent(x_api_key=key)).name == name
