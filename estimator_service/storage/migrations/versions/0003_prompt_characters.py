"""How long the prompt of an observed call was: what a character weighs in tokens is learned from it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("observations", sa.Column("prompt_characters", sa.BigInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    raise RuntimeError("Parley goes forward only; restore a backup instead.")
