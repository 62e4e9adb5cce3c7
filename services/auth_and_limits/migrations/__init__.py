"""The history of the accounts' schema, as Alembic runs it.

Owns one module per step below `versions`; a step only expands, or contracts what no running program uses any more.
"""
