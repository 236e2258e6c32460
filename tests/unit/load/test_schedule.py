"""The schedule under fake time: open-loop, bounded, and honest about being late."""

import asyncio
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from datetime import timedelta

from controlplane.simulation.load.model import (
    Answer,
    Arrival,
    Ending,
    Failed,
    Failure,
    LoadConfig,
    ModelShare,
    Objective,
    Outcome,
    Request,
    Task,
)
from controlplane.simulation.load.report import LoadReport
from controlplane.simulation.load.runner import Timing, requests, send_load
from controlplane.testing.effects import START, FakeClock, settle

CONFIG = LoadConfig(models=(ModelShare(name="chat", weight=1.0),), objective=Objective(ttft_s=1.0, inter_token_s=0.1))
ANSWER = Answer(ttft_s=0.5, end_to_end_s=1.4, prompt_tokens=100, output_tokens=10)


class FakeGateway:
    """Implements Sender: answers after `takes_s` of fake time with what it is told to."""

    def __init__(self, clock: FakeClock, *, takes_s: float = 1.0, outcomes: list[Outcome] | None = None) -> None:
        self._clock = clock
        self._takes = timedelta(seconds=takes_s)
        self._outcomes = outcomes or [ANSWER]
        self.sent: list[tuple[float, Request]] = []
        self.open = 0
        self.open_max = 0

    async def send(self, request: Request) -> Outcome:
        outcome = self._outcomes[len(self.sent) % len(self._outcomes)]
        self.sent.append((self._clock.monotonic(), request))
        self.open += 1
        self.open_max = max(self.open_max, self.open)
        try:
            await self._clock.sleep(self._takes)
        finally:
            self.open -= 1
        return outcome


def every(seconds: float, count: int) -> Iterator[Arrival]:
    return (Arrival(place * seconds, 1000, 100) for place in range(count))


async def play(
    config: LoadConfig,
    arrivals: Iterator[Arrival],
    gateway: FakeGateway,
    clock: FakeClock,
    *,
    stop_at_s: float | None = None,
) -> LoadReport:
    def sleep(seconds: float) -> Awaitable[None]:
        return clock.sleep(timedelta(seconds=seconds))

    stop = asyncio.Event()
    running = asyncio.create_task(
        send_load(
            config, arrivals, gateway, timing=Timing(now_s=clock.monotonic, sleep=sleep), started_at=START, stop=stop
        )
    )
    for _ in range(1000):
        await clock.advance(timedelta(seconds=0.25))
        if stop_at_s is not None and clock.monotonic() >= stop_at_s:
            stop.set()
            await settle()
        if running.done():
            break
    return await running


async def test_requests_go_at_the_traces_times_over_the_speed() -> None:
    clock = FakeClock()
    gateway = FakeGateway(clock)
    report = await play(replace(CONFIG, speed=10.0), every(5.0, 6), gateway, clock)
    assert [round(at_s, 6) for at_s, _ in gateway.sent] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert report.ending is Ending.EXHAUSTED
    assert (report.total.sent, report.total.ok, report.late_max_s) == (6, 6, 0.0)


async def test_a_slow_gateway_does_not_slow_the_demand() -> None:
    clock = FakeClock()
    gateway = FakeGateway(clock, takes_s=60.0)
    report = await play(CONFIG, every(1.0, 10), gateway, clock)
    assert gateway.open_max == 10
    assert report.late_max_s == 0.0


async def test_the_bound_on_open_requests_holds_and_its_cost_is_shown() -> None:
    clock = FakeClock()
    gateway = FakeGateway(clock, takes_s=10.0)
    report = await play(replace(CONFIG, concurrency_max=2), every(1.0, 6), gateway, clock)
    assert gateway.open_max == 2
    assert report.total.ok == 6
    assert report.late_max_s >= 15.0
    assert report.late_p99_s == report.late_max_s


async def test_it_ends_by_duration_and_by_number() -> None:
    clock = FakeClock()
    report = await play(replace(CONFIG, duration_s=3.5), every(1.0, 99), FakeGateway(clock), clock)
    assert (report.total.sent, report.ending) == (4, Ending.DURATION)
    clock = FakeClock()
    report = await play(replace(CONFIG, requests_max=5), every(1.0, 99), FakeGateway(clock), clock)
    assert (report.total.sent, report.total.ok, report.ending) == (5, 5, Ending.REQUESTS)


async def test_a_stop_ends_sending_and_waits_for_what_is_open() -> None:
    clock = FakeClock()
    gateway = FakeGateway(clock, takes_s=2.0)
    report = await play(CONFIG, every(1.0, 99), gateway, clock, stop_at_s=3.5)
    assert report.ending is Ending.INTERRUPTED
    assert (report.total.sent, report.total.ok, report.total.unfinished) == (4, 4, 0)


async def test_failures_are_counted_by_kind_and_met_no_objective() -> None:
    clock = FakeClock()
    slow = replace(ANSWER, ttft_s=1.2, end_to_end_s=1.9)
    outcomes: list[Outcome] = [
        ANSWER,
        slow,
        Failed(kind=Failure.HTTP, detail="503: no replica"),
        Failed(kind=Failure.BROKEN, detail="cut"),
    ]
    report = await play(CONFIG, every(1.0, 8), FakeGateway(clock, outcomes=outcomes), clock)
    total = report.total
    assert (total.ok, total.failed, dict(total.failures)) == (4, 4, {"broken": 2, "http 503": 2})
    assert total.attainment.all_met == 0.25
    assert total.attainment.ttft == 0.25
    assert total.attainment.inter_token == 0.5
    assert total.output_tokens == 40
    assert total.goodput_tokens_per_s * report.seconds == 20.0
    assert report.examples["http 503"] == "chat: 503: no replica"


async def test_without_an_objective_nothing_is_attained_or_missed() -> None:
    clock = FakeClock()
    report = await play(replace(CONFIG, objective=Objective()), every(1.0, 3), FakeGateway(clock), clock)
    assert report.total.attainment.all_met is None


def test_models_get_their_shares_and_prompts_that_fit() -> None:
    config = LoadConfig(
        models=(ModelShare(name="chat", weight=3.0), ModelShare(name="bge", weight=1.0, task=Task.EMBED)),
        context_tokens_max=800,
    )
    made = list(requests(config, every(1.0, 4000)))
    chat = [request for request in made if request.model.name == "chat"]
    assert 0.7 < len(chat) / len(made) < 0.8
    assert {request.prompt_tokens + request.output_tokens for request in chat} == {800}
    assert {request.prompt_tokens for request in made if request.model.task is Task.EMBED} == {512}
    assert len({request.text_offset for request in made}) > 3990
    assert made == list(requests(config, every(1.0, 4000)))
