"""What a batch and the estimator tell each other: workload, forecast, refined quote, outcome, and what to learn by."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Batches of before have no row here: their workload was never kept, so nobody forecasts them but ourselves.
    op.create_table(
        "batch_estimates",
        sa.Column("batch", sa.String(length=32), nullable=False),
        sa.Column("workload", sa.LargeBinary(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("quoted_version", sa.String(length=64), nullable=False),
        sa.Column("forecast", sa.LargeBinary(), nullable=True),
        sa.Column("forecast_run", sa.Integer(), nullable=True),
        sa.Column("forecast_stale", sa.Boolean(), server_default="0", nullable=False),
        sa.Column("refined_quote", sa.String(length=100), server_default="", nullable=False),
        sa.Column("refined_at", sa.String(length=32), server_default="", nullable=False),
        sa.Column("outcome", sa.String(length=8), nullable=False),
        sa.CheckConstraint("outcome IN ('WAITING', 'SENT', 'REFUSED', 'NONE')", name="outcome_known"),
        sa.CheckConstraint("(forecast IS NULL) = (forecast_run IS NULL)", name="forecast_of_a_run"),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch"),
    )
    op.create_index(
        "estimates_untold",
        "batch_estimates",
        ["batch"],
        unique=False,
        sqlite_where=sa.text("outcome = 'WAITING'"),
        postgresql_where=sa.text("outcome = 'WAITING'"),
    )
    op.create_index(
        "events_of_states",
        "events",
        ["batch", "number"],
        unique=False,
        sqlite_where=sa.text("kind IN ('state_changed', 'recovered')"),
        postgresql_where=sa.text("kind IN ('state_changed', 'recovered')"),
    )
    op.add_column("batches", sa.Column("effort", sa.String(length=16), server_default="", nullable=False))
    op.add_column(
        "batch_tiers", sa.Column("prompt_fingerprint", sa.String(length=64), server_default="", nullable=False)
    )
