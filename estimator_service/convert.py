"""Protobuf <-> domain, pure. What the contract's rules can't say is refused here, by its field."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from parley import money
from parley.v1 import conversation_pb2, estimator_pb2, quote_pb2

from estimator_service.domain import rates
from estimator_service.domain.errors import InvalidRequest
from estimator_service.domain.observation import Observation, Outcome, Purpose
from estimator_service.domain.quote import QUANTILES, CostRange, Figures, GroupQuote, TimeRange
from estimator_service.domain.rates import LongPrompt, Prices, Rate
from estimator_service.domain.warnings import Warning
from estimator_service.domain.workload import Group, InputSource, Limits, Workload

# A rate of one token a day gives times that no Duration holds; a century says as much.
DURATION_MAX_S = 100 * 365 * 86_400.0
# Below this a speed-up, a limit or a number of calls is a slip, and the arithmetic would leave the range of a double.
RATE_MIN = 0.001
TOKENS_OF_CALL_MAX = 1_000_000_000

_INPUT_SOURCES = {
    quote_pb2.INPUT_SIZE_SOURCE_UNSPECIFIED: InputSource.PRIOR,
    quote_pb2.INPUT_SIZE_SOURCE_COUNTED: InputSource.COUNTED,
    quote_pb2.INPUT_SIZE_SOURCE_CHARACTERS: InputSource.CHARACTERS,
}
_LIMITS = ("requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute")
_USAGE = (
    "input_tokens",
    "output_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "cache_read_tokens",
    "thinking_tokens",
)


def workload(message: quote_pb2.Workload) -> Workload:
    _refuse_twice([group.id for group in message.groups])
    return Workload(
        groups=tuple(_group(group, f"workload.groups[{at}]") for at, group in enumerate(message.groups)),
        concurrency=message.concurrency,
        limits=Limits(**{name: _rate(getattr(message.limits, name), f"workload.limits.{name}") for name in _LIMITS}),
        speed_up=_rate(message.speed_up, "workload.speed_up") or 1.0,
        provider=message.provider,
        budget_nanos=_budget(message) if message.HasField("budget") else None,
    )


def _group(group: quote_pb2.WorkloadGroup, field: str) -> Group:
    return Group(
        id=group.id,
        tier=group.tier,
        model=group.model,
        count=group.count,
        calls_each=_rate(group.calls_each, f"{field}.calls_each") or 1.0,
        input_source=_INPUT_SOURCES[group.input_size_source],
        input_tokens_mean=group.input_tokens_mean,
        input_characters_mean=group.input_characters_mean,
        max_output_tokens=group.max_output_tokens,
        cacheable_tokens=group.cacheable_tokens,
    )


def _refuse_twice(ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for at, id in enumerate(ids):
        if id in seen:
            raise InvalidRequest(f"workload.groups[{at}].id", f"{id!r} is the id of an earlier group")
        seen.add(id)


def _rate(value: float, field: str) -> float:
    if 0 < value < RATE_MIN:
        raise InvalidRequest(field, f"must be 0 or at least {RATE_MIN}")
    return value


def _budget(message: quote_pb2.Workload) -> int:
    if message.budget.currency_code != "USD":
        raise InvalidRequest("workload.budget.currency_code", "the budget's currency must be USD")
    if not 0 <= message.budget.nanos < money.NANOS_PER_DOLLAR:
        raise InvalidRequest("workload.budget.nanos", "must be from 0 to 999999999")
    return money.to_nanos(message.budget)


def observations(messages: Iterable[quote_pb2.Observation]) -> list[Observation]:
    return [_observation(message, f"observations[{at}]") for at, message in enumerate(messages)]


def _observation(message: quote_pb2.Observation, field: str) -> Observation:
    if message.outcome == conversation_pb2.CALL_OUTCOME_UNSPECIFIED:
        raise InvalidRequest(f"{field}.outcome", "a call is observed once it has ended")
    for name in _USAGE:
        if not 0 <= getattr(message.usage, name) <= TOKENS_OF_CALL_MAX:
            raise InvalidRequest(f"{field}.usage.{name}", f"must be from 0 to {TOKENS_OF_CALL_MAX}")
    streamed = message.HasField("first_token_delay")
    return Observation(
        call=message.call,
        tier=message.tier,
        model=message.model,
        provider=message.provider,
        outcome=Outcome(conversation_pb2.CallOutcome.Name(message.outcome).removeprefix("CALL_OUTCOME_")),
        purpose=_purpose(message.purpose),
        **{name: getattr(message.usage, name) for name in _USAGE},
        duration=_timedelta(message.duration, f"{field}.duration"),
        first_token_delay=_timedelta(message.first_token_delay, f"{field}.first_token_delay") if streamed else None,
        speed_up=_rate(message.speed_up, f"{field}.speed_up") or 1.0,
        prompt_fingerprint=message.prompt_fingerprint,
        batch=message.batch,
        effort=message.effort,
        max_output_tokens=message.max_output_tokens,
        end_time=time(message.end_time, f"{field}.end_time") if message.HasField("end_time") else None,
    )


def _purpose(value: conversation_pb2.CallPurpose.ValueType) -> Purpose:
    if value == conversation_pb2.CALL_PURPOSE_UNSPECIFIED:
        return Purpose.GENERATE
    return Purpose(conversation_pb2.CallPurpose.Name(value).removeprefix("CALL_PURPOSE_"))


def time(message: Timestamp, field: str) -> datetime:
    try:
        return message.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(field, "is not a time from the year 1 to 9999") from None


def _timedelta(message: Duration, field: str) -> timedelta:
    if not 0 <= message.seconds <= DURATION_MAX_S or not 0 <= message.nanos < 1_000_000_000:
        raise InvalidRequest(field, "must be from 0 to 100 years")
    return message.ToTimedelta()


def quote(
    figures: Figures,
    *,
    name: str,
    request: estimator_pb2.CreateQuoteRequest,
    owner: str,
    now: datetime,
    as_of: datetime,
) -> quote_pb2.Quote:
    message = quote_pb2.Quote(
        name=name,
        create_time=_timestamp(now),
        cost=_cost_range(figures.cost),
        time=_time_range(figures.time),
        groups=[_group_quote(group) for group in figures.groups],
        rate_card=rate_card(figures.rates, as_of=as_of),
        basis=_basis(figures),
        warnings=[_warning(each) for each in figures.warnings],
        probability_cost_within_10_percent=figures.cost_within_10_percent,
        probability_time_within_20_percent=figures.time_within_20_percent,
        probability_within_budget=figures.within_budget,
        spec_sha256=request.spec_sha256,
        owner=owner,
        seed=request.seed,
        workload=request.workload,
    )
    if figures.real_time_mean_s is not None:
        message.real_time_mean.CopyFrom(_duration(figures.real_time_mean_s))
    return message


def _warning(warning: Warning) -> quote_pb2.QuoteWarning:
    kind = quote_pb2.QuoteWarning.Kind.Value(f"KIND_{warning.kind.name}")
    return quote_pb2.QuoteWarning(kind=kind, message=warning.message)


def _group_quote(group: GroupQuote) -> quote_pb2.GroupQuote:
    estimate = group.estimate
    return quote_pb2.GroupQuote(
        group=estimate.group.id,
        cost=_cost_range(group.cost),
        input_tokens_mean=estimate.input_tokens_mean,
        output_tokens_mean=estimate.output_tokens_mean,
        calls_mean=estimate.calls_mean,
        call_duration_mean=_duration(estimate.call_duration_mean_s),
        count=estimate.group.count,
        basis=_basis_of(estimate.tokens.observations, speed_observations=estimate.pace.observations),
    )


def _basis(figures: Figures) -> quote_pb2.Basis:
    estimates = [group.estimate for group in figures.groups]
    # Groups of one tier and model rest on the same calls, which count once; so does the speed of a model.
    tokens = {
        (each.group.tier, each.group.model, each.group.turn_by_turn): each.tokens.observations for each in estimates
    }
    speeds = {each.group.model: each.pace.observations for each in estimates}
    return _basis_of(sum(tokens.values()), speed_observations=sum(speeds.values()))


def _basis_of(observations: int, *, speed_observations: int) -> quote_pb2.Basis:
    parts = [
        text
        for text, count in (
            (f"tokens of {observations} calls", observations),
            (f"speed of {speed_observations} calls", speed_observations),
        )
        if count
    ]
    seen = quote_pb2.Basis.SOURCE_OBSERVATIONS if parts else quote_pb2.Basis.SOURCE_PRIOR
    text = f"prior, moved by {' and '.join(parts)}" if parts else "built-in prior"
    return quote_pb2.Basis(source=seen, observations=max(observations, speed_observations), text=text)


def rate_card(used: Sequence[Rate], *, as_of: datetime) -> quote_pb2.RateCard:
    return quote_pb2.RateCard(
        version=rates.version(used), rates=[_rate_message(rate) for rate in used], as_of_time=_timestamp(as_of)
    )


def _rate_message(rate: Rate) -> quote_pb2.ModelRate:
    message = _prices(rate.model, rate.prices)
    if rate.effective_time:
        message.effective_time.CopyFrom(_timestamp(rate.effective_time))
    if rate.retire_time:
        message.retire_time.CopyFrom(_timestamp(rate.retire_time))
    if rate.long_prompt:
        _add_long_prompt(message, rate.long_prompt)
    return message


def _add_long_prompt(message: quote_pb2.ModelRate, long_prompt: LongPrompt) -> None:
    message.long_prompt_threshold_tokens = long_prompt.threshold_tokens
    message.long_prompt.CopyFrom(_prices(message.model, long_prompt.prices))


def _prices(model: str, prices: Prices) -> quote_pb2.ModelRate:
    return quote_pb2.ModelRate(
        model=model,
        input_nanos_per_mtok=prices.input,
        output_nanos_per_mtok=prices.output,
        cache_write_5m_nanos_per_mtok=prices.cache_write_5m,
        cache_write_1h_nanos_per_mtok=prices.cache_write_1h,
        cache_read_nanos_per_mtok=prices.cache_read,
    )


def _cost_range(cost: CostRange) -> quote_pb2.CostRange:
    pairs = zip(QUANTILES, cost.quantiles_nanos, strict=True)
    return quote_pb2.CostRange(
        mean=money.from_nanos(cost.mean_nanos),
        quantiles=[quote_pb2.CostRange.Quantile(p=p, value=money.from_nanos(nanos)) for p, nanos in pairs],
    )


def _time_range(time: TimeRange) -> quote_pb2.TimeRange:
    pairs = zip(QUANTILES, time.quantiles_s, strict=True)
    return quote_pb2.TimeRange(
        mean=_duration(time.mean_s),
        quantiles=[quote_pb2.TimeRange.Quantile(p=p, value=_duration(seconds)) for p, seconds in pairs],
    )


def _duration(seconds: float) -> Duration:
    message = Duration()
    message.FromMicroseconds(round(min(seconds, DURATION_MAX_S) * 1e6))
    return message


def _timestamp(time: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(time)
    return message
