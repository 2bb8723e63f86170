"""Protobuf <-> domain, pure. What the contract's rules can't say is refused here, by its field."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money
from parley import money
from parley.v1 import batch_pb2, estimator_pb2, quote_pb2

from estimator_service.domain import rates
from estimator_service.domain.basis import Basis, basis_of
from estimator_service.domain.errors import InvalidRequest
from estimator_service.domain.forecast import Forecast
from estimator_service.domain.quote import QUANTILES, CostRange, Figures, GroupQuote, TimeRange
from estimator_service.domain.rates import LongPrompt, Prices, Rate
from estimator_service.domain.warnings import Warning
from estimator_service.domain.workload import Assumed, Group, InputSource, Limits, Workload

# A rate of one token a day gives times that no Duration holds; a century says as much.
DURATION_MAX_S = 100 * 365 * 86_400.0
# Of an amount that a batch may have cost, or may cost.
DOLLARS_MAX = 1_000_000_000
# Below this a speed-up, a limit or a number of calls is a slip, and the arithmetic would leave the range of a double.
RATE_MIN = 0.001

_INPUT_SOURCES = {
    quote_pb2.INPUT_SIZE_SOURCE_UNSPECIFIED: InputSource.PRIOR,
    quote_pb2.INPUT_SIZE_SOURCE_COUNTED: InputSource.COUNTED,
    quote_pb2.INPUT_SIZE_SOURCE_CHARACTERS: InputSource.CHARACTERS,
}
_LIMITS = ("requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute")


def workload(message: quote_pb2.Workload, field: str = "workload") -> Workload:
    _refuse_twice([group.id for group in message.groups], field)
    return Workload(
        groups=tuple(_group(group, f"{field}.groups[{at}]") for at, group in enumerate(message.groups)),
        concurrency=message.concurrency,
        limits=Limits(**{name: _rate(getattr(message.limits, name), f"{field}.limits.{name}") for name in _LIMITS}),
        speed_up=_rate(message.speed_up, f"{field}.speed_up") or 1.0,
        provider=message.provider,
        budget_nanos=nanos(message.budget, f"{field}.budget") if message.HasField("budget") else None,
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
        effort=group.effort,
        prompt_fingerprint=group.prompt_fingerprint,
        assumed=_assumed(group.assumptions),
    )


def _assumed(assumptions: quote_pb2.Assumptions) -> Assumed:
    # What is absent is not among them; a 0 that was said is.
    said: dict[str, float] = {field.name: value for field, value in assumptions.ListFields()}
    return Assumed(
        output_tokens_mean=said.get("output_tokens_mean"),
        output_tokens_cv=assumptions.output_tokens_cv,
        call_seconds_mean=said.get("call_seconds_mean"),
        call_seconds_cv=assumptions.call_seconds_cv,
        overhead_share=assumptions.overhead_share,
        failure_share=said.get("failure_share"),
        input_tokens_mean=said.get("input_tokens_mean"),
    )


def _refuse_twice(ids: Sequence[str], field: str) -> None:
    seen: set[str] = set()
    for at, id in enumerate(ids):
        if id in seen:
            raise InvalidRequest(f"{field}.groups[{at}].id", f"{id!r} is the id of an earlier group")
        seen.add(id)


def _rate(value: float, field: str) -> float:
    if 0 < value < RATE_MIN:
        raise InvalidRequest(field, f"must be 0 or at least {RATE_MIN}")
    return value


def nanos(amount: Money, field: str) -> int:
    """Nano-dollars; an amount that was not said is none."""
    said = amount.ByteSize() > 0
    if said and amount.currency_code != "USD":
        raise InvalidRequest(f"{field}.currency_code", f"the {field.rpartition('.')[2]}'s currency must be USD")
    if not 0 <= amount.nanos < money.NANOS_PER_DOLLAR:
        raise InvalidRequest(f"{field}.nanos", "must be from 0 to 999999999")
    if amount.units > DOLLARS_MAX:
        raise InvalidRequest(f"{field}.units", f"must be at most {DOLLARS_MAX:,}")
    return money.to_nanos(amount)


def seconds(message: Duration, field: str) -> float:
    if not 0 <= message.seconds <= DURATION_MAX_S or not 0 <= message.nanos < money.NANOS_PER_DOLLAR:
        raise InvalidRequest(field, "must be from 0 to 100 years")
    return message.seconds + message.nanos / 1e9


def time(message: Timestamp, field: str) -> datetime:
    try:
        return message.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(field, "is not a time from the year 1 to 9999") from None


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
        basis=_basis(basis_of(group.estimate for group in figures.groups)),
        warnings=[_warning(each) for each in figures.warnings],
        probability_cost_within_10_percent=figures.cost_within_10_percent,
        probability_time_within_20_percent=figures.time_within_20_percent,
        probability_within_budget=figures.within_budget,
        spec_sha256=request.spec_sha256,
        owner=owner,
        seed=request.seed,
        workload=request.workload,
        batch=request.batch,
        cost_calibration=figures.cost_calibration,
        time_calibration=figures.time_calibration,
    )
    if figures.real_time_mean_s is not None:
        message.real_time_mean.CopyFrom(_duration(figures.real_time_mean_s))
    return message


def forecast(made: Forecast, *, in_flight: int, now: datetime) -> batch_pb2.Forecast:
    running = f"{in_flight} in flight and " if in_flight else ""
    return batch_pb2.Forecast(
        projected_cost=money.from_nanos(made.cost.mean_nanos),
        time_left=_duration(made.time.mean_s),
        create_time=_timestamp(now),
        basis=f"{running}{made.basis.text}",
        cost=_cost_range(made.cost),
        time=_time_range(made.time),
        probability_within_budget=made.within_budget,
    )


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
        basis=_basis(basis_of([estimate])),
        thinking_tokens_mean=estimate.thinking_tokens_mean,
        failure_share=estimate.failures.share,
    )


def _basis(basis: Basis) -> quote_pb2.Basis:
    source = quote_pb2.Basis.Source.Value(f"SOURCE_{basis.source.name}")
    return quote_pb2.Basis(source=source, observations=basis.observations, text=basis.text)


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
