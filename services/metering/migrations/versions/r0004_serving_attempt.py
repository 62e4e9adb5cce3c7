"""The attempt that served, on the entry itself.

Owns this step of the schema in both dialects; only adds, so the code before it runs on it.
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    integer = "integer" if op.get_context().dialect.name == "postgresql" else "INTEGER"
    # 0: no call, or an entry from before this step. A constant default: no row is written again.
    op.execute(f"ALTER TABLE transfers ADD COLUMN attempt {integer} NOT NULL DEFAULT 0")


def downgrade() -> None:
    raise NotImplementedError("a ledger only goes forward")
