"""Page tokens: read back only what was written, for the same filter.

Owns pages.py's facts; refuses to know what is listed.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.metering import pages
from services.runtime.errors import InvalidRequestError

numbers = st.integers(min_value=-(2**63), max_value=2**63 - 1)


@given(numbers, numbers, st.text(), st.text())
def test_a_token_leads_back_to_its_position(instant: int, row: int, account: str, call: str) -> None:
    token = pages.write_token((instant, row), account, call)

    assert (instant, row) == pages.read_token(token, account, call)


def test_no_token_is_the_first_page() -> None:
    assert pages.read_token("", "a") is None


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("nonsense", id="not a token"),
        pytest.param("ü" * 32, id="not even ASCII"),
        pytest.param("A" * 31, id="the wrong length"),
        pytest.param("A" * 32, id="the right length and no seal"),
        pytest.param(pages.write_token((1, 2), "another"), id="of another filter"),
        pytest.param(pages.write_token((1, 2), "a", ""), id="of a filter with another shape"),
        pytest.param(pages.write_token((1, 2), "a")[:-1] + "*", id="with a foreign character"),
    ],
)
def test_a_foreign_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        pages.read_token(token, "a")

    assert [violation.field for violation in caught.value.violations] == ["page_token"]


@pytest.mark.parametrize(("page_size", "limit"), [(0, 100), (1, 1), (1_000, 1_000)])
def test_a_page_has_the_asked_size_or_a_hundred(page_size: int, limit: int) -> None:
    assert limit == pages.page_limit(page_size)


@pytest.mark.parametrize("page_size", [-1, 1_001])
def test_a_page_out_of_bounds_is_refused(page_size: int) -> None:
    with pytest.raises(InvalidRequestError):
        pages.page_limit(page_size)
