"""A closed table of allowed state changes, checked at import and at each use."""

from collections.abc import Mapping
from enum import StrEnum

from controlplane.kernel.errors import ConflictError


class TransitionTable[S: StrEnum]:
    """Which state may follow which. A state absent from `allowed` is final."""

    def __init__(self, allowed: Mapping[S, frozenset[S]]) -> None:
        self._allowed = dict(allowed)

    def may(self, before: S, after: S) -> bool:
        """Staying where one is is always allowed."""
        return before == after or after in self._allowed.get(before, frozenset())

    def check(self, before: S, after: S, *, subject: str) -> S:
        """`after`, or ConflictError naming subject and both states."""
        if not self.may(before, after):
            raise ConflictError(f"{subject} cannot go from {before} to {after}")
        return after

    def is_final(self, state: S) -> bool:
        return not self._allowed.get(state)

    def reachable(self, start: S) -> frozenset[S]:
        """All states that can follow `start`, directly or not, `start` included."""
        seen = {start}
        frontier = [start]
        while frontier:
            for after in self._allowed.get(frontier.pop(), frozenset()):
                if after not in seen:
                    seen.add(after)
                    frontier.append(after)
        return frozenset(seen)
