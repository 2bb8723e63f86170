"""Expected failures as data: a reason, a sentence, and the fields or facts behind it."""

from __future__ import annotations

from orchestrator_service.domain.errors import FieldViolation, InvalidRequest, ParleyError


def test_an_error_without_facts_has_empty_ones() -> None:
    error = ParleyError("STATE_FORBIDS", "Not now.")
    assert (error.reason, error.message, str(error)) == ("STATE_FORBIDS", "Not now.", "Not now.")
    assert (error.violations, error.metadata, error.retry_after_s, error.attachment) == ((), {}, None, None)


def test_an_error_keeps_its_own_copy_of_the_facts() -> None:
    facts = {"state": "PAUSED"}
    error = ParleyError("STATE_FORBIDS", "Not now.", metadata=facts, retry_after_s=2.5)
    facts["state"] = "RUNNING"
    assert error.metadata == {"state": "PAUSED"}
    assert error.retry_after_s == 2.5


def test_an_invalid_request_names_its_field() -> None:
    error = InvalidRequest("split", "must sum to at most 1", reason="SPLIT", most="1")
    assert error.violations == (FieldViolation("split", "must sum to at most 1"),)
    assert error.metadata == {"field": "split", "most": "1"}
    assert (error.field, error.reason) == ("split", "SPLIT")
    assert InvalidRequest("a", "b").reason == "INVALID_FIELD"
