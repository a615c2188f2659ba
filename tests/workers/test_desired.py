"""The desired state: what verbs do to it, and a file that is whole at any moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelserve.repository.store import LocalStore
from modelserve.workers.desired import Desired, ModelState
from versioned_models import tree

STATE = ModelState(available=("1", "2", "3"), labels={"stable": "2"})


def test_load_of_a_version_takes_back_its_unload() -> None:
    state = STATE.unloading("2").loading("2")
    assert (state.explicit, state.excluded) == (("2",), ())


def test_load_of_a_version_of_an_unloaded_model_loads_only_that() -> None:
    state = STATE.unloading("").loading("2")
    assert state.enabled
    assert (state.explicit, state.excluded) == (("2",), ("1", "3"))


def test_load_of_a_model_takes_back_all_unloads() -> None:
    assert STATE.unloading("3").unloading("1").loading("").excluded == ()


def test_unload_of_a_model_forgets_versions_asked_for() -> None:
    state = STATE.loading("1").unloading("")
    assert (state.enabled, state.explicit) == (False, ())


def test_versions_stay_in_order_of_their_numbers() -> None:
    assert STATE.loading("10").loading("9").explicit == ("9", "10")


def test_state_sees_what_the_store_has(tmp_path: Path) -> None:
    store = LocalStore(tree(tmp_path, {"m": {"1": 1.0, "2": 2.0}}))
    store.label("m", {"stable": "1"})
    state = ModelState().seen_in(store, "m")
    assert (state.available, dict(state.labels)) == (("1", "2"), {"stable": "1"})


def test_written_state_is_read_back(tmp_path: Path) -> None:
    desired = Desired().changed({"m": STATE.loading("1"), "n": ModelState(route="2")})
    desired.write(tmp_path / "state.json")
    assert Desired.read(tmp_path / "state.json") == desired
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_model_that_left_the_store_is_forgotten_when_all_know() -> None:
    gone = ModelState(available=())
    first = Desired().changed({"m": STATE, "gone": gone})
    assert set(first.models) == {"m", "gone"}
    assert set(first.changed({"m": STATE}).models) == {"m"}


def test_failed_write_leaves_the_state_before(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    before = Desired().changed({"m": STATE})
    before.write(path)
    unwritable = Desired(2, {"m": ModelState(labels={"stable": object()})})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        unwritable.write(path)
    assert Desired.read(path) == before
    assert [found.name for found in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize("text", ["[]", "{}", '{"generation": 1, "models": {"m": {}}}', "{"])
def test_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(ValueError):  # noqa: PT011  # json's own where it is no JSON at all
        Desired.read(path)


def test_file_is_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    Desired().changed({"m": STATE}).write(path)
    assert json.loads(path.read_text())["models"]["m"]["available"] == ["1", "2", "3"]
