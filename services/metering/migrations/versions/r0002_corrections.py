"""Corrections by what they correct, and the crossings of balance thresholds.

Owns what this step adds, all of it new: code of the step before runs on it; refuses to be changed once released.
"""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for statement in _POSTGRES if op.get_context().dialect.name == "postgresql" else _SQLITE:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("a ledger only goes forward")


# No charge has a reference, so this index costs a call nothing.
_REFERENCES = "CREATE INDEX transfers_by_reference ON transfers (reference) WHERE reference IS NOT NULL"

_SQLITE = (
    _REFERENCES,
    # A balance fell below a threshold.
    """
CREATE TABLE balance_events (
    id INTEGER PRIMARY KEY,
    account_id TEXT NOT NULL,
    threshold_nano_usd INTEGER NOT NULL,
    balance_nano_usd INTEGER NOT NULL,
    occurred_at_us INTEGER NOT NULL
) STRICT""",
    "CREATE INDEX balance_events_by_account ON balance_events (account_id, occurred_at_us)",
    # The events that nobody has been told of yet.
    "CREATE TABLE unannounced_balance_events (id INTEGER PRIMARY KEY) STRICT",
    *(
        f"CREATE TRIGGER balance_events_no_{verb.lower()} BEFORE {verb} ON balance_events "
        "BEGIN SELECT RAISE(ABORT, 'balance_events is append-only'); END"
        for verb in ("UPDATE", "DELETE")
    ),
)

_POSTGRES = (
    _REFERENCES,
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
    "GRANT SELECT, INSERT ON balance_events TO mws_metering_writer",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON unannounced_balance_events TO mws_metering_writer",
    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA mws_metering TO mws_metering_writer",
)
