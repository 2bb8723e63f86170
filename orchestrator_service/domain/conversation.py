"""A conversation's states; review is a field beside them."""

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


# Reviews with which a conversation is exported, and those with which Retry may make it again.
DELIVERABLE = frozenset({Review.PASSED, Review.ACCEPTED, Review.EDITED})
KEPT_BACK = frozenset({Review.QUARANTINED, Review.REJECTED})
# States from which Retry makes it again whatever the filter.
UNMADE = frozenset({ConversationState.FAILED, ConversationState.CANCELLED})
