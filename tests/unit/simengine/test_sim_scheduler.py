"""The pure scheduler: nothing lost, nothing over its bounds, first come first served."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.simulation.engine.scheduler import Scheduler, SchedulerLimits
from controlplane.simulation.engine.sequence import Sequence, SequencePhase, Step
from controlplane.simulation.engine.timing import EngineProfile
from controlplane.testing.builders import PRIOR_8B_B200

PROFILE = EngineProfile()
BLOCK = 16


@dataclass(frozen=True)
class World:
    limits: SchedulerLimits
    requests: list[tuple[int, int, int, float]]
    """(prompt tokens, output tokens, prefix family, seconds after the one before)."""
    aborts: frozenset[int]
    merge: bool


@st.composite
def worlds(draw: st.DrawFn) -> World:
    max_num_seqs = draw(st.integers(1, 6))
    limits = SchedulerLimits(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=draw(st.integers(max_num_seqs, 64)),
        kv_blocks=draw(st.integers(8, 24)),
        block_tokens=BLOCK,
        prefix_caching=draw(st.booleans()),
    )
    requests = draw(
        st.lists(
            st.tuples(
                st.integers(1, 60), st.integers(0, 60), st.integers(0, 2), st.sampled_from([0.0, 0.001, 0.02, 0.5])
            ),
            min_size=1,
            max_size=14,
        )
    )
    aborts = draw(st.frozensets(st.integers(0, len(requests) - 1), max_size=3))
    return World(limits, requests, aborts, draw(st.booleans()))


def prefix_keys(family: int, prompt_tokens: int) -> tuple[int, ...]:
    return tuple(family * 1000 + index for index in range(prompt_tokens // BLOCK))


def make(prompt: int, output: int, at: float = 0.0, keys: tuple[int, ...] = ()) -> Sequence:
    return Sequence(prompt_tokens=prompt, output_tokens=output, arrived_at=at, prefix_keys=keys)


def drain(scheduler: Scheduler, now: float = 0.0) -> list[Step]:
    steps = []
    while (step := scheduler.step(now)) is not None:
        steps.append(step)
        now = step.ends_at
        assert len(steps) < 100_000
    return steps


class Run:
    """A world played to its end, with the bounds checked after each step."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.scheduler = Scheduler(PROFILE, world.limits)
        self.arrivals: list[Sequence] = []
        at = 0.0
        for prompt, output, family, gap in world.requests:
            at += gap
            self.arrivals.append(make(prompt, output, at, prefix_keys(family, prompt)))
        self.left = list(self.arrivals)
        self.admitted: list[Sequence] = []
        self.ended: list[Sequence] = []

    def play(self) -> None:
        now = 0.0
        for _ in range(20_000):
            while self.left and self.left[0].arrived_at <= now:
                self.scheduler.submit(self.left.pop(0))
            horizon = self.left[0].arrived_at if self.left and self.world.merge else None
            step = self.scheduler.step(now, until=horizon)
            if step is not None:
                self.check(step)
                self.abort_some(step.ends_at)
                now = step.ends_at
            elif self.left:
                now = self.left[0].arrived_at
            else:
                return
        pytest.fail("it did not end")

    def check(self, step: Step) -> None:
        limits = self.world.limits
        assert step.ends_at > step.started_at
        assert 0 <= self.scheduler.kv_blocks_used <= limits.kv_blocks
        assert self.scheduler.running <= limits.max_num_seqs
        assert step.decoded + step.prefill_tokens <= limits.max_num_batched_tokens
        self.admitted += step.admitted
        self.ended += step.finished

    def abort_some(self, now: float) -> None:
        for index in self.world.aborts:
            victim = self.arrivals[index]
            if victim.phase is not SequencePhase.DONE and len(self.ended) > index and victim not in self.left:
                assert self.scheduler.abort(victim, now)


@settings(max_examples=200, deadline=None)
@given(worlds())
def test_every_request_ends_with_all_its_tokens_and_the_cache_is_never_overrun(world: World) -> None:
    run = Run(world)
    run.play()
    assert not run.left
    assert not run.scheduler.busy
    assert run.scheduler.kv_blocks_used == 0
    assert all(sequence.phase is SequencePhase.DONE for sequence in run.arrivals)
    assert all(sequence.generated_base == sequence.output_tokens for sequence in run.ended)
    order = [run.arrivals.index(sequence) for sequence in run.admitted]
    assert order == sorted(order), "first come, first admitted"
    for sequence in run.ended:
        assert sequence.admitted_at is not None
        assert sequence.first_token_at is not None
        assert sequence.arrived_at <= sequence.admitted_at <= sequence.first_token_at <= sequence.finished_at


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_merging_decode_steps_changes_no_result(world: World) -> None:
    def run(until: float | None) -> list[tuple[float, float, int, int]]:
        scheduler = Scheduler(PROFILE, world.limits)
        sequences = [make(prompt, output, 0.0, prefix_keys(f, prompt)) for prompt, output, f, _ in world.requests]
        for sequence in sequences:
            scheduler.submit(sequence)
        now = 0.0
        while (step := scheduler.step(now, until=until)) is not None:
            now = step.ends_at
        return [(s.first_token_at or 0.0, s.finished_at, s.generated_base, s.preemptions) for s in sequences]

    for one, merged in zip(run(None), run(1e9), strict=True):
        assert one == pytest.approx(merged)


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_generated_tokens_add_up_step_by_step(world: World) -> None:
    scheduler = Scheduler(PROFILE, world.limits)
    sequences = [make(prompt, output) for prompt, output, _, _ in world.requests]
    for sequence in sequences:
        scheduler.submit(sequence)
    total = 0
    for step in drain(scheduler):
        total += step.decoded * step.count + len(step.first_tokens) + len(step.resumed)
    assert total == sum(sequence.output_tokens for sequence in sequences)


def test_one_request_takes_the_time_of_the_formulas() -> None:
    scheduler = Scheduler(PROFILE, SchedulerLimits.of(PROFILE))
    sequence = make(2000, 3)
    scheduler.submit(sequence)
    drain(scheduler)
    prefill_s = 2.98e-3 + 8.48e-6 * 2000 + 3.30e-10 * 2000**2
    assert sequence.first_token_at == pytest.approx(prefill_s)
    first = 3.39e-3 + 4.0e-6 + 1.81e-8 * 2001
    second = 3.39e-3 + 4.0e-6 + 1.81e-8 * 2002
    assert sequence.finished_at == pytest.approx(prefill_s + first + second)


def test_a_prompt_in_chunks_costs_the_same_work_plus_one_pass_per_chunk() -> None:
    whole = PROFILE.prefill_work_s(0, 20_000)
    chunks = sum(PROFILE.prefill_work_s(done, min(8192, 20_000 - done)) for done in range(0, 20_000, 8192))
    assert chunks == pytest.approx(whole)
    scheduler = Scheduler(PROFILE, SchedulerLimits.of(PROFILE))
    scheduler.submit(make(20_000, 1))
    assert [step.prefill_tokens for step in drain(scheduler)] == [8192, 8192, 3616]


def test_decoding_goes_on_beside_a_long_prefill() -> None:
    scheduler = Scheduler(PROFILE, SchedulerLimits.of(PROFILE))
    talker = make(10, 50)
    scheduler.submit(talker)
    first = scheduler.step(0.0)
    assert first is not None
    scheduler.submit(make(20_000, 1, first.ends_at))
    step = scheduler.step(first.ends_at)
    assert step is not None
    assert step.decoded == 1
    assert step.prefill_tokens == 8191


def test_the_youngest_is_preempted_and_recomputed() -> None:
    limits = SchedulerLimits(max_num_seqs=4, max_num_batched_tokens=64, kv_blocks=4, block_tokens=BLOCK)
    scheduler = Scheduler(PROFILE, limits)
    old, young = make(16, 40), make(16, 40)
    scheduler.submit(old)
    scheduler.submit(young)
    steps = drain(scheduler)
    assert old.preemptions == 0
    assert young.preemptions >= 1
    assert old.finished_at < young.finished_at
    assert [resumed for step in steps for resumed, gap in step.resumed if gap > 0] == [young] * young.preemptions
    assert young.generated_base == 40


def test_a_shared_prefix_is_prefilled_once() -> None:
    scheduler = Scheduler(PROFILE, SchedulerLimits.of(PROFILE))
    keys = prefix_keys(1, 160)
    first, second = make(165, 2, 0.0, keys), make(165, 2, 1.0, keys)
    scheduler.submit(first)
    drain(scheduler)
    scheduler.submit(second)
    steps = drain(scheduler, 1.0)
    assert first.cached_tokens == 0
    assert second.cached_tokens == 160
    assert steps[0].prefill_tokens == 5


def test_a_fully_cached_prompt_still_computes_its_last_block() -> None:
    scheduler = Scheduler(PROFILE, SchedulerLimits.of(PROFILE))
    keys = prefix_keys(1, 160)
    scheduler.submit(make(160, 1, 0.0, keys))
    drain(scheduler)
    again = make(160, 1, 1.0, keys)
    scheduler.submit(again)
    drain(scheduler, 1.0)
    assert again.cached_tokens == 144


def test_pooling_ends_with_its_prefill() -> None:
    scheduler = Scheduler(PROFILE, SchedulerLimits(max_num_seqs=8, max_num_batched_tokens=8192))
    requests = [make(100, 0) for _ in range(20)]
    for request in requests:
        scheduler.submit(request)
    steps = drain(scheduler)
    assert len(steps) == 3, "8 + 8 + 4 sequences"
    assert all(request.generated_base == 0 and request.phase is SequencePhase.DONE for request in requests)
    assert scheduler.kv_usage == pytest.approx(0.0)


def test_pace_scales_time_only() -> None:
    slow, fast = (Scheduler(PROFILE, SchedulerLimits.of(PROFILE)) for _ in range(2))
    fast.time_scale = 0.1
    for scheduler in (slow, fast):
        scheduler.submit(make(100, 10))
    assert drain(fast)[-1].ends_at == pytest.approx(drain(slow)[-1].ends_at / 10)


def test_a_sequence_that_can_never_fit_is_told_beforehand() -> None:
    limits = SchedulerLimits(max_num_seqs=1, max_num_batched_tokens=64, kv_blocks=2, block_tokens=BLOCK)
    scheduler = Scheduler(PROFILE, limits)
    assert scheduler.fits(16, 17), "the last token needs no KV"
    assert not scheduler.fits(16, 18)
    with pytest.raises(AssertionError, match="fits"):
        scheduler.submit(make(16, 18))


def test_throughput_matches_the_prior_at_a_full_batch() -> None:
    """64 sequences of 1000 + 200 tokens on the 8B profile: steps of 3.39 + 0.004 B + 1.81e-5 B ctx ms."""
    scheduler = Scheduler(PROFILE, SchedulerLimits.of(PROFILE))
    for _ in range(64):
        scheduler.submit(make(1000, 200))
    steps = drain(scheduler)
    full = [step for step in steps if step.decoded == 64 and not step.prefill_tokens]
    mean_s = sum(step.ends_at - step.started_at for step in full) / len(full)
    assert mean_s == pytest.approx(3.39e-3 + 4e-6 * 64 + 1.81e-8 * 64 * 1100, rel=0.02)


def test_profile_comes_from_a_prior_and_refuses_what_it_does_not_know() -> None:
    profile = EngineProfile.from_prior(PRIOR_8B_B200)
    assert profile.kv_tokens == PRIOR_8B_B200.kv_tokens
    assert profile.step_base_s == PRIOR_8B_B200.step_base_s
    assert EngineProfile.from_mapping({"kv_tokens": 160, "step_base_s": 1}).kv_tokens == 160
    with pytest.raises(Exception, match="Nearest: kv_tokens"):
        EngineProfile.from_mapping({"kv_token": 160})
    with pytest.raises(Exception, match="whole number >= 1"):
        EngineProfile.from_mapping({"max_num_seqs": 0})
    with pytest.raises(Exception, match="number >= 0"):
        EngineProfile.from_mapping({"step_base_s": "fast"})
