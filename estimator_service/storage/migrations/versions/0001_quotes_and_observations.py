"""Quotes and observations."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_quotes()
    _create_observations()


def downgrade() -> None:
    raise RuntimeError("Parley goes forward only; restore a backup instead.")


def _create_quotes() -> None:
    op.create_table(
        "quotes",
        sa.Column("position", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("caller", sa.String(length=200), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("request_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("length(id) BETWEEN 4 AND 32", name="id_length"),
        sa.CheckConstraint("length(request_sha256) = 64", name="request_sha256_length"),
        sa.CheckConstraint("request_id IS NULL OR length(request_id) > 0", name="request_id_not_empty"),
        sa.PrimaryKeyConstraint("position"),
        sa.UniqueConstraint("caller", "request_id", name="request_once"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("quotes_by_owner", "quotes", ["owner", "position"])


def _create_observations() -> None:
    tokens = (
        "input_tokens",
        "output_tokens",
        "cache_write_5m_tokens",
        "cache_write_1h_tokens",
        "cache_read_tokens",
        "thinking_tokens",
    )
    op.create_table(
        "observations",
        sa.Column("call", sa.String(length=200), nullable=False),
        sa.Column("tier", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("provider", sa.String(length=300), nullable=False),
        sa.Column("outcome", sa.String(length=32), nullable=False),
        sa.Column("purpose", sa.String(length=32), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in tokens),
        sa.Column("duration_us", sa.BigInteger(), nullable=False),
        sa.Column("first_token_us", sa.BigInteger(), nullable=True),
        sa.Column("speed_up", sa.Float(), nullable=False),
        sa.Column("prompt_fingerprint", sa.String(length=64), nullable=False),
        sa.Column("batch", sa.String(length=100), nullable=False),
        sa.Column("effort", sa.String(length=16), nullable=False),
        sa.Column("max_output_tokens", sa.Integer(), nullable=False),
        sa.Column("ended_us", sa.BigInteger(), nullable=True),
        sa.Column("recorded_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('ANSWERED', 'REFUSED', 'CUT', 'MALFORMED', 'PROVIDER_ERROR', 'LIMITED', 'TIMEOUT', "
            "'CONNECTION_LOST', 'INTERRUPTED', 'UNKNOWN_STOP')",
            name="outcome_known",
        ),
        sa.CheckConstraint(
            "purpose IN ('GENERATE', 'TURN', 'REPAIR', 'JUDGE', 'WARM', 'PREFLIGHT')", name="purpose_known"
        ),
        *(sa.CheckConstraint(f"{name} >= 0", name=f"{name}_not_negative") for name in tokens),
        sa.CheckConstraint("duration_us >= 0", name="duration_not_negative"),
        sa.CheckConstraint("first_token_us IS NULL OR first_token_us >= 0", name="first_token_not_negative"),
        sa.CheckConstraint("speed_up > 0", name="speed_up_positive"),
        sa.PrimaryKeyConstraint("call"),
    )
    op.create_index("observations_by_model", "observations", ["model", "outcome", "provider"])
