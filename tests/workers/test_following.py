"""Control verbs of a worker's repository: they change all workers, or none."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
from onnx import helper

from modelserve.errors import LoadError, ModelNotFound, Unsupported
from modelserve.repository.store import LocalStore
from modelserve.routing.versions import Pinned
from modelserve.workers.control import _ask
from modelserve.workers.desired import Desired
from modelserve.workers.following import FollowingRepository
from onnx_models import model, value
from several import Several, several, until
from versioned_models import adds, tree

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers need a POSIX system")

T = TypeVar("T")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    root = tree(tmp_path_factory.mktemp("following") / "models", {"m": {"1": 1.0, "2": 2.0}})
    return LocalStore(root)


@pytest.fixture(scope="module")
def server(environment: dict[str, str], store: LocalStore) -> Iterator[Several]:
    with several(environment, store.path) as running:
        until(lambda: running.complete(2))
        yield running


@pytest.fixture
def do(server: Several, store: LocalStore) -> Callable[..., Any]:
    """Do something with a repository as the workers have one, in the process of the tests."""

    async def ask(message: dict[str, Any]) -> Any:
        return await asyncio.to_thread(_ask, server.runtime, message)

    def run(call: Callable[[FollowingRepository], Awaitable[T]]) -> T:
        async def main() -> T:
            async with FollowingRepository(store.path, ask) as repository:
                await repository.follow(Desired.read(server.runtime / "state.json"))
                return await call(repository)

        return asyncio.run(main())

    return run


def test_published_version_is_served_by_all(
    do: Callable[..., Any], server: Several, store: LocalStore
) -> None:
    number = do(lambda r: r.apublish("m", adds(3.0)))
    assert server.versions() == {number}
    assert store.labels("m") == {"stable": number}
    earlier = do(lambda r: r.arollback("m"))
    assert int(earlier) < int(number)
    assert server.versions() == {earlier}


def test_labelled_version_is_loaded_by_all_beside_the_stable_one(
    do: Callable[..., Any], server: Several, store: LocalStore
) -> None:
    do(lambda r: r.alabel("m", {"stable": "2", "canary": "1"}))
    assert server.versions() == {"2"}
    for _ in range(10):
        status, body = server.ask("/v2/models/m/versions/canary")
        assert (status, b'"versions":["1","2"]' in body.replace(b" ", b"")) == (200, True)
    assert do(lambda r: r.alabel("m", {"canary": None})) == {"stable": "2"}


def test_version_that_no_worker_can_load_is_taken_out_again(
    do: Callable[..., Any], server: Several, store: LocalStore
) -> None:
    before = (store.versions("m"), store.labels("m"), server.versions())
    nonsense = model([helper.make_node("NoSuchOperator", ["x"], ["y"])], [value("x")], [value("y")])
    with pytest.raises(LoadError):
        do(lambda r: r.apublish("m", nonsense))
    assert (store.versions("m"), store.labels("m"), server.versions()) == before


def test_version_that_loads_here_and_not_in_the_workers_is_taken_out_again(
    do: Callable[..., Any], server: Several, store: LocalStore
) -> None:
    (store.path / "odd").mkdir()
    (store.path / "odd" / "config.pbtxt").write_text("max_batch_size: nonsense")
    with pytest.raises(LoadError, match=r"config\.pbtxt"):
        do(lambda r: r.apublish("odd", adds(1.0), label="canary"))
    assert (store.versions("odd"), store.labels("odd")) == ((), {})
    assert server.version("odd") in ("404", "503")


def test_first_version_of_a_model_is_published_and_unloaded(
    do: Callable[..., Any], server: Several
) -> None:
    assert server.version("fresh") == "404"
    assert do(lambda r: r.apublish("fresh", adds(1.0))) == "1"
    assert {server.version("fresh") for _ in range(10)} == {"1"}
    do(lambda r: r.aunload("fresh"))
    assert {server.version("fresh") for _ in range(10)} == {"503"}


def test_route_by_label_is_seen_by_all(do: Callable[..., Any], server: Several) -> None:
    do(lambda r: r.alabel("m", {"stable": "2", "canary": "1"}))
    do(lambda r: r.aroute("m", "canary"))
    assert server.versions() == {"1"}
    do(lambda r: r.aroute("m", None))
    assert server.versions() == {"2"}


def test_unknown_versions_are_refused_and_change_nothing(
    do: Callable[..., Any], server: Several
) -> None:
    generation = server.status()["generation"]
    for call in (
        lambda r: r.aunload("m", "9"),
        lambda r: r.aload("m", "9"),
        lambda r: r.aroute("m", "9"),
        lambda r: r.alabel("m", {"canary": "9"}),
        lambda r: r.arollback("nothing"),
    ):
        with pytest.raises(ModelNotFound):
            do(call)
    assert server.status()["generation"] == generation


def test_what_is_in_one_process_only_is_refused(do: Callable[..., Any]) -> None:
    for call in (
        lambda r: r.aroute("m", Pinned("1")),
        lambda r: r.aadd("other", b""),
        lambda r: asyncio.to_thread(r.add, "other", b""),
    ):
        with pytest.raises(Unsupported):
            do(call)


@pytest.mark.parametrize("verb", ["load", "unload", "rollback"])
def test_blocking_verbs_name_the_form_to_await(do: Callable[..., Any], verb: str) -> None:
    with pytest.raises(RuntimeError, match=f"await a{verb}"):
        do(lambda r: asyncio.to_thread(getattr(r, verb), "m"))


@pytest.mark.parametrize("given", [{"config": {}}, {"config": {}, "files": {"1/model.onnx": b""}}])
def test_what_a_load_brings_is_refused(do: Callable[..., Any], given: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match="several processes serve what is in the store"):
        do(lambda r: r.aload("m", **given))


def test_settings_of_one_process_are_shown_and_not_changed(do: Callable[..., Any]) -> None:
    async def look(repository: FollowingRepository) -> None:
        assert repository.trace_settings.current()["trace_level"] == ["OFF"]
        assert repository.log_settings.current()["log_verbose_level"] == 0
        with pytest.raises(Unsupported, match="several processes have settings of their own"):
            repository.trace_settings.update({"trace_rate": "1"})
        with pytest.raises(Unsupported, match="several processes have settings of their own"):
            repository.log_settings.update({"log_verbose_level": 1})

    do(look)
