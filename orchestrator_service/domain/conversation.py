"""A conversation's states and what may follow each; review is a field beside them."""

from __future__ import annotations

from enum import StrEnum


class ConversationState(StrEnum):
    PENDING = "PENDING"  # Waits for its turn, also between two attempts.
    RUNNING = "RUNNING"  # Claimed: exactly one call for it is in flight.
    GENERATED = "GENERATED"  # The text is there; the review says whether it is exported.
    FAILED = "FAILED"  # Given up for good in this run.
    CANCELLED = "CANCELLED"  # The batch was cancelled before it was made.


class Review(StrEnum):
    PASSED = "PASSED"
    QUARANTINED = "QUARANTINED"
    ACCEPTED = "ACCEPTED"
    REJECTED = "REJECTED"
    EDITED = "EDITED"


# Reviews with which a conversation is exported.
DELIVERABLE = frozenset({Review.PASSED, Review.ACCEPTED, Review.EDITED})

FOLLOWS: dict[ConversationState, frozenset[ConversationState]] = {
    ConversationState.PENDING: frozenset({ConversationState.RUNNING, ConversationState.CANCELLED}),
    ConversationState.RUNNING: frozenset(
        {ConversationState.GENERATED, ConversationState.FAILED, ConversationState.PENDING}
    ),
    # Retry puts them back, a quarantined or rejected one too.
    ConversationState.GENERATED: frozenset({ConversationState.PENDING}),
    ConversationState.FAILED: frozenset({ConversationState.PENDING}),
    ConversationState.CANCELLED: frozenset({ConversationState.PENDING}),
}


def retriable(state: ConversationState, review: Review | None) -> bool:
    """Whether Retry may put it back: what failed, was cancelled, or was kept from export."""
    if state is ConversationState.GENERATED:
        return review in {Review.QUARANTINED, Review.REJECTED}
    return state in {ConversationState.FAILED, ConversationState.CANCELLED}
