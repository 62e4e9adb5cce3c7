"""`KeyService` as its callers see it.

Owns that a key's text is shown once, that a change acts at the next decision, and who may make and touch keys.
"""

import time
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from mws.admission.v1 import key_service_pb2 as key_pb

from services.runtime.calls import CallerClass
from services.runtime.errors import (
    AlreadyExistsError,
    CallerNotAllowedError,
    ForeignAccountError,
    InvalidCredentialError,
    InvalidRequestError,
    KeysNotUnlockedError,
    NotFoundError,
)
from services.runtime.ids import new_id
from tests.rpc.auth_and_limits.asking import USD, admin, audit, pages, update_key
from tests.rpc.auth_and_limits.serving import TIMEOUT_S, Running, by_key, serving


async def test_a_key_shows_its_text_once_and_works_at_once(running: Running) -> None:
    account_id = await running.new_account()
    key_id, text = await running.new_key(account_id, name="ci")

    assert (await running.limits(by_key(text))).key_id == key_id
    request = key_pb.ListKeysRequest(account_id=account_id)
    (key,) = (await (await admin(running)).keys.ListKeys(request, timeout=TIMEOUT_S)).keys
    assert (key.name, key.prefix, key.last_used_at.seconds % 60) == ("ci", text[:13], 0)
    assert text not in str(key)
    assert text not in str(await audit(running))


async def test_a_key_that_was_tried_before_it_existed_works_at_once(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    account_id = await running.new_account()
    text = "mws_live_" + "a" * 42
    with pytest.raises(InvalidCredentialError):
        await running.limits(by_key(text))
    monkeypatch.setattr("services.auth_and_limits.api_keys.mint", lambda _: text)

    key_id, _ = await running.new_key(account_id)

    assert (await running.limits(by_key(text))).key_id == key_id


async def test_a_revoked_key_is_refused_at_once_and_for_ever(running: Running) -> None:
    account_id = await running.new_account()
    key_id, text = await running.new_key(account_id)
    await running.limits(by_key(text))
    stub = (await admin(running)).keys

    revoked = [(await stub.RevokeKey(key_pb.RevokeKeyRequest(key_id=key_id), timeout=TIMEOUT_S)).key for _ in range(2)]

    with pytest.raises(InvalidCredentialError):
        await running.limits(by_key(text))
    assert revoked[0] == revoked[1]
    assert [event.action for event in await audit(running, account_id)].count("key.revoked") == 1


async def test_an_expired_key_is_refused(running: Running) -> None:
    account_id = await running.new_account()
    key_id, text = await running.new_key(account_id, expires_at=Timestamp(seconds=int(time.time()) + 100))
    await running.limits(by_key(text))

    await update_key(running, key_id, "expires_at", expires_at=Timestamp(seconds=int(time.time()) - 1))
    with pytest.raises(InvalidCredentialError):
        await running.limits(by_key(text))
    await update_key(running, key_id, "expires_at")
    await running.limits(by_key(text))


async def test_a_throttle_acts_at_the_next_decision(running: Running) -> None:
    key_id, text = await running.new_key(await running.new_account())
    both = key_pb.KeyThrottle(requests_per_minute=3, tokens_per_minute=4)
    seen = []
    for paths in (["throttle.requests_per_minute"], ["throttle"], ["throttle.tokens_per_minute"]):
        throttle = None if paths == ["throttle.tokens_per_minute"] else both
        await update_key(running, key_id, *paths, throttle=throttle)
        limits = (await running.limits(by_key(text))).limits
        seen.append((limits.requests.limit, limits.tokens.limit))

    assert seen == [(3, 2_000_000), (3, 4), (3, 2_000_000)]


@pytest.mark.parametrize(
    ("paths", "fields"),
    [
        pytest.param([], {}, id="an empty mask"),
        pytest.param(["revoked_at"], {}, id="what cannot be changed"),
        pytest.param(["throttle"], {"throttle": key_pb.KeyThrottle(tokens_per_minute=0)}, id="zero"),
        pytest.param(["name"], {"name": "x" * 129}, id="a long name"),
    ],
)
async def test_a_bad_change_is_refused(running: Running, paths: list[str], fields: dict[str, Any]) -> None:
    key_id, _ = await running.new_key(await running.new_account())

    with pytest.raises(InvalidRequestError):
        await update_key(running, key_id, *paths, **fields)


@pytest.mark.parametrize("caller_class", [CallerClass.EDGE, CallerClass.TEAM])
async def test_owners_make_keys_after_25_dollars_or_with_a_subscription(
    running: Running, caller_class: CallerClass
) -> None:
    async def owner_makes_key(account_id: str) -> Any:
        stubs = await (running.team(account_id) if caller_class is CallerClass.TEAM else running.by(caller_class))
        return await stubs.keys.CreateKey(key_pb.CreateKeyRequest(account_id=account_id), timeout=TIMEOUT_S)

    poor, subscriber = await running.new_account(), await running.new_account(plan="pro")
    await running.fund(poor, 25 * USD, paid=25 * USD - 1)
    with pytest.raises(KeysNotUnlockedError):
        await owner_makes_key(poor)
    await running.fund(poor, 25 * USD, paid=25 * USD)

    assert (await owner_makes_key(poor)).api_key
    assert (await owner_makes_key(subscriber)).api_key


async def test_a_team_cannot_see_or_touch_foreign_keys(running: Running) -> None:
    owner = await running.new_account()
    key_id, _ = await running.new_key(owner)
    stub = (await running.team(await running.new_account(plan="pro"))).keys
    request = key_pb.UpdateKeyRequest(key=key_pb.Key(key_id=key_id, name="x"), update_mask=FieldMask(paths=["name"]))

    for call in (
        stub.RevokeKey(key_pb.RevokeKeyRequest(key_id=key_id), timeout=TIMEOUT_S),
        stub.UpdateKey(request, timeout=TIMEOUT_S),
        stub.ListKeys(key_pb.ListKeysRequest(account_id=owner), timeout=TIMEOUT_S),
        stub.CreateKey(key_pb.CreateKeyRequest(account_id=owner), timeout=TIMEOUT_S),
    ):
        with pytest.raises(ForeignAccountError):
            await call
    with pytest.raises(NotFoundError):
        await stub.RevokeKey(key_pb.RevokeKeyRequest(key_id=new_id()), timeout=TIMEOUT_S)


async def test_a_key_cannot_make_or_end_keys_not_even_of_its_own_account(running: Running) -> None:
    account_id = await running.new_account(plan="pro")
    key_id, text = await running.new_key(account_id)
    stub = (await running.as_(await running.service.teams.resolve(text))).keys
    request = key_pb.UpdateKeyRequest(key=key_pb.Key(key_id=key_id), update_mask=FieldMask(paths=["throttle"]))

    for call in (
        stub.CreateKey(key_pb.CreateKeyRequest(), timeout=TIMEOUT_S),
        stub.RevokeKey(key_pb.RevokeKeyRequest(key_id=key_id), timeout=TIMEOUT_S),
        stub.UpdateKey(request, timeout=TIMEOUT_S),
    ):
        with pytest.raises(CallerNotAllowedError):
            await call
    assert len((await stub.ListKeys(key_pb.ListKeysRequest(), timeout=TIMEOUT_S)).keys) == 1


async def test_a_repeated_request_makes_no_second_key_and_tells_no_text(running: Running) -> None:
    account_id, request_id = await running.new_account(), new_id()
    stub = (await admin(running)).keys

    async def create(**fields: Any) -> key_pb.CreateKeyResponse:
        request = key_pb.CreateKeyRequest(account_id=account_id, request_id=request_id, **fields)
        answer: key_pb.CreateKeyResponse = await stub.CreateKey(request, timeout=TIMEOUT_S)
        return answer

    first, again = await create(name="ci"), await create(name="ci")
    assert (again.key, again.api_key) == (first.key, "")
    assert (await running.limits(by_key(first.api_key))).key_id == first.key.key_id
    with pytest.raises(AlreadyExistsError):
        await create(name="other")


async def test_the_last_use_outlives_the_process(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        account_id = await running.new_account()
        _, text = await running.new_key(account_id)
        await running.limits(by_key(text))
        await running.service.directory.write_uses()

    async with serving(tmp_path) as running:
        request = key_pb.ListKeysRequest(account_id=account_id)
        (key,) = (await (await admin(running)).keys.ListKeys(request, timeout=TIMEOUT_S)).keys
        assert key.HasField("last_used_at")


async def test_keys_are_listed_page_by_page_oldest_first(running: Running) -> None:
    account_id = await running.new_account()
    ids = [(await running.new_key(account_id))[0] for _ in range(3)]
    request = key_pb.ListKeysRequest(account_id=account_id, page_size=2)

    found = await pages((await admin(running)).keys.ListKeys, request, "keys")

    assert [[key.key_id for key in page] for page in found] == [sorted(ids)[:2], sorted(ids)[2:]]
