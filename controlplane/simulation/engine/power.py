"""Sleep mode: an engine that gives its GPU memory back and takes it again."""

from collections.abc import Callable
from enum import IntEnum

from controlplane.simulation.engine.core import EngineCore, Hold


class SleepLevel(IntEnum):
    AWAKE = 0
    WEIGHTS_OFFLOADED = 1
    DISCARDED = 2


class SleepMode:
    """Asleep, the engine keeps answering HTTP, ends what was in flight, and lets new requests wait."""

    def __init__(self, core: EngineCore, wake_s: float) -> None:
        self.level = SleepLevel.AWAKE
        self._core = core
        self._wake_s = wake_s
        self._awaited: list[Callable[[], None]] = []

    def sleep(self, level: SleepLevel) -> None:
        """In-flight requests end with `abort` (vLLM's default mode); the prefix cache is lost."""
        if self.level is SleepLevel.AWAKE:
            self._core.abort_all()
            self._core.scheduler.forget_prefixes()
            self._core.hold(Hold.ASLEEP)
        self.level = level

    def wake(self, done: Callable[[], None]) -> None:
        """Call `done` once awake, `wake_s` after the first call. At once when awake already."""
        if self.level is SleepLevel.AWAKE:
            done()
            return
        self._awaited.append(done)
        if len(self._awaited) == 1:
            self._core.time.call_later(self._wake_s, self._woken)

    def _woken(self) -> None:
        self.level = SleepLevel.AWAKE
        self._core.release(Hold.ASLEEP)
        waiting, self._awaited = self._awaited, []
        for done in waiting:
            done()
