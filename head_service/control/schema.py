"""The tables. Times are seconds since 1970, UTC. Change them together with a migration; a test holds the two together."""

from typing import Final

from sqlalchemy import BigInteger, CheckConstraint, Double, ForeignKey, Index, Integer, MetaData, Text, UniqueConstraint
from sqlalchemy.dialects.sqlite import REAL
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

from head_service.control.states import STATES

Sequence = BigInteger().with_variant(Integer(), "sqlite")
Seconds: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")

_NAMES: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """All tables."""

    metadata = MetaData(naming_convention=_NAMES)


class Run(Base):
    """A training run. Who holds the lease, and *attempt* with it, is the only one who may write to a running one."""

    __tablename__ = "runs"
    __table_args__ = (
        UniqueConstraint("owner", "idempotency_key"),
        CheckConstraint(f"state in ({', '.join(repr(state) for state in STATES)})", name="state"),
        Index(None, "state", "seq"),
        Index(None, "head", "seq"),
    )

    seq: Mapped[int] = mapped_column(Sequence, primary_key=True)
    id: Mapped[str] = mapped_column(Text, unique=True)
    state: Mapped[str] = mapped_column(Text)
    head: Mapped[str] = mapped_column(Text)
    training_order: Mapped[str] = mapped_column(Text)
    """`words.TrainingOrder` as JSON."""
    owner: Mapped[str] = mapped_column(Text)
    idempotency_key: Mapped[str | None] = mapped_column(Text)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    max_attempts: Mapped[int] = mapped_column(Integer)
    not_before: Mapped[float] = mapped_column(Seconds, default=0.0)
    lease_until: Mapped[float | None] = mapped_column(Seconds)
    leased_by: Mapped[str | None] = mapped_column(Text)
    cancel_asked_at: Mapped[float | None] = mapped_column(Seconds)
    step: Mapped[str] = mapped_column(Text, default="")
    done: Mapped[int] = mapped_column(Integer, default=0)
    total: Mapped[int] = mapped_column(Integer, default=0)
    message: Mapped[str] = mapped_column(Text, default="")
    result: Mapped[str] = mapped_column(Text, default="{}")
    """`words.RunResult` as JSON."""
    created_at: Mapped[float] = mapped_column(Seconds)
    started_at: Mapped[float | None] = mapped_column(Seconds)
    finished_at: Mapped[float | None] = mapped_column(Seconds)


class RunLine(Base):
    """A line a run said. *number* counts from 0 within the run."""

    __tablename__ = "run_lines"

    run_seq: Mapped[int] = mapped_column(ForeignKey("runs.seq", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer)
    at: Mapped[float] = mapped_column(Seconds)
    line: Mapped[str] = mapped_column(Text)


class Upload(Base):
    """A file of training data that lies in the folder of uploads as ID.SUFFIX."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    owner: Mapped[str] = mapped_column(Text)
    suffix: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Seconds)


class Feedback(Base):
    """One acknowledged row. *digest* is SHA-256 of the normalised text, so that one text in two spellings is one.

    *labels*, a list as JSON, is there for a head that answers with several; *label* then has them for people, commas between.
    """

    __tablename__ = "feedback"
    __table_args__ = (
        UniqueConstraint("owner", "idempotency_key"),
        Index(None, "head", "digest", "seq"),
        Index(None, "head", "seq"),
    )

    seq: Mapped[int] = mapped_column(Sequence, primary_key=True)
    id: Mapped[str] = mapped_column(Text, unique=True)
    head: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)
    label: Mapped[str] = mapped_column(Text)
    labels: Mapped[str | None] = mapped_column(Text)
    owner: Mapped[str] = mapped_column(Text)
    idempotency_key: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Seconds)


class FeedbackDay(Base):
    """How many rows an owner gave on a day, YYYY-MM-DD in UTC."""

    __tablename__ = "feedback_days"

    owner: Mapped[str] = mapped_column(Text, primary_key=True)
    day: Mapped[str] = mapped_column(Text, primary_key=True)
    num_rows: Mapped[int] = mapped_column(Integer)
