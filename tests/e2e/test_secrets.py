"""Secrets stay where they belong: no key, token or prompt in any log or store, no secret file that others may read.

Owns the search through everything that a running system has written.
"""

import stat

from tests.load import Caller, messages
from tests.paced import Paced

PROMPT_WORD = "xylophonist"


async def test_no_key_and_no_prompt_is_written_anywhere(paced: Paced) -> None:
    account = paced.account("secret")
    await paced.caller(account).send(messages(f"{PROMPT_WORD} chunks=2"))
    await paced.caller(account).send(messages(f"{PROMPT_WORD} status=500"))
    wrong = account.api_key[:-3] + "abc"
    await Caller(paced.gateway.base_url, wrong).send(messages(PROMPT_WORD))

    tokens = [paced.gateway.token(name) for name in ("edge", "auth", "inference", "metering", "admin")]
    for path in paced.gateway.data_dir.rglob("*"):
        if not path.is_file() or path.parent.name == "secrets":
            continue
        written = path.read_bytes()
        for secret in (account.api_key, wrong, PROMPT_WORD, *tokens):
            assert secret.encode() not in written, f"{path.relative_to(paced.gateway.data_dir)}"


def test_what_a_gateway_writes_is_for_its_owner_alone(paced: Paced) -> None:
    for path in paced.gateway.data_dir.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path.name


def test_secret_files_are_for_their_owner_alone(paced: Paced) -> None:
    for path in (paced.gateway.data_dir / "secrets").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
