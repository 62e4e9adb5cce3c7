"""What carries a secret shows none of it, whoever prints it.

Owns the text forms of values; what a running gateway writes is searched in `tests/e2e/test_teams.py`.
"""

import ast
from pathlib import Path

import pytest

from services.auth_and_limits.admission import Credential
from services.auth_and_limits.settings import Settings
from services.runtime.calls import Caller, CallerClass

SECRET = "correct-horse"
AUTH = Path(__file__).resolve().parents[3] / "services" / "auth_and_limits"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(Credential(key_digest=SECRET.encode()), id="a key's digest"),
        pytest.param(Credential(access_token=SECRET), id="an access token"),
        pytest.param(Credential(staff_token=SECRET), id="a staff token"),
        pytest.param(Caller(CallerClass.TEAM, "id", "account", SECRET.encode()), id="a caller with a key"),
        pytest.param(
            Settings(
                name="auth-0",
                port=0,
                data_dir=Path("data"),
                metering_endpoints=("127.0.0.1:1",),
                postgres_url=f"postgresql://u:{SECRET}@host/name",
                redis_url=f"redis://:{SECRET}@host/0",
            ),
            id="addresses with passwords",
        ),
    ],
)
def test_a_value_shows_no_secret(value: object) -> None:
    for text in (repr(value), str(value), f"{value}", repr([value])):
        assert SECRET not in text


def test_no_statement_is_put_together_from_values() -> None:
    """A text of SQL is a literal: nothing is formatted, added or joined into it where it is run."""
    built = []
    for path in [*AUTH.glob("*.py"), *(AUTH / "adapters").glob("sql_*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            runs_sql = name in {"text", "execute", "executescript", "fetch", "fetchval", "fetchrow"}
            if runs_sql and isinstance(node.args[0], ast.JoinedStr | ast.BinOp):
                built.append(f"{path.name}:{node.lineno}")
    assert built == []
