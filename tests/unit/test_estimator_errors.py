"""What a refusal carries over the wire."""

from __future__ import annotations

from estimator_service.domain.errors import InvalidRequest, QuoteNotFound


def test_a_field_at_fault_is_named_in_message_violation_and_metadata() -> None:
    error = InvalidRequest("workload.groups", "is empty")
    assert (error.reason, error.message, error.field) == (
        "INVALID_FIELD",
        "workload.groups: is empty",
        "workload.groups",
    )
    assert [(each.field, each.message) for each in error.violations] == [("workload.groups", "is empty")]


def test_a_quote_that_is_not_found_is_named_with_the_field_that_asked_for_it() -> None:
    error = QuoteNotFound("quotes/abcd", field="observations[3].quote")
    assert (error.reason, error.message) == ("QUOTE_NOT_FOUND", "There is no quote quotes/abcd.")
    assert error.metadata == {"quote": "quotes/abcd"}
    assert [each.field for each in error.violations] == ["observations[3].quote"]
    assert QuoteNotFound("quotes/abcd").violations == ()
