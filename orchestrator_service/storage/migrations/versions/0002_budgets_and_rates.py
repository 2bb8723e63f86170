"""Daily budgets, the prices behind each version of a rate card, settlement by a person, the circuit breaker's memory."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# What earlier calls have cost, by their day and owner.
FILL_DAILY_SPEND = """
INSERT INTO daily_spend (day, owner, confirmed_nanos, reserved_nanos, possibly_spent_nanos)
SELECT calls.created_us / 86400000000, coalesce(batches.owner, ''),
       coalesce(sum(calls.cost_nanos), 0),
       sum(CASE WHEN calls.state = 'RESERVED' THEN calls.reserved_nanos ELSE 0 END),
       sum(CASE WHEN calls.state = 'POSSIBLY_SPENT' THEN calls.reserved_nanos ELSE 0 END)
FROM calls LEFT JOIN batches ON calls.batch = batches.id
GROUP BY 1, 2
"""
FILL_RATES = """
INSERT INTO rates (version, model, rate)
SELECT rate_version, model, min(rate) FROM batches WHERE rate IS NOT NULL GROUP BY rate_version, model
"""


def upgrade() -> None:
    op.create_table(
        "daily_spend",
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("confirmed_nanos", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reserved_nanos", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("possibly_spent_nanos", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "confirmed_nanos >= 0 AND reserved_nanos >= 0 AND possibly_spent_nanos >= 0", name="money_not_negative"
        ),
        sa.PrimaryKeyConstraint("day", "owner"),
    )
    op.create_table(
        "rates",
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("rate", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("version", "model"),
    )
    op.add_column("batches", sa.Column("recent_ends", sa.Integer(), server_default="1", nullable=False))
    op.add_column("calls", sa.Column("settled_by", sa.String(length=200), server_default="", nullable=False))
    op.add_column("calls", sa.Column("note", sa.Text(), server_default="", nullable=False))
    with op.batch_alter_table("holds") as holds:
        holds.add_column(sa.Column("scope", sa.String(length=12), server_default="BATCH", nullable=False))
        holds.create_check_constraint("scope_known", "scope IN ('BATCH', 'OWNER_DAY', 'SERVER_DAY')")
    op.execute(FILL_DAILY_SPEND)
    op.execute(FILL_RATES)
