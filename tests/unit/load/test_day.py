"""The generated day: deterministic, shaped, bounded."""

from itertools import islice, pairwise, takewhile

import pytest

from controlplane.simulation.load.day import generate_day, rate_shape
from controlplane.simulation.load.model import Arrival, DayShape

SHAPE = DayShape(length_s=2400.0, peak_rps=20.0, trough_rps=2.0, prompt_tokens_mean=600, output_tokens_mean=120)


def one_day(seed: int = 7) -> list[Arrival]:
    return list(takewhile(lambda arrival: arrival.at_s < SHAPE.length_s, generate_day(SHAPE, seed=seed)))


def test_the_same_seed_gives_the_same_day_and_another_another() -> None:
    assert one_day() == one_day()
    assert one_day() != one_day(8)


def test_arrivals_are_in_order_and_go_on_after_the_first_day() -> None:
    arrivals = list(islice(generate_day(SHAPE, seed=1), 60_000))
    assert all(before.at_s <= after.at_s for before, after in pairwise(arrivals))
    assert arrivals[-1].at_s > SHAPE.length_s


def test_two_humps_over_a_trough() -> None:
    """By the hour, from six in the morning: busy at half past ten and half past three, quiet at night."""
    by_hour = [0] * 24
    for arrival in one_day():
        by_hour[int(6 + arrival.at_s / SHAPE.length_s * 24) % 24] += 1
    per_s = [count / (SHAPE.length_s / 24) for count in by_hour]
    assert min(per_s[10], per_s[15]) > 14.0
    assert max(per_s[1:4]) < 5.0
    assert rate_shape(10.5 / 24) > rate_shape(13.0 / 24) < rate_shape(15.5 / 24)


def test_lengths_have_the_means_asked_for_and_a_bound() -> None:
    arrivals = one_day()
    prompts = [arrival.prompt_tokens for arrival in arrivals]
    outputs = [arrival.output_tokens for arrival in arrivals]
    assert sum(prompts) / len(prompts) == pytest.approx(600, rel=0.05)
    assert sum(outputs) / len(outputs) == pytest.approx(120, rel=0.05)
    assert 1 <= min(prompts) <= max(prompts) <= 8 * 600


def test_no_rate_is_no_load() -> None:
    assert list(generate_day(DayShape(peak_rps=0.0, trough_rps=0.0), seed=1)) == []
