"""The reply of the dry run fits a message, however long the prompts are."""

from __future__ import annotations

from parley.v1 import batch_pb2, orchestrator_pb2, quote_pb2

from orchestrator_service.convert.dryrun import PROMPTS_MAX_BYTES, quote_reply
from orchestrator_service.domain.spec import Builtins, Spec, Tier
from orchestrator_service.generation.planning import Planned

BUILTINS = Builtins(templates={}, shared_prompt="", axes=())


def dry_run(prompt: str, *, sample: int) -> orchestrator_pb2.QuoteBatchResponse:
    spec = Spec(name="n", model="m", seed=1, tiers=(Tier(id="t", count=100, prompt=prompt),), shared_prompt="Shared.")
    planned = Planned(spec, BUILTINS)
    return quote_reply(planned, [], quote_pb2.Quote(), batch_pb2.ProviderInfo(), sample=sample)


def test_so_many_prompts_come_as_are_asked_for() -> None:
    assert [prompt.number for prompt in dry_run("Short.", sample=3).prompts] == [1, 2, 3]


def test_fewer_prompts_come_where_they_would_not_fit_a_message() -> None:
    reply = dry_run("x" * 250_000, sample=100)
    assert 1 <= len(reply.prompts) < 100
    assert PROMPTS_MAX_BYTES - 300_000 < reply.ByteSize() < PROMPTS_MAX_BYTES + 300_000
