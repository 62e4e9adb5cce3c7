"""The newest rows of the outbox in memory, so that delivering what was just committed reads nothing back.

Owns knowing for which rows it can answer; refuses to answer for any others: those are read from the table.
"""

import threading
from collections import deque
from collections.abc import Sequence
from itertools import islice

from services.metering.ports import BalanceNotice

_LARGEST = 10_000


class NoticeTail:
    """Every row above a certain id, as committed. The writer thread adds, the loop reads."""

    def __init__(self, largest: int = _LARGEST) -> None:
        self._lock = threading.Lock()
        self._largest = largest
        self._above: int | None = None  # it holds every row above this one; None: it knows nothing
        self._rows: deque[BalanceNotice] = deque()

    def committed(self, added: Sequence[BalanceNotice], forgotten_up_to: int) -> None:
        """A transaction is durable that first added rows and then deleted those up to an id, 0 for none."""
        with self._lock:
            if self._above is None and added:
                self._above = added[0].row_id - 1
            self._rows.extend(added)
            while self._rows and self._rows[0].row_id <= forgotten_up_to:
                self._rows.popleft()
            while len(self._rows) > self._largest:
                self._above = self._rows.popleft().row_id

    def lose(self) -> None:
        """A transaction may have landed, or not: only the table knows."""
        with self._lock:
            self._above = None
            self._rows.clear()

    def after(self, row_id: int, limit: int) -> list[BalanceNotice] | None:
        """The rows after one, oldest first; None if it cannot tell."""
        with self._lock:
            if self._above is None or row_id < self._above:
                return None
            return list(islice((row for row in self._rows if row.row_id > row_id), limit))
