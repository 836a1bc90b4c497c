"""Files, jobs with their events and checkpoints, and who holds which lease."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the five tables."""
    _files()
    _jobs()
    _events()
    _checkpoints()
    _leases()


def _files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("project", sa.String(100), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("blob", sa.String(80), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("is_stored", sa.Boolean(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=True),
        sa.Column("deleted", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_files"),
    )
    op.create_index("ix_files_blob", "files", ["blob"])
    op.create_index("ix_files_page", "files", ["project", "created", "id"])


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("short", sa.String(8), nullable=False),
        sa.Column("project", sa.String(100), nullable=False),
        sa.Column("key", sa.String(12), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("idempotency_key", sa.String(255), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("training_file", sa.String(40), nullable=False),
        sa.Column("training_blob", sa.String(80), nullable=False),
        sa.Column("validation_file", sa.String(40), nullable=True),
        sa.Column("validation_blob", sa.String(80), nullable=True),
        sa.Column("run", sa.JSON(), nullable=False),
        sa.Column("space", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("gpus", sa.Double(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("wanted", sa.String(8), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("submission", sa.String(60), nullable=True),
        sa.Column("is_launched", sa.Boolean(), nullable=False),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.Column("started", sa.Double(), nullable=True),
        sa.Column("finished", sa.Double(), nullable=True),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("tuned_model", sa.Text(), nullable=True),
        sa.Column("trained_tokens", sa.BigInteger(), nullable=True),
        sa.Column("result_file", sa.String(40), nullable=True),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("seen_step", sa.BigInteger(), nullable=False),
        sa.Column("seen_eval", sa.BigInteger(), nullable=False),
        sa.Column("is_swept", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("short", name="uq_jobs_short"),
    )
    op.create_index("ix_jobs_idempotency", "jobs", ["project", "idempotency_key"], unique=True)
    op.create_index("ix_jobs_page", "jobs", ["project", "created", "id"])
    op.create_index("ix_jobs_status", "jobs", ["status"])
    op.create_index("ix_jobs_training_blob", "jobs", ["training_blob"])
    op.create_index("ix_jobs_validation_blob", "jobs", ["validation_blob"])


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("job", sa.String(40), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("type", sa.String(8), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_events_job_jobs"),
        sa.PrimaryKeyConstraint("job", "number", name="pk_events"),
    )


def _checkpoints() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("job", sa.String(40), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_checkpoints_job_jobs"),
        sa.PrimaryKeyConstraint("job", "step", name="pk_checkpoints"),
    )


def _leases() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
