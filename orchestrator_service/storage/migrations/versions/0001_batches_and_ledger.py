"""Batches, their conversations, events and the ledger of calls."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("position", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("display_name", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=24), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("settings_version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=False),
        sa.Column("budget_nanos", sa.BigInteger(), nullable=True),
        sa.Column("hold_after", sa.Integer(), nullable=True),
        sa.Column("stop_on_error", sa.Boolean(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("spec_sha256", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("quote_name", sa.String(length=100), server_default="", nullable=False),
        sa.Column("quoted_cost_nanos", sa.BigInteger(), nullable=True),
        sa.Column("quoted_duration_s", sa.Float(), nullable=True),
        sa.Column("rate_version", sa.String(length=64), server_default="", nullable=False),
        sa.Column("rate", sa.Text(), nullable=True),
        sa.Column("base_url", sa.String(length=300), nullable=False),
        sa.Column("sandbox", sa.Boolean(), server_default="0", nullable=False),
        sa.Column("speed_up", sa.Float(), nullable=False),
        sa.Column("started", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_event", sa.Integer(), server_default="0", nullable=False),
        sa.Column("confirmed_nanos", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reserved_nanos", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("possibly_spent_nanos", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("calls_settled", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("calls_possibly_spent", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("made", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("answered", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("answered_s", sa.Float(), server_default="0", nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cache_write_5m_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cache_write_1h_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cache_read_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("thinking_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("started_us", sa.BigInteger(), nullable=True),
        sa.Column("ended_us", sa.BigInteger(), nullable=True),
        sa.Column("deleted_us", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "state IN ('PREPARING', 'QUEUED', 'RUNNING', 'PAUSING', 'PAUSED', 'CANCELLING', 'CANCELLED', 'SUCCEEDED', 'PARTIALLY_SUCCEEDED', 'FAILED')",
            name="state_known",
        ),
        sa.CheckConstraint("budget_nanos >= 0", name="budget_not_negative"),
        sa.CheckConstraint("concurrency BETWEEN 1 AND 1000", name="concurrency_range"),
        sa.CheckConstraint(
            "confirmed_nanos >= 0 AND reserved_nanos >= 0 AND possibly_spent_nanos >= 0", name="money_not_negative"
        ),
        sa.CheckConstraint("hold_after >= 0", name="hold_after_not_negative"),
        sa.PrimaryKeyConstraint("position"),
        sa.UniqueConstraint("id"),
    )
    op.create_index("batches_by_owner", "batches", ["owner", "position"], unique=False)
    op.create_index("batches_by_state", "batches", ["state", "position"], unique=False)
    op.create_table(
        "requests",
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("method", sa.String(length=32), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("body_sha256", sa.String(length=64), nullable=False),
        sa.Column("batch", sa.String(length=32), nullable=False),
        sa.Column("requeued", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "method", "request_id"),
    )
    op.create_table(
        "store",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("generation", sa.String(length=32), nullable=False),
        sa.Column("rate_card", sa.Text(), nullable=True),
        sa.CheckConstraint("id = 1", name="one_row"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "batch_labels",
        sa.Column("batch", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=63), nullable=False),
        sa.Column("value", sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch", "key"),
    )
    op.create_index("labels_by_value", "batch_labels", ["key", "value"], unique=False)
    op.create_table(
        "batch_specs",
        sa.Column("batch", sa.String(length=32), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch"),
    )
    op.create_table(
        "batch_tiers",
        sa.Column("batch", sa.String(length=32), nullable=False),
        sa.Column("tier", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("pending", sa.Integer(), server_default="0", nullable=False),
        sa.Column("running", sa.Integer(), server_default="0", nullable=False),
        sa.Column("generated", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("cancelled", sa.Integer(), server_default="0", nullable=False),
        sa.Column("deliverable", sa.Integer(), server_default="0", nullable=False),
        sa.Column("quarantined", sa.Integer(), server_default="0", nullable=False),
        sa.Column("cost_nanos", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "deliverable >= 0 AND quarantined >= 0 AND deliverable + quarantined <= generated", name="reviews_fit"
        ),
        sa.CheckConstraint("pending + running + generated + failed + cancelled = total", name="counts_add_up"),
        sa.CheckConstraint(
            "pending >= 0 AND running >= 0 AND generated >= 0 AND failed >= 0 AND cancelled >= 0",
            name="counts_positive",
        ),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch", "tier"),
    )
    op.create_table(
        "calls",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("batch", sa.String(length=32), nullable=True),
        sa.Column("conversation", sa.Integer(), nullable=False),
        sa.Column("tier", sa.String(length=64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("purpose", sa.String(length=12), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("outcome", sa.String(length=20), nullable=True),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("prompt_sha256", sa.String(length=64), nullable=False),
        sa.Column("max_tokens", sa.Integer(), nullable=False),
        sa.Column("reserved_nanos", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cost_nanos", sa.BigInteger(), nullable=True),
        sa.Column("rate_version", sa.String(length=64), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cache_write_5m_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cache_write_1h_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cache_read_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("thinking_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provider_request_id", sa.String(length=200), server_default="", nullable=False),
        sa.Column("stop_reason", sa.String(length=64), server_default="", nullable=False),
        sa.Column("http_status", sa.Integer(), server_default="0", nullable=False),
        sa.Column("first_token_s", sa.Float(), nullable=True),
        sa.Column("duration_s", sa.Float(), nullable=True),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("settled_us", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), server_default="", nullable=False),
        sa.Column("observed", sa.Boolean(), server_default="0", nullable=False),
        sa.CheckConstraint("(state = 'SETTLED') = (cost_nanos IS NOT NULL)", name="cost_when_settled"),
        sa.CheckConstraint(
            "outcome IN ('ANSWERED', 'REFUSED', 'CUT', 'MALFORMED', 'PROVIDER_ERROR', 'LIMITED', 'TIMEOUT', 'CONNECTION_LOST', 'INTERRUPTED', 'UNKNOWN_STOP')",
            name="outcome_known",
        ),
        sa.CheckConstraint(
            "purpose IN ('GENERATE', 'TURN', 'REPAIR', 'JUDGE', 'WARM', 'PREFLIGHT')", name="purpose_known"
        ),
        sa.CheckConstraint("state IN ('RESERVED', 'SETTLED', 'POSSIBLY_SPENT')", name="state_known"),
        sa.ForeignKeyConstraint(
            ["batch"],
            ["batches.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("calls_by_batch", "calls", ["batch", "id"], unique=False)
    op.create_index(
        "calls_unobserved",
        "calls",
        ["id"],
        unique=False,
        sqlite_where=sa.text("observed IS 0 AND state = 'SETTLED'"),
        postgresql_where=sa.text("observed IS 0 AND state = 'SETTLED'"),
    )
    op.create_index(
        "one_call_in_flight",
        "calls",
        ["batch", "conversation"],
        unique=True,
        sqlite_where=sa.text("state = 'RESERVED'"),
        postgresql_where=sa.text("state = 'RESERVED'"),
    )
    op.create_table(
        "conversations",
        sa.Column("batch", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("tier", sa.String(length=64), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("review", sa.String(length=12), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("axis_values", sa.Text(), nullable=False),
        sa.Column("prompt_sha256", sa.String(length=64), server_default="", nullable=False),
        sa.Column("failure_reason", sa.String(length=24), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("checks", sa.Text(), nullable=True),
        sa.Column("cost_nanos", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cache_write_5m_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cache_write_1h_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cache_read_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("thinking_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("ended_us", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("(state = 'FAILED') = (failure_reason IS NOT NULL)", name="failure_when_failed"),
        sa.CheckConstraint("(state = 'GENERATED') = (review IS NOT NULL)", name="review_when_generated"),
        sa.CheckConstraint(
            "review IN ('PASSED', 'QUARANTINED', 'ACCEPTED', 'REJECTED', 'EDITED')", name="review_known"
        ),
        sa.CheckConstraint("state IN ('PENDING', 'RUNNING', 'GENERATED', 'FAILED', 'CANCELLED')", name="state_known"),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch", "number"),
    )
    op.create_index("conversations_by_place", "conversations", ["batch", "state", "place"], unique=False)
    op.create_table(
        "events",
        sa.Column("batch", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch", "number"),
    )
    op.create_table(
        "holds",
        sa.Column("batch", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.String(length=24), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("clears_us", sa.BigInteger(), nullable=True),
        sa.Column("needs_nanos", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "reason IN ('USER', 'CHECKPOINT', 'BUDGET', 'STOP_ON_ERROR', 'PROVIDER_LIMIT', 'CREDENTIALS', 'TOO_MANY_FAILURES')",
            name="reason_known",
        ),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch", "reason"),
    )
    op.create_table(
        "answers",
        sa.Column("call", sa.Integer(), nullable=False),
        sa.Column("raw", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["call"],
            ["calls.id"],
        ),
        sa.PrimaryKeyConstraint("call"),
    )
    op.create_table(
        "conversation_texts",
        sa.Column("batch", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("turns", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch", "number"], ["conversations.batch", "conversations.number"], ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("batch", "number"),
    )


def downgrade() -> None:
    raise RuntimeError("Parley goes forward only; restore a backup instead.")
