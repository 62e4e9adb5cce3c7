"""`KeyService`: decodes, calls one use case, encodes.

Owns nothing but that; refuses to decide, to catch, and to let a key's text out anywhere but in the one answer.
"""

from collections.abc import Callable
from typing import Any

from mws.admission.v1 import key_service_pb2 as pb
from mws.admission.v1.key_service_pb2_grpc import KeyServiceServicer

from services.auth_and_limits import account_translate as translate
from services.auth_and_limits.keys import Keys, NewKey
from services.auth_and_limits.pages import PageTokens, cut
from services.auth_and_limits.records import Key
from services.auth_and_limits.translate import Rules
from services.runtime.callers import account_for
from services.runtime.calls import call_of


class KeyServicer(KeyServiceServicer):
    """The RPCs of API keys."""

    def __init__(self, keys: Keys, tokens: PageTokens, random_bytes: Callable[[int], bytes]) -> None:
        self._keys = keys
        self._tokens = tokens
        self._random_bytes = random_bytes

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Any) -> pb.CreateKeyResponse:
        call = call_of(context)
        account_id = account_for(call, request.account_id)
        rules = Rules()
        rules.length("account_id", account_id, 36, 1)
        rules.length("name", request.name, translate.LARGEST_NAME)
        throttle = translate.throttle_from_pb(request.throttle, rules, "throttle")
        if request.request_id:
            rules.id("request_id", request.request_id)
        has_expiry = request.HasField("expires_at")
        expires_at_ms = translate.expiry_from_pb(request.expires_at, has_expiry, rules, "expires_at")
        rules.check()
        new = NewKey(account_id, request.name, throttle, expires_at_ms, request.request_id)
        key, text = await self._keys.create(call.caller, new, self._random_bytes)
        call.note(account_id=key.account_id, key_id=key.key_id)
        return pb.CreateKeyResponse(key=self._to_pb(key), api_key=text)

    async def ListKeys(self, request: pb.ListKeysRequest, context: Any) -> pb.ListKeysResponse:
        account_id = account_for(call_of(context), request.account_id)
        filters = ("keys", account_id)
        page = translate.page_from_pb(self._tokens, request.page_size, request.page_token, *filters)
        keys, has_more = cut(await self._keys.page(account_id, page), page.size)
        return pb.ListKeysResponse(
            keys=[self._to_pb(key) for key in keys],
            next_page_token=self._tokens.seal(keys[-1].key_id, *filters) if has_more else "",
        )

    async def UpdateKey(self, request: pb.UpdateKeyRequest, context: Any) -> pb.UpdateKeyResponse:
        call = call_of(context)
        change = translate.key_change(request.key, request.update_mask.paths)
        key = await self._keys.update(call.caller, request.key.key_id, change)
        call.note(account_id=key.account_id, key_id=key.key_id)
        return pb.UpdateKeyResponse(key=self._to_pb(key))

    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: Any) -> pb.RevokeKeyResponse:
        call = call_of(context)
        key = await self._keys.revoke(call.caller, request.key_id)
        call.note(account_id=key.account_id, key_id=key.key_id)
        return pb.RevokeKeyResponse(key=self._to_pb(key))

    def _to_pb(self, key: Key) -> pb.Key:
        return translate.key_to_pb(key, self._keys.last_used_ms(key))
