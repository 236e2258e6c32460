"""Processes without a row get a grace, a SIGTERM, a SIGKILL; a few a tick."""

from datetime import timedelta

from controlplane.domain.replica import Replica
from controlplane.replicas.ports import Seen
from controlplane.replicas.strays import STRAY_GRACE, STRAY_KILL_AFTER, STRAYS_PER_TICK, plan_strays
from controlplane.testing.builders import make_replica
from controlplane.testing.situations import NOW, seen_of

ROW = make_replica()


def seen(*rows: Replica, alive: bool = True) -> Seen:
    return Seen({row.name: seen_of(row, alive=alive) for row in rows})


def test_grace_then_sigterm_once_then_sigkill() -> None:
    first = plan_strays(seen(ROW), frozenset(), {}, NOW)
    assert (first.terminate, first.kill) == ((), ())
    asked = plan_strays(seen(ROW), frozenset(), first.suspects, NOW + STRAY_GRACE)
    assert (asked.terminate, asked.kill) == ((ROW.name,), ())
    waiting = plan_strays(seen(ROW), frozenset(), asked.suspects, NOW + STRAY_GRACE + timedelta(seconds=1))
    assert (waiting.terminate, waiting.kill) == ((), ())
    forced = plan_strays(seen(ROW), frozenset(), waiting.suspects, NOW + STRAY_GRACE + STRAY_KILL_AFTER)
    assert forced.kill == (ROW.name,)


def test_a_row_clears_the_suspicion_and_orphans_are_killed_without_asking() -> None:
    first = plan_strays(seen(ROW), frozenset(), {}, NOW)
    assert plan_strays(seen(ROW), frozenset({ROW.name}), first.suspects, NOW + STRAY_GRACE).suspects == {}
    assert plan_strays(seen(ROW, alive=False), frozenset(), first.suspects, NOW + STRAY_GRACE).kill == (ROW.name,)


def test_a_few_a_tick() -> None:
    rows = [make_replica(ordinal=i) for i in range(20)]
    first = plan_strays(seen(*rows), frozenset(), {}, NOW)
    assert len(plan_strays(seen(*rows), frozenset(), first.suspects, NOW + STRAY_GRACE).terminate) == STRAYS_PER_TICK
