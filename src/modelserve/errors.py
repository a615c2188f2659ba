"""Every error modelserve raises on purpose, each with its HTTP and gRPC status.

`http`, `grpc` and `public` are class attributes: a transport maps an error to its wire without
knowing the class. `public` says whether a remote caller may see the text.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BackendError",
    "Cancelled",
    "ClientError",
    "Conflict",
    "DeadlineExceeded",
    "IntegrityError",
    "InvalidInput",
    "LoadError",
    "MethodNotAllowed",
    "ModelNotFound",
    "ModelNotReady",
    "Overloaded",
    "PayloadTooLarge",
    "PermissionDenied",
    "QueueFull",
    "RateLimited",
    "ServeError",
    "Unauthenticated",
    "UnavailableError",
    "Unsupported",
]


class ServeError(Exception):
    """Base of every error modelserve raises on purpose.

    Attributes:
        http: HTTP status code.
        grpc: Canonical gRPC status name.
        public: Whether the text may reach a remote caller.
    """

    http: ClassVar[int] = 500
    grpc: ClassVar[str] = "INTERNAL"
    public: ClassVar[bool] = False


class ClientError(ServeError):
    """The caller sent something it can correct."""

    http = 400
    grpc = "INVALID_ARGUMENT"
    public = True


class InvalidInput(ClientError):
    """A request is malformed or does not fit the model's signature.

    Args:
        message: What was wrong and what would be right.
        path: Where, e.g. ``inputs[0].data[3]``; put in front of the message.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class Unauthenticated(ClientError):
    """The caller did not prove who it is."""

    http = 401
    grpc = "UNAUTHENTICATED"


class PermissionDenied(ClientError):
    """The caller is known, and may not do this."""

    http = 403
    grpc = "PERMISSION_DENIED"


class ModelNotFound(ClientError):
    """No model, or no version of it, has this name."""

    http = 404
    grpc = "NOT_FOUND"


class MethodNotAllowed(ClientError):
    """The path exists, with another HTTP method."""

    http = 405
    grpc = "UNIMPLEMENTED"

    def __init__(self, message: str, *, allow: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allow = allow


class Conflict(ClientError):
    """The thing to be made exists already, or is being changed by someone else."""

    http = 409
    grpc = "ALREADY_EXISTS"


class PayloadTooLarge(ClientError):
    """A body, header block or tensor is over its limit."""

    http = 413
    grpc = "RESOURCE_EXHAUSTED"


class RateLimited(ClientError):
    """The caller used up its share.

    Args:
        message: Which limit.
        retry_after: Seconds until another try may pass.
    """

    http = 429
    grpc = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unsupported(ClientError):
    """This model or server does not offer the operation."""

    http = 501
    grpc = "UNIMPLEMENTED"


class Cancelled(ClientError):
    """The caller went away, or took its request back."""

    http = 499
    grpc = "CANCELLED"


class UnavailableError(ServeError):
    """It may work later or elsewhere."""

    http = 503
    grpc = "UNAVAILABLE"
    public = True


class ModelNotReady(UnavailableError):
    """The model is known and not serving now."""


class QueueFull(UnavailableError):
    """The model's queue holds as many requests or bytes as it may.

    Args:
        message: Which bound.
        retry_after: Seconds until another try may pass.
    """

    grpc = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(UnavailableError):
    """The request could not be answered before its deadline.

    Args:
        message: The prediction and the deadline.
        retry_after: Seconds until another try may pass.
    """

    grpc = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(UnavailableError):
    """The deadline passed before an answer was there."""

    http = 504
    grpc = "DEADLINE_EXCEEDED"


class BackendError(ServeError):
    """Model code failed. The cause is chained; remote callers do not see its text.

    Attributes:
        logged: Whether its text and traceback are in the log already; who logs them sets it.
    """

    logged: bool = False


class LoadError(ServeError):
    """A model could not be loaded, published or unloaded.

    The text names no paths of this machine: whoever may load a model may read why it failed.
    """

    grpc = "FAILED_PRECONDITION"
    public = True


class IntegrityError(LoadError):
    """Stored files are not the ones that were published."""
