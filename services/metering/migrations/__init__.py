"""The ledger's schema over time: Alembic revisions for both stores, written as text for the store's own driver.

Owns which revisions there are and which of them this release serves; refuses to open a database.
"""

import functools
import io
from pathlib import Path

HEAD = "0004"
SERVED = frozenset({"0004"})
"""Revisions that this release can serve. A revision first expands (old and new code run on it) and ships one release
before the code that needs it; what nothing uses any more is contracted one release later."""


class UnknownSchemaError(Exception):
    """The database is not a ledger of a version that this code knows."""


_UPGRADED = frozenset({"0001", "0002", "0003"})
"""Revisions that this release brings to `HEAD` when it starts."""


def check_known(revision: str, where: str) -> None:
    """Raises UnknownSchemaError unless this release serves a database of this revision, or can bring it there."""
    if revision not in SERVED | _UPGRADED:
        served = ", ".join(sorted(SERVED))
        raise UnknownSchemaError(f"{where} has schema version {revision}; this release serves {served} only")


@functools.cache
def upgrade_script(dialect: str, from_revision: str | None) -> str:
    """The statements that bring a database from a revision (None: empty) to `HEAD`, version table included."""
    from alembic import command  # takes a moment, and most starts need no migration
    from alembic.config import Config

    script = io.StringIO()
    config = Config(attributes={"dialect": dialect, "script": script})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    command.upgrade(config, f"{from_revision}:{HEAD}" if from_revision else HEAD, sql=True)
    return script.getvalue().replace("%%", "%")  # doubled for drivers that take parameters in this form
