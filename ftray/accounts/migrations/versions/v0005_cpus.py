"""What a job's workers need of a cluster's CPUs; until now each had one worker's."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column; jobs that wait are taken for ones of one worker with one CPU."""
    op.add_column("jobs", sa.Column("cpus", sa.Double(), nullable=False, server_default="1"))
