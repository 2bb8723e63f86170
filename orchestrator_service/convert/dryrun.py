"""A planned spec to the reply of the dry run: coverage, filled prompts, findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from parley.v1 import batch_pb2, orchestrator_pb2, quote_pb2

from orchestrator_service.domain.spec import Finding
from orchestrator_service.generation.planning import Planned

# Sixteen axes of a thousand values have more combinations than the wire can count.
INT64_MAX = 2**63 - 1
# A hundred prompts of 512 kB would not fit a message.
PROMPTS_MAX_BYTES = 8 * 1024 * 1024

_SEVERITIES = {"ERROR": orchestrator_pb2.SEVERITY_ERROR, "WARNING": orchestrator_pb2.SEVERITY_WARNING}


def quote_reply(
    planned: Planned,
    findings: Sequence[Finding],
    quote: quote_pb2.Quote | None,
    provider: batch_pb2.ProviderInfo,
    *,
    sample: int,
) -> orchestrator_pb2.QuoteBatchResponse:
    """`quote` is None where findings hold an error: then there may be no plan either."""
    reply = orchestrator_pb2.QuoteBatchResponse(
        quote=quote,
        findings=[_finding(finding) for finding in findings],
        provider=provider,
        spec_sha256=planned.sha256,
        model=planned.spec.model,
        concurrency=planned.spec.concurrency,
    )
    if quote is not None:
        reply.coverage.CopyFrom(_coverage(planned))
        reply.prompts.extend(_prompts(planned, sample))
        reply.tiers.extend(_tier(tier, total) for tier, total in planned.plan.tier_totals.items())
    return reply


def _finding(finding: Finding) -> orchestrator_pb2.Finding:
    return orchestrator_pb2.Finding(
        severity=_SEVERITIES[finding.severity],
        reason=finding.reason,
        field=finding.field,
        message=finding.message,
        tier=finding.tier,
        conversation=finding.conversation,
    )


def _coverage(planned: Planned) -> orchestrator_pb2.Coverage:
    cells = [
        orchestrator_pb2.CoverageCell(tier=tier, axis=axis, value=value, count=count)
        for tier, axis, value, count in planned.plan.coverage()
    ]
    combinations = {tier: min(count, INT64_MAX) for tier, count in planned.plan.combinations().items()}
    return orchestrator_pb2.Coverage(cells=cells, combinations=combinations, repeats=planned.plan.repeats())


def _sample(planned: Planned, sample: int) -> list[int]:
    """Numbers spread over the tiers: the first of each, then the second, ..."""
    tiers = [planned.plan.numbers(tier) for tier in planned.plan.tier_totals]
    longest = max(len(numbers) for numbers in tiers)
    spread = (numbers[at] for at in range(min(longest, sample)) for numbers in tiers if at < len(numbers))
    return [number for _, number in zip(range(sample), spread, strict=False)]


def _prompts(planned: Planned, sample: int) -> Iterator[orchestrator_pb2.RenderedPrompt]:
    """As many of the sample as a message holds, at least one."""
    size = 0
    for number in _sample(planned, sample):
        prompt = _prompt(planned, number)
        size += prompt.ByteSize()
        if size > max(PROMPTS_MAX_BYTES, prompt.ByteSize()):
            return
        yield prompt


def _prompt(planned: Planned, number: int) -> orchestrator_pb2.RenderedPrompt:
    item = planned.item(number)
    filled = planned.prompts.render(item)
    return orchestrator_pb2.RenderedPrompt(
        number=number, tier=item.tier.id, system=filled.system, user=filled.user, axis_values=item.axis_values
    )


def _tier(tier: str, total: int) -> batch_pb2.TierProgress:
    return batch_pb2.TierProgress(tier=tier, counts=batch_pb2.Counts(total=total))
