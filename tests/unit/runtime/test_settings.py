"""How a process reads its settings.

Owns defaults, forms and refusals; refuses to start anything.
"""

from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import Endpoints, ProcessSettings


class ProbeSettings(ProcessSettings):
    model_config = SettingsConfigDict(env_prefix="MWS_PROBE_", extra="forbid", frozen=True)

    auth_endpoints: Endpoints = ()
    """Where auth answers."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NAME": "probe-0", "PORT": "50051", "DATA_DIR": "/data"}.items():
        monkeypatch.setenv(f"MWS_PROBE_{name}", value)
    monkeypatch.delenv("MWS_TRANSPORT", raising=False)


def read() -> ProbeSettings:
    return ProbeSettings()


def test_neighbouring_ports_and_folders_follow_from_the_first() -> None:
    settings = read()
    assert (settings.link_port, settings.metrics_port) == (50151, 50251)
    assert (settings.secrets_dir, settings.transport) == (Path("/data/secrets"), "link")


def test_any_free_port_means_any_free_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MWS_PROBE_PORT", "0")
    assert (read().link_port, read().metrics_port) == (0, 0)


def test_the_transport_is_one_variable_for_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MWS_TRANSPORT", "grpc")
    assert read().transport == "grpc"


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        pytest.param("10.0.0.1:1", ("10.0.0.1:1",), id="one"),
        pytest.param("a:1, b:2,", ("a:1", "b:2"), id="commas"),
        pytest.param('["a:1", "dns:auth:2"]', ("a:1", "dns:auth:2"), id="JSON"),
        pytest.param("", (), id="none"),
    ],
)
def test_endpoints_are_a_list(monkeypatch: pytest.MonkeyPatch, text: str, endpoints: tuple[str, ...]) -> None:
    monkeypatch.setenv("MWS_PROBE_AUTH_ENDPOINTS", text)
    assert read().auth_endpoints == endpoints


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("AUTH_ENDPOINTS", "auth", id="an endpoint without a port"),
        pytest.param("AUTH_ENDPOINTS", '["a:1"', id="broken JSON"),
        pytest.param("PORT", "70000", id="a port that is none"),
        pytest.param("LOG_LEVEL", "loud", id="an unknown level"),
        pytest.param("DRAIN_S", "-1", id="a negative time"),
    ],
)
def test_a_bad_value_ends_the_start_with_its_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"MWS_PROBE_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        read()


def test_a_refusal_does_not_print_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MWS_PROBE_DRAIN_S", "mws_live_pasted_into_the_wrong_field")
    with pytest.raises(ValidationError) as refused:
        read()
    assert "mws_live" not in str(refused.value)


def test_a_missing_value_ends_the_start_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MWS_PROBE_DATA_DIR")
    with pytest.raises(ValidationError, match="data_dir"):
        read()


def test_an_unknown_field_and_a_later_change_are_refused() -> None:
    with pytest.raises(ValidationError):
        ProbeSettings(colour="red")  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        read().port = 1  # type: ignore[misc]


def test_every_field_says_what_it_is() -> None:
    assert all(field.description for field in ProbeSettings.model_fields.values())
