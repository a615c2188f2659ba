"""The extension points. Implement one by having its methods; there is nothing to inherit."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from modelserve.messages import (
    BatchRecord,
    Exchange,
    InferRequest,
    InferResponse,
    ModelStatistics,
    Principal,
)
from modelserve.tensors import Signature, Tensor

__all__ = [
    "Admin",
    "Authenticator",
    "Backend",
    "Caller",
    "Catalog",
    "Certificate",
    "Choice",
    "Gathering",
    "ModelConfig",
    "Observer",
    "Policy",
    "RowRunner",
    "Servable",
    "State",
    "Store",
    "StoredVersion",
    "Ticket",
    "Traits",
    "VersionInfo",
]

State: TypeAlias = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]
"""States of a version, as the Open Inference Protocol's repository index names them."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What the execution layer may do with a backend.

    Args:
        inline: `run` may be called on any thread, an event loop's included when it is measured
            short. Otherwise every call is made on the instance's own thread.
        shared: Several calls of `run` may be under way at once on the one object.
        repeatable: A failed batch may be run again in halves, so that innocent rows survive.
        context: `run` takes a `Context` as second argument.
        asynchronous: `run` is a coroutine function; it is awaited on an event loop kept for it.
        streams: The backend answers with `stream`, not with `run`.
        takes_stream: The backend's `stream` consumes many requests, not one.
        concurrency: How many calls may be under way at once in one instance.
        synthetic: It may be run on made-up inputs when it is loaded, to warm it up and to prove
            that axis 0 is a batch; a function that does more than compute may not.
        opens: The backend has an `open()`, to be called once at load on the thread it will run on.
    """

    inline: bool = False
    shared: bool = False
    repeatable: bool = False
    context: bool = False
    asynchronous: bool = False
    streams: bool = False
    takes_stream: bool = False
    concurrency: int = 1
    synthetic: bool = False
    opens: bool = False


class Backend(Protocol):
    """Runs one batch.

    May carry `traits: Traits` (without, the defaults of `Traits` hold) and `metadata`, a mapping
    of text by name that `VersionInfo` shows.
    """

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""
        ...

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Run one batch; rows stand on axis 0 where the model batches."""
        ...

    def close(self) -> None:
        """Release what it holds. Called once, after the last `run` returned."""
        ...


Done: TypeAlias = Callable[[InferResponse | None, BaseException | None], None]
"""Gets the response to a request, or why there is none."""


class Ticket(Protocol):
    """A request that was begun (see `Servable`) and whose answer is still to come."""

    def cancel(self) -> None:
        """Say that nobody wants the answer any more: `done` is not called from here on.

        A request that still waits leaves the queue and costs no compute. After the answer it does
        nothing. To be called on the thread of the loop on which the request was begun.
        """
        ...


class Servable(Protocol):
    """Answers requests: a model, a repository, a pipeline, a remote client, a stub in a test.

    It may also have two methods that transports use where they are there:

    `check(model, version) -> None` raises at once what a request for a model that is not there
    would; it is asked before a body is decoded.

    `begin(request, done) -> Ticket` answers without a coroutine or task, for transports that hold
    thousands of requests. It is called on the thread of a running event loop. What refuses the
    request at once is raised (`ServeError`). Otherwise `done(response, None)` or
    `done(None, error)` is called exactly once, on that thread, and never before `begin` returned;
    unless the ticket is cancelled first. The caller has opened `request.exchange` and closes it;
    the servable fills it in. `done` must not raise; where it does, that is logged, and the
    requests in the same batch are answered all the same.

    And an attribute `classifies`: True says that it answers the parameter `classification` of a
    requested output itself. Of one that does not, transports turn the outputs into classes; those
    have no names then.
    """

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request.

        Raises:
            ServeError: Whatever went wrong, already classified.
        """
        ...

    def stream(
        self, request: InferRequest | AsyncIterable[InferRequest]
    ) -> AsyncIterator[InferResponse]:
        """Answer one request, or a stream of them, with a stream of responses."""
        ...


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version of a model as a catalog describes it.

    Args:
        model: Name of the model.
        version: Version number as text.
        state: Where it is in its life.
        reason: Why it is UNAVAILABLE; empty otherwise.
        signature: What it takes and gives; None unless READY.
        platform: E.g. ``"onnxruntime_onnx"`` or ``"python"``.
        max_batch_size: Rows a batch may have; 0 where requests are not batched.
        batching: Why requests are batched, or why not, in words.
        labels: Labels pointing at this version.
        versions: All loaded versions of the model, in ascending order.
        metadata: What the model says of itself, such as an ONNX file's producer and properties.
            Known in the process that serves it; the protocol does not carry it.
        class_names: Names of a classifier's classes, by index; empty where they are not known.
            Carried no further than `metadata`.
        streams: Whether it answers with a stream of responses, never with one.
    """

    model: str
    version: str
    state: State
    reason: str = ""
    signature: Signature | None = None
    platform: str = ""
    max_batch_size: int = 0
    batching: str = ""
    labels: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    class_names: tuple[str, ...] = ()
    streams: bool = False


ModelConfig: TypeAlias = Mapping[str, Any]
"""A model's configuration: Triton's message `ModelConfig` in the form of its JSON, with 64-bit
numbers as numbers. Plain, so that what another server says that is not known here is passed on."""


class RowRunner(Protocol):
    """Runs rows that a transport gathered from many requests for one version of a model.

    None of it needs to succeed: requests that cannot be answered so go to `begin` or `infer`.
    """

    @property
    def version(self) -> str:
        """The version that answers."""
        ...

    @property
    def most_rows(self) -> int:
        """How many rows may run at once now, on this thread; 0 where none may."""
        ...

    def run_rows(
        self, inputs: Mapping[str, Tensor], rows: int
    ) -> tuple[Mapping[str, Tensor], BatchRecord] | None:
        """Run rows on this thread, an event loop's.

        Args:
            inputs: The requests' inputs joined, not validated yet; axis 0 has `rows` rows.
            rows: How many there are.

        Returns:
            The outputs, and the record of the batch. None where the requests are to go their usual
            way, whatever the reason: nothing came of it.
        """
        ...


class Gathering(Protocol):
    """Runs gathered rows where that pays; a `Servable` may be one, too.

    For what takes microseconds, where a request's own way costs more than its run.
    """

    def row_runner(self, model: str, version: str) -> RowRunner | None:
        """Return what runs rows for a model now; None where every request goes its own way.

        Args:
            model: Name of the model.
            version: Version number or label the requests name, or empty.
        """
        ...


class Catalog(Protocol):
    """Describes models and versions.

    One without `config` or `statistics` is served all the same; what asks for them is told so.
    """

    async def index(self) -> Sequence[VersionInfo]:
        """List every known version of every model, loaded or not."""
        ...

    async def describe(self, model: str, version: str = "") -> VersionInfo:
        """Describe one version; without a number the one that would answer.

        Raises:
            ModelNotFound: No such model or version is known.
            ModelNotReady: It is known and not loaded.
        """
        ...

    async def config(self, model: str, version: str = "") -> ModelConfig:
        """Return a version's configuration; without a number that of the one that would answer.

        Raises:
            ModelNotFound: No such model or version is known.
            ModelNotReady: It is known and not loaded.
        """
        ...

    async def statistics(self, model: str = "", version: str = "") -> Sequence[ModelStatistics]:
        """Return what loaded versions have done: all, those of a model, or one.

        Raises:
            ModelNotFound: No such model or version is known.
            ModelNotReady: It is known and not loaded.
        """
        ...

    async def ready(self, model: str = "", version: str = "") -> bool:
        """Tell whether a model (without a name: every one that should be) can answer now.

        Raises:
            ModelNotFound: No such model or version is known.
        """
        ...


class Admin(Protocol):
    """Changes what is served. Every verb returns when the change is in force."""

    async def aload(
        self,
        model: str,
        version: str = "",
        *,
        config: str | Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> str:
        """Load a version; returns its number.

        Args:
            model: Name of the model.
            version: Version number; empty leaves the choice.
            config: A model configuration in JSON, Triton's, its text or the object, to be used
                instead of the stored one until the next load. Only given where a caller gave it.
            files: Contents by name relative to the model's directory (``1/model.onnx``), to be
                loaded instead of what is stored; comes with `config`.

        Raises:
            Unsupported: It takes no configuration and no files.
        """
        ...

    async def aunload(self, model: str, version: str = "", *, drain: float = 30.0) -> None:
        """Stop routing to a version (without a number: all), wait for its requests, close it."""
        ...

    async def aroute(self, model: str, policy: Policy | str | None) -> None:
        """Set how versions are chosen: a policy, one version or label, or None for the default."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a request goes.

    Args:
        version: Version number or label; empty for the default version.
        model: Another model than the one asked for, or empty.
    """

    version: str = ""
    model: str = ""


class Policy(Protocol):
    """Picks the version for a request. It sees requests and names, never models."""

    def choose(self, request: InferRequest, versions: Sequence[str]) -> Choice:
        """Choose among the ready `versions`, given in ascending order."""
        ...


class Observer(Protocol):
    """Gets closed exchanges, several at a time. It must not keep or change the list."""

    def observe(self, exchanges: Sequence[Exchange]) -> None:
        """Take note of exchanges."""
        ...


Certificate: TypeAlias = Mapping[str, Any]
"""A client's verified certificate, in the form of `ssl.SSLSocket.getpeercert`."""


class Caller(Protocol):
    """What a transport knows of who is calling."""

    @property
    def header(self) -> Callable[[str], str | None]:
        """Looks up a header by its lower-case name."""
        ...

    @property
    def certificate(self) -> Certificate | None:
        """The client's certificate, where the transport asked for one and it was verified."""
        ...


class Authenticator(Protocol):
    """Tells who is calling.

    May carry `schemes`, a mapping of OpenAPI security schemes by name, for /openapi.json to show;
    without, it shows a bearer token.
    """

    def authenticate(self, caller: Caller) -> Principal:
        """Return whom the caller proves to be.

        Raises:
            Unauthenticated: The credentials are missing or wrong.
        """
        ...


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """One published version on disk.

    Args:
        model: Name of the model.
        version: Version number as text.
        path: The version's directory.
        manifest: What was recorded at publication (files, sha256, size, time, source); empty for
            a directory that was made by hand or for another server.
    """

    model: str
    version: str
    path: Path
    manifest: Mapping[str, Any] = field(default_factory=dict)


class Store(Protocol):
    """Where versions live."""

    def models(self) -> Sequence[str]:
        """Names of all models, sorted."""
        ...

    def versions(self, model: str) -> Sequence[str]:
        """Published versions of a model, ascending; empty when there is no such model."""
        ...

    def open(self, model: str, version: str) -> StoredVersion:
        """Find a version and verify its files against its manifest.

        Raises:
            ModelNotFound: No such version.
            IntegrityError: A file differs from what was published.
        """
        ...

    def put(
        self,
        model: str,
        source: Any,
        *,
        version: str = "",
        label: str = "",
        metadata: Mapping[str, Any] = {},
    ) -> StoredVersion:
        """Publish files as a new version, all or nothing.

        Args:
            model: Name of the model.
            source: Path of an ONNX file (its external data goes along) or of a directory.
            version: The number to use; empty for the next one.
            label: Moves to the new version with its appearance.
            metadata: Recorded in the manifest.

        Raises:
            Conflict: The version exists already.
        """
        ...

    def delete(self, model: str, version: str) -> None:
        """Remove a version, all or nothing."""
        ...

    def labels(self, model: str) -> Mapping[str, str]:
        """Versions by label."""
        ...

    def label(self, model: str, changes: Mapping[str, str | None]) -> Mapping[str, str]:
        """Move, add or (None) remove labels in one step; returns all labels."""
        ...
