"""The tables. CHECKs repeat the rules of the domain; times are microseconds UTC."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

from estimator_service.domain.observation import USAGE_FIELDS, Outcome, Purpose

metadata = MetaData()


def _one_of(column: str, values: type[StrEnum]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


def _text(name: str, length: int) -> Column[str]:
    return Column(name, String(length), nullable=False)


quotes = Table(
    "quotes",
    metadata,
    # The order of creation, for lists and pages.
    Column("position", Integer, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    _text("owner", 200),
    # Who sent the request_id: another caller's is another request.
    _text("caller", 200),
    # NULL where the request had none.
    Column("request_id", String(64)),
    _text("request_sha256", 64),
    Column("created_us", BigInteger, nullable=False),
    # The Quote as it was promised, serialized; never changed.
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("caller", "request_id", name="request_once"),
    CheckConstraint("length(id) BETWEEN 4 AND 32", name="id_length"),
    CheckConstraint("length(request_sha256) = 64", name="request_sha256_length"),
    CheckConstraint("request_id IS NULL OR length(request_id) > 0", name="request_id_not_empty"),
    Index("quotes_by_owner", "owner", "position"),
    sqlite_autoincrement=True,
)

observations = Table(
    "observations",
    metadata,
    Column("call", String(200), primary_key=True),
    _text("tier", 64),
    _text("model", 200),
    _text("provider", 300),
    _text("outcome", 32),
    _text("purpose", 32),
    *(Column(name, BigInteger, nullable=False) for name in USAGE_FIELDS),
    Column("duration_us", BigInteger, nullable=False),
    # NULL where the call was not streamed.
    Column("first_token_us", BigInteger),
    Column("speed_up", Float, nullable=False),
    _text("prompt_fingerprint", 64),
    _text("batch", 100),
    _text("effort", 16),
    Column("max_output_tokens", Integer, nullable=False),
    # NULL where it was not told.
    Column("ended_us", BigInteger),
    Column("recorded_us", BigInteger, nullable=False),
    # The quote's id; empty where the batch was started without one.
    Column("quote", String(32), nullable=False, server_default=""),
    # Its number in the batch; 0 where it belongs to none.
    Column("conversation", Integer, nullable=False, server_default="0"),
    # Of the prompt; 0 where it was not told.
    Column("prompt_characters", BigInteger, nullable=False, server_default="0"),
    # When it ended, or was recorded where that was not told: the order of what is newest.
    Column("seen_us", BigInteger, nullable=False, server_default="0"),
    _one_of("outcome", Outcome),
    _one_of("purpose", Purpose),
    *(CheckConstraint(f"{name} >= 0", name=f"{name}_not_negative") for name in USAGE_FIELDS),
    CheckConstraint("duration_us >= 0", name="duration_not_negative"),
    CheckConstraint("first_token_us IS NULL OR first_token_us >= 0", name="first_token_not_negative"),
    CheckConstraint("speed_up > 0", name="speed_up_positive"),
    CheckConstraint("conversation >= 0", name="conversation_not_negative"),
    # Backwards it gives the newest calls of a model at a provider, without a scan and without a sort.
    Index("observations_newest", "model", "provider", "seen_us"),
    # The same of all models.
    Index("observations_by_time", "seen_us"),
    Index("observations_by_batch", "batch"),
)

outcomes = Table(
    "outcomes",
    metadata,
    # The batch's id: each has one outcome.
    Column("batch", String(32), primary_key=True),
    # The quote that it was started on. Two batches may be started on one.
    Column("quote", String(32), ForeignKey("quotes.id"), nullable=False),
    # That of the quote's workload.
    _text("provider", 300),
    Column("cost_nanos", BigInteger, nullable=False),
    # NULL where prices were those of the quote.
    Column("cost_at_quoted_nanos", BigInteger),
    Column("duration_us", BigInteger, nullable=False),
    # Conversations that were made.
    Column("conversations", Integer, nullable=False),
    # Nano-dollars by the id of the workload's group; empty where it was not told.
    Column("cost_by_group", JSON, nullable=False),
    # NULL where it was not told.
    Column("ended_us", BigInteger),
    Column("recorded_us", BigInteger, nullable=False),
    # When it ended, or was recorded where that was not told.
    Column("seen_us", BigInteger, nullable=False),
    CheckConstraint("length(batch) BETWEEN 4 AND 32", name="batch_length"),
    CheckConstraint("cost_nanos >= 0", name="cost_not_negative"),
    CheckConstraint("cost_at_quoted_nanos IS NULL OR cost_at_quoted_nanos >= 0", name="cost_at_quoted_not_negative"),
    CheckConstraint("duration_us >= 0", name="duration_not_negative"),
    CheckConstraint("conversations >= 0", name="conversations_not_negative"),
    Index("outcomes_newest", "seen_us", "batch"),
    Index("outcomes_by_provider", "provider", "seen_us"),
    Index("outcomes_by_quote", "quote"),
)
