"""Which conversations are exported, and which Retry may put back."""

from __future__ import annotations

from parley.v1 import conversation_pb2

from orchestrator_service.domain.conversation import DELIVERABLE, KEPT_BACK, UNMADE, ConversationState, Review


def test_what_passed_or_was_accepted_by_somebody_is_exported() -> None:
    assert {review.value for review in DELIVERABLE} == {"PASSED", "ACCEPTED", "EDITED"}


def test_every_review_is_either_exported_or_kept_back() -> None:
    assert set(Review) == DELIVERABLE | KEPT_BACK
    assert not DELIVERABLE & KEPT_BACK


def test_what_failed_or_was_cancelled_was_not_made() -> None:
    assert {state.value for state in UNMADE} == {"FAILED", "CANCELLED"}


def test_states_and_reviews_are_those_of_the_contract() -> None:
    states = {
        name.removeprefix("CONVERSATION_STATE_")
        for name in conversation_pb2.ConversationState.DESCRIPTOR.values_by_name
    }
    reviews = {name.removeprefix("REVIEW_") for name in conversation_pb2.Review.DESCRIPTOR.values_by_name}
    assert states - {"UNSPECIFIED"} == set(ConversationState)
    assert reviews - {"UNSPECIFIED"} == set(Review)
