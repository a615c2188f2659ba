"""The local store: what is published is whole, verified, and changed by nobody else's doing."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from modelserve.errors import Conflict, IntegrityError, InvalidInput, LoadError, ModelNotFound
from modelserve.protocols import Store
from modelserve.repository.store import LocalStore

MODEL = helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString()
BIG = bytes([0x3A, 0x00]) + b"\x7a\x80\x80\x80\x02" + bytes(4 << 20)  # four chunks of a field

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs links or pipes")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "models")


def external_model(path: Path, **locations: bytes) -> Path:
    """Write a model whose tensors lie in other files; keys stand for file names, __ for a slash."""
    tensors = []
    path.parent.mkdir(parents=True, exist_ok=True)
    for key, content in locations.items():
        name = key.replace("__", "/")
        tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[len(content)])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=name)
        tensors.append(tensor)
        target = path.parent / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    graph = helper.make_graph([], "g", [], [], initializer=tensors)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def tree(path: Path) -> set[str]:
    return {p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir()}


def hidden(path: Path) -> set[str]:
    """Names the store made and that are not there to stay."""
    known = {".lock", ".labels.json", ".manifest.json"}
    return {p.name for p in path.rglob(".*") if p.name not in known or p.parent.name[0] == "."}


class Gate:
    """A progress callback at which a publisher waits until it is let go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, done: int, total: int) -> None:
        self.reached.set()
        assert self.opened.wait(10)


@pytest.fixture
def publishing(store: LocalStore) -> Iterator[Callable[..., tuple[Any, Gate]]]:
    """Start publications that stand still in the middle of copying."""
    gates: list[Gate] = []
    with ThreadPoolExecutor(4) as pool:

        def start(model: str = "m", **options: Any) -> tuple[Any, Gate]:
            gates.append(gate := Gate())
            future = pool.submit(store.put, model, BIG, progress=gate, **options)
            assert gate.reached.wait(10)
            return future, gate

        yield start
        for gate in gates:
            gate.opened.set()


# Publishing


def test_local_store_is_a_store(store: LocalStore) -> None:
    as_protocol: Store = store
    assert as_protocol.models() == ()
    assert repr(store) == f"LocalStore({str(store.path)!r})"


def test_published_bytes_are_found_as_model_onnx(store: LocalStore) -> None:
    stored = store.put("m", MODEL)
    assert (stored.model, stored.version) == ("m", "1")
    assert stored.path == store.path / "m" / "1"
    assert (stored.path / "model.onnx").read_bytes() == MODEL
    assert store.open("m", "1") == stored


def test_numbers_go_on_from_the_highest(store: LocalStore) -> None:
    store.put("m", MODEL, version="9")
    assert store.put("m", MODEL).version == "10"
    store.put("m", MODEL, version="2")
    assert store.versions("m") == ("2", "9", "10")


def test_number_of_a_plain_file_or_dead_link_is_not_used_again(store: LocalStore) -> None:
    store.put("m", MODEL)
    (store.path / "m" / "5").write_bytes(b"")
    assert store.put("m", MODEL).version == "6"
    assert store.versions("m") == ("1", "6")


def test_taken_number_is_a_conflict_and_changes_nothing(store: LocalStore) -> None:
    store.put("m", MODEL, version="3")
    before = tree(store.path)
    with pytest.raises(Conflict, match=r'"m" has a version 3 already'):
        store.put("m", BIG, version="3")
    assert tree(store.path) == before


def test_number_taken_while_copying_is_a_conflict(
    store: LocalStore, publishing: Callable[..., tuple[Any, Gate]]
) -> None:
    future, gate = publishing(version="1")
    store.put("m", MODEL, version="1")
    gate.opened.set()
    with pytest.raises(Conflict):
        future.result(10)
    assert (store.path / "m" / "1" / "model.onnx").read_bytes() == MODEL
    assert hidden(store.path) == set()


@pytest.mark.parametrize("version", ["01", "+1", "-1", "1_0", "", " 1", "1 ", "٣", "²", "x", "1.0"])
def test_what_is_no_plain_number_is_no_version(store: LocalStore, version: str) -> None:
    store.put("m", MODEL)
    (store.path / "m" / (version or "empty")).mkdir()
    assert store.versions("m") == ("1",)
    with pytest.raises(ModelNotFound):
        store.open("m", version)
    if version:
        with pytest.raises(InvalidInput, match="not a version"):
            store.put("m", MODEL, version=version)


def test_number_over_64_bits_is_no_version(store: LocalStore) -> None:
    with pytest.raises(InvalidInput):
        store.put("m", MODEL, version=str(2**63))
    assert store.put("m", MODEL, version=str(2**63 - 1)).version == str(2**63 - 1)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", ".m", "a/b", "a\\b", "a\0b", "a\nb", "a\x7fb", "m.", "m ", "\ud800"),
        *(f"a{character}" for character in '<>:"|?*'),
        "é" * 128,
    ],
)
def test_unfit_model_name_is_refused_by_every_verb(store: LocalStore, name: str) -> None:
    verbs: list[Callable[[], Any]] = [
        lambda: store.put(name, MODEL),
        lambda: store.open(name, "1"),
        lambda: store.versions(name),
        lambda: store.delete(name, "1"),
        lambda: store.labels(name),
        lambda: store.label(name, {}),
        lambda: store.collect(name, 1),
        lambda: store.config(name),
    ]
    for verb in verbs:
        with pytest.raises(InvalidInput, match="cannot be the name of a model"):
            verb()
    assert not store.path.exists()


@pytest.mark.parametrize("name", ["m", "é" * 127, "a b", "a.b-c_d", "~x", "模型"])
def test_other_names_are_taken(store: LocalStore, name: str) -> None:
    store.put(name, MODEL)
    assert store.models() == (name,)


def test_external_data_goes_along_under_its_name(store: LocalStore, tmp_path: Path) -> None:
    source = external_model(tmp_path / "in" / "net.onnx", weights=b"abc", deep__er__w=b"de")
    (source.parent / "unrelated").write_bytes(b"x")
    stored = store.put("m", source)
    assert tree(stored.path) == {"model.onnx", "weights", "deep/er/w", ".manifest.json"}
    assert (stored.path / "deep/er/w").read_bytes() == b"de"
    store.open("m", "1")


def test_published_external_data_is_run(store: LocalStore, tmp_path: Path) -> None:
    weights = np.arange(2000, dtype=np.float32)
    output = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2000])
    graph = helper.make_graph([], "g", [], [output], [numpy_helper.from_array(weights, "w")])
    source = tmp_path / "net.onnx"
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(proto, source, save_as_external_data=True, location="net.weights")
    stored = store.put("m", source)
    source.unlink()
    (tmp_path / "net.weights").unlink()
    session = onnxruntime.InferenceSession(stored.path / "model.onnx")
    assert np.array_equal(session.run(None, {})[0], weights)


@pytest.mark.parametrize("bad", ["/w", "../w", "a/../../w"])
def test_external_data_outside_is_refused(store: LocalStore, tmp_path: Path, bad: str) -> None:
    (tmp_path / "w").write_bytes(b"secret")
    source = external_model(tmp_path / "in" / "net.onnx", w=b"")
    proto = onnx.load(source, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = bad
    source.write_bytes(proto.SerializeToString())
    with pytest.raises(LoadError, match="inside the model's directory"):
        store.put("m", source)
    assert store.models() == ()


def test_missing_external_data_is_named(store: LocalStore, tmp_path: Path) -> None:
    source = external_model(tmp_path / "net.onnx", weights=b"abc")
    (tmp_path / "weights").unlink()
    with pytest.raises(LoadError, match='publishing "m": no file "weights"'):
        store.put("m", source)


def test_external_data_named_like_the_model_is_refused(store: LocalStore, tmp_path: Path) -> None:
    source = external_model(tmp_path / "net.onnx")
    external_model(tmp_path / "other" / "net.onnx", model=b"")
    proto = onnx.load(tmp_path / "other" / "net.onnx", load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = "model.onnx"
    source.write_bytes(proto.SerializeToString())
    with pytest.raises(LoadError, match=r'"model\.onnx", a name that is taken'):
        store.put("m", source)


def test_bytes_with_external_data_are_refused(store: LocalStore, tmp_path: Path) -> None:
    data = external_model(tmp_path / "net.onnx", w=b"abc").read_bytes()
    with pytest.raises(LoadError, match="publish it from its path"):
        store.put("m", data)


def test_directory_is_copied_without_an_old_manifest(store: LocalStore, tmp_path: Path) -> None:
    source = external_model(tmp_path / "in" / "model.onnx", d__w=b"abc").parent
    (source / "labels.txt").write_text("cat\ndog\n")
    (source / ".manifest.json").write_text("{}")
    stored = store.put("m", source)
    assert tree(stored.path) == {"model.onnx", "d/w", "labels.txt", ".manifest.json"}
    assert set(stored.manifest["files"]) == {"model.onnx", "d/w", "labels.txt"}


def test_published_version_can_be_published_again(store: LocalStore) -> None:
    first = store.put("m", MODEL)
    second = store.put("other", first.path)
    assert second.manifest["files"] == first.manifest["files"]


def test_directory_without_a_model_is_refused(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(LoadError, match=r'"in" holds no model\.onnx'):
        store.put("m", tmp_path / "in")


def test_directory_that_misses_external_data_is_refused(store: LocalStore, tmp_path: Path) -> None:
    source = external_model(tmp_path / "in" / "model.onnx", w=b"abc").parent
    (source / "w").unlink()
    with pytest.raises(LoadError, match='"w", in which'):
        store.put("m", source)


@posix
def test_links_in_a_source_are_copied_as_files(store: LocalStore, tmp_path: Path) -> None:
    blob = external_model(tmp_path / "blobs" / "x")
    source = tmp_path / "in"
    source.mkdir()
    (source / "model.onnx").symlink_to(blob)
    (source / "more").symlink_to(blob.parent)
    stored = store.put("m", source)
    assert tree(stored.path) == {"model.onnx", "more/x", ".manifest.json"}
    assert not any(path.is_symlink() for path in stored.path.rglob("*"))


@posix
def test_linked_model_brings_the_data_beside_the_link(store: LocalStore, tmp_path: Path) -> None:
    blob = external_model(tmp_path / "blobs" / "x", w=b"abc")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "w").symlink_to(blob.parent / "w")
    (tmp_path / "in" / "net.onnx").symlink_to(blob)
    stored = store.put("m", tmp_path / "in" / "net.onnx")
    assert tree(stored.path) == {"model.onnx", "w", ".manifest.json"}


@posix
def test_source_with_a_loop_of_links_is_refused(store: LocalStore, tmp_path: Path) -> None:
    source = external_model(tmp_path / "in" / "model.onnx").parent
    (source / "again").symlink_to(source)
    with pytest.raises(LoadError, match='"again" links to a directory above it'):
        store.put("m", source)


@posix
def test_pipe_in_a_source_is_refused_without_waiting(store: LocalStore, tmp_path: Path) -> None:
    source = external_model(tmp_path / "in" / "model.onnx").parent
    os.mkfifo(source / "pipe")
    with pytest.raises(LoadError, match='"pipe" is not a regular file'):
        store.put("m", source)
    with pytest.raises(LoadError, match='"pipe" is not a regular file'):
        store.put("m", source / "pipe")


def test_missing_source_is_named_without_its_directory(store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(LoadError) as caught:
        store.put("m", tmp_path / "nothing.onnx")
    assert str(caught.value) == 'publishing "m": no file "nothing.onnx"'


@pytest.mark.parametrize("data", [b"", b"hello", b"\x3a\x7f"])
def test_bytes_that_are_no_model_are_refused(store: LocalStore, data: bytes) -> None:
    with pytest.raises(LoadError, match="not an ONNX model"):
        store.put("m", data)
    assert not store.path.exists()


def test_source_of_another_type_is_a_type_error(store: LocalStore) -> None:
    with pytest.raises(TypeError, match="expected a path or bytes, got int"):
        store.put("m", 3)


def test_metadata_that_is_not_json_is_refused_before_copying(store: LocalStore) -> None:
    with pytest.raises(TypeError):
        store.put("m", MODEL, metadata={"x": object()})
    with pytest.raises(ValueError, match="JSON"):
        store.put("m", MODEL, metadata={"x": float("nan")})
    assert not store.path.exists()


def test_manifest_records_what_was_published(store: LocalStore, tmp_path: Path) -> None:
    source = external_model(tmp_path / "net.onnx")
    stored = store.put("m", source, metadata={"accuracy": 0.5})
    text = (stored.path / ".manifest.json").read_text()
    assert json.loads(text) == stored.manifest
    assert stored.manifest["format"] == 1
    assert stored.manifest["source"] == "net.onnx"
    assert stored.manifest["metadata"] == {"accuracy": 0.5}
    assert stored.manifest["created"].endswith("+00:00")
    assert stored.manifest["files"]["model.onnx"]["size"] == source.stat().st_size
    assert str(tmp_path) not in text


def test_progress_ends_at_the_total(store: LocalStore) -> None:
    seen: list[tuple[int, int]] = []
    store.put("m", BIG, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 3
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (len(BIG), len(BIG))
    assert {total for _, total in seen} == {len(BIG)}


def test_error_in_the_progress_callback_leaves_nothing(store: LocalStore) -> None:
    def give_up(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put("m", BIG, progress=give_up)
    assert store.models() == ()
    assert tree(store.path) == {".lock"}


def test_source_that_grows_while_copied_is_refused(store: LocalStore, tmp_path: Path) -> None:
    source = tmp_path / "net.onnx"
    source.write_bytes(BIG)

    def grow(done: int, total: int) -> None:
        if done < total:
            with open(source, "ab") as file:
                file.write(b"x")

    with pytest.raises(LoadError, match="changed while it was copied"):
        store.put("m", source, progress=grow)
    assert hidden(store.path) == set()


def test_nothing_is_visible_before_the_end(
    store: LocalStore, publishing: Callable[..., tuple[Any, Gate]]
) -> None:
    future, gate = publishing()
    assert store.models() == ()
    assert not (store.path / "m").exists()
    gate.opened.set()
    assert future.result(10).version == "1"


def test_publications_of_threads_run_side_by_side(
    store: LocalStore, publishing: Callable[..., tuple[Any, Gate]]
) -> None:
    slow = [publishing() for _ in range(3)]
    assert store.put("m", MODEL).version == "1"
    for _, gate in slow:
        gate.opened.set()
    assert sorted(future.result(10).version for future, _ in slow) == ["2", "3", "4"]
    assert [store.open("m", v).version for v in store.versions("m")] == ["1", "2", "3", "4"]


@posix
def test_model_directory_may_be_a_link(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    store.path.mkdir()
    (store.path / "m").symlink_to(tmp_path / "elsewhere")
    store.put("m", MODEL)
    assert store.versions("m") == ("1",)
    store.delete("m", "1")
    assert (store.path / "m").is_symlink()
    assert tree(tmp_path / "elsewhere") == set()


# Clean-up


def test_live_publisher_is_left_alone(
    store: LocalStore, publishing: Callable[..., tuple[Any, Gate]]
) -> None:
    store.put("m", MODEL)
    inside, first = publishing()
    beside, second = publishing("new")
    LocalStore(store.path)
    store.put("m", MODEL)
    first.opened.set()
    second.opened.set()
    assert inside.result(10).version == "3"
    assert beside.result(10).version == "1"
    assert hidden(store.path) == set()


def test_leftovers_of_the_dead_are_removed_at_construction(store: LocalStore) -> None:
    store.put("m", MODEL)
    for parent in (store.path, store.path / "m"):
        for name in (".publish-0123456789abcdef", ".delete-0123456789abcdef"):
            (parent / name / "content").mkdir(parents=True)
            (parent / name / ".lock").write_bytes(b"")
        (parent / ".publish-fedcba9876543210").mkdir()
    (store.path / "m" / ".labels-0123456789abcdef").write_bytes(b"{")
    (store.path / "m" / ".git").mkdir()
    LocalStore(store.path)
    assert hidden(store.path) == {".git"}
    assert tree(store.path) == {".lock", "m/1/model.onnx", "m/1/.manifest.json"}


def test_leftovers_of_the_dead_are_removed_before_a_publication(store: LocalStore) -> None:
    store.put("m", MODEL)
    (store.path / "m" / ".publish-0123456789abcdef").mkdir()
    store.put("m", MODEL)
    assert hidden(store.path) == set()


def test_clean_up_of_leftovers_that_cannot_be_removed_is_put_off(store: LocalStore) -> None:
    store.put("m", MODEL)
    (store.path / ".lock").unlink()
    (store.path / ".lock").mkdir()
    (store.path / ".delete-0123456789abcdef").mkdir()
    assert LocalStore(store.path).open("m", "1").version == "1"


def test_reading_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(MODEL)
    store = LocalStore(tmp_path)
    store.open("m", "1")
    store.fingerprint()
    assert tree(tmp_path) == {"m/1/model.onnx"}


def test_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"")
    with pytest.raises(ValueError, match='"models" is not a directory'):
        LocalStore(tmp_path / "models")


# Reading


def test_store_that_is_not_there_is_empty(store: LocalStore) -> None:
    assert store.models() == ()
    assert store.versions("m") == ()
    assert store.labels("m") == {}
    assert store.fingerprint() == {}


def test_hidden_files_and_models_without_versions_are_not_seen(store: LocalStore) -> None:
    store.put("b", MODEL)
    store.put("a", MODEL)
    for name in ("empty", ".hidden/1", "only_text/v1", "a:b/1"):
        (store.path / name).mkdir(parents=True)
    (store.path / "file").write_bytes(b"")
    (store.path / "a" / "7").write_bytes(b"a file, no version")
    assert store.models() == ("a", "b")
    assert store.versions("a") == ("1",)


def test_directory_made_for_triton_is_read_as_it_is(store: LocalStore) -> None:
    (store.path / "m" / "3").mkdir(parents=True)
    (store.path / "m" / "3" / "model.onnx").write_bytes(MODEL)
    (store.path / "m" / "config.pbtxt").write_text("")
    assert store.open("m", "3").manifest == {}
    assert store.config("m") == store.path / "m" / "config.pbtxt"
    assert store.put("m", MODEL).version == "4"


def test_model_without_a_config_has_none(store: LocalStore) -> None:
    store.put("m", MODEL)
    assert store.config("m") is None


@posix
def test_linked_version_is_followed(store: LocalStore) -> None:
    stored = store.put("m", MODEL)
    moved = store.path / "elsewhere"
    stored.path.rename(moved)
    stored.path.symlink_to(moved)
    assert store.open("m", "1").manifest == stored.manifest
    store.delete("m", "1")
    assert (moved / "model.onnx").read_bytes() == MODEL


@pytest.mark.parametrize("version", ["2", "../m/1", "1/", ".", ".."])
def test_unknown_version_is_not_found(store: LocalStore, version: str) -> None:
    store.put("m", MODEL)
    with pytest.raises(ModelNotFound):
        store.open("m", version)


def test_version_replaced_while_it_is_read_is_whole_or_not_found(store: LocalStore) -> None:
    done = threading.Event()
    contents = [BIG, BIG[:-1] + b"x", MODEL]

    def read() -> int:
        found = 0
        while not done.is_set():
            with suppress(ModelNotFound):
                found += store.open("m", "1").version == "1"
        return found

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for turn in range(30):
            store.put("m", contents[turn % 3], version="1")
            store.delete("m", "1")
        done.set()
        for reader in readers:
            reader.result(10)
    assert hidden(store.path) == set()


@pytest.mark.parametrize("name", ["model.onnx", "d/w"])
def test_changed_file_is_named(store: LocalStore, tmp_path: Path, name: str) -> None:
    source = external_model(tmp_path / "in" / "model.onnx", d__w=b"abc").parent
    stored = store.put("m", source)
    data = bytearray((stored.path / name).read_bytes())
    data[-1] ^= 1
    (stored.path / name).write_bytes(data)
    with pytest.raises(IntegrityError, match=f'"m" version 1: {name}: sha256'):
        store.open("m", "1")
    assert LocalStore(store.path, verify=False).open("m", "1").version == "1"


@pytest.mark.parametrize("verify", [True, False])
def test_truncated_or_missing_file_is_found_even_without_hashing(
    store: LocalStore, verify: bool
) -> None:
    model = store.put("m", MODEL).path / "model.onnx"
    model.write_bytes(MODEL[:-1])
    reader = LocalStore(store.path, verify=verify)
    with pytest.raises(IntegrityError, match=rf"model\.onnx: {len(MODEL) - 1} bytes"):
        reader.open("m", "1")
    model.unlink()
    with pytest.raises(IntegrityError, match=r"model\.onnx: missing"):
        reader.open("m", "1")


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "format number"),
        ('{"format": 2, "files": {}}', "newer"),
        ('{"format": 1}', "expected files by name"),
        ('{"format": 1, "files": {"../../x": {"size": 0, "sha256": ""}}}', "not inside"),
        ('{"format": 1, "files": {"model.onnx": 3}}', "expected a size and a sha256"),
        ('{"format": 1, "files": {".": {"size": 0, "sha256": ""}}}', "not inside"),
    ],
)
def test_damaged_manifest_is_an_integrity_error(
    store: LocalStore, manifest: str, said: str
) -> None:
    (store.put("m", MODEL).path / ".manifest.json").write_text(manifest)
    with pytest.raises(IntegrityError, match=said):
        store.open("m", "1")


# Labels


def test_labels_move_in_one_step(store: LocalStore) -> None:
    for _ in range(3):
        store.put("m", MODEL)
    store.label("m", {"stable": "1", "canary": "2"})
    assert store.label("m", {"stable": "2", "canary": None, "next": "3"}) == {
        "next": "3",
        "stable": "2",
    }
    assert LocalStore(store.path).labels("m") == {"next": "3", "stable": "2"}


def test_last_label_takes_the_file_along(store: LocalStore) -> None:
    store.put("m", MODEL)
    store.label("m", {"stable": "1"})
    assert store.label("m", {"stable": None, "never": None}) == {}
    assert not (store.path / "m" / ".labels.json").exists()


@pytest.mark.parametrize("name", ["", "1", "1a", "-a", "a b", "a/b", "a\n", "é", "a" * 65])
def test_unfit_label_is_refused(store: LocalStore, name: str) -> None:
    store.put("m", MODEL)
    with pytest.raises(InvalidInput, match="is not a label"):
        store.label("m", {name: "1"})


def test_label_of_an_unknown_version_changes_nothing(store: LocalStore) -> None:
    store.put("m", MODEL)
    with pytest.raises(ModelNotFound):
        store.label("m", {"stable": "1", "canary": "2"})
    assert store.labels("m") == {}
    with pytest.raises(ModelNotFound):
        store.label("other", {"stable": "1"})


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1, "labels": {"a": 1}}', '{"format": 1}'])
def test_damaged_labels_are_an_integrity_error(store: LocalStore, text: str) -> None:
    store.put("m", MODEL)
    (store.path / "m" / ".labels.json").write_text(text)
    with pytest.raises(IntegrityError):
        store.labels("m")


def test_labels_set_by_many_threads_all_stay(store: LocalStore) -> None:
    store.put("m", MODEL)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.label("m", {f"label{i}": "1"}), range(24)))
    assert len(store.labels("m")) == 24


# Deleting


def test_deleted_version_is_gone_and_others_stay(store: LocalStore) -> None:
    store.put("m", MODEL)
    store.put("m", MODEL)
    store.delete("m", "1")
    assert store.versions("m") == ("2",)
    assert hidden(store.path) == set()
    with pytest.raises(ModelNotFound):
        store.delete("m", "1")


def test_last_version_takes_its_model_along(store: LocalStore) -> None:
    store.put("m", MODEL)
    store.delete("m", "1")
    assert not (store.path / "m").exists()


def test_configuration_outlives_the_last_version(store: LocalStore) -> None:
    store.put("m", MODEL)
    (store.path / "m" / "config.pbtxt").write_text("")
    store.delete("m", "1")
    assert tree(store.path) == {".lock", "m/config.pbtxt"}


def test_labelled_version_is_not_deleted(store: LocalStore) -> None:
    store.put("m", MODEL)
    store.label("m", {"stable": "1", "canary": "1"})
    with pytest.raises(Conflict, match="labelled canary, stable"):
        store.delete("m", "1")
    assert store.versions("m") == ("1",)


def test_collection_keeps_the_newest_labelled_and_protected(store: LocalStore) -> None:
    for _ in range(12):
        store.put("m", MODEL)
    store.label("m", {"stable": "2"})
    assert store.collect("m", 2, {"9"}) == ("1", "3", "4", "5", "6", "7", "8", "10")
    assert store.versions("m") == ("2", "9", "11", "12")
    assert hidden(store.path) == set()


def test_collection_may_keep_nothing(store: LocalStore) -> None:
    store.put("m", MODEL)
    store.put("m", MODEL)
    assert store.collect("m", 0) == ("1", "2")
    assert store.models() == ()
    assert store.collect("m", 0) == ()


def test_collection_keeps_no_negative_number(store: LocalStore) -> None:
    with pytest.raises(ValueError, match="expected 0 or more, got -1"):
        store.collect("m", -1)


# Watching


def test_fingerprint_changes_with_each_thing_that_counts(store: LocalStore) -> None:
    store.put("m", MODEL)
    store.put("other", MODEL)
    config = store.path / "m" / "config.pbtxt"
    model = store.path / "m" / "1" / "model.onnx"
    steps: list[Callable[[], Any]] = [
        lambda: store.put("m", MODEL),
        lambda: store.label("m", {"stable": "1"}),
        lambda: store.label("m", {"stable": "2"}),
        lambda: store.delete("m", "1"),
        lambda: config.write_text("max_batch_size: 4"),
        lambda: config.unlink(),
        lambda: store.put("m", MODEL, version="1"),
        lambda: model.write_bytes(MODEL + MODEL),
    ]
    seen = [store.fingerprint()]
    assert store.fingerprint() == seen[0]
    for step in steps:
        step()
        seen.append(store.fingerprint())
    assert [a["m"] != b["m"] for a, b in pairwise(seen)] == [True] * len(steps)
    assert len({found["other"] for found in seen}) == 1


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=300))
def test_any_name_is_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    store = LocalStore(tmp_path_factory.getbasetemp() / "names")
    try:
        store.put(name, MODEL)
    except InvalidInput:
        return
    assert name in store.models()
    store.delete(name, store.versions(name)[-1])
    assert store.versions(name) == ()
