"""Outcomes of quoted batches; observations know their quote and conversation, and are read newest first."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _extend_observations()
    _create_outcomes()


def downgrade() -> None:
    raise RuntimeError("Parley goes forward only; restore a backup instead.")


def _extend_observations() -> None:
    # As statements: Alembic would copy the whole table to add a CHECK in SQLite.
    op.execute("ALTER TABLE observations ADD COLUMN quote VARCHAR(32) DEFAULT '' NOT NULL")
    op.execute(
        "ALTER TABLE observations ADD COLUMN conversation INTEGER DEFAULT '0' NOT NULL "
        "CONSTRAINT conversation_not_negative CHECK (conversation >= 0)"
    )
    op.execute("ALTER TABLE observations ADD COLUMN seen_us BIGINT DEFAULT '0' NOT NULL")
    op.execute("UPDATE observations SET seen_us = coalesce(ended_us, recorded_us)")
    op.drop_index("observations_by_model", "observations")
    op.create_index("observations_newest", "observations", ["model", "provider", "seen_us"])
    op.create_index("observations_by_time", "observations", ["seen_us"])
    op.create_index("observations_by_batch", "observations", ["batch"])


def _create_outcomes() -> None:
    op.create_table(
        "outcomes",
        sa.Column("batch", sa.String(length=32), nullable=False),
        sa.Column("quote", sa.String(length=32), nullable=False),
        sa.Column("provider", sa.String(length=300), nullable=False),
        sa.Column("cost_nanos", sa.BigInteger(), nullable=False),
        sa.Column("cost_at_quoted_nanos", sa.BigInteger(), nullable=True),
        sa.Column("duration_us", sa.BigInteger(), nullable=False),
        sa.Column("conversations", sa.Integer(), nullable=False),
        sa.Column("cost_by_group", sa.JSON(), nullable=False),
        sa.Column("ended_us", sa.BigInteger(), nullable=True),
        sa.Column("recorded_us", sa.BigInteger(), nullable=False),
        sa.Column("seen_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("length(batch) BETWEEN 4 AND 32", name="batch_length"),
        sa.CheckConstraint("cost_nanos >= 0", name="cost_not_negative"),
        sa.CheckConstraint(
            "cost_at_quoted_nanos IS NULL OR cost_at_quoted_nanos >= 0", name="cost_at_quoted_not_negative"
        ),
        sa.CheckConstraint("duration_us >= 0", name="duration_not_negative"),
        sa.CheckConstraint("conversations >= 0", name="conversations_not_negative"),
        sa.ForeignKeyConstraint(["quote"], ["quotes.id"]),
        sa.PrimaryKeyConstraint("batch"),
    )
    op.create_index("outcomes_newest", "outcomes", ["seen_us", "batch"])
    op.create_index("outcomes_by_provider", "outcomes", ["provider", "seen_us"])
    op.create_index("outcomes_by_quote", "outcomes", ["quote"])
