"""A provider that fails in every way it can: what can be made is made, and nothing is paid for in vain."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import pytest
from evidence import calls_of, last_seen, ledger, paid_again, provider_nanos, reset, rows
from parley.cli import spec_file
from parley.client import BatchClient
from parley.v1 import batch_pb2, conversation_pb2
from servers import Sandbox, running_pair, running_sandbox, spec

pytestmark = pytest.mark.anyio

PLANNER = Path(__file__).parents[2] / "examples" / "planner" / "spec.yaml"
FIVE_PERCENT_EACH = {"overloaded": 0.05, "server_error": 0.05, "reset": 0.05, "malformed": 0.05}
# What each fault is in the ledger.
OUTCOMES = {
    "overloaded": conversation_pb2.CALL_OUTCOME_LIMITED,
    "server_error": conversation_pb2.CALL_OUTCOME_PROVIDER_ERROR,
    "reset": conversation_pb2.CALL_OUTCOME_CONNECTION_LOST,
    "malformed": conversation_pb2.CALL_OUTCOME_MALFORMED,
    "truncated": conversation_pb2.CALL_OUTCOME_CUT,
    "stall": conversation_pb2.CALL_OUTCOME_TIMEOUT,
}
# Cut JSON is both of malformed, which ends as if it were whole, and truncated, which says that it is not.
MIXTURE = {
    "overloaded": 0.05,
    "server_error": 0.03,
    "reset": 0.02,
    "malformed": 0.01,
    "truncated": 0.01,
    "stall": 0.01,
}

RAW_ANSWERS = "SELECT raw FROM answers JOIN calls ON calls.id = call WHERE 'batches/' || batch = ? AND raw <> ''"


@dataclass(frozen=True)
class Stage:
    """Both services and a provider that does as it is told, shared by the stories of this file."""

    client: BatchClient
    sandbox: Sandbox
    database: Path


@pytest.fixture(name="stage", scope="module")
async def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stage]:
    folder = tmp_path_factory.mktemp("faults")
    async with running_sandbox(folder) as sandbox, running_pair(folder, sandbox) as pair, pair.client() as client:
        yield Stage(client, sandbox, pair.database)


async def made(stage: Stage, wanted: batch_pb2.BatchSpec) -> batch_pb2.Batch:
    """The batch when it has ended, or is held."""
    return await last_seen(stage.client, (await stage.client.create(wanted)).name, until="settled")


async def test_ninety_of_ninety_are_delivered_through_five_percent_of_each_fault(stage: Stage) -> None:
    await reset(stage.sandbox, faults=FIVE_PERCENT_EACH)
    planner = spec_file.load(PLANNER).spec
    planner.concurrency = 10
    batch = await made(stage, planner)
    stats = await stage.sandbox.stats(prompts=True)
    calls = await calls_of(stage.client, batch.name)

    assert batch.state == batch_pb2.BATCH_STATE_SUCCEEDED
    assert batch.counts.deliverable == 90
    # Every fault came up, and each is in the ledger as what it was.
    outcomes = Counter(call.outcome for call in calls)
    assert {fault: outcomes[OUTCOMES[fault]] for fault in FIVE_PERCENT_EACH} == stats["faults"]
    assert stats["faults"].keys() == FIVE_PERCENT_EACH.keys()
    assert outcomes[conversation_pb2.CALL_OUTCOME_ANSWERED] == 90
    # Paid: 90, and once more for each answer that came broken or was lost on its way.
    assert stats["paid_faults"].keys() == {"reset", "malformed"}
    assert stats["calls_completed"] - sum(stats["paid_faults"].values()) == 90
    # A malformed answer is asked for again in other words, so only a lost one is the same prompt paid twice.
    assert paid_again(stats) == stats["paid_faults"]["reset"]
    assert batch.spend.calls_possibly_spent == stats["paid_faults"]["reset"]


async def test_three_hundred_are_delivered_or_named_through_a_mixture_of_faults(stage: Stage) -> None:
    await reset(stage.sandbox, faults=MIXTURE)
    batch = await made(stage, spec(300, concurrency=10))
    stats = await stage.sandbox.stats()

    assert batch.counts.deliverable + batch.counts.failed == 300
    # A useless answer is asked for once more, changed; two in a row are rare.
    assert batch.counts.failed <= 3
    failed = conversation_pb2.ConversationFilter(states=[conversation_pb2.CONVERSATION_STATE_FAILED])
    failures = [one.failure async for one in stage.client.conversations(batch.name, failed)]
    assert len(failures) == batch.counts.failed
    assert all(failure.reason and failure.message for failure in failures)

    # Every call is explained, and as often by each fault as the provider says.
    calls = await calls_of(stage.client, batch.name)
    assert len(calls) == stats["calls_started"]
    assert stats["faults"].keys() == MIXTURE.keys()
    outcomes = Counter(call.outcome for call in calls)
    explained = {OUTCOMES[fault]: count for fault, count in stats["faults"].items()}
    assert outcomes == explained | {conversation_pb2.CALL_OUTCOME_ANSWERED: batch.counts.deliverable}
    for call in calls:
        assert bool(call.error) == (call.outcome != conversation_pb2.CALL_OUTCOME_ANSWERED), call.name

    # No answer is thrown away: all that were paid are kept as they came, but for those that never came.
    raw = [json.loads(row["raw"]) for row in rows(stage.database, RAW_ANSWERS, batch.name)]
    never_came = stats["paid_faults"]["reset"] + stats["paid_faults"]["stall"]
    assert len(raw) == stats["calls_completed"] - never_came
    assert sum(answer["usage"]["output_tokens"] for answer in raw) == batch.spend.usage.output_tokens
    assert batch.spend.calls_possibly_spent == never_came
    assert ledger(stage.database, batch=batch.name).accounts_for(provider_nanos(stats, stage.database))


async def test_a_conversation_is_paid_again_only_after_an_answer_that_was_no_use(stage: Stage) -> None:
    await reset(stage.sandbox, faults={"server_error": 0.2, "reset": 0.2, "malformed": 0.2})
    batch = await made(stage, spec(30, concurrency=10, max_attempts=20))
    assert batch.counts.failed < 6
    outcomes: dict[int, list[int]] = {}
    for call in await calls_of(stage.client, batch.name):
        outcomes.setdefault(call.conversation, []).append(call.outcome)
    answered, malformed = conversation_pb2.CALL_OUTCOME_ANSWERED, conversation_pb2.CALL_OUTCOME_MALFORMED
    for number, told in outcomes.items():
        # Asked for in stricter words once: a second useless answer ends it.
        assert told[-1] == (malformed if told.count(malformed) == 2 else answered), f"conversation {number}"
        assert answered not in told[:-1], f"conversation {number}"
    assert [told[-1] for told in outcomes.values()].count(malformed) == batch.counts.failed


async def test_a_stalled_answer_is_given_up_after_the_deadline_and_asked_for_again(stage: Stage) -> None:
    await reset(stage.sandbox, faults={"stall": 1.0}, fault_max_attempt=1)
    batch = await made(stage, spec(4, concurrency=4))
    assert batch.state == batch_pb2.BATCH_STATE_SUCCEEDED
    outcomes = Counter(call.outcome for call in await calls_of(stage.client, batch.name))
    assert outcomes == {conversation_pb2.CALL_OUTCOME_TIMEOUT: 4, conversation_pb2.CALL_OUTCOME_ANSWERED: 4}
    assert batch.spend.calls_possibly_spent == 4
    assert (await stage.sandbox.stats())["calls_completed"] == 8


async def test_a_refusal_fails_its_conversation_and_not_the_batch(stage: Stage) -> None:
    await reset(stage.sandbox, faults={"refusal": 0.3})
    batch = await made(stage, spec(20, concurrency=10))
    stats = await stage.sandbox.stats()
    assert batch.state == batch_pb2.BATCH_STATE_PARTIALLY_SUCCEEDED
    assert 0 < batch.counts.failed == stats["faults"]["refusal"] < 20
    assert batch.counts.deliverable == 20 - batch.counts.failed
    failed = conversation_pb2.ConversationFilter(states=[conversation_pb2.CONVERSATION_STATE_FAILED])
    reasons = [one.failure.reason async for one in stage.client.conversations(batch.name, failed)]
    assert reasons == [conversation_pb2.FAILURE_REASON_REFUSAL] * batch.counts.failed
    # Asking again would only be refused again.
    assert stats["calls_started"] == 20


async def test_a_batch_of_refusals_failed(stage: Stage) -> None:
    await reset(stage.sandbox, faults={"refusal": 1.0})
    assert (await made(stage, spec(3))).state == batch_pb2.BATCH_STATE_FAILED


async def test_wrong_roles_are_kept_and_not_exported(stage: Stage, tmp_path: Path) -> None:
    await reset(stage.sandbox, faults={"wrong_roles": 0.4})
    batch = await made(stage, spec(20, concurrency=10))
    wrong = (await stage.sandbox.stats())["paid_faults"]["wrong_roles"]
    assert batch.state == batch_pb2.BATCH_STATE_PARTIALLY_SUCCEEDED
    assert 0 < batch.counts.quarantined == wrong < 20
    assert batch.counts.generated == 20

    kept_back = conversation_pb2.ConversationFilter(reviews=[conversation_pb2.REVIEW_QUARANTINED])
    quarantined = [one async for one in stage.client.conversations(batch.name, kept_back, full=True)]
    assert len(quarantined) == wrong
    for one in quarantined:
        assert one.turns
        failing = {check.check for check in one.checks if check.outcome == conversation_pb2.CHECK_OUTCOME_FAIL}
        assert "roles" in failing

    exported = await stage.client.export(batch.name, tmp_path)
    lines = exported.files[0].path.read_text().splitlines()
    assert len(lines) == 20 - wrong
    for line in lines:
        roles = [message["role"] for message in json.loads(line)["messages"] if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert exported.left_out == {"QUARANTINED": wrong}


async def test_a_wrong_key_holds_the_batch_until_it_is_corrected(stage: Stage) -> None:
    await reset(stage.sandbox, api_key="another one")
    held = await made(stage, spec(12, concurrency=4))
    assert held.state == batch_pb2.BATCH_STATE_PAUSED
    assert [hold.reason for hold in held.holds] == [batch_pb2.HOLD_REASON_CREDENTIALS]
    assert "ANTHROPIC_API_KEY" in held.holds[0].next_step
    assert held.counts.pending == 12
    await stage.sandbox.change(api_key="sandbox")
    await stage.client.resume(held.name)
    batch = await last_seen(stage.client, held.name)
    assert batch.counts.deliverable == 12
    assert (await stage.sandbox.stats())["calls_completed"] == 12


async def test_a_spend_limit_holds_the_batch_until_it_is_raised(stage: Stage) -> None:
    await reset(stage.sandbox, faults={"spend_limit": 1.0})
    held = await made(stage, spec(12, concurrency=4))
    assert held.state == batch_pb2.BATCH_STATE_PAUSED
    assert [hold.reason for hold in held.holds] == [batch_pb2.HOLD_REASON_PROVIDER_LIMIT]
    assert "spend limit" in held.holds[0].message
    stats = await stage.sandbox.stats()
    # Those in flight together found it out together; nobody after them.
    assert stats["calls_started"] <= 4
    assert stats["calls_completed"] == 0
    await stage.sandbox.change(faults={})
    await stage.client.resume(held.name)
    batch = await last_seen(stage.client, held.name)
    assert batch.counts.deliverable == 12
    assert {one.attempts for one in [c async for c in stage.client.conversations(batch.name)]} <= {1, 2}


async def test_limits_with_and_without_a_told_delay_are_waited_out(stage: Stage) -> None:
    await reset(stage.sandbox, faults={"rate_limit": 0.3, "rate_limit_bare": 0.3, "overloaded": 0.2})
    batch = await made(stage, spec(20, concurrency=10, max_attempts=1))
    assert batch.state == batch_pb2.BATCH_STATE_SUCCEEDED
    stats = await stage.sandbox.stats()
    assert stats["calls_completed"] == 20
    assert stats["calls_started"] > 20
