"""A bucket in memory, damaged by hand: what rot, a mistake or an adversary below the store does to it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

from controlplane.kernel.errors import RetryableError
from controlplane.recovery.ports import ObjectInfo
from controlplane.testing.effects import FakeClock
from controlplane.testing.s3 import FakeS3


class MemoryBucket(FakeS3):
    """`trouble` is asked before each call, with the call's name, and may raise or wait."""

    def __init__(self, trouble: Callable[[str], None] = lambda _call: None, clock: FakeClock | None = None) -> None:
        super().__init__(clock or FakeClock())
        self.trouble = trouble

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        self.trouble(name)
        with super()._call(name):
            yield

    def change(self, key: str, body: bytes) -> None:
        """The newest version has other bytes, and the store knows no better."""
        self._damage(self._found(key, None), body, noticed=False)

    def lose(self, key: str) -> None:
        del self._keys[key]

    def peek(self, key: str) -> bytes:
        """The newest version, without a call that counts or fails."""
        return self._found(key, None).body

    def twin(self) -> "MemoryBucket":
        """Another with the same in it, to be damaged instead."""
        other = MemoryBucket()
        other._keys = deepcopy(self._keys)
        return other

    def listed(self) -> list[str]:
        """Those that a listing shows."""
        return [key for key in sorted(self._keys) if self._newest(key) is not None]

    def everything(self) -> list[ObjectInfo]:
        """Every version, as `head` tells it."""
        return [self._looked_at(stored) for versions in self._keys.values() for stored in versions]

    def bodies(self) -> list[bytes]:
        return [stored.body for versions in self._keys.values() for stored in versions]


class FailsAt:
    """Trouble of a bucket: the call of this number, counted from 1, and those after it while it lasts, are refused."""

    def __init__(self, number: int, *, lasts: int = 1) -> None:
        self._first, self._last = number, number + lasts - 1
        self._mutex = threading.Lock()
        self.calls = 0

    def __call__(self, call: str) -> None:
        with self._mutex:
            self.calls += 1
            number = self.calls
        if self._first <= number <= self._last:
            raise RetryableError(f"{call}: refused, as the test asked")
