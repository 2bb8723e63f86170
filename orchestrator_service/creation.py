"""How a spec becomes a quote or a batch: plan, check, price, store; nothing is stored of what can't be made."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from typing import Any, TypeVar

from google.protobuf.message import Message
from parley.v1 import batch_pb2, orchestrator_pb2, quote_pb2

from orchestrator_service.convert.rate import rate_card_of, rate_to_json
from orchestrator_service.convert.spec import spec_of
from orchestrator_service.convert.values import nanos, seconds
from orchestrator_service.convert.workload import InputSize, Pace, workload_of
from orchestrator_service.domain.errors import FieldViolation, ParleyError
from orchestrator_service.domain.ledger import RateCard
from orchestrator_service.domain.plan import claim_order
from orchestrator_service.domain.spec import Builtins, Finding
from orchestrator_service.engine.clock import Clock
from orchestrator_service.engine.conversations import axis_values_json
from orchestrator_service.generation.claude import ANTHROPIC_URL
from orchestrator_service.generation.claude import Request as CallRequest
from orchestrator_service.generation.planning import Planned
from orchestrator_service.generation.prompts import Filled
from orchestrator_service.provider import Provider
from orchestrator_service.quotes import Estimator
from orchestrator_service.storage import batches, requests
from orchestrator_service.storage.batches import NewBatch, Snapshot
from orchestrator_service.storage.database import Database
from orchestrator_service.storage.rates import PricedAt
from orchestrator_service.storage.requests import Request

ROWS_PER_FACT = 500
SAMPLES_PER_TIER = 3
# To go on waits no longer for an estimator that hangs.
PRICES_DEADLINE_S = 3.0
# Longer conversations first: what the estimator's priors say of the tiers, until it tells itself.
EXPECTED_TOKENS = {"template": 3_000.0, "scenario": 4_000.0, "edge_case": 5_000.0}
EXPECTED_OTHERWISE = 4_000.0

# Refusals of the estimator that a batch may do without: it is away, or it knows no price of a local model.
UNQUOTED = ("ESTIMATOR_UNAVAILABLE", "MODEL_UNKNOWN")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What this server accepts, and what it assumes where a spec is silent."""

    default_model: str
    max_concurrency: int
    max_conversations: int
    # None where the provider's announcements decide.
    requests_per_minute: int | None


@dataclass(frozen=True)
class Accepted:
    """What a batch starts on. Without a quote it has the last known prices, where there are any."""

    workload: quote_pb2.Workload
    quote: quote_pb2.Quote | None
    card: RateCard | None


@dataclass(frozen=True, kw_only=True)
class Creation:
    database: Database
    estimator: Estimator
    provider: Provider
    builtins: Builtins
    clock: Clock
    limits: Limits

    def planned(self, spec: batch_pb2.BatchSpec) -> Planned:
        return Planned(spec_of(spec, default_model=self.limits.default_model), self.builtins)

    async def plan(self, spec: batch_pb2.BatchSpec) -> Planned:
        """Raises what no plan can be made of."""
        planned = await asyncio.to_thread(self.planned, spec)
        total = sum(tier.count for tier in planned.spec.tiers) + len(planned.spec.listed)
        if total > self.limits.max_conversations:
            raise _over("BATCH_TOO_LARGE", "spec.tiers", "conversations", total, self.limits.max_conversations)
        return planned

    async def findings(self, planned: Planned) -> list[Finding]:
        """Everything about the spec, errors first; filling every prompt is seconds of CPU, so not on the loop."""
        left = threading.Event()
        try:
            found = await asyncio.to_thread(planned.findings, left.is_set)
        finally:
            # A caller who leaves can't stop the thread, which would fill prompts for nobody.
            left.set()
        wanted, most = planned.spec.concurrency, self.limits.max_concurrency
        if wanted > most:
            message = f"{wanted} calls at the same time are asked for; PARLEY_MAX_CONCURRENCY of this server is {most}."
            found.insert(0, Finding("ERROR", "CONCURRENCY_OVER_MAXIMUM", "concurrency", message))
        if (finding := await self._model_finding(planned.spec.model)) is not None:
            found.insert(0, finding)
        return found

    async def quote(self, planned: Planned, *, owner: str, deadline_s: float) -> quote_pb2.Quote:
        return await self._quoted(planned, await self._workload(planned), owner=owner, deadline_s=deadline_s)

    async def _workload(self, planned: Planned) -> quote_pb2.Workload:
        return workload_of(planned, await self._input_sizes(planned), await self._pace(planned.spec.model))

    async def _quoted(
        self, planned: Planned, workload: quote_pb2.Workload, *, owner: str, deadline_s: float
    ) -> quote_pb2.Quote:
        return await self.estimator.quote(
            workload, spec_sha256=planned.sha256, seed=planned.spec.seed, owner=owner, deadline_s=deadline_s
        )

    async def priced(self, snapshot: Snapshot) -> PricedAt | None:
        """What the batch's model costs now; None where nobody knows, or where no price is known: prices then stay."""
        model: str = snapshot.row["model"]
        card = await self.estimator.rates(deadline_s=PRICES_DEADLINE_S)
        rate = rate_to_json(card.rates.get(model) if card else None)
        return PricedAt(version=card.version, rate=rate) if card and rate else None

    async def create(
        self,
        request: orchestrator_pb2.CreateBatchRequest,
        *,
        owner: str,
        deadline_s: float,
        queued: Callable[[str], None],
    ) -> str:
        """The id of the batch; of the one that the same request made before, where so. `queued` is told of it too."""
        body = body_sha256(request)
        key = Request(owner=owner, method="CreateBatch", request_id=request.request_id, body_sha256=body)
        known = await self.database.read(partial(requests.find, request=key))
        if known is not None:
            queued(known.batch)
            return known.batch
        planned = await self.plan(request.spec)
        refuse(await self.findings(planned))
        accepted = await self._accepted(request, planned, owner=owner, deadline_s=deadline_s)
        card = accepted.card
        rate = card.rates.get(planned.spec.model) if card else None
        if rate is None and planned.spec.budget_nanos is not None:
            raise ParleyError(
                "RATES_UNKNOWN",
                f"No price is known for {planned.spec.model}, so the budget can't be kept.",
                violations=[FieldViolation("spec.budget", "no price is known for the model")],
                metadata={"model": planned.spec.model},
            )
        values = await self._values(planned, accepted.quote, owner=owner)
        values |= {"rate": rate_to_json(rate), "rate_version": card.version if card and rate else ""}
        return await self._store(request, planned, accepted.workload, values, key, queued)

    async def _accepted(
        self, request: orchestrator_pb2.CreateBatchRequest, planned: Planned, *, owner: str, deadline_s: float
    ) -> Accepted:
        """The quote that the batch runs on, with its prices; the last known prices where it may run unquoted."""
        workload = None if request.quote else await self._workload(planned)
        try:
            if workload is None:
                quote = await self.estimator.get(request.quote, deadline_s=deadline_s)
                await self._refuse_unfit(quote, planned, owner=owner, deadline_s=deadline_s)
                fits = {group.id for group in quote.workload.groups} == set(planned.plan.tier_totals)
                workload = quote.workload if fits else await self._workload(planned)
            else:
                quote = await self._quoted(planned, workload, owner=owner, deadline_s=deadline_s)
        except ParleyError as error:
            if error.reason not in UNQUOTED or not request.allow_unquoted:
                raise
            return Accepted(workload or await self._workload(planned), None, await self.estimator.rates())
        return Accepted(workload, quote, _rate_card(quote))

    async def _refuse_unfit(self, quote: quote_pb2.Quote, planned: Planned, *, owner: str, deadline_s: float) -> None:
        if quote.spec_sha256 != planned.sha256 or quote.batch:
            made_for = f"the rest of {quote.batch}" if quote.batch else "another spec"
            message = f"{quote.name} was made for {made_for}."
            raise ParleyError("QUOTE_MISMATCH", message, metadata={"quote": quote.name})
        if quote.stale:
            fresh = await self.quote(planned, owner=owner, deadline_s=deadline_s)
            raise ParleyError(
                "QUOTE_STALE",
                f"{quote.name} is stale: {quote.stale_reason} A fresh one is {fresh.name}.",
                metadata={"quote": quote.name, "fresh": fresh.name},
                attachment=fresh,
            )

    async def _values(self, planned: Planned, quote: quote_pb2.Quote | None, *, owner: str) -> dict[str, Any]:
        spec, announced = planned.spec, await self.provider.announcement()
        return {
            "owner": owner,
            "display_name": spec.name,
            "model": spec.model,
            "effort": spec.effort,
            "concurrency": spec.concurrency,
            "budget_nanos": spec.budget_nanos,
            "hold_after": spec.hold_after,
            "stop_on_error": spec.stop_on_error,
            "priority": spec.priority,
            "spec_sha256": planned.sha256,
            "fingerprint": _fingerprint(planned),
            "quote_name": quote.name if quote else "",
            "quoted_cost_nanos": nanos(quote.cost.mean) if quote else None,
            "quoted_duration_s": seconds(quote.time.mean) if quote else None,
            "base_url": self.provider.base_url,
            "sandbox": announced.sandbox,
            "speed_up": announced.speed_up,
            "created_us": self.clock.now_us(),
        }

    async def _store(
        self,
        request: orchestrator_pb2.CreateBatchRequest,
        planned: Planned,
        workload: quote_pb2.Workload,
        values: dict[str, Any],
        key: Request,
        queued: Callable[[str], None],
    ) -> str:
        batch = "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(10))
        # What a default was today is what the batch keeps.
        kept = batch_pb2.BatchSpec()
        kept.CopyFrom(request.spec)
        kept.model, kept.concurrency = planned.spec.model, planned.spec.concurrency
        new = NewBatch(
            id=batch,
            values=values,
            labels=planned.spec.labels,
            spec=kept.SerializeToString(deterministic=True),
            totals=planned.plan.tier_totals,
            fingerprints={tier: planned.prompts.fingerprint(tier) for tier in planned.plan.tier_totals},
            # Kept, for to count a sample's tokens again is a call to the provider for each forecast.
            workload=workload.SerializeToString(deterministic=True),
            seed=planned.spec.seed,
        )
        await self.database.write(batches.prepare(new))
        try:
            await self._store_rows(batch, planned)
            # A caller who leaves now does not take it back, so the engine must hear of it all the same.
            return await carried_through(self._queue(batch, key, queued))
        except BaseException:
            # Also where the caller left: what nobody will know of must not stay.
            await asyncio.shield(self.database.write(batches.discard(batch)))
            raise

    async def _queue(self, batch: str, key: Request, queued: Callable[[str], None]) -> str:
        made = await self.database.write(batches.queue(batch, key, now_us=self.clock.now_us()))
        queued(made)
        return made

    async def _store_rows(self, batch: str, planned: Planned) -> None:
        expected = {tier: EXPECTED_TOKENS.get(tier, EXPECTED_OTHERWISE) for tier in planned.plan.tier_totals}
        order = enumerate(await asyncio.to_thread(claim_order, planned.plan, expected, planned.spec.hold_after))
        while places := list(islice(order, ROWS_PER_FACT)):
            rows = await asyncio.to_thread(_rows, batch, planned, places)
            await self.database.write(batches.add_rows(rows))

    async def _model_finding(self, model: str) -> Finding | None:
        """A model is known when it has a price or its server offers it; a server without a list is believed."""
        announced, card = await self.provider.announcement(), await self.estimator.rates()
        if (card and model in card.rates) or model in announced.models:
            return None
        if not announced.models and self.provider.base_url != ANTHROPIC_URL:
            return None
        offered = ", ".join(sorted(announced.models or (card.rates if card else {}))[:20])
        message = (
            f"The model {model} is not known. Known are: {offered}." if offered else f"The model {model} is not known."
        )
        return Finding("ERROR", "MODEL_UNKNOWN", "model", message)

    async def _input_sizes(self, planned: Planned) -> dict[str, InputSize]:
        """Of a few filled prompts of each tier: counted by the provider where it can, else their characters."""
        sizes: dict[str, InputSize] = {}
        for tier in planned.plan.tier_totals:
            numbers = planned.plan.numbers(tier)
            sample = [planned.filled(number) for number in numbers[:: max(1, len(numbers) // SAMPLES_PER_TIER)]]
            counted = await asyncio.gather(
                *[self.provider.count_tokens(_counted(planned, filled)) for filled in sample[:SAMPLES_PER_TIER]]
            )
            known = [count for count in counted if count is not None]
            characters = sum(len(filled.system) + len(filled.user) for filled in sample) / len(sample)
            sizes[tier] = InputSize(sum(known) / len(known) if known else None, characters)
        return sizes

    async def _pace(self, model: str) -> Pace:
        announced, allowed = await self.provider.announcement(), await self.provider.allowed(model)
        return Pace(
            base_url=self.provider.base_url,
            speed_up=announced.speed_up,
            requests_per_minute=allowed.requests or 0.0,
            input_tokens_per_minute=allowed.input_tokens or 0.0,
            output_tokens_per_minute=allowed.output_tokens or 0.0,
        )


def _counted(planned: Planned, filled: Filled) -> CallRequest:
    """Only what decides the input of the call."""
    return CallRequest(
        model=planned.spec.model,
        system=filled.system,
        user=filled.user,
        max_tokens=0,
        deadline_s=0.0,
        effort=planned.spec.effort,
        prompt_cache=planned.spec.prompt_cache,
    )


def refuse(findings: Sequence[Finding]) -> None:
    """Raises the first error, with every other one named."""
    errors = [finding for finding in findings if finding.severity == "ERROR"]
    if not errors:
        return
    first = errors[0]
    metadata = {"field": f"spec.{first.field}", "tier": first.tier}
    if first.conversation:
        metadata["conversation"] = str(first.conversation)
    raise ParleyError(
        first.reason,
        first.message,
        violations=[FieldViolation(f"spec.{error.field}", error.message) for error in errors],
        metadata={name: value for name, value in metadata.items() if value},
    )


def _rows(batch: str, planned: Planned, places: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    items = [(place, planned.item(number)) for place, number in places]
    return [
        {
            "batch": batch,
            "number": item.number,
            "tier": item.tier.id,
            "place": place,
            "state": "PENDING",
            "axis_values": axis_values_json(item),
        }
        for place, item in items
    ]


def _rate_card(quote: quote_pb2.Quote) -> RateCard:
    """The quote's prices; where the estimator warns that there is none, there are none, though the card has a zero."""
    if any(warning.kind == quote_pb2.QuoteWarning.KIND_NO_PRICE for warning in quote.warnings):
        return RateCard(quote.rate_card.version, {})
    return rate_card_of(quote.rate_card)


def _fingerprint(planned: Planned) -> str:
    """Spec, seed, templates, model and code: what explains a row of the dataset later."""
    templates = [planned.prompts.fingerprint(tier) for tier in planned.plan.tier_totals]
    text = "\n".join([planned.sha256, planned.spec.model, version("parley"), *templates])
    return hashlib.sha256(text.encode()).hexdigest()


def body_sha256(request: Message) -> str:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()


async def carried_through(doing: Coroutine[Any, Any, T]) -> T:
    """What it gives. A caller who leaves does not stop it."""
    task = asyncio.create_task(doing)
    # A refusal that nobody is left to hear is no error of the server.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(task)


def _over(reason: str, field: str, what: str, wanted: int, most: int) -> ParleyError:
    message = f"{wanted} {what} are asked for; this server accepts {most}."
    return ParleyError(
        reason, message, violations=[FieldViolation(field, message)], metadata={"wanted": str(wanted), "max": str(most)}
    )
