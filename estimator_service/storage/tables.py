"""The tables. CHECKs repeat the rules of the domain; times are microseconds UTC."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

from estimator_service.domain.observation import Outcome, Purpose

metadata = MetaData()

TOKEN_COLUMNS = (
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
    *(Column(name, BigInteger, nullable=False) for name in TOKEN_COLUMNS),
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
    _one_of("outcome", Outcome),
    _one_of("purpose", Purpose),
    *(CheckConstraint(f"{name} >= 0", name=f"{name}_not_negative") for name in TOKEN_COLUMNS),
    CheckConstraint("duration_us >= 0", name="duration_not_negative"),
    CheckConstraint("first_token_us IS NULL OR first_token_us >= 0", name="first_token_not_negative"),
    CheckConstraint("speed_up > 0", name="speed_up_positive"),
    Index("observations_by_model", "model", "outcome", "provider"),
)
