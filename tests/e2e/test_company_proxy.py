"""The company proxy through a whole gateway: tokens of a realm, an upstream's answers whole, money, errors, browsers.

Owns one company and its gateway; refuses what single parts prove more cheaply.
"""

import base64
import hmac
import json
import time
from typing import Any

import anthropic
import httpx2
import pytest
from joserfc.jwk import RSAKey

from tests.company import ASK, AUDIENCE, MESSAGE, PATH, ROLE, TEXT, USAGE, Company, frames

ORIGIN = "https://lab.company.example"
LIMITS = [f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")]


@pytest.fixture(autouse=True)
def _as_usual(company: Company) -> None:
    company.claude.answer()


def test_the_recorded_example_is_answered_to_the_byte(company: Company) -> None:
    answer = company.post(x_application_name="notebook")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert (
        answer.content
        == (
            '{"id":"msg_01PassedThrough","content":[{"citations":null,"text":"' + TEXT + '","type":"text"}],'
            '"model":"claude-opus-4-6","role":"assistant","stop_reason":"end_turn","stop_sequence":null,"type":"message",'
            '"usage":{"cache_creation":{"ephemeral_1h_input_tokens":0,"ephemeral_5m_input_tokens":0},'
            '"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"inference_geo":"not_available",'
            '"input_tokens":10,"output_tokens":42,"server_tool_use":null,"service_tier":"standard"}}'
        ).encode()
    )
    assert all(name in answer.headers for name in LIMITS)


def test_the_request_reaches_the_upstream_whole_and_under_its_own_name(company: Company) -> None:
    body = {**ASK, "model": "claude-opus-4-6-20260115", "context_management": {"edits": [1.5]}, "top_k": 3}

    company.post(body, anthropic_version="2026-10-21", anthropic_beta="one,two")

    asked = company.claude.asked[-1]
    assert asked.body == {**body, "stream": False}
    assert (asked.headers["x-api-key"], asked.headers["anthropic-version"], asked.headers["anthropic-beta"]) == (
        "sk-ant-of-the-company",
        "2026-10-21",
        "one,two",
    )
    assert "authorization" not in asked.headers


def test_a_stream_is_forwarded_event_by_event(company: Company) -> None:
    answer = company.post({**ASK, "stream": True})

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content == b"".join(frames(MESSAGE))
    assert all(name in answer.headers for name in LIMITS)


def test_the_official_sdk_works_with_a_token_streaming_or_not(company: Company) -> None:
    base_url = f"{company.gateway.base_url}/proxy/anthropic"
    with anthropic.Anthropic(base_url=base_url, auth_token=company.realm.token(), api_key=None) as client:
        whole = client.messages.create(**ASK)
        with client.messages.stream(**ASK) as stream:
            folded = stream.get_final_message()

    assert [block.text for block in whole.content if block.type == "text"] == [TEXT]
    assert (folded.content[0].to_dict()["text"], folded.usage.output_tokens) == (TEXT, 42)


def test_usage_is_priced_by_the_model_and_attributed_to_the_application(company: Company) -> None:
    usage = {
        **USAGE,
        "input_tokens": 7,
        "output_tokens": 11,
        "cache_read_input_tokens": 13,
        "cache_creation_input_tokens": 36,
        "cache_creation": {"ephemeral_5m_input_tokens": 17, "ephemeral_1h_input_tokens": 19},
    }
    company.claude.answer({**MESSAGE, "usage": usage})

    assert company.post(x_application_name="pricing suite").status_code == 200
    company.post({**ASK, "stream": True}, x_application_name="pricing suite")

    # A stream reports the prompt at its start and the output at its end.
    cost = 7 * 5000 + 11 * 25000 + 13 * 500 + 17 * 6250 + 19 * 10000
    row = company.usage("application")["pricing suite"]
    assert (row["calls"], row["charged_nano_usd"]) == (2, 2 * cost)


@pytest.mark.parametrize("stream", [False, True])
def test_a_retry_under_an_idempotency_key_gets_the_same_words_and_runs_nothing(company: Company, stream: bool) -> None:
    answers = [company.post({**ASK, "stream": stream}, idempotency_key=f"retry {stream}") for _ in range(2)]
    other = company.post({**ASK, "top_k": 1, "stream": stream}, idempotency_key=f"retry {stream}")
    asked = [asked for asked in company.claude.asked if asked.headers["x-request-id"].startswith(_id_of(answers[1]))]

    assert [answer.status_code for answer in answers] == [200, 200], answers[1].text
    assert answers[0].content == answers[1].content
    assert asked == []
    assert (other.status_code, list(other.json())) == (409, ["detail"])


def _id_of(answer: httpx2.Response) -> str:
    return answer.headers["request-id"]


def _forged(token: str, algorithm: str, secret: bytes | None) -> str:
    """The claims of a token under another algorithm."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    head = part(json.dumps({"alg": algorithm, "kid": "first"}).encode()) + "." + token.split(".")[1]
    signature = b"" if secret is None else hmac.digest(secret, head.encode(), "sha256")
    return f"{head}.{part(signature)}"


STRANGER = RSAKey.generate_key(2048, {"kid": "first"})
UNKNOWN = RSAKey.generate_key(2048, {"kid": "nobody knows"})


@pytest.mark.parametrize(
    ("make", "status"),
    [
        pytest.param(lambda realm: "", 401, id="no token"),
        pytest.param(lambda realm: "a.b.c", 401, id="no JWT"),
        pytest.param(lambda realm: realm.token(exp=int(time.time()) - 60), 401, id="expired"),
        pytest.param(lambda realm: realm.token(exp=int(time.time()) - 5), 200, id="expired within the leeway"),
        pytest.param(lambda realm: realm.token(exp=None), 401, id="without an end"),
        pytest.param(lambda realm: realm.token(nbf=int(time.time()) + 120), 401, id="not valid yet"),
        pytest.param(lambda realm: realm.token(aud="somebody else"), 401, id="another audience"),
        pytest.param(lambda realm: realm.token(iss=f"{realm.issuer}/other"), 401, id="another issuer"),
        pytest.param(lambda realm: realm.token(typ="ID"), 401, id="an ID token"),
        pytest.param(lambda realm: realm.token(key=STRANGER), 401, id="another key of the same name"),
        pytest.param(lambda realm: realm.token(key=UNKNOWN), 401, id="a key that nobody knows"),
        pytest.param(lambda realm: _forged(realm.token(), "none", None), 401, id="algorithm none"),
        pytest.param(
            lambda realm: _forged(realm.token(), "HS256", realm.published[0].as_pem(private=False)),
            401,
            id="HS256 with the public key",
        ),
        pytest.param(lambda realm: realm.token(resource_access=None), 403, id="no roles"),
        pytest.param(
            lambda realm: realm.token(resource_access={AUDIENCE: {"roles": ["OTHER"]}}), 403, id="other roles"
        ),
        pytest.param(
            lambda realm: realm.token(resource_access={"app": {"roles": [ROLE]}}), 403, id="of another client"
        ),
        pytest.param(lambda realm: realm.token(resource_access=[ROLE]), 403, id="roles in another form"),
        pytest.param(
            lambda realm: realm.token(resource_access={AUDIENCE: {"roles": ["MLAAS-ROLE-ADMIN"]}}),
            200,
            id="the second role",
        ),
    ],
)
def test_a_token_is_answered_as_documented(company: Company, make: Any, status: int) -> None:
    answer = company.post(token=make(company.realm))

    assert answer.status_code == status, answer.text
    if status != 200:
        assert list(answer.json()) == ["detail"]
        assert isinstance(answer.json()["detail"], str)
    assert (answer.headers.get("www-authenticate") == "Bearer") is (status == 401)


def test_a_bad_token_is_worse_news_than_a_bad_body(company: Company) -> None:
    assert company.post({}, token=company.realm.token(aud="x")).status_code == 401
    assert company.post({}, token=company.realm.token(resource_access=None)).status_code == 403
    unknown = {**ASK, "model": "gpt-4o"}
    assert company.post(unknown, token=company.realm.token(resource_access=None)).status_code == 403
    assert company.post({}).status_code == 422


def test_a_staff_token_opens_no_other_door(company: Company) -> None:
    headers = {"authorization": f"Bearer {company.realm.token()}"}

    assert company.http.post("/v1/messages", json={**ASK, "model": "dragon"}, headers=headers).status_code == 401


def test_a_rotated_key_is_taken_at_once_and_known_keys_outlive_the_realm(company: Company) -> None:
    before = company.realm.token()
    company.realm.rotate(f"rotated for {company.gateway.port}")

    assert company.post().status_code == 200

    company.realm.stop()
    try:
        assert company.post().status_code == 200
        assert company.post(token=before).status_code == 200
    finally:
        company.realm.start()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        pytest.param({"status": 400, "error": {"error": {"message": "no such tool"}}}, 400, id="a bad request"),
        pytest.param({"status": 401}, 502, id="our own key refused"),
        pytest.param({"status": 429, "headers": {"retry-after": "7"}}, 429, id="its rate limit"),
        pytest.param({"status": 500}, 502, id="a defect"),
        pytest.param({"status": 504}, 504, id="slow"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_upstream_refuses_has_a_true_status(
    company: Company, answer: dict[str, Any], status: int, stream: bool
) -> None:
    company.claude.answer(**answer)

    got = company.post({**ASK, "model": f"claude-fault-{next(company.faults)}", "stream": stream})

    assert (got.status_code, list(got.json())) == (status, ["detail"])
    if status == 429:
        assert int(got.headers["retry-after"]) >= 1
        assert all(name in got.headers for name in LIMITS)


def test_a_stream_that_breaks_off_ends_in_an_error_event(company: Company) -> None:
    company.claude.answer(cut_after=5)

    answer = company.post({**ASK, "stream": True})

    assert answer.status_code == 200
    assert answer.content.startswith(b"".join(frames(MESSAGE)[:5]))
    assert answer.content.rpartition(b"event: ")[2].startswith(b'error\ndata: {"type":"error"')


def test_a_client_that_leaves_ends_the_upstreams_work(company: Company) -> None:
    company.claude.answer(cut_after=5, stalls=True)
    headers = {"authorization": f"Bearer {company.realm.token()}", "x-application-name": "impatient"}

    with company.http.stream("POST", PATH, json={**ASK, "stream": True}, headers=headers) as answer:
        next(answer.iter_bytes())
    asked = company.claude.asked[-1]

    assert asked.left.wait(5)


@pytest.mark.parametrize(
    ("body", "headers", "problem"),
    [
        pytest.param(
            b"", {}, {"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}, id="nothing"
        ),
        pytest.param(
            b'{"model": }',
            {},
            {
                "type": "json_invalid",
                "loc": ["body", 10],
                "msg": "JSON decode error",
                "input": {},
                "ctx": {"error": "Expecting value"},
            },
            id="no JSON",
        ),
        pytest.param(
            {"model": "m", "max_tokens": 0, "messages": ASK["messages"]},
            {},
            {
                "type": "greater_than_equal",
                "loc": ["body", "max_tokens"],
                "msg": "Input should be greater than or equal to 1",
                "input": 0,
                "ctx": {"ge": 1},
            },
            id="too few tokens",
        ),
        pytest.param(
            {"model": "m", "messages": ASK["messages"]},
            {},
            {
                "type": "missing",
                "loc": ["body", "max_tokens"],
                "msg": "Field required",
                "input": {"model": "m", "messages": ASK["messages"]},
            },
            id="no max_tokens",
        ),
        pytest.param(
            ASK,
            {"x_application_name": "n" * 129},
            {
                "type": "string_too_long",
                "loc": ["header", "x-application-name"],
                "msg": "String should have at most 128 characters",
                "input": "n" * 129,
                "ctx": {"max_length": 128},
            },
            id="a long name of the application",
        ),
    ],
)
def test_what_breaks_the_schema_is_told_as_the_validator_does(
    company: Company, body: Any, headers: dict[str, str], problem: dict[str, Any]
) -> None:
    answer = company.post(body, **headers)

    assert (answer.status_code, answer.json()) == (422, {"detail": [problem]})


@pytest.mark.parametrize(
    ("change", "status", "detail"),
    [
        pytest.param({"model": "claude-2.1"}, 410, "The model claude-2.1 is discontinued", id="a model of the past"),
        pytest.param({"model": "gpt-4o"}, 400, "model: gpt-4o is not available here", id="a model of others"),
        pytest.param({"model": "dragon"}, 400, "model: dragon is not available here", id="a public profile"),
        pytest.param(
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            400,
            "max_tokens must be greater than thinking.budget_tokens",
            id="no room to think",
        ),
        pytest.param(
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            400,
            "tools: web search has no price for claude-opus-4-6",
            id="a tool without a price",
        ),
        pytest.param(
            {"max_tokens": 200_000},
            400,
            "max_tokens: 200000 is not within 1..128000, which claude-opus-4-6 allows",
            id="too many tokens",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(company: Company, change: dict[str, Any], status: int, detail: str) -> None:
    answer = company.post({**ASK, **change})

    assert (answer.status_code, answer.json()) == (status, {"detail": detail})


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        pytest.param("GET", "/proxy/object-detection", 410, "This endpoint is discontinued", id="discontinued"),
        pytest.param("GET", "/proxy/anthropic/v1/models", 404, "Not Found", id="unknown"),
        pytest.param("POST", f"{PATH}/count_tokens", 404, "Not Found", id="below a route"),
        pytest.param("GET", PATH, 405, "Method Not Allowed", id="another method"),
    ],
)
def test_paths_have_their_own_errors(company: Company, method: str, path: str, status: int, detail: str) -> None:
    answer = company.http.request(method, path)

    assert (answer.status_code, answer.json()) == (status, {"detail": detail})


def test_pages_of_configured_origins_may_ask_with_credentials(company: Company) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-novel"}
    allowed = company.http.options(PATH, headers={"origin": ORIGIN, **asked})
    refused = company.http.options(PATH, headers={"origin": "https://evil.example", **asked})
    answer = company.post(origin=ORIGIN)
    failure = company.post(token="", origin=ORIGIN)
    foreign = company.post(origin="https://evil.example")

    for got in (allowed, answer, failure):
        assert got.headers["access-control-allow-origin"] == ORIGIN
        assert got.headers["access-control-allow-credentials"] == "true"
        assert got.headers["vary"] == "Origin"
    assert (allowed.status_code, allowed.headers["access-control-allow-headers"]) == (200, "authorization,x-novel")
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert "x-ratelimit-remaining-tokens" in answer.headers["access-control-expose-headers"]
    assert (refused.status_code, refused.json()) == (400, {"detail": "Disallowed CORS origin"})
    assert not {name for got in (refused, foreign) for name in got.headers if name.startswith("access-control")}


def test_the_accounts_limits_hold(company: Company) -> None:
    token = company.realm.token(iss=f"{company.realm.issuer}/subsidiary")
    served, refused = company.post(token=token), company.post(token=token)

    assert (served.status_code, refused.status_code) == (200, 429)
    assert refused.headers["x-ratelimit-limit-requests"] == "1"
    assert list(refused.json()) == ["detail"]
    assert int(refused.headers["retry-after"]) >= 1
    assert all(name in refused.headers for name in LIMITS)
