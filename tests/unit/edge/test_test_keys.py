"""Fixed texts that suites send as keys: taken for a key only where a setting says so, and shown nowhere."""

import hashlib
from typing import Any

import pytest

from edge.exchange import Exchange
from edge.gate import Gate, GateRules, stand_ins
from edge.settings import Settings

REAL = "mws_live_real"


def _exchange(key: str) -> Exchange:
    async def nothing(*_: Any) -> Any:
        raise AssertionError

    scope = {"headers": [(b"authorization", f"Bearer {key}".encode())], "client": ("10.0.0.1", 1)}
    return Exchange(scope, nothing, nothing, "id", 0.0)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


@pytest.mark.parametrize(
    ("test_keys", "meant"),
    [
        pytest.param({}, "My API Key", id="none unless set"),
        pytest.param({"My API Key": REAL}, REAL, id="one that is set"),
        pytest.param({"another": REAL}, "My API Key", id="not the one that is set"),
    ],
)
def test_a_text_stands_for_a_key_only_where_it_is_set(test_keys: dict[str, str], meant: str) -> None:
    gate = Gate(GateRules(120, 3.0, 600.0, (), stand_ins=stand_ins(test_keys)), lambda: 0.0)
    assert gate.admit(_exchange("My API Key")) == _digest(meant)


def test_the_key_behind_a_test_key_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MWS_EDGE_TEST_KEYS", f'{{"My API Key": "{REAL}"}}')
    for name in ("AUTH", "INFERENCE"):
        monkeypatch.setenv(f"MWS_EDGE_{name}_ENDPOINTS", "127.0.0.1:1")
    settings = Settings(secrets_dir="s", data_dir="d")

    assert settings.test_keys["My API Key"].get_secret_value() == REAL
    assert REAL not in repr(settings)
    assert REAL not in settings.model_dump_json()
