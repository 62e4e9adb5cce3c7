"""Vectors and rankings that a client was given are in its usage and on its bill, to the nano-dollar."""

import httpx2

from tests.gateway import Gateway

INPUT_NANO_USD, UNIT_NANO_USD = 20, 1_000_000  # of the packaged catalogue


def test_vectors_and_rankings_are_metered(gateway: Gateway) -> None:
    account = gateway.account("vectors")
    headers = {"authorization": f"Bearer {account.api_key}"}
    with httpx2.Client(base_url=gateway.base_url, headers=headers, timeout=30) as client:
        texts = client.post("/v1/embeddings", json={"model": "e", "input": ["rivers"] * 40}).json()
        tokens = client.post("/v1/embeddings", json={"model": "e", "input": [[1, 2, 3], [4]]}).json()
        ranked = client.post("/v2/rerank", json={"query": "q", "documents": ["d"] * 101}).json()
        refused = client.post("/v1/rerank", json={"query": "q", "documents": []})

    assert (len(texts["data"]), tokens["usage"]["prompt_tokens"], refused.status_code) == (40, 4, 400)
    assert ranked["meta"]["billed_units"]["search_units"] == 2
    counted = texts["usage"]["prompt_tokens"] + tokens["usage"]["prompt_tokens"]
    total = gateway.mws("usage", "--account", account.account_id)["total"]
    assert total["calls"] == 3
    assert total["charged_nano_usd"] == counted * INPUT_NANO_USD + 2 * UNIT_NANO_USD
    assert gateway.mws("ledger", "check", "--account", account.account_id)["violations"] == []
