"""Publishing: checked before, taken out again when it cannot be served."""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelserve.errors import Conflict, InvalidInput, LoadError, ModelNotFound
from modelserve.protocols import StoredVersion
from modelserve.repository.publication import described, signature_of
from modelserve.repository.repository import ModelRepository
from modelserve.repository.store import LocalStore
from modelserve.tensors import TensorSpec
from onnx_models import identity, optional_input, sequence_output, two_in_three_out
from versioned_models import adds, answer, states, tree


def left_behind(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.name != ".lock")


def test_a_path_a_directory_and_bytes_can_be_published(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    path = tmp_path / "made" / "model.onnx"
    path.write_bytes(adds(1))
    with ModelRepository(tmp_path / "store") as repository:
        for source in (path, str(path), path.parent, adds(1)):
            repository.publish("m", source)
            assert answer(repository) == 1
        assert LocalStore(tmp_path / "store").versions("m") == ("1", "2", "3", "4")


def test_the_manifest_records_signature_and_metadata(tmp_path: Path) -> None:
    with ModelRepository(tmp_path) as repository:
        repository.publish("m", two_in_three_out(), metadata={"accuracy": 0.97})
    manifest = LocalStore(tmp_path).open("m", "1").manifest
    assert manifest["metadata"]["accuracy"] == 0.97
    signature = signature_of(manifest)
    assert signature is not None
    assert signature.inputs == (
        TensorSpec("a", "FP32", (-1, 2)),
        TensorSpec("b", "INT64", (-1, 2)),
    )
    assert [spec.name for spec in signature.outputs] == ["total", "difference", "doubled"]


@pytest.mark.parametrize("model", [identity("BYTES", None), optional_input(), identity("BF16")])
def test_a_recorded_signature_is_read_as_it_was(model: bytes, tmp_path: Path) -> None:
    stored = LocalStore(tmp_path).put("m", model, metadata=described(model))
    with ModelRepository(tmp_path) as repository:
        info = asyncio.run(repository.describe("m"))
    assert signature_of(stored.manifest) == info.signature


def test_a_version_without_a_record_has_no_signature() -> None:
    assert signature_of({}) is None


@pytest.mark.parametrize("source", [b"", b"no model", sequence_output()])
def test_what_cannot_be_served_is_not_stored(source: bytes, tmp_path: Path) -> None:
    with ModelRepository(tmp_path) as repository:
        with pytest.raises(LoadError):
            repository.publish("m", source)
        assert left_behind(tmp_path) == []
        assert asyncio.run(repository.index()) == []
        assert asyncio.run(repository.ready())


def test_a_missing_file_is_named_without_its_directory(tmp_path: Path) -> None:
    with ModelRepository(tmp_path) as repository, pytest.raises(LoadError) as caught:
        repository.publish("m", tmp_path / "nothing.onnx")
    assert "nothing.onnx" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_publication_that_does_not_load_is_taken_out_and_the_old_version_serves(
    tmp_path: Path,
) -> None:
    with ModelRepository(tmp_path) as repository:
        repository.publish("m", adds(1))
        # Loads by itself, and is not what the model's configuration promises.
        (tmp_path / "m" / "config.pbtxt").write_text(
            'max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: 4 }'
        )
        with pytest.raises(LoadError, match=r'declares input "x"'):
            repository.publish("m", two_in_three_out())
        assert answer(repository) == 1
        assert LocalStore(tmp_path).versions("m") == ("1",)
        assert states(asyncio.run(repository.index())) == {"1": "READY"}
        assert asyncio.run(repository.ready())
        assert repository.publish("m", adds(2)) == "2"
        assert answer(repository) == 2


def test_a_refused_label_takes_the_publication_back(tmp_path: Path) -> None:
    with ModelRepository(tmp_path) as repository:
        with pytest.raises(InvalidInput, match="not a label"):
            repository.publish("m", adds(1), label="1st")
        assert LocalStore(tmp_path).models() == ()
        repository.publish("m", adds(1))
        with pytest.raises(InvalidInput, match="not a label"):
            repository.publish("m", adds(2), label="not a label")
        assert answer(repository) == 1
        assert states(asyncio.run(repository.index())) == {"1": "READY"}


def test_a_failed_publication_keeps_what_is_known_of_the_others(tmp_path: Path) -> None:
    LocalStore(tmp_path).put("m", adds(1))
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(b"tampered")
    with ModelRepository(tmp_path) as repository:
        with pytest.raises(InvalidInput):
            repository.publish("m", adds(2), label="?")
        (info,) = asyncio.run(repository.index())
        assert (info.version, info.state) == ("1", "UNAVAILABLE")
        assert "tampered" not in info.reason
        assert "published with" in info.reason
        assert not asyncio.run(repository.ready())


def test_what_cannot_be_taken_out_is_said_and_the_first_error_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Undeletable(LocalStore):
        def delete(self, model: str, version: str) -> None:
            raise LoadError("the file system is read-only by now")

        def label(self, model: str, changes: Mapping[str, str | None]) -> dict[str, str]:
            raise LoadError("no label can be written")

    with (
        ModelRepository(Undeletable(tmp_path)) as repository,
        caplog.at_level(logging.ERROR),
        pytest.raises(LoadError, match="no label can be written"),
    ):
        repository.publish("m", adds(1))
    assert "version 1 stays in the store" in caplog.text


@pytest.mark.parametrize("version", ["", "2"])
def test_a_publication_is_not_collected_before_it_is_served(version: str, tmp_path: Path) -> None:
    class Interrupted(LocalStore):
        def put(self, model: str, source: Any, **options: Any) -> StoredVersion:
            stored = super().put(model, source, **options)
            if stored.version != "4":
                repository.collect("m", 0)
            return stored

    LocalStore(tmp_path).put("m", adds(1))
    LocalStore(tmp_path).put("m", adds(4), version="4")
    with ModelRepository(Interrupted(tmp_path)) as repository:
        number = repository.publish("m", adds(9), version=version)
        assert number == (version or "5")
        assert answer(repository) == 9
        assert repository.collect("m", 0) == ("4",)


def test_a_taken_number_is_a_conflict(tmp_path: Path) -> None:
    with ModelRepository(tmp_path) as repository:
        assert repository.publish("m", adds(7), version=7) == "7"
        with pytest.raises(Conflict):
            repository.publish("m", adds(1), version="7")
        assert answer(repository) == 7
        with pytest.raises(ValueError, match="whole number"):
            repository.publish("m", adds(1), version="new")


def test_a_model_in_memory_is_not_published_over(tmp_path: Path) -> None:
    with ModelRepository(tmp_path) as repository:
        repository.add("m", adds(1))
        with pytest.raises(Conflict, match="added by name"):
            repository.publish("m", adds(2))
        assert answer(repository) == 1
        assert LocalStore(tmp_path).models() == ()


def test_a_name_added_while_it_is_published_takes_the_publication_back(tmp_path: Path) -> None:
    with ModelRepository(tmp_path) as repository:

        def progress(done: int, whole: int) -> None:
            if not asyncio.run(repository.index()):
                repository.add("m", adds(1))

        with pytest.raises(Conflict):
            repository.publish("m", adds(2), progress=progress)
        assert answer(repository) == 1
        assert LocalStore(tmp_path).models() == ()


def test_a_number_that_was_unloaded_and_deleted_is_served_when_published_again(
    tmp_path: Path,
) -> None:
    with ModelRepository(tmp_path) as repository:
        repository.publish("m", adds(1))
        repository.publish("m", adds(2), label="canary")
        repository.unload("m", 2)
        LocalStore(tmp_path).label("m", {"canary": None})
        LocalStore(tmp_path).delete("m", "2")
        repository.publish("m", adds(3), version=2)
        assert answer(repository) == 3


def test_publishing_without_a_label_serves_the_newest_where_none_is_labelled(
    tmp_path: Path,
) -> None:
    with ModelRepository(tmp_path) as repository:
        for number in (1, 2):
            repository.publish("m", adds(number), label=None)
            assert answer(repository) == number
        assert LocalStore(tmp_path).labels("m") == {}


def test_publishing_an_unloaded_model_loads_it_again(tmp_path: Path) -> None:
    with ModelRepository(tmp_path) as repository:
        repository.publish("m", adds(1))
        repository.unload("m")
        repository.publish("m", adds(2))
        assert answer(repository) == 2


def test_progress_is_told_in_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    content = adds(1)
    with ModelRepository(tmp_path) as repository:
        repository.publish("m", content, progress=lambda done, whole: seen.append((done, whole)))
    assert seen[-1] == (len(content), len(content))


def test_a_source_of_another_type_is_refused(tmp_path: Path) -> None:
    source: Any = np.zeros(3)
    with ModelRepository(tmp_path) as repository, pytest.raises(TypeError):
        repository.publish("m", source)


def test_a_canary_is_never_seen_without_its_label(tmp_path: Path) -> None:
    tree(tmp_path, {"m": {"1": 1}})
    seen: list[tuple[tuple[str, ...], dict[str, str]]] = []

    class Watched(LocalStore):
        def _write_labels(self, directory: Path, labels: Any) -> None:
            super()._write_labels(directory, labels)
            seen.append((self.versions("m"), dict(labels)))

    stored = Watched(tmp_path).put("m", adds(2), label="canary")
    assert stored.version == "2"
    assert seen == [(("1",), {"canary": "2"})]


def test_a_stable_version_keeps_its_label_until_the_next_is_there(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("m", adds(1), label="stable")
    seen: list[tuple[tuple[str, ...], dict[str, str]]] = []

    class Watched(LocalStore):
        def _write_labels(self, directory: Path, labels: Any) -> None:
            seen.append((self.versions("m"), self.labels("m")))
            super()._write_labels(directory, labels)

    Watched(tmp_path).put("m", adds(2), label="stable")
    assert seen == [(("1", "2"), {"stable": "1"})]
    assert store.labels("m") == {"stable": "2"}


def test_a_label_left_by_a_dead_publisher_is_not_inherited(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("m", adds(1))
    (tmp_path / "m" / ".labels.json").write_text('{"format": 1, "labels": {"canary": "2"}}')
    assert store.put("m", adds(2)).version == "2"
    assert store.labels("m") == {}


def test_a_label_that_is_none_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not a label"):
        LocalStore(tmp_path).put("m", adds(1), label="?")
    assert not LocalStore(tmp_path).models()


def test_a_store_that_is_not_served_here_can_be_rolled_back(tmp_path: Path) -> None:
    LocalStore(tmp_path).put("m", adds(1), label="stable")
    LocalStore(tmp_path).put("m", adds(2), label="stable")
    with ModelRepository(tmp_path, load="none") as repository:
        assert repository.rollback("m") == "1"
        assert LocalStore(tmp_path).labels("m") == {"stable": "1"}
        with pytest.raises(ModelNotFound, match="no version before 1"):
            repository.rollback("m")
