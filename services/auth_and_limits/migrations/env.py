"""What Alembic runs to apply steps: on a connection that it is given, or as SQL text for a driver that Alembic lacks.

Owns nothing but that choice; refuses to read settings and to connect.
"""

from alembic import context

connection = context.config.attributes.get("connection")
if connection is None:
    context.configure(dialect_name="postgresql", literal_binds=True)
else:
    context.configure(connection=connection)
with context.begin_transaction():
    context.run_migrations()
