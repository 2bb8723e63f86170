"""Protobuf <-> domain for what is recorded: observations and outcomes. Refuses what nobody can have measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money
from parley import money
from parley.v1 import conversation_pb2, estimator_pb2, quote_pb2

from estimator_service import convert
from estimator_service.domain.compare import Actual
from estimator_service.domain.errors import InvalidRequest
from estimator_service.domain.observation import USAGE_FIELDS, Observation, Outcome, Purpose

# Ten times the largest context there is.
TOKENS_OF_CALL_MAX = 10_000_000
DURATION_OF_CALL_MAX = timedelta(days=30)
# As dear, or as long, no batch is.
COST_MAX_DOLLARS = 1_000_000_000
DURATION_OF_BATCH_MAX = timedelta(days=366)
# Of a group's id, in messages.
GROUP_SHOWN_MAX = 200
# Before there was anything to call.
TIME_MIN = datetime(2000, 1, 1, tzinfo=UTC)
# Two clocks differ, and by no more.
CLOCKS_APART_MAX = timedelta(days=1)
NANOS_PER_SECOND = 1_000_000_000


def observations(
    messages: Iterable[quote_pb2.Observation], *, now: datetime, field: str = "observations"
) -> list[Observation]:
    return [_observation(message, f"{field}[{at}]", now) for at, message in enumerate(messages)]


def _observation(message: quote_pb2.Observation, field: str, now: datetime) -> Observation:
    if message.outcome == conversation_pb2.CALL_OUTCOME_UNSPECIFIED:
        raise InvalidRequest(f"{field}.outcome", "a call is observed once it has ended")
    streamed = message.HasField("first_token_delay")
    return Observation(
        call=message.call,
        tier=message.tier,
        model=message.model,
        provider=message.provider,
        outcome=Outcome(conversation_pb2.CallOutcome.Name(message.outcome).removeprefix("CALL_OUTCOME_")),
        purpose=_purpose(message.purpose),
        **_usage(message.usage, f"{field}.usage"),
        duration=_call_duration(message.duration, f"{field}.duration"),
        first_token_delay=_call_duration(message.first_token_delay, f"{field}.first_token_delay") if streamed else None,
        speed_up=_speed_up(message.speed_up, f"{field}.speed_up"),
        prompt_fingerprint=message.prompt_fingerprint,
        batch=message.batch,
        effort=message.effort,
        max_output_tokens=message.max_output_tokens,
        end_time=end_time(message.end_time, f"{field}.end_time", now) if message.HasField("end_time") else None,
        quote=message.quote.removeprefix("quotes/"),
        conversation=message.conversation,
        prompt_characters=message.prompt_characters,
    )


def _usage(usage: conversation_pb2.Usage, field: str) -> dict[str, int]:
    tokens: dict[str, int] = {name: getattr(usage, name) for name in USAGE_FIELDS}
    for name, count in tokens.items():
        if not 0 <= count <= TOKENS_OF_CALL_MAX:
            raise InvalidRequest(f"{field}.{name}", f"must be from 0 to {TOKENS_OF_CALL_MAX:,}, is {count:,}")
    if usage.thinking_tokens > usage.output_tokens:
        told = (
            f"{usage.thinking_tokens:,} are more than the {usage.output_tokens:,} output tokens that they are part of"
        )
        raise InvalidRequest(f"{field}.thinking_tokens", told)
    return tokens


def _purpose(value: conversation_pb2.CallPurpose.ValueType) -> Purpose:
    if value == conversation_pb2.CALL_PURPOSE_UNSPECIFIED:
        return Purpose.GENERATE
    return Purpose(conversation_pb2.CallPurpose.Name(value).removeprefix("CALL_PURPOSE_"))


def _speed_up(value: float, field: str) -> float:
    if 0 < value < convert.RATE_MIN:
        raise InvalidRequest(field, f"must be 0 or at least {convert.RATE_MIN}")
    return value or 1.0


def _call_duration(message: Duration, field: str) -> timedelta:
    return _duration(message, field, longest=DURATION_OF_CALL_MAX)


def _duration(message: Duration, field: str, *, longest: timedelta) -> timedelta:
    # The seconds first: a message may hold more of them than a timedelta.
    told = 0 <= message.seconds <= longest.total_seconds() and 0 <= message.nanos < NANOS_PER_SECOND
    if not told or message.ToTimedelta() > longest:
        raise InvalidRequest(field, f"must be from 0 to {longest.days} days")
    return message.ToTimedelta()


def end_time(message: Timestamp, field: str, now: datetime) -> datetime:
    """By the clock of the one who tells it; ours is `now`."""
    time = convert.time(message, field)
    if time < TIME_MIN:
        raise InvalidRequest(field, f"{time:%Y-%m-%d} is before {TIME_MIN:%Y-%m-%d}")
    if time > now + CLOCKS_APART_MAX:
        raise InvalidRequest(field, f"{time:%Y-%m-%d %H:%M} UTC is over a day from now ({now:%Y-%m-%d %H:%M} UTC)")
    return time


def outcome(request: estimator_pb2.RecordOutcomeRequest, quote: quote_pb2.Quote, *, now: datetime) -> Actual:
    ended = end_time(request.end_time, "end_time", now) if request.HasField("end_time") else None
    return replace(actual(request.actuals, quote), end_time=ended)


def actual(message: quote_pb2.Actuals, quote: quote_pb2.Quote) -> Actual:
    """An absent cost or duration is refused: scored as 0 it would spoil the record."""
    for name in ("cost", "duration"):
        if not message.HasField(name):
            raise InvalidRequest(f"actuals.{name}", "is missing")
    at_quoted = message.HasField("cost_at_quoted_prices")
    return Actual(
        cost_nanos=_nanos(message.cost, "actuals.cost"),
        cost_at_quoted_nanos=(
            _nanos(message.cost_at_quoted_prices, "actuals.cost_at_quoted_prices") if at_quoted else None
        ),
        duration=_duration(message.duration, "actuals.duration", longest=DURATION_OF_BATCH_MAX),
        conversations=message.conversations,
        cost_by_group=_cost_by_group(message, quote),
    )


def _cost_by_group(message: quote_pb2.Actuals, quote: quote_pb2.Quote) -> dict[str, int]:
    known = {group.group for group in quote.groups}
    costs: dict[str, int] = {}
    for group, cost in sorted(message.cost_by_group.items()):
        field = f'actuals.cost_by_group["{group[:GROUP_SHOWN_MAX]}"]'
        if group not in known:
            raise InvalidRequest(field, f"{quote.name} has no such group")
        costs[group] = _nanos(cost, field)
    return costs


def _nanos(amount: Money, field: str) -> int:
    if amount.currency_code != "USD":
        raise InvalidRequest(f"{field}.currency_code", "the currency must be USD")
    if not 0 <= amount.nanos < money.NANOS_PER_DOLLAR:
        raise InvalidRequest(f"{field}.nanos", "must be from 0 to 999999999")
    if not 0 <= amount.units < COST_MAX_DOLLARS:
        raise InvalidRequest(f"{field}.units", f"must be from 0 to {COST_MAX_DOLLARS - 1:,}")
    return money.to_nanos(amount)
