"""The ledger: append-only records, and projections that the same transactions change.

Owns the first form of the schema in both dialects; refuses to be changed once released.
"""

from alembic import op

revision = "0001"
down_revision = None

_APPEND_ONLY = ("price_books", "usage_events", "transfers", "grants", "void_markers", "rejected_events")
_PROJECTIONS = ("balances", "promotions", "acknowledged")
_WRITER = "mws_metering_writer"
_USAGE_CLASSES = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "search_units",
)


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        statements = [*_POSTGRES, *_postgres_append_only(), *_postgres_permissions()]
    else:
        statements = [*_SQLITE, *_sqlite_append_only()]
    for statement in statements:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("a ledger only goes forward")


def _usage_columns(prefix: str, integer: str) -> str:
    return ", ".join(f"{prefix}_{name} {integer} CHECK ({prefix}_{name} >= 0)" for name in _USAGE_CLASSES)


_SQLITE = (
    """
CREATE TABLE price_books (
    version TEXT PRIMARY KEY,
    canonical_json TEXT NOT NULL,
    registered_at_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID""",
    f"""
CREATE TABLE usage_events (
    id INTEGER PRIMARY KEY,
    call_id TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    application TEXT NOT NULL,
    operation TEXT NOT NULL,
    profile TEXT NOT NULL,
    requested_model TEXT NOT NULL,
    upstream TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    price_book_version TEXT NOT NULL,
    ending INTEGER NOT NULL,
    {_usage_columns("reported", "INTEGER")},
    {_usage_columns("delivered", "INTEGER")},
    upstream_accepted INTEGER NOT NULL,
    held_nano_usd INTEGER NOT NULL,
    started_at_us INTEGER NOT NULL,
    ended_at_us INTEGER NOT NULL,
    rule TEXT NOT NULL,
    {_usage_columns("charged", "INTEGER")},
    charged_nano_usd INTEGER NOT NULL CHECK (charged_nano_usd >= 0),
    flags TEXT NOT NULL,
    recorded_at_us INTEGER NOT NULL
) STRICT""",
    "CREATE INDEX usage_events_by_account ON usage_events (account_id, recorded_at_us)",
    """
CREATE TABLE transfers (
    id INTEGER PRIMARY KEY,
    transfer_id TEXT NOT NULL UNIQUE,
    debit TEXT NOT NULL,
    credit TEXT NOT NULL,
    amount_nano_usd INTEGER NOT NULL CHECK (amount_nano_usd > 0),
    call_id TEXT,
    rule TEXT NOT NULL,
    flags TEXT NOT NULL,
    reference TEXT,
    posted_at_us INTEGER NOT NULL,
    -- One side of every transfer is a customer.
    customer TEXT GENERATED ALWAYS AS (CASE WHEN debit GLOB 'customer:*' THEN debit ELSE credit END) VIRTUAL,
    CHECK (debit <> credit)
) STRICT""",
    "CREATE UNIQUE INDEX transfers_once_per_call ON transfers (call_id) WHERE call_id IS NOT NULL",
    "CREATE INDEX transfers_by_customer ON transfers (customer, posted_at_us)",
    """
CREATE TABLE grants (
    account_id TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    kind TEXT NOT NULL,
    expires_at_us INTEGER,
    balance_nano_usd INTEGER NOT NULL,
    transfer_id TEXT NOT NULL UNIQUE,
    PRIMARY KEY (account_id, idempotency_key)
) STRICT, WITHOUT ROWID""",
    """
CREATE TABLE void_markers (
    call_id TEXT PRIMARY KEY,
    marked_at_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID""",
    """
CREATE TABLE rejected_events (
    sha256 BLOB PRIMARY KEY,
    call_id TEXT NOT NULL,
    detail TEXT NOT NULL,
    event_json TEXT NOT NULL,
    rejected_at_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID""",
    # Projections: recomputable from the tables above, updated in the same transaction.
    """
CREATE TABLE balances (
    account TEXT PRIMARY KEY,
    balance_nano_usd INTEGER NOT NULL,
    lifetime_paid_nano_usd INTEGER NOT NULL DEFAULT 0,
    promotional_nano_usd INTEGER NOT NULL DEFAULT 0,
    seq INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID""",
    """
CREATE TABLE promotions (
    grant_id TEXT PRIMARY KEY,
    account_id TEXT NOT NULL,
    expires_at_us INTEGER,
    remaining_nano_usd INTEGER NOT NULL
) STRICT, WITHOUT ROWID""",
    "CREATE INDEX promotions_left ON promotions (account_id) WHERE remaining_nano_usd > 0",
    "CREATE INDEX promotions_due ON promotions (expires_at_us)"
    " WHERE remaining_nano_usd > 0 AND expires_at_us IS NOT NULL",
    # What auth-and-limits has not acknowledged yet. AUTOINCREMENT: a row id is never used again.
    """
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    balance_nano_usd INTEGER NOT NULL,
    lifetime_paid_nano_usd INTEGER NOT NULL,
    closed_call_ids TEXT NOT NULL
) STRICT""",
    """
CREATE TABLE acknowledged (
    account_id TEXT PRIMARY KEY,
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID""",
)


def _sqlite_append_only() -> list[str]:
    return [
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for table in _APPEND_ONLY
        for verb in ("UPDATE", "DELETE")
    ]


_POSTGRES = (
    """
CREATE TABLE price_books (
    version text PRIMARY KEY,
    canonical_json text NOT NULL,
    registered_at_us bigint NOT NULL
)""",
    "CREATE SEQUENCE usage_events_id",
    # UUIDv7 ids grow with time, so a range of ids is a month; an id of no known month goes to the default partition.
    f"""
CREATE TABLE usage_events (
    id bigint NOT NULL DEFAULT nextval('usage_events_id'),
    call_id uuid PRIMARY KEY,
    account_id text NOT NULL,
    key_id text NOT NULL,
    application text NOT NULL,
    operation text NOT NULL,
    profile text NOT NULL,
    requested_model text NOT NULL,
    upstream text NOT NULL,
    attempt integer NOT NULL,
    price_book_version text NOT NULL,
    ending smallint NOT NULL,
    {_usage_columns("reported", "bigint")},
    {_usage_columns("delivered", "bigint")},
    upstream_accepted boolean NOT NULL,
    held_nano_usd bigint NOT NULL,
    started_at_us bigint NOT NULL,
    ended_at_us bigint NOT NULL,
    rule text NOT NULL,
    {_usage_columns("charged", "bigint")},
    charged_nano_usd bigint NOT NULL CHECK (charged_nano_usd >= 0),
    flags text NOT NULL,
    recorded_at_us bigint NOT NULL
) PARTITION BY RANGE (call_id)""",
    "CREATE INDEX usage_events_by_account ON usage_events (account_id, recorded_at_us, id)",
    "CREATE TABLE usage_events_default PARTITION OF usage_events DEFAULT",
    """
CREATE TABLE transfers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transfer_id uuid NOT NULL UNIQUE,
    debit text NOT NULL,
    credit text NOT NULL,
    amount_nano_usd bigint NOT NULL CHECK (amount_nano_usd > 0),
    call_id uuid,
    rule text NOT NULL,
    flags text NOT NULL,
    reference text,
    posted_at_us bigint NOT NULL,
    -- One side of every transfer is a customer.
    customer text GENERATED ALWAYS AS (CASE WHEN debit LIKE 'customer:%' THEN debit ELSE credit END) STORED,
    CHECK (debit <> credit)
)""",
    "CREATE UNIQUE INDEX transfers_once_per_call ON transfers (call_id) WHERE call_id IS NOT NULL",
    "CREATE INDEX transfers_by_customer ON transfers (customer, posted_at_us, id)",
    """
CREATE TABLE grants (
    account_id text NOT NULL,
    idempotency_key text NOT NULL,
    kind text NOT NULL,
    expires_at_us bigint,
    balance_nano_usd bigint NOT NULL,
    transfer_id uuid NOT NULL UNIQUE,
    PRIMARY KEY (account_id, idempotency_key)
)""",
    "CREATE TABLE void_markers (call_id uuid PRIMARY KEY, marked_at_us bigint NOT NULL)",
    """
CREATE TABLE rejected_events (
    sha256 bytea PRIMARY KEY,
    call_id text NOT NULL,
    detail text NOT NULL,
    event_json text NOT NULL,
    rejected_at_us bigint NOT NULL
)""",
    # Projections. The other side of transfers is shared by all customers: a row per shard lets replicas post at once.
    """
CREATE TABLE balances (
    account text NOT NULL,
    shard smallint NOT NULL DEFAULT 0,
    balance_nano_usd bigint NOT NULL DEFAULT 0,
    lifetime_paid_nano_usd bigint NOT NULL DEFAULT 0,
    promotional_nano_usd bigint NOT NULL DEFAULT 0,
    seq bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (account, shard),
    CHECK (shard = 0 OR account NOT LIKE 'customer:%')
) WITH (fillfactor = 50)""",
    """
CREATE TABLE promotions (
    grant_id uuid PRIMARY KEY,
    account_id text NOT NULL,
    expires_at_us bigint,
    remaining_nano_usd bigint NOT NULL
) WITH (fillfactor = 70)""",
    "CREATE INDEX promotions_left ON promotions (account_id) WHERE remaining_nano_usd > 0",
    "CREATE INDEX promotions_due ON promotions (expires_at_us)"
    " WHERE remaining_nano_usd > 0 AND expires_at_us IS NOT NULL",
    """
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id text NOT NULL,
    seq bigint NOT NULL,
    balance_nano_usd bigint NOT NULL,
    lifetime_paid_nano_usd bigint NOT NULL,
    closed_call_ids text NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000)""",
    "CREATE INDEX outbox_by_account ON outbox (account_id)",
    "CREATE TABLE acknowledged (account_id text PRIMARY KEY, seq bigint NOT NULL) WITH (fillfactor = 50)",
    # Runs as the owner, so that the role that posts needs no right to make tables.
    """
CREATE FUNCTION add_usage_month(month date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = mws_metering, pg_temp AS $function$
DECLARE
    partition text := 'usage_events_' || to_char(month, 'YYYY_MM');
    low uuid := first_uuid7_of(month);
    high uuid := first_uuid7_of((month + interval '1 month')::date);
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('mws_metering.add_usage_month'));
    IF to_regclass(partition) IS NOT NULL
        OR EXISTS (SELECT FROM usage_events_default WHERE call_id >= low AND call_id < high) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I PARTITION OF usage_events FOR VALUES FROM (%L) TO (%L)', partition, low, high);
    EXECUTE format('CREATE TRIGGER never_truncated BEFORE TRUNCATE ON %I EXECUTE FUNCTION refuse_change()', partition);
    RETURN true;
END $function$""",
)


def _postgres_append_only() -> list[str]:
    return [
        """
CREATE FUNCTION first_uuid7_of(month date) RETURNS uuid LANGUAGE sql IMMUTABLE AS $function$
    SELECT (lpad(to_hex((extract(epoch FROM month::timestamp) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$function$""",
        """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $function$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
END $function$""",
        *(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW"
            " EXECUTE FUNCTION refuse_change()"
            for table in _APPEND_ONLY
        ),
        *(
            f"CREATE TRIGGER never_truncated BEFORE TRUNCATE ON {table} EXECUTE FUNCTION refuse_change()"
            for table in (*_APPEND_ONLY, "usage_events_default")
        ),
    ]


def _postgres_permissions() -> list[str]:
    """The service works as a role that can append to records and change nothing of them."""
    return [
        f"""
DO $do$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{_WRITER}') THEN
        CREATE ROLE {_WRITER} NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $do$""",
        f"""
DO $do$ BEGIN
    IF NOT pg_has_role(current_user, '{_WRITER}', 'MEMBER') THEN
        EXECUTE format('GRANT {_WRITER} TO %I', current_user);
    END IF;
END $do$""",
        f"GRANT USAGE ON SCHEMA mws_metering TO {_WRITER}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA mws_metering TO {_WRITER}",
        f"GRANT INSERT ON {', '.join(_APPEND_ONLY)} TO {_WRITER}",
        f"GRANT INSERT, UPDATE ON {', '.join(_PROJECTIONS)} TO {_WRITER}",
        f"GRANT INSERT, UPDATE, DELETE ON outbox TO {_WRITER}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA mws_metering TO {_WRITER}",
        "REVOKE EXECUTE ON FUNCTION add_usage_month(date) FROM PUBLIC",
        f"GRANT EXECUTE ON FUNCTION add_usage_month(date) TO {_WRITER}",
    ]
