"""Feedback with several labels a text."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Rows so far have one label each."""
    op.add_column("feedback", sa.Column("labels", sa.Text(), nullable=True))
