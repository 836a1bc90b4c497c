"""What a job's run and models take of its project's share of the storage; null: not measured."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column; the jobs that there are will be measured."""
    op.add_column("jobs", sa.Column("stored_bytes", sa.BigInteger(), nullable=True))
    # also what requests sum up: neither they nor the controller then read the rows themselves
    op.create_index("ix_jobs_stored", "jobs", ["project", "stored_bytes"])
    op.create_index("ix_jobs_submission", "jobs", ["submission", "stored_bytes"])
