"""Data-free hints: something may have changed, look sooner."""

import asyncio
import threading
from collections.abc import Callable
from typing import Protocol


class Hints(Protocol):
    def hint(self, loop: str) -> None:
        """Wake a loop by name; an unknown name is a programmer's error. Never blocks, carries no data."""
        ...


class HintBoard:
    """Carries hints to the loops of this process, from its event loop's thread or any other.

    Made inside the running event loop. Known names are given at once, so that a loop may hint another one that is
    only subscribed later; until then its hints are void, since every loop starts by looking.
    """

    def __init__(self, loops: frozenset[str]) -> None:
        self._loops = loops
        self._event_loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._wake: dict[str, Callable[[], None]] = {}

    def subscribe(self, loop: str, wake: Callable[[], None]) -> None:
        """`wake` is called on the event loop's thread for each hint to `loop`, e.g. `Driver.hint`."""
        assert loop in self._loops, f"{loop!r} is not one of the loops {sorted(self._loops)}"
        assert loop not in self._wake, f"{loop!r} is subscribed already"
        self._wake[loop] = wake

    def hint(self, loop: str) -> None:
        assert loop in self._loops, f"a hint to {loop!r}, which is not one of the loops {sorted(self._loops)}"
        wake = self._wake.get(loop)
        if wake is None or self._event_loop.is_closed():
            return
        if threading.get_ident() == self._thread:
            wake()
        else:
            self._event_loop.call_soon_threadsafe(wake)
