"""Runs, what they said, uploads and feedback."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.sqlite import REAL
from sqlalchemy.types import TypeEngine

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_SECONDS: TypeEngine[float] = sa.Double().with_variant(REAL(), "sqlite")
_STATES = "state in ('queued', 'running', 'succeeded', 'refused', 'failed', 'cancelled')"


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "runs",
        sa.Column("seq", _SEQUENCE, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("head", sa.Text(), nullable=False),
        sa.Column("training_order", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", _SECONDS, nullable=False),
        sa.Column("lease_until", _SECONDS, nullable=True),
        sa.Column("leased_by", sa.Text(), nullable=True),
        sa.Column("cancel_asked_at", _SECONDS, nullable=True),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("created_at", _SECONDS, nullable=False),
        sa.Column("started_at", _SECONDS, nullable=True),
        sa.Column("finished_at", _SECONDS, nullable=True),
        sa.CheckConstraint(_STATES, name=op.f("ck_runs_state")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_runs")),
        sa.UniqueConstraint("id", name=op.f("uq_runs_id")),
        sa.UniqueConstraint("owner", "idempotency_key", name=op.f("uq_runs_owner_idempotency_key")),
    )
    op.create_index(op.f("ix_runs_state_seq"), "runs", ["state", "seq"])
    op.create_index(op.f("ix_runs_head_seq"), "runs", ["head", "seq"])
    op.create_table(
        "run_lines",
        sa.Column("run_seq", _SEQUENCE, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", _SECONDS, nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_seq"], ["runs.seq"], name=op.f("fk_run_lines_run_seq"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_seq", "number", name=op.f("pk_run_lines")),
    )
    op.create_table(
        "uploads",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("suffix", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", _SECONDS, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_table(
        "feedback",
        sa.Column("seq", _SEQUENCE, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("head", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("created_at", _SECONDS, nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_feedback")),
        sa.UniqueConstraint("id", name=op.f("uq_feedback_id")),
        sa.UniqueConstraint("owner", "idempotency_key", name=op.f("uq_feedback_owner_idempotency_key")),
    )
    op.create_index(op.f("ix_feedback_head_digest_seq"), "feedback", ["head", "digest", "seq"])
    op.create_index(op.f("ix_feedback_head_seq"), "feedback", ["head", "seq"])
    op.create_table(
        "feedback_days",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("day", sa.Text(), nullable=False),
        sa.Column("num_rows", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "day", name=op.f("pk_feedback_days")),
    )
