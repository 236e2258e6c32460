"""The machine's own clock, randomness and identity keep the kernel's promises."""

from datetime import UTC, datetime, timedelta

from controlplane.adapters.system import SystemClock, SystemRng, UuidIds
from controlplane.kernel.effects import Clock, IdSource, Rng


async def test_the_clock_is_in_utc_and_its_monotonic_time_goes_on() -> None:
    clock: Clock = SystemClock()
    assert clock.now().tzinfo is UTC
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=5)
    before = clock.monotonic()
    await clock.sleep(timedelta(milliseconds=2))
    assert clock.monotonic() - before >= 0.0019
    await clock.sleep(timedelta(seconds=-5))


def test_randomness_stays_in_its_bounds() -> None:
    rng: Rng = SystemRng()
    assert all(2.0 <= rng.uniform(2.0, 3.0) <= 3.0 for _ in range(100))
    assert {rng.choice("ab") for _ in range(100)} == {"a", "b"}


def test_identifiers_differ_and_fit() -> None:
    ids: IdSource = UuidIds()
    made = [ids.new_id() for _ in range(100)]
    assert len(set(made)) == 100
    assert all(name.isprintable() and len(name) <= 36 for name in made)
