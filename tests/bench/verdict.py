"""A bar and whether it was met.

Owns the shape that every section's verdicts share; refuses to hold any bar itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """`measured` is None when one side of the comparison was absent: then nothing is proven either way."""

    bar: str
    measured: float | None
    at_least: float

    @property
    def met(self) -> bool | None:
        return None if self.measured is None else self.measured >= self.at_least
