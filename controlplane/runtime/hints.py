"""Data-free hints: something may have changed, look sooner."""

from typing import Protocol


class Hints(Protocol):
    def hint(self, loop: str) -> None:
        """Wake a loop by name; an unknown name is a programmer's error. Never blocks, carries no data."""
        ...
