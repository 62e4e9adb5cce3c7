"""The tables of accounts, keys, teams and the audit log, as this program knows them.

Owns their shape for queries; refuses to make or change them: that is what `migrations` does.
"""

import sqlalchemy as sa

metadata = sa.MetaData()

accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, index=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("requests_per_minute", sa.BigInteger),
    sa.Column("tokens_per_minute", sa.BigInteger),
    sa.Column("concurrent_calls", sa.BigInteger),
    sa.Column("suspended", sa.Boolean, nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False, unique=True),
    sa.Column("request_sha256", sa.LargeBinary, nullable=False),
    sa.Column("closed_at_ms", sa.BigInteger),
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="0", index=True),  # of its last change
)

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.Text, sa.ForeignKey("accounts.account_id"), nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("prefix", sa.Text, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),  # HMAC of the key's SHA-256 under the pepper
    sa.Column("requests_per_minute", sa.BigInteger),
    sa.Column("tokens_per_minute", sa.BigInteger),
    sa.Column("expires_at_ms", sa.BigInteger),
    sa.Column("revoked_at_ms", sa.BigInteger),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("request_id", sa.Text),
    sa.Column("request_sha256", sa.LargeBinary),
    sa.Column("last_used_at_ms", sa.BigInteger),
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="0", index=True),
    sa.Index("ix_keys_request", "account_id", "request_id", unique=True),
)

teams = sa.Table(
    "teams",
    metadata,
    sa.Column("team_id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.Text, sa.ForeignKey("accounts.account_id"), nullable=False, index=True),
    sa.Column("issuer", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("issuer", "subject"),
)

audit_events = sa.Table(
    "audit_events",
    metadata,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("account_id", sa.Text, nullable=False, index=True),
    sa.Column("resource_id", sa.Text, nullable=False),
    sa.Column("changes", sa.Text, nullable=False),  # a JSON object
    # Numbers of changes, without gaps in the order of commits: what happened since a revision is what is above it.
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="0", index=True),
)
