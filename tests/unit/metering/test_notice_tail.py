"""When the outbox's newest rows may be answered from memory, and when only the table knows.

Owns the tail alone; refuses a ledger.
"""

import pytest

from services.metering.adapters.notice_tail import NoticeTail
from services.metering.ports import BalanceNotice


def rows(*row_ids: int) -> list[BalanceNotice]:
    return [BalanceNotice(row_id, "account", row_id, 0, 0, ()) for row_id in row_ids]


def test_a_tail_that_saw_no_commit_knows_nothing() -> None:
    tail = NoticeTail()
    tail.committed([], 0)
    assert tail.after(0, 10) is None


@pytest.mark.parametrize(
    ("after", "limit", "expected"),
    [
        pytest.param(5, 10, None, id="rows from before the first commit are not known"),
        pytest.param(6, 10, [7, 8, 9], id="all since the first commit"),
        pytest.param(7, 10, [8, 9], id="the newer ones"),
        pytest.param(7, 1, [8], id="no more than asked for"),
        pytest.param(9, 10, [], id="none left"),
    ],
)
def test_a_tail_answers_for_what_was_committed_in_its_time(after: int, limit: int, expected: list[int] | None) -> None:
    tail = NoticeTail()
    tail.committed(rows(7, 8), 0)
    tail.committed(rows(9), 0)
    found = tail.after(after, limit)
    assert (found if found is None else [row.row_id for row in found]) == expected


def test_a_forgotten_row_is_gone() -> None:
    tail = NoticeTail()
    tail.committed(rows(1, 2), 0)
    tail.committed(rows(3), 2)
    assert tail.after(0, 10) == rows(3)


def test_a_commit_of_unknown_end_leaves_the_answer_to_the_table() -> None:
    tail = NoticeTail()
    tail.committed(rows(1), 0)
    tail.lose()
    assert tail.after(0, 10) is None
    tail.committed(rows(3), 0)  # 2 may be in the table
    assert tail.after(1, 10) is None
    assert tail.after(2, 10) == rows(3)


def test_a_full_tail_drops_its_oldest_rows_and_knows_that() -> None:
    tail = NoticeTail(largest=2)
    tail.committed(rows(1, 2, 3), 0)
    assert tail.after(0, 10) is None
    assert tail.after(1, 10) == rows(2, 3)
