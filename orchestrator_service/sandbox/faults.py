"""What can go wrong with a call on purpose, and which call it happens to."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class When(Enum):
    AT_ONCE = "at once"  # the front door refuses, before any model is asked
    AFTER_FIRST_TOKEN = "after the first token"  # the model began and gave up
    MIDWAY = "midway"  # half of a stream is out, or for a JSON reply the whole time has gone by
    IN_DELIVERY = "in delivery"  # the answer exists and is paid; the way back breaks
    IN_ANSWER = "in the answer"  # the answer itself is wrong, and paid


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    when: When
    paid: bool = False
    # Only an answer that holds a conversation can go wrong like this; "OK" cannot have too few turns.
    conversations_only: bool = False


FAULTS: Mapping[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("rate_limit", When.AT_ONCE),
        Fault("rate_limit_bare", When.AT_ONCE),
        Fault("overloaded", When.AT_ONCE),
        Fault("spend_limit", When.AT_ONCE),
        Fault("permission", When.AT_ONCE),
        Fault("server_error", When.AFTER_FIRST_TOKEN),
        Fault("refusal", When.AFTER_FIRST_TOKEN),
        Fault("stream_error", When.MIDWAY),
        Fault("reset", When.IN_DELIVERY, paid=True),
        Fault("stall", When.IN_DELIVERY, paid=True),
        Fault("bad_body", When.IN_DELIVERY, paid=True),
        Fault("malformed", When.IN_ANSWER, paid=True, conversations_only=True),
        Fault("truncated", When.IN_ANSWER, paid=True, conversations_only=True),
        Fault("wrong_roles", When.IN_ANSWER, paid=True, conversations_only=True),
        Fault("short", When.IN_ANSWER, paid=True, conversations_only=True),
        Fault("placeholder", When.IN_ANSWER, paid=True, conversations_only=True),
        Fault("unknown_stop_reason", When.IN_ANSWER, paid=True),
    )
}


def draw_fault(probabilities: Mapping[str, float], *, chance: float, is_conversation: bool) -> Fault | None:
    """At most one fault for a `chance` in [0, 1); the order is the table's, never the caller's."""
    reached = 0.0
    for name, fault in FAULTS.items():
        reached += probabilities.get(name, 0.0)
        if chance < reached:
            return fault if is_conversation or not fault.conversations_only else None
    return None
