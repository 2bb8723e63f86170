"""Words: states, durations, shares and events as the command says them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.message import Message

from parley import money
from parley.v1 import batch_pb2, conversation_pb2, quote_pb2

# Where the time left means something: calls are made, or about to be.
UNDER_WAY = {batch_pb2.BATCH_STATE_PREPARING, batch_pb2.BATCH_STATE_QUEUED, batch_pb2.BATCH_STATE_RUNNING}
UNKNOWN_EVENT = "something that this version does not know"
SETTLED = {
    batch_pb2.BATCH_STATE_PAUSED,
    batch_pb2.BATCH_STATE_CANCELLED,
    batch_pb2.BATCH_STATE_SUCCEEDED,
    batch_pb2.BATCH_STATE_PARTIALLY_SUCCEEDED,
    batch_pb2.BATCH_STATE_FAILED,
}


def state(value: batch_pb2.BatchState.ValueType) -> str:
    return _short(batch_pb2.BatchState.Name(value), "BATCH_STATE_")


def hold(value: batch_pb2.HoldReason.ValueType) -> str:
    return _short(batch_pb2.HoldReason.Name(value), "HOLD_REASON_")


def conversation_state(value: conversation_pb2.ConversationState.ValueType) -> str:
    return _short(conversation_pb2.ConversationState.Name(value), "CONVERSATION_STATE_")


def review(value: conversation_pb2.Review.ValueType) -> str:
    return _short(conversation_pb2.Review.Name(value), "REVIEW_") if value else ""


def failure_reason(value: conversation_pb2.FailureReason.ValueType) -> str:
    return _short(conversation_pb2.FailureReason.Name(value), "FAILURE_REASON_") if value else ""


def purpose(value: conversation_pb2.CallPurpose.ValueType) -> str:
    return _short(conversation_pb2.CallPurpose.Name(value), "CALL_PURPOSE_")


def outcome(value: conversation_pb2.CallOutcome.ValueType) -> str:
    return _short(conversation_pb2.CallOutcome.Name(value), "CALL_OUTCOME_") if value else ""


def call_state(value: conversation_pb2.CallState.ValueType) -> str:
    """RESERVED is the ledger's word for a call that is under way."""
    in_flight = value == conversation_pb2.CALL_STATE_RESERVED
    return "in flight" if in_flight else _short(conversation_pb2.CallState.Name(value), "CALL_STATE_")


def _short(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower().replace("_", " ")


def bare_id(name: str) -> str:
    """x of batches/x: what a person types."""
    return name.rpartition("/")[2]


def seconds(duration: duration_pb2.Duration) -> float:
    return duration.ToNanoseconds() / 1e9


def clock_time(total_s: float) -> str:
    """0:31, 12:05, 1:02:03."""
    whole = max(0, round(total_s))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def span(total_s: float) -> str:
    """9.2 s, 81 s, 1:58 min, 33 min, 2 h 5 min: for promises, where seconds after hours would pretend."""
    if total_s < 10:
        return f"{total_s:.1f} s"
    if total_s < 90:
        return f"{total_s:.0f} s"
    if total_s < 600:
        return f"{clock_time(total_s)} min"
    minutes = round(total_s / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def span_between(low_s: float, high_s: float) -> str:
    """11 to 14 min, 50 s to 1:58 min: the unit once where both have the same."""
    low, high = span(low_s), span(high_s)
    figure, _, unit = low.rpartition(" ")
    once = " h " not in low + high and unit == high.rpartition(" ")[2]
    return f"{figure if once else low} to {high}"


def span_change(difference_s: float) -> str:
    """+20 s, -1:58 min: a difference, with its sign."""
    if abs(difference_s) < 0.05:
        return "0 s"
    return f"{'+' if difference_s > 0 else '-'}{span(abs(difference_s))}"


def day(at: timestamp_pb2.Timestamp) -> str:
    return at.ToDatetime().strftime("%Y-%m-%d") if at.seconds else ""


def day_and_time(at: timestamp_pb2.Timestamp) -> str:
    return at.ToDatetime().strftime("%Y-%m-%d %H:%M") if at.seconds else ""


def moment(at: timestamp_pb2.Timestamp, now: datetime) -> str:
    """00:00 UTC, in 3 h 12 min; with its date where it is over a day away."""
    then = at.ToDatetime(UTC)
    if then <= now:
        return f"{then:%H:%M} UTC"
    shown = f"{then:%H:%M}" if then - now <= timedelta(days=1) else f"{then:%Y-%m-%d %H:%M}"
    return f"{shown} UTC, in {span((then - now).total_seconds())}"


def waiting(batch: batch_pb2.Batch) -> str:
    """Empty while no call waits for the limit."""
    if not batch.waiting_for_limit:
        return ""
    wait_s = seconds(batch.limit_wait)
    # Less is over before it is read.
    return "waiting for the rate limit" + (f", about {span(round(wait_s))}" if wait_s >= 1 else "")


def possibly_spent(spend: batch_pb2.Spend) -> str:
    """Empty where every call's cost is known."""
    if not spend.calls_possibly_spent and not money.to_nanos(spend.possibly_spent):
        return ""
    return f"up to {money.show(spend.possibly_spent)} in {counted(spend.calls_possibly_spent, 'call')}"


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def input_tokens(usage: conversation_pb2.Usage) -> int:
    """Of all classes: what a person means by the size of a prompt."""
    written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    return usage.input_tokens + usage.cache_read_tokens + written


def times(speed_up: float) -> str:
    return f"{speed_up:g} x"


def share(of_one: float) -> str:
    """97 %; never all and never none, for a probability is neither."""
    if of_one > 0.99:
        return "over 99 %"
    return "under 1 %" if of_one < 0.01 else f"{100 * of_one:.0f} %"


def percent(of_one: float, *, places: int = 0, signed: bool = False) -> str:
    """92 %, +1.2 %: of what was counted, where all is all."""
    figure = 100 * of_one
    return f"{figure:+z,.{places}f} %" if signed else f"{figure:z,.{places}f} %"


def figure(value: float) -> str:
    """2,312 and 62.1: as many places as tell something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def done(counts: batch_pb2.Counts) -> int:
    """Conversations that were made or given up; a cancelled one is neither."""
    return counts.generated + counts.failed


def cost_at(cost: quote_pb2.CostRange, p: float) -> str:
    found = cost_quantile(cost, p)
    return money.show_nanos(found) if found is not None else "?"


def cost_quantile(cost: quote_pb2.CostRange, p: float) -> int | None:
    """In nanos; None where the range does not say."""
    return next((money.to_nanos(each.value) for each in cost.quantiles if abs(each.p - p) < 1e-6), None)


def time_at(time: quote_pb2.TimeRange, p: float) -> str:
    found = time_quantile(time, p)
    return span(found) if found is not None else "?"


def time_quantile(time: quote_pb2.TimeRange, p: float) -> float | None:
    """In seconds; None where the range does not say."""
    return next((seconds(each.value) for each in time.quantiles if abs(each.p - p) < 1e-6), None)


def cost_between(low_nanos: int, high_nanos: int) -> str:
    """$2.31 to 2.47."""
    return f"{money.show_nanos(low_nanos)} to {money.show_nanos(high_nanos).removeprefix('$')}"


def event(logged: batch_pb2.BatchEvent) -> str:
    """One line for an event of a batch's log."""
    kind = logged.WhichOneof("detail")
    detail = getattr(logged, kind) if kind else None
    match detail:
        case batch_pb2.StateChanged():
            return f"{state(getattr(detail, 'from'))} -> {state(detail.to)}"
        case batch_pb2.HoldAdded():
            return f"held: {hold(detail.hold.reason)}: {detail.hold.message}"
        case batch_pb2.HoldCleared():
            return f"hold cleared: {hold(detail.reason)}"
        case batch_pb2.ConversationEnded():
            return _conversation_ended(detail)
        case batch_pb2.SettingsChanged():
            return f"changed: {', '.join(detail.fields)}"
        case batch_pb2.ConversationsRequeued():
            return f"{counted(detail.count, 'conversation')} put back, run {detail.run}"
        case batch_pb2.Recovered():
            return _recovered(detail)
        case batch_pb2.BudgetMark():
            of = f": {money.show(detail.spent)} of {money.show(detail.budget)}" if detail.HasField("budget") else ""
            return f"{100 * detail.share:.0f} % of the budget is spent{of}"
        case batch_pb2.CallSettled():
            return _call_settled(detail)
        case batch_pb2.RatesChanged():
            return f"prices changed to version {detail.rate_version}"
        case batch_pb2.QuoteRefined():
            return _quote_refined(detail)
        case Message() | None:
            return UNKNOWN_EVENT
        case _:
            return ""


def _conversation_ended(ended: batch_pb2.ConversationEnded) -> str:
    about = f"#{ended.number} {ended.tier}"
    if ended.state == conversation_pb2.CONVERSATION_STATE_FAILED:
        return f"{about} failed: {failure_reason(ended.failure.reason)}: {ended.failure.message}"
    return f"{about} {review(ended.review) or 'generated'} {money.show(ended.cost)}"


def _quote_refined(refined: batch_pb2.QuoteRefined) -> str:
    cost = f"{money.show(refined.projected_cost)} in all"
    if refined.HasField("projected_cost_p10") and refined.HasField("projected_cost_p90"):
        low, high = money.to_nanos(refined.projected_cost_p10), money.to_nanos(refined.projected_cost_p90)
        cost += f" ({cost_between(low, high)})"
    left = f", {span(seconds(refined.time_left))} to go" if refined.HasField("time_left") else ""
    return f"quote refined after {refined.made:,}: {cost}{left}"


def _recovered(recovered: batch_pb2.Recovered) -> str:
    lost = recovered.calls_possibly_spent
    cost = f", {counted(lost, 'call')} possibly spent" if lost else ""
    return f"the server came back: {recovered.conversations_requeued:,} to make again{cost}"


def _call_settled(settled: batch_pb2.CallSettled) -> str:
    nanos = money.to_nanos(settled.cost)
    cost = f"at {money.show_nanos(nanos)}" if nanos else "as not billed"
    note = f": {settled.note}" if settled.note else ""
    return f"call {bare_id(settled.call)} settled by {settled.by} {cost}{note}"
