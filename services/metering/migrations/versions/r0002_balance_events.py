"""Corrections by what they correct, and the moments at which a balance fell below a threshold.

Owns this step of the schema in both dialects; only adds, so the code before it runs on it.
"""

from alembic import op

revision = "0002"
down_revision = "0001"

_WRITER = "mws_metering_writer"

# No charge has a reference, so the index costs a call nothing.
_BOTH = ("CREATE INDEX transfers_by_reference ON transfers (reference) WHERE reference IS NOT NULL",)

_SQLITE = (
    """
CREATE TABLE balance_events (
    id INTEGER PRIMARY KEY,
    account_id TEXT NOT NULL,
    threshold_nano_usd INTEGER NOT NULL,
    balance_nano_usd INTEGER NOT NULL,
    occurred_at_us INTEGER NOT NULL
) STRICT""",
    "CREATE INDEX balance_events_by_account ON balance_events (account_id, occurred_at_us)",
    "CREATE TABLE unannounced_balance_events (id INTEGER PRIMARY KEY) STRICT",
    *(
        f"CREATE TRIGGER balance_events_no_{verb.lower()} BEFORE {verb} ON balance_events "
        "BEGIN SELECT RAISE(ABORT, 'balance_events is append-only'); END"
        for verb in ("UPDATE", "DELETE")
    ),
)

_POSTGRES = (
    """
CREATE TABLE balance_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id text NOT NULL,
    threshold_nano_usd bigint NOT NULL,
    balance_nano_usd bigint NOT NULL,
    occurred_at_us bigint NOT NULL
)""",
    "CREATE INDEX balance_events_by_account ON balance_events (account_id, occurred_at_us, id)",
    "CREATE TABLE unannounced_balance_events (id bigint PRIMARY KEY)",
    "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON balance_events FOR EACH ROW"
    " EXECUTE FUNCTION refuse_change()",
    "CREATE TRIGGER never_truncated BEFORE TRUNCATE ON balance_events EXECUTE FUNCTION refuse_change()",
    f"GRANT SELECT, INSERT ON balance_events TO {_WRITER}",
    f"GRANT SELECT, INSERT, DELETE ON unannounced_balance_events TO {_WRITER}",
)


def upgrade() -> None:
    is_postgres = op.get_context().dialect.name == "postgresql"
    for statement in (*_BOTH, *(_POSTGRES if is_postgres else _SQLITE)):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("a ledger only goes forward")
