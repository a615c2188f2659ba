"""What a classifier's classes are called: files, properties, and what is passed over."""

import logging
from pathlib import Path

import pytest

from modelserve.repository.class_names import names_in_metadata, read_class_names


@pytest.fixture
def version(tmp_path: Path) -> Path:
    directory = tmp_path / "m" / "3"
    directory.mkdir(parents=True)
    return directory


def test_without_a_file_there_are_no_names(version: Path) -> None:
    assert read_class_names(version) == ()


def test_file_of_the_version_comes_before_the_model_s(version: Path) -> None:
    (version.parent / "labels.txt").write_text("cat\ndog\n")
    assert read_class_names(version) == ("cat", "dog")
    (version / "labels.txt").write_text("cat\r\nhound dog \r\n\r\nlast")
    assert read_class_names(version) == ("cat", "hound dog", "", "last")


def test_file_is_utf_8_with_or_without_a_mark(version: Path) -> None:
    (version / "labels.txt").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\n")
    assert read_class_names(version) == ("café",)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a" * (2**22 + 1)])
def test_file_that_is_no_list_is_passed_over(
    version: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (version / "labels.txt").write_bytes(content)
    with caplog.at_level(logging.WARNING, "modelserve.repository"):
        assert read_class_names(version) == ()
    assert "labels.txt" in caplog.text
    assert str(version) not in caplog.text


def test_directory_of_that_name_is_no_file(version: Path) -> None:
    (version / "labels.txt").mkdir()
    assert read_class_names(version) == ()


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ({}, ()),
        ({"producer": "x"}, ()),
        ({"classes": ""}, ()),
        ({"labels": "a"}, ("a",)),
        ({"labels": "a, b,c"}, ("a", "b", "c")),
        ({"labels": "a, x\nb\n"}, ("a, x", "b")),
        ({"labels": '["a", 2]'}, ("a", "2")),
        ({"labels": '{"0": "a"}'}, ()),
        ({"labels": "x", "classes": "y", "class_names": "z"}, ("z",)),
        ({"labels": "[" * 100_000}, ("[" * 100_000,)),
    ],
)
def test_properties_hold_a_list_or_a_text(metadata: dict[str, str], names: tuple[str, ...]) -> None:
    assert names_in_metadata(metadata) == names
