"""The tree of exceptions: drawn as it is, and each with its exit code."""

from __future__ import annotations

import grpc
import pytest
from parley import exceptions
from parley.cli import failures
from parley.exceptions import ParleyError, from_wire
from parley.wire.errors import WireError, reason_infos


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


@pytest.mark.parametrize(
    ("reason", "kind", "code"),
    [
        ("MODEL_UNKNOWN", exceptions.InvalidRequest, 2),
        ("QUOTE_NOT_FOUND", exceptions.NotFound, 3),
        ("OUTCOME_NOT_FOUND", exceptions.NotFound, 3),
        ("DUPLICATE_DIFFERS", exceptions.Conflict, 3),
    ],
)
def test_what_the_estimator_refuses_has_its_exception_and_exit_code(
    reason: str, kind: type[ParleyError], code: int
) -> None:
    info = reason_infos()[reason]
    status = next(known for known in grpc.StatusCode if known.value[0] == info.code)
    refused = WireError(
        code=status, reason=reason, message="No.", violations=(), metadata={}, retry_after_s=None,
        attachments=(), request_id="", sentence=info.sentence, next_step=info.next_step,
    )  # fmt: skip
    error = from_wire(refused)
    assert (type(error), failures.exit_code_of(error), error.next_step) == (kind, code, info.next_step)


def test_an_error_says_its_fields() -> None:
    assert str(exceptions.InvalidRequest("Wrong.", fields={"a": "is odd"})) == "Wrong. (a: is odd)"
