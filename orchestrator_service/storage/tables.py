"""The tables. CHECKs repeat the rules of the domain; times are microseconds UTC, money nano-dollars."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

from orchestrator_service.domain.batch import BatchState, HoldReason
from orchestrator_service.domain.budget import BudgetScope
from orchestrator_service.domain.conversation import ConversationState, Review
from orchestrator_service.domain.ledger import CallOutcome, CallPurpose, CallState
from orchestrator_service.domain.outcome import OutcomeState

metadata = MetaData()

USAGE_COLUMNS = (
    "input_tokens",
    "output_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "cache_read_tokens",
    "thinking_tokens",
)


def _one_of(column: str, values: type[StrEnum]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


def _usage() -> list[Column[int]]:
    return [Column(name, BigInteger, nullable=False, server_default="0") for name in USAGE_COLUMNS]


def _amount(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0")


batches = Table(
    "batches",
    metadata,
    # The order of creation, for lists and pages.
    Column("position", Integer, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("owner", String(200), nullable=False),
    Column("display_name", String(200), nullable=False),
    Column("state", String(24), nullable=False),
    Column("run", Integer, nullable=False),
    # Raised at every start of the orchestrator: fences claims, never settlements.
    Column("epoch", Integer, nullable=False, server_default="0"),
    # Raised by every change of settings; with state and run it makes the etag.
    Column("settings_version", Integer, nullable=False, server_default="1"),
    Column("model", String(200), nullable=False),
    # How hard the model thinks; empty is the provider's default.
    Column("effort", String(16), nullable=False, server_default=""),
    Column("concurrency", Integer, nullable=False),
    Column("budget_nanos", BigInteger),
    Column("hold_after", Integer),
    Column("stop_on_error", Boolean, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("spec_sha256", String(64), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("quote_name", String(100), nullable=False, server_default=""),
    Column("quoted_cost_nanos", BigInteger),
    Column("quoted_duration_s", Float),
    Column("rate_version", String(64), nullable=False, server_default=""),
    # The rate of the batch's model as JSON; NULL where no price is known.
    Column("rate", Text),
    Column("base_url", String(300), nullable=False),
    Column("sandbox", Boolean, nullable=False, server_default="0"),
    Column("speed_up", Float, nullable=False),
    # Conversations that were claimed at least once: what hold_after counts.
    Column("started", Integer, nullable=False, server_default="0"),
    # The number of the last event; raised in the transaction that writes the event.
    Column("last_event", Integer, nullable=False, server_default="0"),
    _amount("confirmed_nanos"),
    _amount("reserved_nanos"),
    _amount("possibly_spent_nanos"),
    _amount("calls_settled"),
    _amount("calls_possibly_spent"),
    # How the last 20 conversations ended, as bits behind a leading one; begun anew by Resume and Retry.
    Column("recent_ends", Integer, nullable=False, server_default="1"),
    # Over all runs, as the money is: conversations that ended, those that were answered, and the seconds that took.
    _amount("made"),
    _amount("answered"),
    Column("answered_s", Float, nullable=False, server_default="0"),
    *_usage(),
    Column("created_us", BigInteger, nullable=False),
    Column("started_us", BigInteger),
    Column("ended_us", BigInteger),
    Column("deleted_us", BigInteger),
    _one_of("state", BatchState),
    CheckConstraint("concurrency BETWEEN 1 AND 1000", name="concurrency_range"),
    CheckConstraint("budget_nanos >= 0", name="budget_not_negative"),
    CheckConstraint("hold_after >= 0", name="hold_after_not_negative"),
    CheckConstraint(
        "confirmed_nanos >= 0 AND reserved_nanos >= 0 AND possibly_spent_nanos >= 0", name="money_not_negative"
    ),
)
Index("batches_by_owner", batches.c.owner, batches.c.position)
Index("batches_by_state", batches.c.state, batches.c.position)

labels = Table(
    "batch_labels",
    metadata,
    Column("batch", String(32), ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(63), primary_key=True),
    Column("value", String(200), nullable=False),
)
Index("labels_by_value", labels.c.key, labels.c.value)

specs = Table(
    "batch_specs",
    metadata,
    Column("batch", String(32), ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    # The contract's BatchSpec, serialized: storage does not look inside.
    Column("spec", LargeBinary, nullable=False),
)

# What a batch and the estimator tell each other. Apart from the batch's row, which every call writes anew.
estimates = Table(
    "batch_estimates",
    metadata,
    Column("batch", String(32), ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    # The contract's Workload of the whole batch, serialized; the seed is the spec's.
    Column("workload", LargeBinary, nullable=False),
    Column("seed", BigInteger, nullable=False),
    # The rate card of the quote.
    Column("quoted_version", String(64), nullable=False),
    # The contract's Forecast, serialized, of the run that it was made in; NULL where there never was one.
    Column("forecast", LargeBinary),
    Column("forecast_run", Integer),
    Column("forecast_stale", Boolean, nullable=False, server_default="0"),
    # The quote of the rest, and the run and number of started conversations at the checkpoint that it was asked for.
    Column("refined_quote", String(100), nullable=False, server_default=""),
    Column("refined_at", String(32), nullable=False, server_default=""),
    # Whether the estimator knows how the first run ended.
    Column("outcome", String(8), nullable=False),
    _one_of("outcome", OutcomeState),
    CheckConstraint("(forecast IS NULL) = (forecast_run IS NULL)", name="forecast_of_a_run"),
)
Index(
    "estimates_untold",
    estimates.c.batch,
    sqlite_where=estimates.c.outcome == "WAITING",
    postgresql_where=estimates.c.outcome == "WAITING",
)

tiers = Table(
    "batch_tiers",
    metadata,
    Column("batch", String(32), ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("tier", String(64), primary_key=True),
    Column("position", Integer, nullable=False),
    # sha256 (hex) of the template, to learn by.
    Column("prompt_fingerprint", String(64), nullable=False, server_default=""),
    Column("total", Integer, nullable=False),
    *[
        Column(name, Integer, nullable=False, server_default="0")
        for name in ("pending", "running", "generated", "failed", "cancelled", "deliverable", "quarantined")
    ],
    _amount("cost_nanos"),
    CheckConstraint("pending + running + generated + failed + cancelled = total", name="counts_add_up"),
    CheckConstraint(
        "pending >= 0 AND running >= 0 AND generated >= 0 AND failed >= 0 AND cancelled >= 0", name="counts_positive"
    ),
    CheckConstraint(
        "deliverable >= 0 AND quarantined >= 0 AND deliverable + quarantined <= generated", name="reviews_fit"
    ),
)

holds = Table(
    "holds",
    metadata,
    Column("batch", String(32), ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("reason", String(24), primary_key=True),
    Column("message", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("clears_us", BigInteger),
    # BUDGET: whose budget it is, and what it must be at least for the next call to fit.
    Column("scope", String(12), nullable=False, server_default="BATCH"),
    Column("needs_nanos", BigInteger),
    _one_of("reason", HoldReason),
    _one_of("scope", BudgetScope),
)

conversations = Table(
    "conversations",
    metadata,
    Column("batch", String(32), ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("tier", String(64), nullable=False),
    # The order of claims: longest expected first, the pilot before it.
    Column("place", Integer, nullable=False),
    Column("state", String(12), nullable=False),
    Column("review", String(12)),
    # Attempts in all, and in this run.
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("tries", Integer, nullable=False, server_default="0"),
    # Axis id to value id, as JSON.
    Column("axis_values", Text, nullable=False),
    Column("prompt_sha256", String(64), nullable=False, server_default=""),
    Column("failure_reason", String(24)),
    Column("failure_message", Text),
    # Check results as JSON.
    Column("checks", Text),
    _amount("cost_nanos"),
    *_usage(),
    Column("ended_us", BigInteger),
    _one_of("state", ConversationState),
    _one_of("review", Review),
    CheckConstraint("(state = 'GENERATED') = (review IS NOT NULL)", name="review_when_generated"),
    CheckConstraint("(state = 'FAILED') = (failure_reason IS NOT NULL)", name="failure_when_failed"),
)
Index("conversations_by_place", conversations.c.batch, conversations.c.state, conversations.c.place)

texts = Table(
    "conversation_texts",
    metadata,
    Column("batch", String(32), primary_key=True),
    Column("number", Integer, primary_key=True),
    # The turns as JSON: [[role, content], ...].
    Column("turns", Text, nullable=False),
    ForeignKeyConstraint(["batch", "number"], ["conversations.batch", "conversations.number"], ondelete="CASCADE"),
)

calls = Table(
    "calls",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    # Kept when a batch is deleted: a batch row is only marked, so this always points somewhere.
    Column("batch", String(32), ForeignKey("batches.id")),
    # 0 for a call that belongs to no conversation.
    Column("conversation", Integer, nullable=False),
    Column("tier", String(64), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("purpose", String(12), nullable=False),
    Column("state", String(16), nullable=False),
    Column("outcome", String(20)),
    Column("model", String(200), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("prompt_sha256", String(64), nullable=False),
    # 0 where it is not known.
    Column("prompt_characters", Integer, nullable=False, server_default="0"),
    Column("max_tokens", Integer, nullable=False),
    _amount("reserved_nanos"),
    Column("cost_nanos", BigInteger),
    Column("rate_version", String(64), nullable=False),
    *_usage(),
    Column("provider_request_id", String(200), nullable=False, server_default=""),
    Column("stop_reason", String(64), nullable=False, server_default=""),
    Column("http_status", Integer, nullable=False, server_default="0"),
    Column("first_token_s", Float),
    Column("duration_s", Float),
    Column("created_us", BigInteger, nullable=False),
    Column("settled_us", BigInteger),
    Column("error", Text, nullable=False, server_default=""),
    # SettleCall: who said what it cost, and why.
    Column("settled_by", String(200), nullable=False, server_default=""),
    Column("note", Text, nullable=False, server_default=""),
    # Whether the estimator has it.
    Column("observed", Boolean, nullable=False, server_default="0"),
    _one_of("purpose", CallPurpose),
    _one_of("state", CallState),
    _one_of("outcome", CallOutcome),
    CheckConstraint("(state = 'SETTLED') = (cost_nanos IS NOT NULL)", name="cost_when_settled"),
)
Index("calls_by_batch", calls.c.batch, calls.c.id)
# At most one call in flight for a conversation: nothing runs twice at once.
Index(
    "one_call_in_flight",
    calls.c.batch,
    calls.c.conversation,
    unique=True,
    sqlite_where=calls.c.state == "RESERVED",
    postgresql_where=calls.c.state == "RESERVED",
)
Index(
    "calls_unobserved",
    calls.c.id,
    sqlite_where=calls.c.observed.is_(False) & (calls.c.state == "SETTLED"),
    postgresql_where=calls.c.observed.is_(False) & (calls.c.state == "SETTLED"),
)

daily_spend = Table(
    "daily_spend",
    metadata,
    # Days since 1970, UTC, by the call's journalling; the owner of its batch, or nobody for a preflight.
    Column("day", Integer, primary_key=True),
    Column("owner", String(200), primary_key=True),
    _amount("confirmed_nanos"),
    _amount("reserved_nanos"),
    _amount("possibly_spent_nanos"),
    CheckConstraint(
        "confirmed_nanos >= 0 AND reserved_nanos >= 0 AND possibly_spent_nanos >= 0", name="money_not_negative"
    ),
)

# The prices that calls were priced by: what a version of the rate card says of a model never changes.
rates = Table(
    "rates",
    metadata,
    Column("version", String(64), primary_key=True),
    Column("model", String(200), primary_key=True),
    # As in batches.rate.
    Column("rate", Text, nullable=False),
)

answers = Table(
    "answers",
    metadata,
    Column("call", Integer, ForeignKey("calls.id"), primary_key=True),
    # The raw answer as the provider sent it; deleted with the batch's texts.
    Column("raw", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("batch", String(32), ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("created_us", BigInteger, nullable=False),
    Column("kind", String(32), nullable=False),
    # Its facts as JSON; convert.py makes the contract's message of them.
    Column("detail", Text, nullable=False),
)

# Few of a log's events: how long a batch ran follows from them, without a look at every conversation's end.
Index(
    "events_of_states",
    events.c.batch,
    events.c.number,
    sqlite_where=events.c.kind.in_(("state_changed", "recovered")),
    postgresql_where=events.c.kind.in_(("state_changed", "recovered")),
)

requests = Table(
    "requests",
    metadata,
    Column("owner", String(200), primary_key=True),
    Column("method", String(32), primary_key=True),
    Column("request_id", String(64), primary_key=True),
    Column("body_sha256", String(64), nullable=False),
    Column("batch", String(32), nullable=False),
    # What was answered beside the batch: conversations put back by a retry.
    Column("requeued", Integer, nullable=False, server_default="0"),
    Column("created_us", BigInteger, nullable=False),
)

# One row: what belongs to the database as a whole.
store = Table(
    "store",
    metadata,
    Column("id", Integer, primary_key=True),
    # Drawn when the database is made and anew by a restore: tokens from before it are told apart.
    Column("generation", String(32), nullable=False),
    # The last known rates as JSON, for batches that run unquoted.
    Column("rate_card", Text),
    CheckConstraint("id = 1", name="one_row"),
)
