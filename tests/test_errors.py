"""The errors: their statuses, and what a remote caller may see."""

from __future__ import annotations

import pytest

from modelserve import errors

ALL = [getattr(errors, name) for name in errors.__all__]

STATUSES = {
    "BackendError": (500, "INTERNAL", False),
    "Cancelled": (499, "CANCELLED", True),
    "ClientError": (400, "INVALID_ARGUMENT", True),
    "Conflict": (409, "ALREADY_EXISTS", True),
    "DeadlineExceeded": (504, "DEADLINE_EXCEEDED", True),
    "IntegrityError": (500, "FAILED_PRECONDITION", True),
    "InvalidInput": (400, "INVALID_ARGUMENT", True),
    "LoadError": (500, "FAILED_PRECONDITION", True),
    "MethodNotAllowed": (405, "UNIMPLEMENTED", True),
    "ModelNotFound": (404, "NOT_FOUND", True),
    "ModelNotReady": (503, "UNAVAILABLE", True),
    "Overloaded": (503, "RESOURCE_EXHAUSTED", True),
    "PayloadTooLarge": (413, "RESOURCE_EXHAUSTED", True),
    "PermissionDenied": (403, "PERMISSION_DENIED", True),
    "QueueFull": (503, "RESOURCE_EXHAUSTED", True),
    "RateLimited": (429, "RESOURCE_EXHAUSTED", True),
    "ServeError": (500, "INTERNAL", False),
    "Unauthenticated": (401, "UNAUTHENTICATED", True),
    "UnavailableError": (503, "UNAVAILABLE", True),
    "Unsupported": (501, "UNIMPLEMENTED", True),
}


def test_statuses() -> None:
    assert {c.__name__: (c.http, c.grpc, c.public) for c in ALL} == STATUSES


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_a_serve_error_with_its_text(kind: type[errors.ServeError]) -> None:
    error = kind("what was wrong")
    assert isinstance(error, errors.ServeError)
    assert str(error) == "what was wrong"


def test_only_errors_a_caller_can_correct_are_client_errors() -> None:
    assert {c.__name__ for c in ALL if issubclass(c, errors.ClientError)} == {
        name for name, (http, _, _) in STATUSES.items() if 400 <= http < 500 or http == 501
    }


def test_place_stands_before_the_text() -> None:
    error = errors.InvalidInput("too long", path="inputs[0].data[3]")
    assert (str(error), error.path) == ("inputs[0].data[3]: too long", "inputs[0].data[3]")


@pytest.mark.parametrize("kind", [errors.RateLimited, errors.QueueFull, errors.Overloaded])
def test_pause_is_kept_with_the_error(
    kind: type[errors.RateLimited | errors.QueueFull | errors.Overloaded],
) -> None:
    assert kind("no", retry_after=2.5).retry_after == 2.5
    assert kind("no").retry_after is None


def test_methods_allowed_are_kept_with_the_error() -> None:
    assert errors.MethodNotAllowed("no", allow=("GET",)).allow == ("GET",)
