"""Policies that pick by version number or label."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelserve.messages import InferRequest
from modelserve.protocols import Choice, Policy
from modelserve.routing.versions import Latest, Pinned

REQUEST = InferRequest("m", {})
VERSIONS = st.lists(st.integers(0, 10**12), unique=True).map(lambda v: [str(n) for n in sorted(v)])


@given(VERSIONS)
def test_latest_chooses_the_highest_number(versions: list[str]) -> None:
    chosen = Latest().choose(REQUEST, versions)
    assert chosen == Choice(str(max(map(int, versions))) if versions else "")


@given(VERSIONS, st.text())
def test_pinned_chooses_its_version_whatever_there_is(versions: list[str], version: str) -> None:
    assert Pinned(version).choose(REQUEST, versions) == Choice(version)


def test_policies_are_values() -> None:
    assert Pinned("1") == Pinned("1") != Pinned("2")
    assert Latest() == Latest()
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pinned("1").version = "2"  # type: ignore[misc]


def test_both_are_policies() -> None:
    policies: list[Policy] = [Latest(), Pinned("1")]
    assert [policy.choose(REQUEST, ["1", "2"]).version for policy in policies] == ["2", "1"]
