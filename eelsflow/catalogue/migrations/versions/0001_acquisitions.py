"""Acquisitions, what happened to them, and settings."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "acquisitions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("path", sa.Text, nullable=False, unique=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("unchanged_since", sa.Float, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("sha256", sa.String(64)),
        sa.Column("reason", sa.Text),
        sa.Column("alias_of", sa.Text),
        sa.Column("map", sa.Text),
        sa.Column("model", sa.String(64)),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("losses", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("lease_until", sa.Float, nullable=False),
        sa.Column("first_seen", sa.Float, nullable=False),
        sa.Column("changed", sa.Float, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
    )
    for column in ("state", "sha256", "owner"):
        op.create_index(f"ix_acquisitions_{column}", "acquisitions", [column])
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("acquisition", sa.Integer, sa.ForeignKey("acquisitions.id"), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("note", sa.Text),
    )
    op.create_index("ix_events_acquisition", "events", ["acquisition"])
    op.create_table(
        "settings",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Drop them."""
    for name in ("settings", "events", "acquisitions"):
        op.drop_table(name)
