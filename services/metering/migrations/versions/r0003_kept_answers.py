"""The answers of calls under idempotency keys, for a day.

Owns this step of the schema in both dialects; only adds, so the code before it runs on it.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

_WRITER = "mws_metering_writer"

_SQLITE = (
    """
CREATE TABLE kept_answers (
    account_id TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    call_id TEXT NOT NULL,
    body_sha256 BLOB NOT NULL,
    form TEXT NOT NULL,
    message BLOB NOT NULL,
    kept_until_us INTEGER NOT NULL,
    UNIQUE (account_id, idempotency_key)
) STRICT""",
    "CREATE INDEX kept_answers_by_end ON kept_answers (kept_until_us)",
)

_POSTGRES = (
    """
CREATE TABLE kept_answers (
    account_id text NOT NULL,
    idempotency_key text NOT NULL,
    call_id uuid NOT NULL,
    body_sha256 bytea NOT NULL,
    form text NOT NULL,
    message bytea NOT NULL,
    kept_until_us bigint NOT NULL,
    UNIQUE (account_id, idempotency_key)
)""",
    "CREATE INDEX kept_answers_by_end ON kept_answers (kept_until_us)",
    f"GRANT SELECT, INSERT, UPDATE, DELETE ON kept_answers TO {_WRITER}",
)


def upgrade() -> None:
    for statement in _POSTGRES if op.get_context().dialect.name == "postgresql" else _SQLITE:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("a ledger only goes forward")
