"""Numbered changes that replicas follow, closed accounts, repeatable key requests, last uses that outlive a restart.

Owns an expansion: programs that know 0001 alone go on working beside newer ones.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_POSTGRESQL = (
    """
    CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $body$
    BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $body$
    """,
    """
    CREATE TRIGGER audit_events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()
    """,
    # Whoever writes a change tells every replica: no program can forget to.
    """
    CREATE FUNCTION tell_replicas() RETURNS trigger LANGUAGE plpgsql AS $body$
    BEGIN PERFORM pg_notify('mws_auth_changed', NEW.revision::text); RETURN NULL; END $body$
    """,
    """
    CREATE TRIGGER audit_events_tell AFTER INSERT ON audit_events
    FOR EACH ROW EXECUTE FUNCTION tell_replicas()
    """,
)


def upgrade() -> None:
    """Adds columns, indexes and, on PostgreSQL, what tells replicas."""
    for table in ("accounts", "keys", "audit_events"):
        op.add_column(table, sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"))
        op.create_index(f"ix_{table}_revision", table, ["revision"])
    op.add_column("accounts", sa.Column("closed_at_ms", sa.BigInteger))
    op.add_column("keys", sa.Column("request_id", sa.Text))
    op.add_column("keys", sa.Column("request_sha256", sa.LargeBinary))
    op.add_column("keys", sa.Column("last_used_at_ms", sa.BigInteger))
    op.create_index("ix_keys_request", "keys", ["account_id", "request_id"], unique=True)
    # The oldest program that still works on this schema: a step that contracts raises it.
    served = op.create_table("schema_compatibility", sa.Column("oldest_program", sa.Text, primary_key=True))
    op.bulk_insert(served, [{"oldest_program": "0001"}])
    if op.get_context().dialect.name == "postgresql":
        for statement in _POSTGRESQL:
            op.execute(statement)
