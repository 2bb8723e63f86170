"""Stored quotes -> what is compared and scored; comparisons, scores and summaries -> protobuf. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from parley import money
from parley.v1 import estimator_pb2, quote_pb2

from estimator_service.domain import calibration
from estimator_service.domain.accuracy import MADE_SHARE_MIN, PastBatch, PastGroup, Slice
from estimator_service.domain.calibration import PastRange
from estimator_service.domain.compare import Actual, Quoted, QuotedGroup, Variance
from estimator_service.domain.rates import LongPrompt, Prices, Rate
from estimator_service.domain.scores import P10, P90, QUANTILES, Scored, Scores
from estimator_service.domain.summary import CallsSummary, Distribution

_MEDIAN = QUANTILES.index(0.50)


def quoted(quote: quote_pb2.Quote) -> Quoted:
    told = {group.id: group for group in quote.workload.groups}
    return Quoted(
        cost_nanos=money.to_nanos(quote.cost.mean),
        time_s=_seconds(quote.time.mean),
        groups=tuple(_quoted_group(group, told[group.group]) for group in quote.groups),
    )


def _quoted_group(group: quote_pb2.GroupQuote, told: quote_pb2.WorkloadGroup) -> QuotedGroup:
    calls = group.count * group.calls_mean
    return QuotedGroup(
        id=group.group,
        tier=told.tier,
        model=told.model,
        cost_nanos=money.to_nanos(group.cost.mean),
        calls=calls,
        output_tokens=group.count * group.output_tokens_mean,
        seconds=calls * _seconds(group.call_duration_mean),
        failure_share=group.failure_share,
    )


def quoted_rates(quote: quote_pb2.Quote) -> dict[str, Rate]:
    """By model."""
    return {rate.model: _rate(rate) for rate in quote.rate_card.rates}


def _rate(rate: quote_pb2.ModelRate) -> Rate:
    threshold = rate.long_prompt_threshold_tokens
    long = LongPrompt(threshold_tokens=threshold, prices=_prices(rate.long_prompt)) if threshold else None
    return Rate(model=rate.model, prices=_prices(rate), long_prompt=long)


def _prices(rate: quote_pb2.ModelRate) -> Prices:
    return Prices(
        input=rate.input_nanos_per_mtok,
        output=rate.output_nanos_per_mtok,
        cache_write_5m=rate.cache_write_5m_nanos_per_mtok,
        cache_write_1h=rate.cache_write_1h_nanos_per_mtok,
        cache_read=rate.cache_read_nanos_per_mtok,
    )


def is_scorable(quote: quote_pb2.Quote, actual: Actual) -> bool:
    """Whether the outcome says how good the estimator's quotes are.

    It does not where the quote was of the rest of a batch or of figures that its user gave, nor where the batch was
    given up before most of it was made.
    """
    promised = not quote.batch and not any(group.HasField("assumptions") for group in quote.workload.groups)
    return promised and actual.conversations >= MADE_SHARE_MIN * sum(group.count for group in quote.groups)


def past_batch(quote: quote_pb2.Quote, batch: str, actual: Actual, end_time: datetime) -> PastBatch:
    tiers = {group.id: (group.tier, group.model) for group in quote.workload.groups}
    return PastBatch(
        quote=quote.name,
        batch=batch,
        end_time=end_time,
        cost=_scored_cost(quote.cost, actual.cost_nanos),
        time=_scored_time(quote.time, actual),
        groups=tuple(
            _past_group(group, *tiers[group.group], actual.cost_by_group) for group in quote.groups if group.count
        ),
    )


def _past_group(group: quote_pb2.GroupQuote, tier: str, model: str, costs: Mapping[str, int]) -> PastGroup:
    # What no group cost was not told; a group that is missing among others cost nothing.
    cost = _scored_cost(group.cost, costs.get(group.group, 0)) if costs else None
    return PastGroup(tier=tier, model=model, cost=cost)


def _scored_cost(cost: quote_pb2.CostRange, actual_nanos: int) -> Scored | None:
    """In dollars."""
    mean = _dollars(money.to_nanos(cost.mean))
    quantiles = tuple(_dollars(money.to_nanos(each.value)) for each in cost.quantiles)
    return Scored(_dollars(actual_nanos), mean, quantiles) if mean > 0 else None


def _scored_time(time: quote_pb2.TimeRange, actual: Actual) -> Scored | None:
    """In seconds."""
    mean = _seconds(time.mean)
    quantiles = tuple(_seconds(each.value) for each in time.quantiles)
    return Scored(actual.duration.total_seconds(), mean, quantiles) if mean > 0 else None


def cost_range(quote: quote_pb2.Quote, actual: Actual) -> PastRange:
    """As it was before any calibration."""
    quantiles = [_dollars(money.to_nanos(each.value)) for each in quote.cost.quantiles]
    return _past_range(_dollars(actual.cost_nanos), quantiles, applied=quote.cost_calibration)


def time_range(quote: quote_pb2.Quote, actual: Actual) -> PastRange:
    """As it was before any calibration."""
    quantiles = [_seconds(each.value) for each in quote.time.quantiles]
    return _past_range(actual.duration.total_seconds(), quantiles, applied=quote.time_calibration)


def _past_range(actual: float, quantiles: Sequence[float], *, applied: float) -> PastRange:
    # Quotes that were made before there was a calibration say 0.
    raw = calibration.apply(quantiles, 1 / applied) if applied > 0 else quantiles
    return PastRange(actual=actual, p10=raw[P10], p50=raw[_MEDIAN], p90=raw[P90])


def actuals(actual: Actual) -> quote_pb2.Actuals:
    message = quote_pb2.Actuals(
        cost=money.from_nanos(actual.cost_nanos),
        conversations=actual.conversations,
        cost_by_group={group: money.from_nanos(nanos) for group, nanos in actual.cost_by_group.items()},
    )
    message.duration.FromTimedelta(actual.duration)
    if actual.cost_at_quoted_nanos is not None:
        message.cost_at_quoted_prices.CopyFrom(money.from_nanos(actual.cost_at_quoted_nanos))
    return message


def variance(each: Variance) -> quote_pb2.Variance:
    return quote_pb2.Variance(cause=each.cause, cost=money.from_nanos(each.cost_nanos), seconds=each.seconds)


def accuracy_slice(each: Slice) -> quote_pb2.AccuracySlice:
    message = quote_pb2.AccuracySlice(slice=each.name, count=each.count)
    if each.cost:
        _add_cost(message, each.cost)
    if each.time:
        _add_time(message, each.time)
    return message


def _add_cost(message: quote_pb2.AccuracySlice, scores: Scores) -> None:
    message.cost_bias = scores.bias
    message.cost_mape = scores.mape
    message.cost_coverage_80 = scores.coverage_80
    message.cost_coverage_80_low = scores.coverage_80_low
    message.cost_coverage_80_high = scores.coverage_80_high
    message.cost_coverage_95 = scores.coverage_95
    message.cost_pinball_loss = scores.pinball_loss
    message.cost_interval_score = scores.interval_score_80
    message.cost_within_10_percent = scores.within_10_percent


def _add_time(message: quote_pb2.AccuracySlice, scores: Scores) -> None:
    message.time_bias = scores.bias
    message.time_mape = scores.mape
    message.time_coverage_80 = scores.coverage_80
    message.time_coverage_80_low = scores.coverage_80_low
    message.time_coverage_80_high = scores.coverage_80_high
    message.time_coverage_95 = scores.coverage_95
    message.time_pinball_loss = scores.pinball_loss
    message.time_interval_score = scores.interval_score_80
    message.time_within_20_percent = scores.within_20_percent


def scored_outcome(past: PastBatch) -> quote_pb2.ScoredOutcome:
    """What could not be scored, for it was quoted as nothing, has ratios of 0."""
    message = quote_pb2.ScoredOutcome(quote=past.quote, batch=past.batch, end_time=_timestamp(past.end_time))
    if past.cost:
        message.cost_ratio = past.cost.actual / past.cost.mean
        message.cost_held = _held(past.cost)
        message.cost_low_ratio = past.cost.quantiles[P10] / past.cost.mean
        message.cost_high_ratio = past.cost.quantiles[P90] / past.cost.mean
    if past.time:
        message.time_ratio = past.time.actual / past.time.mean
        message.time_held = _held(past.time)
    return message


def _held(scored: Scored) -> bool:
    return scored.quantiles[P10] <= scored.actual <= scored.quantiles[P90]


def history_slice(summary: CallsSummary) -> quote_pb2.HistorySlice:
    distributions = {
        "input_tokens": summary.input_tokens,
        "output_tokens": summary.output_tokens,
        "thinking_tokens": summary.thinking_tokens,
        "seconds": summary.seconds,
        "first_token_seconds": summary.first_token_s,
        "tokens_per_second": summary.tokens_per_second,
    }
    return quote_pb2.HistorySlice(
        tier=summary.tier,
        model=summary.model,
        calls=summary.calls,
        batches=summary.batches,
        failed_calls=summary.failed_calls,
        drift_log_sd=summary.drift_log_sd,
        **{name: _distribution(each) for name, each in distributions.items() if each},
    )


def _distribution(each: Distribution) -> quote_pb2.Distribution:
    return quote_pb2.Distribution(mean=each.mean, sd=each.sd, p10=each.p10, p50=each.p50, p90=each.p90, p99=each.p99)


def comparison(
    quote: quote_pb2.Quote, actual: Actual, *, batch: str, groups: Sequence[Variance], causes: Sequence[Variance]
) -> estimator_pb2.CompareQuoteResponse:
    return estimator_pb2.CompareQuoteResponse(
        quote=quote,
        actuals=actuals(actual),
        by_group=[variance(each) for each in groups],
        by_cause=[variance(each) for each in causes],
        batch=batch,
    )


def _dollars(nanos: int) -> float:
    return nanos / money.NANOS_PER_DOLLAR


def _seconds(duration: Duration) -> float:
    return duration.ToTimedelta().total_seconds()


def _timestamp(time: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(time.astimezone(UTC))
    return message
