"""The tree of exceptions: drawn as it is, and each with its exit code."""

from __future__ import annotations

import grpc
import pytest
from parley import exceptions
from parley.cli import failures
from parley.exceptions import ParleyError, from_wire
from parley.wire.errors import WireError


def every_exception() -> list[type[ParleyError]]:
    return [kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, ParleyError)]


def test_the_drawn_tree_names_every_exception() -> None:
    drawn = exceptions.__doc__ or ""
    assert [kind.__name__ for kind in every_exception() if f"{kind.__name__} " not in drawn] == []


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_becomes_an_exception_with_an_exit_code(code: grpc.StatusCode) -> None:
    bare = WireError(
        code=code, reason="", message="socket closed", violations=(), metadata={}, retry_after_s=None,
        attachments=(), request_id="", sentence="The call failed.", next_step="Try again.",
    )  # fmt: skip
    error = from_wire(bare)
    assert (error.message, error.metadata) == ("The call failed.", {"transport": "socket closed"})
    assert failures.exit_code_of(error) in (failures.BAD_USAGE, failures.NOT_POSSIBLE, failures.UNAVAILABLE)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (exceptions.InvalidRequest, 2),
        (exceptions.NotFound, 3),
        (exceptions.QuoteStale, 3),
        (exceptions.Conflict, 3),
        (exceptions.Unavailable, 4),
        (exceptions.LimitReached, 4),
        (exceptions.ServerError, 4),
    ],
)
def test_families_have_their_exit_codes(kind: type[ParleyError], code: int) -> None:
    assert failures.exit_code_of(kind("No.")) == code


def test_an_error_says_its_fields() -> None:
    assert str(exceptions.InvalidRequest("Wrong.", fields={"a": "is odd"})) == "Wrong. (a: is odd)"
