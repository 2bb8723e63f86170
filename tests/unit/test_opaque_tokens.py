"""Page and resume tokens, also such as no server ever gave out."""

from __future__ import annotations

import base64

import pytest
from parley.v1 import orchestrator_pb2

from orchestrator_service.convert.tokens import Seen, page_position, page_token, resume_token, seen_of
from orchestrator_service.domain.errors import InvalidRequest

REQUEST = orchestrator_pb2.ListBatchesRequest()
NO_NUMBERS = ("", "-1", "1e3", "x", "9" * 19, "9" * 400)


def forged(token: str, end: str) -> str:
    """The token with another number at its end: none of it is secret."""
    plain = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    return base64.urlsafe_b64encode(f"{plain.rpartition(':')[0]}:{end}".encode()).decode().rstrip("=")


def test_a_token_brings_back_where_it_was_made() -> None:
    assert page_position(page_token(10**18 - 1, REQUEST), REQUEST) == 10**18 - 1
    assert seen_of(resume_token("abcd", Seen("g", 7)), "abcd") == Seen("g", 7)


@pytest.mark.parametrize("end", NO_NUMBERS)
def test_a_page_token_with_a_number_that_no_column_holds_is_stale(end: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        page_position(forged(page_token(1, REQUEST), end), REQUEST)
    assert (caught.value.reason, caught.value.field) == ("TOKEN_STALE", "page_token")


@pytest.mark.parametrize("end", NO_NUMBERS)
def test_a_resume_token_with_a_number_that_no_column_holds_is_stale(end: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        seen_of(forged(resume_token("abcd", Seen("g", 1)), end), "abcd")
    assert (caught.value.reason, caught.value.field) == ("TOKEN_STALE", "resume_token")
