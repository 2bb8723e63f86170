"""The state table of a batch, every cell against DESIGN.md; refusals, messages and the verdict."""

from __future__ import annotations

import pytest
from parley.v1 import batch_pb2
from state_table import CELLS, STATES

from orchestrator_service.domain.batch import (
    ACTIVE,
    ENDED,
    FINAL,
    NEXT_STEPS,
    TRANSITIONS,
    BatchState,
    Cell,
    Event,
    HoldReason,
    Refused,
    checkpoint_message,
    decide,
    verdict,
)

AFTER_CANCELLING = "Wait until it is CANCELLED; then Retry goes on with what was not made."
AFTER_CANCELLED = "Retry goes on with what was not made."
AFTER_END = "It has ended; Retry makes failed conversations again."
NEXT = {"CANCELLING": AFTER_CANCELLING, "CANCELLED": AFTER_CANCELLED}


@pytest.mark.parametrize(("event", "state"), CELLS)
def test_a_cell_is_as_the_design_says(event: str, state: str) -> None:
    outcome = decide(BatchState(state), Event[event])
    match CELLS[event, state]:
        case "x":
            assert isinstance(outcome, Refused)
        case "verdict":
            assert outcome is Cell.VERDICT
        case "=" | "-":
            assert outcome is BatchState(state)
        case new:
            assert outcome is BatchState(new)


def test_the_table_has_a_cell_for_everything_that_can_happen_and_for_nothing_else() -> None:
    assert {(event.name, state.value) for state, event in TRANSITIONS} == set(CELLS)


@pytest.mark.parametrize("event", Event)
def test_nothing_happens_to_a_batch_that_is_being_stored(event: Event) -> None:
    with pytest.raises(KeyError):
        decide(BatchState.PREPARING, event)


@pytest.mark.parametrize(
    ("event", "verb"),
    [
        ("PAUSE", "Pause"),
        ("RESUME", "Resume"),
        ("CANCEL", "Cancel"),
        ("RETRY", "Retry"),
        ("RAISE_LIMIT", "Update (raise budget or checkpoint)"),
        ("LOWER_BUDGET", "Update (lower budget)"),
        ("CHANGE_CONCURRENCY", "Update (concurrency)"),
    ],
)
def test_a_refusal_names_the_verb_the_state_and_the_next_step(event: str, verb: str) -> None:
    refusing = [state for state in STATES if CELLS[event, state] == "x"]
    assert refusing
    for state in refusing:
        sentence = f"{verb} is not possible: the batch is {state}."
        assert decide(BatchState(state), Event[event]) == Refused(sentence, NEXT.get(state, AFTER_END))


@pytest.mark.parametrize("state", ["PAUSING", "PAUSED"])
def test_a_raised_limit_goes_on_only_when_no_other_hold_is_left(state: str) -> None:
    assert decide(BatchState(state), Event.RAISE_LIMIT, holds_left=True) is BatchState(state)


@pytest.mark.parametrize("event", [event for event in Event if event is not Event.RAISE_LIMIT])
def test_holds_matter_to_no_other_event(event: Event) -> None:
    for state in map(BatchState, STATES):
        assert decide(state, event, holds_left=True) == decide(state, event)


@pytest.mark.parametrize(
    ("total", "deliverable", "ends"),
    [
        (90, 90, "SUCCEEDED"),
        (90, 89, "PARTIALLY_SUCCEEDED"),
        (90, 1, "PARTIALLY_SUCCEEDED"),
        (90, 0, "FAILED"),
        (1, 1, "SUCCEEDED"),
        (1, 0, "FAILED"),
    ],
)
def test_the_verdict_is_by_what_may_be_exported(total: int, deliverable: int, ends: str) -> None:
    assert verdict(total=total, deliverable=deliverable) is BatchState(ends)


def test_every_state_is_final_active_paused_or_unborn() -> None:
    assert {state.value for state in ENDED} == {"SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED"}
    assert {state.value for state in FINAL - ENDED} == {"CANCELLED"}
    assert {state.value for state in ACTIVE} == {"QUEUED", "RUNNING", "PAUSING", "CANCELLING"}
    assert set(BatchState) == FINAL | ACTIVE | {BatchState.PAUSED, BatchState.PREPARING}


def test_every_hold_says_what_to_do() -> None:
    assert set(NEXT_STEPS) == set(HoldReason)
    assert all(step.endswith(".") for step in NEXT_STEPS.values())


def test_states_and_holds_are_those_of_the_contract() -> None:
    states = {name.removeprefix("BATCH_STATE_") for name in batch_pb2.BatchState.DESCRIPTOR.values_by_name}
    holds = {name.removeprefix("HOLD_REASON_") for name in batch_pb2.HoldReason.DESCRIPTOR.values_by_name}
    assert states - {"UNSPECIFIED"} >= set(BatchState) - {"PREPARING"}
    assert holds - {"UNSPECIFIED"} == set(HoldReason)


def test_the_checkpoint_says_what_was_started() -> None:
    assert checkpoint_message(0) == "Waits for approval before the first conversation."
    assert checkpoint_message(3) == "3 conversations were started, as hold_after asks."
