"""Which versions are loaded, and which one answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelserve.errors import ModelNotFound, ModelNotReady
from modelserve.repository.models import STABLE, ModelEntry, answering_version, wanted_versions
from modelserve.repository.versions import VersionOptions

NUMBERS = st.lists(st.integers(1, 60), unique=True, max_size=8).map(
    lambda numbers: tuple(str(number) for number in sorted(numbers))
)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[tuple[str, ...], dict[str, str]]:
    numbers = draw(NUMBERS)
    names = draw(st.lists(st.sampled_from([STABLE, "canary", "beta"]), unique=True))
    return numbers, {name: draw(st.sampled_from(numbers)) for name in names if numbers}


def entry(keep: int | str | tuple[str, ...] = 1) -> ModelEntry:
    return ModelEntry("m", stored=True, options=VersionOptions(), keep=keep)


@pytest.mark.parametrize(
    ("keep", "wanted"),
    [
        (1, ("10",)),
        (2, ("3", "10")),
        (9, ("1", "2", "3", "10")),
        ("all", ("1", "2", "3", "10")),
        (("2", "7"), ("2",)),
    ],
)
def test_the_version_policy(keep: int | str | tuple[str, ...], wanted: tuple[str, ...]) -> None:
    assert wanted_versions(entry(keep), ("1", "2", "3", "10"), {}) == wanted


def test_labelled_versions_are_wanted_besides() -> None:
    assert wanted_versions(entry(2), ("1", "2", "3"), {"old": "1"}) == ("1", "2", "3")


def test_a_stable_version_stands_for_the_newest() -> None:
    assert wanted_versions(entry(), ("1", "2", "3"), {STABLE: "1"}) == ("1",)


def test_a_canary_stands_beside_the_newest_other() -> None:
    assert wanted_versions(entry(), ("1", "2", "3"), {"canary": "3"}) == ("2", "3")


def test_versions_loaded_or_unloaded_by_name_overrule_the_policy() -> None:
    model = entry(2)
    model.explicit = frozenset({"1"})
    model.excluded = frozenset({"3"})
    assert wanted_versions(model, ("1", "2", "3"), {}) == ("1", "2")


def test_of_an_unloaded_model_nothing_is_wanted() -> None:
    model = entry("all")
    model.enabled = False
    assert wanted_versions(model, ("1",), {STABLE: "1"}) == ()


@given(labelled(), st.one_of(st.integers(1, 9), st.just("all")))
def test_what_should_answer_and_all_labelled_versions_are_wanted(
    made: tuple[tuple[str, ...], dict[str, str]], keep: int | str
) -> None:
    numbers, labels = made
    wanted = wanted_versions(entry(keep), numbers, labels)
    assert set(labels.values()) <= set(wanted) <= set(numbers)
    assert answering_version(wanted, labels) == answering_version(numbers, labels)
    if isinstance(keep, int):
        assert len(wanted) <= keep + len(labels) + 1


@given(labelled())
def test_only_those_who_ask_for_it_get_a_canary(
    made: tuple[tuple[str, ...], dict[str, str]],
) -> None:
    numbers, labels = made
    answering = answering_version(numbers, labels)
    if STABLE in labels:
        assert answering == labels[STABLE]
    elif set(numbers) - set(labels.values()):
        assert answering not in labels.values()
    else:
        assert answering == (numbers[-1] if numbers else "")


def test_a_stable_label_without_its_version_leaves_it_to_the_newest() -> None:
    assert answering_version(("1", "2"), {STABLE: "3"}) == "2"


def test_an_unknown_version_is_not_found_and_a_known_one_not_ready() -> None:
    model = entry()
    model.available = ("1", "2")
    model.update(labels={"canary": "2"})
    for version in ("", "1", "canary"):
        with pytest.raises(ModelNotReady):
            model.find(version)
    with pytest.raises(ModelNotFound, match="loaded are none"):
        model.find("3")


def test_versions_that_are_not_loaded_say_why() -> None:
    model = entry("all")
    model.failed = {"2": "out of memory"}
    model.loading = frozenset({"3"})
    model.excluded = frozenset({"4"})
    infos = model.infos(("1", "2", "3", "4", "10"))
    assert [(info.version, info.state, info.reason) for info in infos] == [
        ("1", "UNAVAILABLE", "not loaded"),
        ("2", "UNAVAILABLE", "out of memory"),
        ("3", "LOADING", ""),
        ("4", "UNAVAILABLE", "unloaded"),
        ("10", "UNAVAILABLE", "not loaded"),
    ]
