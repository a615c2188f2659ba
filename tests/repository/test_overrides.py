"""What a load brings along: configurations and files, instead of what is stored."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelserve.errors import Conflict, IntegrityError, InvalidInput, LoadError, ModelNotFound
from modelserve.protocols import VersionInfo
from modelserve.repository.overrides import Override
from modelserve.repository.repository import ModelRepository
from onnx_models import external
from versioned_models import ROWS, Traffic, adds, answer, described, states, tree

CONFIG: dict[str, Any] = {
    "backend": "onnxruntime",
    "maxBatchSize": 4,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["4"]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [4]}],
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: Any) -> Iterator[ModelRepository]:
    """Serve versions 1 and 2 of "m"; what is unpacked goes to a directory of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "unpacked"))
    (tmp_path / "unpacked").mkdir()
    with ModelRepository(tree(tmp_path / "models", {"m": {"1": 1, "2": 2}})) as made:
        yield made


def files(**versions: float) -> dict[str, bytes]:
    """Return models by name in the directory; ``v3=0.5`` adds 0.5 and is version 3."""
    return {f"{name[1:]}/model.onnx": adds(number) for name, number in versions.items()}


def info(repository: ModelRepository, name: str = "m") -> VersionInfo:
    return asyncio.run(repository.describe(name))


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


# ---------------------------------------------------------------------- configuration


def test_configuration_replaces_the_stored_one_until_the_next_load(
    repository: ModelRepository,
) -> None:
    before = info(repository).batching
    assert repository.load("m", config=CONFIG) == "2"
    assert info(repository).batching == "declared: up to 4 rows"
    assert answer(repository) == 2
    assert repository.load("m") == "2"
    assert info(repository).batching == before
    assert before.startswith("proven")


def test_configuration_may_be_text(repository: ModelRepository) -> None:
    repository.load("m", config=json.dumps(CONFIG))
    assert info(repository).max_batch_size == 4


def test_configuration_decides_over_config_pbtxt(tmp_path: Path) -> None:
    root = tree(tmp_path, {"m": {"1": 1}})
    (root / "m" / "config.pbtxt").write_text("max_batch_size: 2")
    with ModelRepository(root) as repository:
        repository.load("m", config={"maxBatchSize": 3})
        assert info(repository).max_batch_size == 3
        repository.load("m")
        assert info(repository).max_batch_size == 2
    assert (root / "m" / "config.pbtxt").read_text() == "max_batch_size: 2"


def test_version_policy_of_the_configuration_decides_what_is_loaded(
    repository: ModelRepository,
) -> None:
    policy = {"version_policy": {"specific": {"versions": ["1"]}}}
    assert repository.load("m", config={**CONFIG, **policy}) == "1"
    assert states(asyncio.run(repository.index())) == {"1": "READY", "2": "UNAVAILABLE"}
    with pytest.raises(InvalidInput, match=r"config\.version_policy: none of the versions"):
        repository.load("m", config={"version_policy": {"specific": {"versions": [7]}}})
    assert answer(repository) == 1


def test_unload_ends_a_configuration(repository: ModelRepository) -> None:
    repository.load("m", config=CONFIG)
    repository.unload("m")
    repository.load("m")
    assert info(repository).batching.startswith("proven")


def test_new_versions_are_served_under_the_configuration(
    repository: ModelRepository, tmp_path: Path
) -> None:
    repository.load("m", config=CONFIG)
    (tmp_path / "3.onnx").write_bytes(adds(3))
    repository.publish("m", tmp_path / "3.onnx")
    assert answer(repository) == 3
    assert info(repository).batching == "declared: up to 4 rows"


def test_fields_that_are_not_used_are_listed(repository: ModelRepository, caplog: Any) -> None:
    config = {**CONFIG, "optimization": {"graph": {}}, "inputs": [], "a\nb": 1}
    with caplog.at_level(logging.WARNING, "modelserve"):
        repository.load("m", config=config)
    assert "model m: config: not used: optimization, inputs, 'a\\nb'" in caplog.text


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "config: not valid JSON"),
        ("[]", "config: expected a JSON object, got list"),
        ("null", "config: expected a JSON object"),
        ("[" * 10_000, "config: not valid JSON: nested too deeply"),
        ({"maxBatchSize": "many"}, "config.max_batch_size: expected an integer, got 'many'"),
        ({"max_batch_size": True}, "config.max_batch_size: expected an integer, got true"),
        ({"max_batch_size": 10**6}, "config.max_batch_size: expected at most 65536 rows"),
        ({"max_batch_size": 1, "maxBatchSize": 1}, "config.max_batch_size: given twice"),
        ({"name": "other"}, 'config is for a model named "other"'),
        ({"name": "x" * 2000}, "config.name: expected at most 1024 characters"),
        ({"backend": "python"}, 'config asks for "python"'),
        ({"input": {}}, "config.input: expected a list, got an object"),
        ({"input": [1]}, r"config.input\[0\]: expected an object, got 1"),
        ({"input": [{"name": "x"}]}, r"config.input\[0\].data_type: expected a type"),
        (
            {"input": [{"name": "x", "data_type": "FP32"}]},
            r"config.input\[0\].data_type: expected one of TYPE_BOOL",
        ),
        (
            {"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4, [5]]}]},
            r"config.input\[0\].dims\[1\]: expected an integer, got a list",
        ),
        (
            {"input": [{"name": "z", "data_type": "TYPE_FP32", "dims": [4]}]},
            'its configuration declares input "z"',
        ),
        (
            {"instance_group": [{"count": 2**31 - 1}]},
            "config.instance_group: expected at most 64 instances",
        ),
        (
            {
                "model_warmup": [
                    {"inputs": {"x": {"data_type": 11, "dims": [2**40], "zero_data": True}}}
                ]
            },
            r"config.model_warmup\[0\]: expected inputs of at most",
        ),
        (
            {
                "model_warmup": [
                    {"inputs": {"x": {"dataType": 11, "dims": [4], "inputDataFile": "../../x"}}}
                ]
            },
            "expected a relative file name",
        ),
        (
            {
                "model_warmup": [
                    {"inputs": {"x": {"dataType": 11, "dims": [4], "inputDataFile": "x"}}}
                ]
            },
            'warm-up data "x" is missing',
        ),
    ],
    ids=range(21),
)
def test_unfit_configuration_is_refused_and_changes_nothing(
    repository: ModelRepository, config: Any, said: str
) -> None:
    before = repository._control.entries["m"].default
    with pytest.raises(InvalidInput, match=said) as caught:
        repository.load("m", config=config)
    assert len(str(caught.value)) < 500
    assert repository._control.entries["m"].default is before


def test_damaged_store_is_not_the_senders_fault(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(adds(1))
    with ModelRepository(tmp_path / "models") as repository:
        repository.publish("m", source)
        (tmp_path / "models" / "m" / "1" / "model.onnx").write_bytes(adds(2))
        with pytest.raises(IntegrityError):
            repository.load("m", config=CONFIG)
        assert answer(repository) == 1


# ---------------------------------------------------------------------- files


def test_files_are_served_instead_of_the_stored_versions(
    repository: ModelRepository, tmp_path: Path
) -> None:
    before = contents(tmp_path / "models")
    assert repository.load("m", config=CONFIG, files=files(v7=0.5)) == "7"
    assert answer(repository) == 0.5
    with pytest.raises(ModelNotFound):
        answer(repository, version="2")
    assert states(asyncio.run(repository.index()))["7"] == "READY"
    assert contents(tmp_path / "models") == before
    assert repository.load("m") == "2"
    assert answer(repository) == 2
    assert "7" not in states(asyncio.run(repository.index()))


def test_nothing_unpacked_stays(repository: ModelRepository, tmp_path: Path) -> None:
    repository.load("m", config={}, files=files(v1=0.5))
    assert list((tmp_path / "unpacked").iterdir()) == []
    with pytest.raises(InvalidInput):
        repository.load("m", config={}, files={"1/model.onnx": b"no model"})
    with pytest.raises(InvalidInput):
        repository.load("m", config={**CONFIG, "name": "z"}, files=files(v1=0.5))
    assert list((tmp_path / "unpacked").iterdir()) == []
    assert answer(repository) == 0.5


def test_files_make_a_model_that_the_store_does_not_have(repository: ModelRepository) -> None:
    assert repository.load("fresh", config={}, files=files(v1=3, v2=4)) == "2"
    assert answer(repository, "fresh") == 4
    with pytest.raises(ModelNotFound, match='the store has no model "fresh"'):
        repository.load("fresh")
    assert answer(repository, "fresh") == 4
    repository.unload("fresh")
    with pytest.raises(ModelNotFound):
        answer(repository, "fresh")
    assert "fresh" not in {found.model for found in asyncio.run(repository.index())}


def test_the_version_among_the_files_may_be_chosen(repository: ModelRepository) -> None:
    assert repository.load("m", "3", config={}, files=files(v3=3, v4=4)) == "3"
    assert answer(repository) == 3
    with pytest.raises(ModelNotFound, match="among the files there is no"):
        repository.load("m", "2", config={}, files=files(v3=3))


def test_version_policy_chooses_among_the_files(repository: ModelRepository) -> None:
    repository.load("m", config={"version_policy": {"all": {}}}, files=files(v3=3, v4=4))
    assert answer(repository, version="3") == 3
    assert answer(repository) == 4


def test_external_data_comes_along(repository: ModelRepository) -> None:
    model, weights = external()
    given = {"1/model.onnx": model, "1/weights.bin": weights}
    repository.load("big", config={}, files=given)
    assert info(repository, "big").state == "READY"
    with pytest.raises(InvalidInput, match=r"it keeps tensors in 'weights.bin', which did not"):
        repository.load("big", config={}, files={"1/model.onnx": model})
    assert info(repository, "big").state == "READY"


@pytest.mark.parametrize("location", ["/etc/hostname", "../../../etc/hostname", "..\\\\x"])
def test_model_may_not_name_files_of_this_machine(
    repository: ModelRepository, location: str
) -> None:
    with pytest.raises(InvalidInput, match="expected a path inside the model's directory"):
        repository.load("m", config={}, files={"1/model.onnx": external(location)[0]})


HOSTILE: list[tuple[str, str]] = [
    ("model.onnx", "expected VERSION/NAME"),
    ("", "expected VERSION/NAME"),
    ("/1/model.onnx", "it is empty"),
    ("1//model.onnx", "it is empty"),
    ("1/model.onnx/", "it is empty"),
    ("../1/model.onnx", "begins with a dot"),
    ("1/../../model.onnx", "begins with a dot"),
    ("1/./model.onnx", "begins with a dot"),
    ("1/..", "begins with a dot"),
    ("1/.manifest.json", "begins with a dot"),
    ("1\\model.onnx", "expected VERSION/NAME"),
    ("1/a\\..\\b", "is reserved"),
    ("C:/1/model.onnx", "is reserved"),
    ("1/C:model.onnx", "is reserved"),
    ("1/a\0b", "control character"),
    ("1/a\nb", "control character"),
    ("1/a ", "ends with a dot or a space"),
    ("01/model.onnx", "expected a version number"),
    ("-1/model.onnx", "expected a version number"),
    ("9" * 30 + "/model.onnx", "expected a version number"),
    ("\N{ARABIC-INDIC DIGIT ONE}/model.onnx", "expected a version number"),
    ("latest/model.onnx", "expected a version number"),
    ("1/" + "x" * 300, "over 255 bytes"),
    ("1/" + "x/" * 300 + "y", "at most 512 characters"),
    ("1/" + "x/" * 20 + "y", "at most 16 parts"),
    ("1/MODEL.onnx", 'the same file as "1/model.onnx"'),
    ("1/model.onnx/x", "a file and, for"),
    ("2/other.onnx", "version 2 has no model.onnx"),
]


@pytest.mark.parametrize(("name", "said"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_name_is_refused_and_nothing_is_written(
    repository: ModelRepository, tmp_path: Path, name: str, said: str
) -> None:
    before = contents(tmp_path)
    with pytest.raises(InvalidInput) as caught:
        repository.load("m", config={}, files={"1/model.onnx": adds(1), name: b"x"})
    assert said in str(caught.value)
    assert str(caught.value).startswith("files")
    assert len(str(caught.value)) < 1000
    assert contents(tmp_path) == before
    assert answer(repository) == 2


def test_files_need_a_configuration(repository: ModelRepository) -> None:
    with pytest.raises(InvalidInput, match="files need the model's configuration"):
        repository.load("m", files=files(v1=1))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "expected at least one file"),
        ({"warmup/x": b""}, "expected a version"),
        ({f"1/{n}": b"" for n in range(1001)}, "expected at most 1000 files, got 1001"),
    ],
    ids=range(3),
)
def test_unfit_set_of_files_is_refused(given: dict[str, bytes], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        Override.of({}, given)


def test_name_that_no_model_can_have_is_refused(repository: ModelRepository) -> None:
    with pytest.raises(InvalidInput, match="cannot be the name of a model"):
        repository.load("../m", config={}, files=files(v1=1))


def test_model_that_does_not_load_is_told_without_a_path_of_the_machine(
    repository: ModelRepository, tmp_path: Path
) -> None:
    broken = adds(1).replace(b"Add", b"Odd")
    with pytest.raises(InvalidInput) as caught:
        repository.load("m", config={}, files={"1/model.onnx": broken})
    assert "version 1 cannot be loaded" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert answer(repository) == 2


def test_one_version_that_fails_takes_the_others_along(repository: ModelRepository) -> None:
    given = {**files(v1=5), "2/model.onnx": adds(1).replace(b"Add", b"Odd")}
    with pytest.raises(InvalidInput, match="version 2 cannot"):
        repository.load("m", config={"version_policy": {"all": {}}}, files=given)
    assert answer(repository) == 2
    with pytest.raises(ModelNotFound):
        answer(repository, version="7")


def test_what_is_stored_is_not_followed_while_files_are_served(
    repository: ModelRepository, tmp_path: Path
) -> None:
    repository.load("m", config={}, files=files(v9=0.5))
    tree(tmp_path / "models", {"m": {"3": 3}})
    repository._control.follow()
    assert answer(repository) == 0.5
    source = tmp_path / "4.onnx"
    source.write_bytes(adds(4))
    calls: list[Callable[[], Any]] = [
        lambda: repository.publish("m", source),
        lambda: repository.label("m", {"stable": 1}),
        lambda: repository.rollback("m"),
    ]
    for call in calls:
        with pytest.raises(Conflict, match="served from files that a load brought along"):
            call()
    assert sorted(path.name for path in (tmp_path / "models" / "m").iterdir()) == ["1", "2", "3"]
    repository.unload("m")
    assert repository.load("m") == "3"


def test_a_model_added_by_name_is_no_place_for_files(repository: ModelRepository) -> None:
    repository.add("mine", adds(8))
    with pytest.raises(Conflict):
        repository.load("mine", config={}, files=files(v1=1))
    assert answer(repository, "mine") == 8


def test_no_request_is_lost_while_files_come_and_go(repository: ModelRepository) -> None:
    with Traffic(repository).flowing() as traffic:
        for _ in range(5):
            repository.load("m", config=CONFIG, files=files(v2=2))
            repository.load("m", config=CONFIG)
            repository.load("m")
        traffic.more(50)
    assert (traffic.failed, traffic.wrong, traffic.refused) == ([], [], 0)


def test_two_loads_at_once_leave_one_of_them(repository: ModelRepository, tmp_path: Path) -> None:
    threads = [
        threading.Thread(
            target=repository.load,
            args=("m",),
            kwargs={"config": {}, "files": files(**{f"v{number}": number})},
        )
        for number in (3, 4, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    version = info(repository).version
    assert answer(repository) == float(version)
    assert info(repository).versions == (version,)
    assert list((tmp_path / "unpacked").iterdir()) == []
    assert not repository._control.entries["m"].leaving


def test_series_of_a_failed_load_are_dropped(repository: ModelRepository) -> None:
    given = {**files(v8=5), "9/model.onnx": adds(1).replace(b"Add", b"Odd")}
    with pytest.raises(InvalidInput):
        repository.load("m", config={"version_policy": {"all": {}}}, files=given)
    text = repository.metrics.render()[0].decode()
    assert 'version="8"' not in text
    assert 'version="2"' in text


# ---------------------------------------------------------------------- a disk without room

LIMITED = """
import os, resource, sys, tempfile
from modelserve.errors import LoadError
from modelserve.repository.repository import ModelRepository
models, unpacked, model = sys.argv[1:]
tempfile.tempdir = unpacked
with ModelRepository(models) as repository:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    data = open(model, "rb").read()
    try:
        repository.load("m", config={}, files={"1/model.onnx": data, "1/big": bytes(4 << 20)})
    except LoadError as error:
        print(error)
    print(os.listdir(unpacked))
    print(repository.predict("m", {"x": [[0, 0, 0, 0]]})["y"].tolist())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits")
def test_file_that_does_not_fit_is_a_load_error_and_leaves_nothing(tmp_path: Path) -> None:
    tree(tmp_path / "models", {"m": {"1": 1}})
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "m.onnx").write_bytes(adds(5))
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            LIMITED,
            *(str(tmp_path / name) for name in ("models", "unpacked", "m.onnx")),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.splitlines() == [
        'unpacking the files of "m": File too large',
        "[]",
        "[[1.0, 1.0, 1.0, 1.0]]",
    ]


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="mounts")
def test_full_disk_is_a_load_error_and_leaves_nothing(
    repository: ModelRepository, tmp_path: Path
) -> None:
    place = tmp_path / "unpacked"
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        with pytest.raises(LoadError, match='files of "m": no space left on the device') as caught:
            repository.load("m", config={}, files={**files(v1=5), "1/big": bytes(4 << 20)})
        assert type(caught.value) is LoadError
        assert list(place.iterdir()) == []
        assert answer(repository) == 2
        repository.load("m", config={}, files=files(v1=5))
        assert answer(repository) == 5
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_what_is_unpacked_is_for_this_user_alone(
    repository: ModelRepository, tmp_path: Path, monkeypatch: Any
) -> None:
    seen: list[int] = []
    make = tempfile.mkdtemp

    def note(*args: Any, **kwargs: Any) -> str:
        path = make(*args, **kwargs)
        seen.append(os.stat(path).st_mode & 0o777)
        return path

    monkeypatch.setattr(tempfile, "mkdtemp", note)
    repository.load("m", config={}, files=files(v1=5))
    assert seen == [0o700]
    assert np.array_equal(repository.predict("m", {"x": ROWS})["y"], ROWS + 5)


def test_state_while_files_are_served(repository: ModelRepository) -> None:
    repository.load("m", config={}, files=files(v2=7))
    found = described(asyncio.run(repository.index()), "1")
    assert (found.state, found.reason) == ("UNAVAILABLE", "not loaded")
    assert asyncio.run(repository.ready())
