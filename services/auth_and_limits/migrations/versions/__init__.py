"""The steps, oldest first: `revision_0001`, `revision_0002`, …

Owns nothing itself; Alembic finds the steps by their own `revision` and `down_revision`.
"""
