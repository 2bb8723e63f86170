"""Comparing: one quote beside what its batch really took, by tier and by cause."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from parley import money, requests
from parley.cli import quoting, watching, words
from parley.cli.failures import NOT_POSSIBLE, OK, CommandError
from parley.cli.output import Output
from parley.cli.session import Session
from parley.exceptions import NotFound
from parley.v1 import estimator_pb2, quote_pb2

COLUMNS = ("", "quoted", "8 in 10", "actual", "difference", "")
CAUSE_COLUMNS = ("why", "cost", "time")
TIER_COLUMNS = ("tier", "quoted", "8 in 10", "actual", "cost", "time")


@dataclass(frozen=True, slots=True)
class Cause:
    """In plain words: where it cost more or took longer, where less, and where one of each or neither."""

    more: str
    less: str
    otherwise: str


CAUSES = {
    "tokens": Cause("more tokens than quoted", "fewer tokens than quoted", "tokens"),
    "price": Cause("prices rose", "prices fell", "prices"),
    "failures": Cause("more calls failed than expected", "fewer calls failed than expected", "failed calls"),
    "speed": Cause("the model was slower", "the model was faster", "speed of the model"),
    "waiting": Cause("more waiting for limits and turns", "less waiting for limits and turns", "waiting"),
}


async def compare(session: Session, name: str) -> int:
    """The quote of this name, or that of a batch; a bare id may be either."""
    if name.startswith("quotes/"):
        compared = await _compare(session, name)
    elif name.startswith("batches/"):
        compared = await _compare(session, await _quote_of(session, name))
    else:
        compared = await _compare_either(session, name)
    output = session.output
    if output.as_json:
        output.message(compared)
    elif output.live:
        _show(output, compared)
    else:
        for line in _plain_lines(compared):
            output.line(*line)
    return OK


async def _compare(session: Session, quote: str) -> estimator_pb2.CompareQuoteResponse:
    async with session.estimating() as client:
        return await client.compare(quote)


async def _compare_either(session: Session, id: str) -> estimator_pb2.CompareQuoteResponse:
    try:
        return await _compare(session, requests.quote_name(id))
    except NotFound as error:
        if error.reason != "QUOTE_NOT_FOUND":
            raise
    try:
        return await _compare(session, await _quote_of(session, id))
    except NotFound as error:
        if error.reason != "BATCH_NOT_FOUND":
            raise
        raise CommandError(
            f"There is neither a quote nor a batch {id}.",
            exit_code=NOT_POSSIBLE,
            next_step="List the batches with `parley list`.",
            reason=error.reason,
        ) from error


async def _quote_of(session: Session, name: str) -> str:
    async with session.client() as client:
        batch = await client.get(name)
    if not batch.quote:
        raise CommandError(f"{batch.name} was started without a quote.", exit_code=NOT_POSSIBLE)
    if not batch.HasField("end_time"):
        raise CommandError(
            f"{batch.name} is {words.state(batch.state)}: its quote is compared when it has ended.",
            exit_code=NOT_POSSIBLE,
            next_step=watching.watch_command(batch.name),
        )
    return batch.quote


def _show(output: Output, compared: estimator_pb2.CompareQuoteResponse) -> None:
    of = f", {words.counted(compared.actuals.conversations, 'conversation')}"
    output.show(Text(f"{_names(compared)}{of}", style="bold"))
    output.table(COLUMNS, [_cost_row(compared), _time_row(compared)], right=COLUMNS[1:-1])
    for columns, rows in ((CAUSE_COLUMNS, _causes(compared)), (TIER_COLUMNS, _tiers(compared))):
        if rows:
            output.show()
            output.table(columns, rows, right=columns[1:])


def _plain_lines(compared: estimator_pb2.CompareQuoteResponse) -> Iterator[Sequence[str]]:
    yield "quote", compared.quote.name
    if compared.batch:
        yield "batch", compared.batch
    yield "conversations", str(compared.actuals.conversations)
    for row in (_cost_row(compared), _time_row(compared)):
        yield row
    for row in _causes(compared):
        yield "why", *row
    for row in _tiers(compared):
        yield "tier", *row


def _names(compared: estimator_pb2.CompareQuoteResponse) -> str:
    return f"{compared.batch} on {compared.quote.name}" if compared.batch else compared.quote.name


def _cost_row(compared: estimator_pb2.CompareQuoteResponse) -> tuple[str, ...]:
    cost, actual = compared.quote.cost, money.to_nanos(compared.actuals.cost)
    quoted = money.to_nanos(cost.mean)
    return (
        "cost",
        money.show_nanos(quoted),
        quoting.cost_range(cost),
        money.show_nanos(actual),
        _change(money.show_change(actual - quoted), actual - quoted, quoted),
        _held(actual, words.cost_quantile(cost, 0.1), words.cost_quantile(cost, 0.9)),
    )


def _time_row(compared: estimator_pb2.CompareQuoteResponse) -> tuple[str, ...]:
    time, actual_s = compared.quote.time, words.seconds(compared.actuals.duration)
    quoted_s = words.seconds(time.mean)
    return (
        "time",
        words.span(quoted_s),
        quoting.time_range(time),
        words.span(actual_s),
        _change(words.span_change(actual_s - quoted_s), actual_s - quoted_s, quoted_s),
        _held(actual_s, words.time_quantile(time, 0.1), words.time_quantile(time, 0.9)),
    )


def _change(shown: str, difference: float, quoted: float) -> str:
    return f"{shown} ({words.percent(difference / quoted, places=1, signed=True)})" if quoted else shown


def _held(actual: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return "held" if low <= actual <= high else "missed"


def _causes(compared: estimator_pb2.CompareQuoteResponse) -> list[tuple[str, str, str]]:
    """What weighs most in the cost first, and the sum of all."""
    variances = sorted(compared.by_cause, key=lambda each: (-abs(money.to_nanos(each.cost)), -abs(each.seconds)))
    if not variances:
        return []
    nanos = [money.to_nanos(each.cost) for each in variances]
    seconds = [each.seconds for each in variances]
    names = [*map(cause_words, variances), "all"]
    costs = money.show_changes([*nanos, sum(nanos)])
    return list(zip(names, costs, map(words.span_change, [*seconds, sum(seconds)]), strict=True))


def cause_words(variance: quote_pb2.Variance) -> str:
    """A cause by its sign; its name where this version does not know it."""
    cause = CAUSES.get(variance.cause)
    if cause is None:
        return variance.cause
    nanos = money.to_nanos(variance.cost)
    signs = {value > 0 for value in (nanos, variance.seconds) if value}
    if len(signs) != 1:
        return cause.otherwise
    return cause.more if signs.pop() else cause.less


def _tiers(compared: estimator_pb2.CompareQuoteResponse) -> list[tuple[str, ...]]:
    quote, actual = compared.quote, compared.actuals.cost_by_group
    names = quoting.group_names(quote)
    changes = {variance.cause: variance for variance in compared.by_group}
    listed = [group for group in quote.groups if group.group in changes]
    shown = money.show_changes([money.to_nanos(changes[group.group].cost) for group in listed])
    return [
        (
            names[group.group],
            money.show(group.cost.mean),
            quoting.cost_range(group.cost),
            money.show(actual[group.group]) if group.group in actual else "",
            change,
            words.span_change(changes[group.group].seconds) if changes[group.group].seconds else "",
        )
        for group, change in zip(listed, shown, strict=True)
    ]
