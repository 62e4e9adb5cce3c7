"""`mws key`: API keys of accounts, from the one showing of their text to their end.

Owns the commands' options and their output; every rule is the service's.
"""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from mws.admission.v1 import key_service_pb2 as key_pb

from services.cli.admin import AccountOption, Admin, admin_command, call, every

app = typer.Typer(help="API keys of accounts.", no_args_is_help=True)

KeyOption = Annotated[str, typer.Option("--key", help="The key's id.")]


@admin_command(app, "create")
def create_key(
    admin: Admin,
    account: AccountOption,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    rpm: Annotated[int | None, typer.Option(help="Requests per minute of this key.")] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens per minute of this key.")] = None,
    expires_at: Annotated[datetime | None, typer.Option(help="When it stops working, in UTC.")] = None,
    request_id: Annotated[str, typer.Option(help="UUIDv7 that makes the command repeatable.")] = "",
) -> None:
    """Make a key and show it, this once."""
    throttle = key_pb.KeyThrottle(requests_per_minute=rpm, tokens_per_minute=tpm)
    account_id = admin.account_id(account)
    request = key_pb.CreateKeyRequest(account_id=account_id, name=name, throttle=throttle, request_id=request_id)
    _set_expiry(request, expires_at)
    made = call(admin.keys.CreateKey, request)
    admin.report.record(
        "Key created; it is shown this once",
        {"key_id": made.key.key_id, "api_key": made.api_key or None, "account_id": made.key.account_id},
    )


@admin_command(app, "list")
def list_keys(admin: Admin, account: AccountOption) -> None:
    """List an account's keys, revoked ones included."""
    request = key_pb.ListKeysRequest(account_id=admin.account_id(account))
    rows = [_key_row(key) for key in every(admin.keys.ListKeys, request, "keys")]
    admin.report.rows(
        "keys", ["key_id", "name", "prefix", "state", "throttle_rpm", "throttle_tpm", "last_used_at"], rows
    )


@admin_command(app, "revoke")
def revoke_key(admin: Admin, key_id: KeyOption) -> None:
    """End a key for ever, everywhere, at its next use."""
    key = call(admin.keys.RevokeKey, key_pb.RevokeKeyRequest(key_id=key_id)).key
    admin.report.record("Key revoked", _key_row(key))


@admin_command(app, "throttle")
def throttle_key(
    admin: Admin,
    key_id: KeyOption,
    rpm: Annotated[int | None, typer.Option(help="Requests per minute; leave out for none of its own.")] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens per minute; leave out for none of its own.")] = None,
) -> None:
    """Set a key's own ceilings; without --rpm and --tpm, remove them."""
    throttle = key_pb.KeyThrottle(requests_per_minute=rpm, tokens_per_minute=tpm)
    _update(admin, "Key throttled", key_pb.Key(key_id=key_id, throttle=throttle), "throttle")


@admin_command(app, "rename")
def rename_key(admin: Admin, key_id: KeyOption, name: Annotated[str, typer.Option(help="For people.")]) -> None:
    """Give a key another name."""
    _update(admin, "Key renamed", key_pb.Key(key_id=key_id, name=name), "name")


@admin_command(app, "expire")
def expire_key(
    admin: Admin,
    key_id: KeyOption,
    at: Annotated[datetime | None, typer.Option(help="When it stops working, in UTC.")] = None,
    never: Annotated[bool, typer.Option("--never", help="Take the end away.")] = False,
) -> None:
    """Set when a key stops working; without --at, now."""
    key = key_pb.Key(key_id=key_id)
    _set_expiry(key, None if never else at or datetime.now(UTC))
    _update(admin, "Key's end set", key, "expires_at")


def _update(admin: Admin, title: str, key: key_pb.Key, path: str) -> None:
    request = key_pb.UpdateKeyRequest(key=key)
    request.update_mask.paths.append(path)
    admin.report.record(title, _key_row(call(admin.keys.UpdateKey, request).key))


def _set_expiry(message: Any, at: datetime | None) -> None:
    if at is not None:
        message.expires_at.FromDatetime(at.replace(tzinfo=at.tzinfo or UTC))


def _state(key: key_pb.Key) -> str:
    if key.HasField("revoked_at"):
        return "revoked"
    is_expired = key.HasField("expires_at") and key.expires_at.ToDatetime(UTC) <= datetime.now(UTC)
    return "expired" if is_expired else "active"


def _key_row(key: key_pb.Key) -> dict[str, str | int | None]:
    own = key.throttle
    return {
        "key_id": key.key_id,
        "account_id": key.account_id,
        "name": key.name,
        "prefix": key.prefix,
        "state": _state(key),
        "throttle_rpm": own.requests_per_minute if own.HasField("requests_per_minute") else None,
        "throttle_tpm": own.tokens_per_minute if own.HasField("tokens_per_minute") else None,
        "created_at": key.created_at.ToJsonString(),
        "expires_at": key.expires_at.ToJsonString() if key.HasField("expires_at") else None,
        "last_used_at": key.last_used_at.ToJsonString() if key.HasField("last_used_at") else None,
    }
