"""All peers alike: names, knobs, searches, bounds, determinism, states that are values; and docs/peers.md."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.kernel.errors import InvalidError, NotFoundError
from controlplane.simulation.fleet.policy import Counter, Gauge, Latency, Peer
from controlplane.simulation.peers.knobs import combinations
from controlplane.simulation.peers.registry import PEERS, make_peer
from tests.unit.peers.steady import FACTS, Steady, first, look, run

PAGE = (Path(__file__).parents[3] / "docs" / "peers.md").read_text(encoding="utf-8")
NAMES = [
    *("hpa", "hpa-kv", "keda-queue", "knative", "ray-serve", "skyserve", "aibrix-apa", "aibrix-kpa"),
    *("wva-v2", "wva-v1", "llmd-slo", "llmd-old", "dynamo-load", "dynamo-throughput", "dynamo-hybrid", "static"),
]
COMBINATIONS_MAX = 24
each_peer = pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)


def test_every_peer_has_its_name() -> None:
    assert list(PEERS) == NAMES
    assert all(make_peer(name, FACTS).name == PEERS[name].name == name for name in NAMES)


@each_peer
def test_a_search_holds_the_defaults_and_stays_small(peer: Peer) -> None:
    assert set(peer.search) <= set(peer.defaults)
    assert all(peer.defaults[knob] in values for knob, values in peer.search.items())
    tried = list(combinations(peer))
    assert tried == list(combinations(peer))
    assert peer.defaults in tried
    assert len({tuple(knobs.items()) for knobs in tried}) == len(tried) <= COMBINATIONS_MAX
    for knobs in tried:
        assert peer.make(FACTS, knobs).tick_s > 0


@each_peer
def test_unknown_knobs_name_the_nearest(peer: Peer) -> None:
    knob = next(iter(peer.defaults))
    with pytest.raises(InvalidError, match=f"{peer.name}.{knob}x: found an unknown knob.*Nearest: {knob}"):
        peer.make(FACTS, {f"{knob}x": 1.0})
    with pytest.raises(InvalidError, match="a finite number >= 0"):
        peer.make(FACTS, {knob: math.nan})


@pytest.mark.parametrize(
    ("name", "knob"),
    [
        ("hpa", "target_share"),
        ("keda-queue", "threshold"),
        ("knative", "stable_window_s"),
        ("skyserve", "target_share"),
        ("aibrix-apa", "panic_window_s"),
        ("wva-v2", "tick_s"),
        ("llmd-slo", "up_threshold"),
        ("dynamo-hybrid", "slo_share"),
    ],
)
def test_what_is_divided_by_is_not_zero(name: str, knob: str) -> None:
    with pytest.raises(InvalidError, match=f"{name}.{knob}: found 0, expected a number above 0"):
        make_peer(name, FACTS, {knob: 0})


def test_dynamo_has_three_targets() -> None:
    with pytest.raises(InvalidError, match=r"found 3, expected one of 0 \(throughput\), 1 \(latency\), 2 \(sla\)"):
        make_peer("dynamo-load", FACTS, {"target": 3})


def test_unknown_peers_name_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="nearest: knative"):
        make_peer("knativ", FACTS)


HOLDS = ("hpa", "hpa-kv", "knative", "aibrix-apa", "aibrix-kpa", "wva-v2", "wva-v1")
HOLDS_TOO = ("dynamo-load", "dynamo-throughput", "dynamo-hybrid")
SHEDS = ("keda-queue", "ray-serve", "skyserve", "llmd-slo", "llmd-old")


def test_what_each_makes_of_an_outage_of_its_metrics() -> None:
    """The reference's column "safe on metric loss?", peer by peer."""
    after = {name: run(make_peer(name, FACTS), Steady(), wanted=6, until_s=1500) for name in NAMES}
    assert {name for name, changes in after.items() if not changes} == {*HOLDS, *HOLDS_TOO}
    assert all(after[name][0][1] < 6 for name in SHEDS)


def test_static_is_the_maximum_or_what_is_said() -> None:
    assert first(make_peer("static", FACTS), look(Steady(), wanted=3, high=8)) == 8
    assert first(make_peer("static", FACTS, {"share": 0.625}), look(Steady(), wanted=3, high=8)) == 5
    assert first(make_peer("static", FACTS, {"replicas": 6}), look(Steady(), wanted=3, high=8)) == 6
    assert first(make_peer("static", FACTS, {"replicas": 60}), look(Steady(), wanted=3, high=8)) == 8


@st.composite
def situations(draw: st.DrawFn) -> tuple[Steady, int, int]:
    """Metrics, partly missing, of `ready` of `wanted` replicas."""
    wanted = draw(st.integers(1, 40))
    ready = draw(st.integers(0, wanted))
    number = st.floats(0, 300)
    gauges = {
        Gauge.RUNNING: draw(st.lists(number, min_size=ready, max_size=ready)),
        Gauge.WAITING: draw(st.lists(number, min_size=ready, max_size=ready)),
        Gauge.KV_USAGE: draw(st.lists(st.floats(0, 1), min_size=ready, max_size=ready)),
        Gauge.QUEUED_PROMPT_TOKENS: draw(st.lists(st.floats(0, 1e6), min_size=ready, max_size=ready)),
    }
    maybe = st.one_of(st.just(math.nan), number)
    metrics = Steady(
        gauges={} if draw(st.booleans()) and draw(st.booleans()) else gauges,
        waiting_in_gateway=draw(maybe),
        rates={counter: draw(maybe) for counter in Counter},
        latencies={latency: draw(maybe) for latency in Latency},
    )
    return metrics, wanted, ready


def frozen(memory: object) -> bool:
    if memory is None:
        return True
    name = dataclasses.fields(memory)[0].name  # type: ignore[arg-type]  # that it is a dataclass is what is asked
    try:
        setattr(memory, name, None)
    except dataclasses.FrozenInstanceError:
        return True
    return False


@each_peer
@settings(max_examples=25, deadline=None)
@given(situation=situations())
def test_decisions_are_sane_and_repeat_themselves(peer: Peer, situation: tuple[Steady, int, int]) -> None:
    metrics, wanted, ready = situation
    policy = peer.make(FACTS, {})
    memory = policy.start()
    for step in range(4):
        seen = look(metrics, at_s=step * policy.tick_s, wanted=wanted, ready=min(ready, wanted), high=40)
        before = repr(memory)
        now, after = policy.decide(seen, memory)
        assert policy.decide(seen, memory) == (now, after)
        assert repr(memory) == before
        assert isinstance(now, int)
        assert -40 <= now <= 40 * 1000
        assert frozen(after)
        memory, wanted = after, max(1, min(40, now))


# -- docs/peers.md ----------------------------------------------------------------------------------------------------


def section(name: str) -> str:
    found = re.search(rf"^## `{re.escape(name)}`.*?(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/peers.md has no section for {name}"
    return found.group()


def test_the_page_has_a_section_for_each_peer_and_no_other() -> None:
    assert re.findall(r"^## `(.+?)`", PAGE, re.MULTILINE) == list(PEERS)


@each_peer
def test_each_knob_has_its_line_with_default_and_search(peer: Peer) -> None:
    rows = {
        row[0].strip("`"): row[1:]
        for line in section(peer.name).splitlines()
        if line.startswith("| `")
        for row in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    expected = {
        knob: [f"{default:g}", ", ".join(f"{value:g}" for value in peer.search.get(knob, ())) or "-"]
        for knob, default in peer.defaults.items()
    }
    assert {knob: row[:2] for knob, row in rows.items()} == expected


@each_peer
def test_each_section_says_signal_rule_assumptions_and_source(peer: Peer) -> None:
    text = section(peer.name)
    for part in ("Signal", "Rule", "Assumed", "Missing data"):
        assert f"**{part}.**" in text
    assert f"**Source.** {peer.source}" in text
