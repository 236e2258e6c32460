"""llm-d's published points stay reproduced: the law, the load, the timing and the metrics together."""

import statistics

import pytest

from benchmarks.llmd import POINTS, PUBLISHED, REPLICAS, setting_of
from benchmarks.llmd_episode import PREFILL_TOKENS_PER_S, Episode, play, prefill_as_measured
from controlplane.simulation.fleet.subject import subject_of

CATALOG = subject_of("qwen3-32b", "h100", tensor_parallel=2).timing
SEEDS = 6


def episodes(point: int) -> list[Episode]:
    setting = setting_of(PUBLISHED[point], prefill_as_measured(CATALOG))
    return [play(setting, seed) for seed in range(SEEDS)]


@pytest.mark.parametrize("point", [0, 2], ids=["headline", "previous defaults"])
def test_a_published_point_is_reproduced(point: int) -> None:
    found, published = episodes(point), PUBLISHED[point]
    attainment = statistics.mean(episode.attainment_twice for episode in found)
    replicas = statistics.mean(episode.replicas_window for episode in found)
    assert 100.0 * attainment == pytest.approx(published.attainment, abs=POINTS)
    assert replicas == pytest.approx(published.replicas, abs=REPLICAS)


def test_the_ramp_takes_as_long_as_the_published_load_and_the_pool_grows_when_theirs_did() -> None:
    """The published series: a load of 43 minutes, the first replica added between minutes 15 and 18."""
    for episode in episodes(0):
        assert 41.0 <= episode.load_s / 60.0 <= 46.0
        assert 12.5 <= episode.first_up_s / 60.0 <= 18.5


def test_the_prefill_is_llm_ds() -> None:
    timing = prefill_as_measured(CATALOG)
    seconds = timing.prefill_base_s + timing.prefill_per_token_s * 4000 + timing.prefill_per_token2_s * 4000**2
    assert 4000 / seconds == pytest.approx(PREFILL_TOKENS_PER_S)
    assert timing[:3] == CATALOG[:3], "decode stays the catalog's"
