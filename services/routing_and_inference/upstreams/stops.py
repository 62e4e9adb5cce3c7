"""Ends a text at the first of some stop sequences, for an upstream that takes fewer of them than the caller gave.

Owns the search across pieces; what might be the beginning of a sequence waits until it is one or is not.
"""

from collections.abc import Sequence


class StopScanner:
    """One per answer. After a match nothing more comes out of it."""

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = sequences
        self._longest = max(map(len, sequences))
        self._held = ""
        self.matched = ""

    def feed(self, piece: str) -> str:
        """What can leave of the text so far."""
        if self.matched:
            return ""
        text = self._held + piece
        found = [(at, -len(stop), stop) for stop in self._sequences if (at := text.find(stop)) >= 0]
        if found:
            at, _, self.matched = min(found)
            self._held = ""
            return text[:at]
        keep = self._beginning(text)
        self._held = text[keep:]
        return text[:keep]

    def end(self) -> str:
        """What was held back for nothing."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Where the longest end of the text begins that may still become a sequence."""
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(stop.startswith(text[at:]) for stop in self._sequences):
                return at
        return len(text)
