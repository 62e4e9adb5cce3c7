"""A company for tests: a realm that signs access tokens, an Anthropic upstream that answers as it was told, and staff.

Owns both servers, in threads of the test's process, and what staff sends; refuses to start a gateway.
"""

import itertools
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.gateway import Gateway

AUDIENCE, ROLE = "MLAAS-CLI-API", "MLAAS-ROLE-REGULAR"
TEXT = "Grüße! 👋 How can I help?"
USAGE: dict[str, Any] = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 42,
    "service_tier": "standard",
    "inference_geo": "not_available",
}
MESSAGE: dict[str, Any] = {
    "model": "claude-opus-4-6",
    "id": "msg_01PassedThrough",
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": TEXT}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": USAGE,
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: Any


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Nothing: a test's output is the test's."""

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Served:
    """A server that can be stopped and started again at the same address."""

    handler: type[_Quiet]

    def __init__(self) -> None:
        self.port = 0
        self._server: _Server | None = None

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listens; the second time where it did before."""
        self._server = _Server(("127.0.0.1", self.port), self.handler)
        self._server.owner = self
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Listens no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _RealmHandler(_Quiet):
    def do_GET(self) -> None:
        realm: Realm = self.server.owner
        realm.reads += 1
        keys = [key.as_dict(private=False, use="sig", alg="RS256") for key in realm.published]
        self._send(200, json.dumps({"keys": keys}).encode())


class Realm(_Served):
    """A Keycloak realm, as far as its tokens and its key set go."""

    handler = _RealmHandler

    def __init__(self) -> None:
        super().__init__()
        self.key = RSAKey.generate_key(2048, {"kid": "first"})
        self.published = [self.key]
        self.reads = 0

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}/realms/company"

    @property
    def jwks_url(self) -> str:
        return f"{self.issuer}/protocol/openid-connect/certs"

    def rotate(self, kid: str) -> None:
        """Signs with a new key from now on; the old one stays published."""
        self.key = RSAKey.generate_key(2048, {"kid": kid})
        self.published = [*self.published, self.key]

    def token(self, *, key: RSAKey | None = None, **claims: Any) -> str:
        """An access token; a claim of None is left out."""
        key = key or self.key
        now = int(time.time())
        values = {
            "iss": self.issuer,
            "aud": [AUDIENCE, "account"],
            "sub": "f3b1",
            "typ": "Bearer",
            "iat": now,
            "exp": now + 300,
            "resource_access": {AUDIENCE: {"roles": [ROLE]}},
            **claims,
        }
        values = {name: value for name, value in values.items() if value is not None}
        return jwt.encode({"alg": "RS256", "kid": key.kid}, values, key, algorithms=["RS256"])


@dataclass
class Asked:
    """A request that reached the upstream."""

    body: dict[str, Any]
    headers: dict[str, str]
    left: threading.Event = field(default_factory=threading.Event)
    """The gateway closed the connection before the answer was complete."""


class _ClaudeHandler(_Quiet):
    def do_POST(self) -> None:
        claude: Claude = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        asked = Asked(body, {name.lower(): value for name, value in self.headers.items()})
        claude.asked.append(asked)
        if claude.status != 200:
            self._send(claude.status, json.dumps(claude.error).encode(), claude.headers)
        elif not body.get("stream"):
            self._send(200, json.dumps(claude.message).encode())  # its characters are escaped: the gateway's are not
        else:
            self._stream(claude, asked)

    def _stream(self, claude: "Claude", asked: Asked) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for frame in frames(claude.message)[: claude.cut_after]:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(frame), frame))
            self.wfile.flush()
        self.close_connection = True
        if claude.stalls:
            self.connection.settimeout(20)
            if self.connection.recv(1) == b"":
                asked.left.set()
        elif claude.cut_after is None:
            self.wfile.write(b"0\r\n\r\n")


class Claude(_Served):
    """An Anthropic upstream. `cut_after` frames it breaks off; with `stalls` it then says nothing until it is left."""

    handler = _ClaudeHandler

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Asked] = []
        self.answer()

    def answer(
        self,
        message: dict[str, Any] | None = None,
        *,
        status: int = 200,
        error: Any = None,
        headers: dict[str, str] | None = None,
        cut_after: int | None = None,
        stalls: bool = False,
    ) -> None:
        """What it does from now on."""
        self.message = message or MESSAGE
        self.status = status
        self.error = error or {"type": "error", "error": {"type": "api_error", "message": "scripted"}}
        self.headers = headers or {}
        self.cut_after = cut_after
        self.stalls = stalls

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def frames(message: dict[str, Any]) -> list[bytes]:
    """A message of one text block as the frames of a stream, with a member that nobody has heard of."""
    opening = {**message, "content": [], "stop_reason": None, "usage": {**message["usage"], "output_tokens": 1}}
    text = message["content"][0]["text"]
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": opening},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text[:9]}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text[9:]}, "novel": [1.50]},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": message["stop_reason"], "stop_sequence": None},
            "usage": {"output_tokens": message["usage"]["output_tokens"]},
        },
        {"type": "message_stop"},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]


def catalogue(realm: Realm, claude: Claude) -> str:
    """A catalogue file whose company proxy is this company's. The models `claude-fault-<n>` have circuits to break."""
    upstreams = f'[{{dialect: anthropic, base_url: "{claude.url}"}}]'
    price = "{input_nano_usd: 1, output_nano_usd: 1}"
    faulty = "\n    ".join(f"claude-fault-{n}: {{price: {price}, upstreams: {upstreams}}}" for n in range(20))
    text = f"""
default_profile: dragon
profiles:
  dragon:
    display_name: Dragon
    context_tokens: 262144
    max_output_tokens: 65536
    price: {{input_nano_usd: 480, output_nano_usd: 1080}}
    upstreams: [{{dialect: simulated}}]
company_proxy:
  issuers:
    - issuer: {realm.issuer}
      audience: {AUDIENCE}
      jwks_url: {realm.jwks_url}
      roles: [{ROLE}, MLAAS-ROLE-ADMIN]
      account: company
    - issuer: {realm.issuer}/subsidiary
      audience: {AUDIENCE}
      jwks_url: {realm.jwks_url}
      roles: [{ROLE}]
      account: subsidiary
  models:
    claude-opus-4-6:
      price: {{input_nano_usd: 5000, output_nano_usd: 25000, cache_read_nano_usd: 500,
              cache_write_5m_nano_usd: 6250, cache_write_1h_nano_usd: 10000}}
      upstreams: [{{dialect: anthropic, base_url: "{claude.url}", api_key_env: CLAUDE_KEY}}]
    "claude-haiku-*":
      price: {{input_nano_usd: 1000, output_nano_usd: 5000, web_search_nano_usd: 10000000}}
      upstreams: [{{dialect: anthropic, base_url: "{claude.url}"}}]
    {faulty}
  discontinued: [claude-2.1, /proxy/object-detection]
  cors_origins: ["https://lab.company.example"]
"""
    return text.lstrip()


PATH = "/proxy/anthropic/v1/messages"
ASK: dict[str, Any] = {
    "model": "claude-opus-4-6",
    "max_tokens": 1024,
    "messages": [{"role": "user", "content": "Hello"}],
}


class Company:
    """A gateway with a realm and an upstream."""

    def __init__(self, gateway: Gateway, realm: Realm, claude: Claude, account_id: str) -> None:
        self.gateway, self.realm, self.claude, self.account_id = gateway, realm, claude, account_id
        self.faults = itertools.count()
        self.http = httpx2.Client(base_url=gateway.base_url, timeout=30)

    def post(self, body: Any = ASK, *, token: str | None = None, **headers: str) -> httpx2.Response:
        """Sends a request with a good token, or with the given one."""
        token = self.realm.token() if token is None else token
        authorization = {"authorization": f"Bearer {token}"} if token else {}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(PATH, content=content, headers={**authorization, **named})

    def usage(self, grouping: str) -> dict[str, Any]:
        """The account's usage by a grouping."""
        found = self.gateway.mws("usage", "--account", self.account_id, "--by", grouping)
        return {row["group"]: row for row in found["groups"]}
