"""The replicas of a fleet in virtual time: ordered, started, ready, draining, asleep, woken.

All random times are drawn from the seed, cold starts and wake-ups each from a stream of their own: how often replicas
are woken changes no cold start.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from controlplane.simulation.fleet.state import DRAINING, EMPTY, READY, Fleet

_SLOTS_PER_REPLICA: Final = 2
"""One that serves and one that drains. A policy that turns faster than requests end finds no slot for its new replicas
until an old one is through: a cluster has no endless GPUs either."""
_STARTS_STREAM: Final = 1
_WAKES_STREAM: Final = 3
"""Beside the seed; the profile of one replica draws from the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """Replicas that are given back fall asleep instead of going (vLLM's sleep mode), and wake before any starts."""

    wake_s: float
    """Mean time from asleep to ready."""
    wake_cv: float = 0.1
    """Its spread: standard deviation over mean, lognormal."""
    asleep_share: float = 1.0
    """What a sleeper's GPUs count of a ready one's: 1 when they are kept for it, 0 when something else uses them."""
    most: int | None = None
    """Asleep at once; whoever is given back beyond goes. None: all."""

    def __post_init__(self) -> None:
        assert self.wake_s >= 0.0, "waking up takes no less than no time"
        assert 0.0 <= self.asleep_share <= 1.0, "a sleeper costs at most what a ready one does"
        assert self.most is None or self.most >= 0, "a limit of sleepers is a number of them"


@dataclass(slots=True, kw_only=True, eq=False)
class _Replica:
    ordered_s: float
    launched_s: float | None = None
    """Billed from here on; None: no GPU yet."""
    ready_s: float = math.inf
    slot: int | None = None
    draining: bool = False
    drowsy: bool = False
    """Draining to fall asleep."""
    woken: bool = False
    """It slept before."""


def slots_for(replicas_max: int) -> int:
    return _SLOTS_PER_REPLICA * replicas_max + 2


class Replicas:
    """Mutable. Those that sleep are a number, since one is like the other; the rest are in order of appearance."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        ready: int,
        asleep: int,
        cold_start_s: float,
        cold_start_cv: float,
        sleep: Sleep | None,
        seed: int,
    ) -> None:
        """`ready` and `asleep`: at the beginning."""
        self._slots = fleet.slots
        self._free_slots = list(range(len(fleet.slots)))[::-1]
        self._cold_start_s, self._cold_start_cv = cold_start_s, cold_start_cv
        self._sleep = sleep
        self._starts_rng = np.random.default_rng([seed, _STARTS_STREAM])
        self._wakes_rng = np.random.default_rng([seed, _WAKES_STREAM])
        self._awake = [_Replica(ordered_s=0.0, launched_s=0.0, ready_s=0.0) for _ in range(ready)]
        self._cold_starts_s: list[float] = []
        self.asleep = asleep
        self.wakes = 0
        self.starting = ready
        """Not ready yet, the ones that wake among them."""
        self.draining = 0
        self._drowsy = 0
        self._unlaunched = 0

    @property
    def ready(self) -> int:
        return len(self._awake) - self.starting - self.draining

    @property
    def billed(self) -> int:
        """Those that start, wake, serve or drain; sleepers are counted apart."""
        return len(self._awake) - self._unlaunched

    def starting_age_s(self, now_s: float) -> float:
        """Of the oldest one that starts or wakes; 0 without."""
        if not self.starting:
            return 0.0
        return max(now_s - replica.ordered_s for replica in self._awake if replica.slot is None)

    def take_cold_starts(self) -> tuple[float, ...]:
        """Order to ready in seconds, of those that became ready since the last call; wake-ups are none."""
        taken = tuple(self._cold_starts_s)
        self._cold_starts_s.clear()
        return taken

    # -- more and fewer -----------------------------------------------------------------------------------------------

    def order(self, count: int, now_s: float, *, asleep_least: int = 0) -> None:
        """So many more: first who drains to fall asleep comes back, then sleepers wake; the rest waits for `launch`.

        `asleep_least` are left asleep.
        """
        back = min(count, max(self.asleep + self._drowsy - asleep_least, 0))
        returning = [replica for replica in self._awake if replica.drowsy][:back] if self._drowsy else []
        for replica in returning:
            self._slots[replica.slot].phase = READY
            replica.draining = replica.drowsy = False
        self.draining -= len(returning)
        self._drowsy -= len(returning)
        for _ in range(back - len(returning)):
            self._wake(now_s)
        for _ in range(count - back):
            self._awake.append(_Replica(ordered_s=now_s))
            self.starting += 1
            self._unlaunched += 1

    def launch(self, now_s: float) -> None:
        """Whatever waits for a GPU gets one."""
        if not self._unlaunched:
            return
        for replica in self._awake:
            if replica.launched_s is None:
                replica.launched_s = now_s
                replica.ready_s = now_s + _drawn(self._starts_rng, self._cold_start_s, self._cold_start_cv)
        self._unlaunched = 0

    def become_ready(self, now_s: float) -> None:
        """Those whose time has come, as far as there are slots in the traffic."""
        if not self.starting:
            return
        for replica in self._awake:
            if replica.slot is None and replica.ready_s <= now_s and self._free_slots:
                replica.slot = self._free_slots.pop()
                self._slots[replica.slot].phase = READY
                self._slots[replica.slot].clock_s = now_s
                self.starting -= 1
                if replica.ready_s > 0.0 and not replica.woken:
                    self._cold_starts_s.append(replica.ready_s - replica.ordered_s)

    def give_back(self, *, asleep_most: int = 0) -> None:
        """One that starts, the newest first; else one that wakes; else the one with the fewest open requests.

        The last one finishes its requests; it and one that wakes fall asleep, as long as no more than `asleep_most` do.
        """
        may_sleep = self.asleep + self._drowsy < asleep_most
        if self.starting:
            coming = [replica for replica in self._awake if replica.slot is None]
            newest = max(coming, key=lambda replica: (not replica.woken, replica.ordered_s))
            self._awake.remove(newest)
            self.starting -= 1
            self._unlaunched -= int(newest.launched_s is None)
            self.asleep += int(newest.woken and may_sleep)
            return
        serving = [replica for replica in self._awake if not replica.draining]
        victim = min(serving, key=lambda replica: (self._slots[replica.slot].open, -replica.ready_s))
        victim.draining, victim.drowsy = True, may_sleep
        self.draining += 1
        self._drowsy += int(may_sleep)
        self._slots[victim.slot].phase = DRAINING

    def stop_sleepers(self, *, asleep_most: int) -> None:
        """Those beyond, who is about to sleep included, go."""
        self.asleep -= min(max(self.asleep + self._drowsy - asleep_most, 0), self.asleep)

    def remove_drained(self) -> None:
        """Whose last request is through sleeps, or is gone."""
        if not self.draining:
            return
        for replica in [replica for replica in self._awake if replica.draining]:
            assert replica.slot is not None, "only ready replicas drain"
            if self._slots[replica.slot].open == 0:
                self._slots[replica.slot].phase = EMPTY
                self._free_slots.append(replica.slot)
                self._awake.remove(replica)
                self.draining -= 1
                self._drowsy -= int(replica.drowsy)
                self.asleep += int(replica.drowsy)

    def _wake(self, now_s: float) -> None:
        assert self._sleep is not None, "who sleeps may sleep"
        ready_s = now_s + _drawn(self._wakes_rng, self._sleep.wake_s, self._sleep.wake_cv)
        self._awake.append(_Replica(ordered_s=now_s, launched_s=now_s, ready_s=ready_s, woken=True))
        self.asleep -= 1
        self.starting += 1
        self.wakes += 1


def _drawn(rng: np.random.Generator, mean_s: float, cv: float) -> float:
    spread = math.sqrt(math.log1p(cv**2))
    factor = rng.lognormal(-spread * spread / 2.0, spread) if spread else 1.0
    return mean_s * float(factor)
