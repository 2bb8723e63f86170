"""How long the prompt of a call is, for the estimator to learn what a character weighs."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("calls", sa.Column("prompt_characters", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    raise RuntimeError("Parley goes forward only; restore a backup instead.")
