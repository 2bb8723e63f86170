"""Forecasts: where a batch is heading, with its range, as the command says it."""

from __future__ import annotations

from parley import money
from parley.cli import words
from parley.v1 import batch_pb2, quote_pb2

# How a figure is marked that the estimator could not renew.
LAST_KNOWN = " (last known)"


def projected(batch: batch_pb2.Batch) -> str:
    """projected $2.38 ($2.31 to 2.47); empty without a forecast."""
    if not batch.HasField("forecast"):
        return ""
    forecast = batch.forecast
    stale = LAST_KNOWN if forecast.stale else ""
    return f"projected {money.show(forecast.projected_cost)}{_in_brackets(_cost(forecast))}{stale}"


def left(batch: batch_pb2.Batch, *, ranged: bool = True) -> str:
    """12 min left (11 to 14 min), or 0:31 left where no range is known; empty where no call is made."""
    mean, between = _left(batch)
    return f"{mean} left{_in_brackets(between) if ranged else ''}" if mean else ""


def time_left(batch: batch_pb2.Batch) -> str:
    """The same as a value: 12 min (11 to 14 min)."""
    mean, between = _left(batch)
    return f"{mean}{_in_brackets(between)}"


def budget(batch: batch_pb2.Batch) -> str:
    """budget $5.00 (97 % to keep it); empty without one."""
    if not batch.HasField("budget"):
        return ""
    kept = ""
    if batch.forecast.HasField("probability_within_budget"):
        kept = f" ({words.share(batch.forecast.probability_within_budget)} to keep it)"
    return f"budget {money.show(batch.budget)}{kept}"


def rest(batch: batch_pb2.Batch) -> str:
    """What a pilot says of the rest: only at a checkpoint, and where the quote was refined by it."""
    forecast = batch.forecast
    if not (_at_checkpoint(batch) and batch.refined_quote and forecast.HasField("projected_cost")):
        return ""
    spent = money.to_nanos(batch.spend.confirmed) + money.to_nanos(batch.spend.possibly_spent)
    rest_nanos = max(0, money.to_nanos(forecast.projected_cost) - spent)
    cost = f"{money.show_nanos(rest_nanos)}{_in_brackets(_cost(forecast, less_nanos=spent))}"
    time = f"{words.span(words.seconds(forecast.time_left))}{_in_brackets(_time(forecast))}"
    stale = LAST_KNOWN if forecast.stale else ""
    told = f"spent {money.show_nanos(spent)}, the rest is expected to cost {cost} and to take {time}{stale}"
    return f"{told}; resume to go on: parley resume {words.bare_id(batch.name)}"


def refined(batch: batch_pb2.Batch, by: batch_pb2.QuoteRefined) -> batch_pb2.Batch:
    """The batch as its pilot tells it: its own forecast may be from before it held, and come a moment later."""
    if batch.refined_quote != by.quote or not _at_checkpoint(batch) or not by.HasField("projected_cost"):
        return batch
    quantiles = [
        quote_pb2.CostRange.Quantile(p=p, value=value)
        for p, value in ((0.1, by.projected_cost_p10), (0.9, by.projected_cost_p90))
    ]
    told = batch_pb2.Batch()
    told.CopyFrom(batch)
    told.forecast.projected_cost.CopyFrom(by.projected_cost)
    told.forecast.cost.CopyFrom(quote_pb2.CostRange(quantiles=quantiles))
    if told.forecast.time_left != by.time_left:
        # The range belongs to another mean.
        told.forecast.time_left.CopyFrom(by.time_left)
        told.forecast.ClearField("time")
    told.forecast.stale = False
    return told


def _at_checkpoint(batch: batch_pb2.Batch) -> bool:
    return any(hold.reason == batch_pb2.HOLD_REASON_CHECKPOINT for hold in batch.holds)


def _left(batch: batch_pb2.Batch) -> tuple[str, str]:
    """Expected value and range; both empty where no call is made."""
    if batch.state not in words.UNDER_WAY or not batch.forecast.HasField("time_left"):
        return "", ""
    left_s, between = words.seconds(batch.forecast.time_left), _time(batch.forecast)
    return words.span(left_s) if between else words.clock_time(left_s), between


def _cost(forecast: batch_pb2.Forecast, *, less_nanos: int = 0) -> str:
    low, high = (words.cost_quantile(forecast.cost, p) for p in (0.1, 0.9))
    if low is None or high is None:
        return ""
    return words.cost_between(max(0, low - less_nanos), max(0, high - less_nanos))


def _time(forecast: batch_pb2.Forecast) -> str:
    low, high = (words.time_quantile(forecast.time, p) for p in (0.1, 0.9))
    return "" if low is None or high is None else words.span_between(low, high)


def _in_brackets(between: str) -> str:
    return f" ({between})" if between else ""
