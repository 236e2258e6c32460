"""The load itself: open-loop, so that a slow gateway cannot slow down the demand that it is measured with."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import perf_counter
from typing import Final, Protocol

from controlplane.simulation.load.client import GatewayClient
from controlplane.simulation.load.control_plane import fleet_report, stated_objectives
from controlplane.simulation.load.day import generate_day
from controlplane.simulation.load.model import (
    EMBED_TOKENS_MAX,
    Arrival,
    Ending,
    LoadConfig,
    ModelShare,
    Outcome,
    Request,
    Task,
)
from controlplane.simulation.load.report import LoadReport
from controlplane.simulation.load.tally import Progress, Tally

PROGRESS_S: Final = 0.5
"""Between two calls of `on_progress`."""
_GRACE_S: Final = 5.0
"""What open requests get to finish in after an interruption."""
_YIELD_EVERY: Final = 64
"""Requests sent without a pause when the schedule is late: answers must be read meanwhile."""
_MODEL_STREAM: Final = 0x5EED
"""Keeps the choice of models apart from the day's randomness, which has the same seed."""


class Sender(Protocol):
    async def send(self, request: Request) -> Outcome: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds that only go forward, and a pause: the machine's, or a test's."""

    now_s: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]


async def run_load(
    config: LoadConfig,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
) -> LoadReport:
    """Send the load to its end, or until `stop` is set, and report. InvalidError for a trace that cannot be read."""
    if config.control_plane_url is not None and config.objective.is_empty and not config.objectives:
        config = replace(config, objectives=await stated_objectives(config.control_plane_url))
    arrivals = _arrivals(config)
    started_at = datetime.now(UTC)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            GatewayClient(
                config.gateway_url, api_key=config.api_key, timeout_s=config.request_timeout_s, seed=config.seed
            )
        )
        report = await send_load(
            config,
            arrivals,
            client,
            timing=Timing(now_s=perf_counter, sleep=asyncio.sleep),
            started_at=started_at,
            on_progress=on_progress,
            stop=stop,
        )
    if config.control_plane_url is None:
        return report
    return replace(report, fleet=await fleet_report(config.control_plane_url, started_at, datetime.now(UTC)))


async def send_load(
    config: LoadConfig,
    arrivals: Iterator[Arrival],
    sender: Sender,
    *,
    timing: Timing,
    started_at: datetime,
    on_progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
) -> LoadReport:
    """The schedule without the network: `sender` and `timing` are arguments, so it can be played in no time."""
    play = _Play(config, sender, timing, stop or asyncio.Event())
    watching = asyncio.create_task(_watch(play, on_progress), name="load-progress") if on_progress else None
    try:
        ending = await play.send_all(arrivals)
        ending = await play.finish(ending)
    finally:
        if watching is not None:
            watching.cancel()
    if on_progress is not None:
        on_progress(play.progress())
    return play.tally.report(started_at=started_at.isoformat(), seconds=play.elapsed_s, ending=ending, config=config)


def requests(config: LoadConfig, arrivals: Iterator[Arrival]) -> Iterator[Request]:
    """Arrivals with a model each, at wall times, cut to what the models take."""
    rng = random.Random(config.seed ^ _MODEL_STREAM)
    weights = [share.weight for share in config.models]
    for arrival in arrivals:
        (share,) = rng.choices(config.models, weights)
        yield Request(
            model=share,
            due_s=arrival.at_s / config.speed,
            prompt_tokens=_prompt_tokens(config, share, arrival),
            output_tokens=arrival.output_tokens,
            text_offset=rng.getrandbits(30),
        )


def _arrivals(config: LoadConfig) -> Iterator[Arrival]:
    if config.trace is None:
        return generate_day(config.day, seed=config.seed)
    from controlplane.simulation.load.trace import read_trace  # noqa: PLC0415  # pyarrow: 50 MB that a day needs not

    return read_trace(config.trace)


def _prompt_tokens(config: LoadConfig, share: ModelShare, arrival: Arrival) -> int:
    if share.task is Task.EMBED:
        return min(arrival.prompt_tokens, EMBED_TOKENS_MAX)
    if config.context_tokens_max is None:
        return arrival.prompt_tokens
    return max(min(arrival.prompt_tokens, config.context_tokens_max - arrival.output_tokens), 1)


class _Play:
    """One run: which requests are open, and how far it is."""

    def __init__(self, config: LoadConfig, sender: Sender, timing: Timing, stop: asyncio.Event) -> None:
        self._config = config
        self._sender = sender
        self._timing = timing
        self._stop = stop
        self._began_s = timing.now_s()
        self._open: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self.tally = Tally(config)

    @property
    def elapsed_s(self) -> float:
        return self._timing.now_s() - self._began_s

    def progress(self) -> Progress:
        return self.tally.progress(self.elapsed_s)

    async def send_all(self, arrivals: Iterator[Arrival]) -> Ending:
        """Each at its time; late only when the client or its own bound holds it back, and that is counted."""
        for request in requests(self._config, arrivals):
            if request.due_s > self._config.duration_s:
                await self._pause_until(self._config.duration_s)
                return Ending.INTERRUPTED if self._stop.is_set() else Ending.DURATION
            await self._pause_until(request.due_s)
            while len(self._open) >= self._config.concurrency_max and not self._stop.is_set():
                await self._one_ended()
            if self._stop.is_set():
                return Ending.INTERRUPTED
            if self.elapsed_s > self._config.duration_s:
                return Ending.DURATION
            self._send(request)
            if self.tally.sent >= self._config.requests_max:
                return Ending.REQUESTS
        return Ending.EXHAUSTED

    async def finish(self, ending: Ending) -> Ending:
        """Wait for open requests, each bounded by its own deadline; after an interruption only for a moment."""
        while self._open and not self._stop.is_set():
            await self._one_ended()
        if not self._open:
            return ending
        _, late = await asyncio.wait(self._open, timeout=_GRACE_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        return Ending.INTERRUPTED

    def _send(self, request: Request) -> None:
        self.tally.sent_one(request.model.name, self.elapsed_s - request.due_s)
        task = asyncio.create_task(self._one(request), name="load-request")
        self._open.add(task)
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        self._ended.set()

    async def _one(self, request: Request) -> None:
        self.tally.ended_one(request.model.name, await self._sender.send(request))

    async def _pause_until(self, due_s: float) -> None:
        """Sleep until due, or until stopped; a late schedule still lets answers be read now and then."""
        wait_s = due_s - self.elapsed_s
        if wait_s > 0.0:
            await self._until(self._timing.sleep(wait_s))
        elif self.tally.sent % _YIELD_EVERY == 0:
            await asyncio.sleep(0)

    async def _one_ended(self) -> None:
        self._ended.clear()
        await self._until(self._ended.wait())

    async def _until(self, waiting: Awaitable[object]) -> None:
        """Until it comes, or the stop."""
        awaited, stopped = asyncio.ensure_future(waiting), asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({awaited, stopped}, return_when=asyncio.FIRST_COMPLETED)
        awaited.cancel()
        stopped.cancel()


async def _watch(play: _Play, on_progress: Callable[[Progress], None]) -> None:
    while True:
        on_progress(play.progress())
        await asyncio.sleep(PROGRESS_S)
