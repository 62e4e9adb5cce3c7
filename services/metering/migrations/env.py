"""Alembic's entrance: writes the statements of revisions into a buffer.

Owns how Alembic is set up; refuses to connect to anything.
"""

from alembic import context

_attributes = context.config.attributes
_is_postgres = _attributes["dialect"] == "postgresql"
context.configure(
    dialect_name=_attributes["dialect"],
    output_buffer=_attributes["script"],
    transactional_ddl=False,  # who runs the script opens the transaction
    version_table_schema="mws_metering" if _is_postgres else None,
)
context.run_migrations()
