"""Where GPU readings come from, and the one way to read them: coalesced, in a thread, with a deadline."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Final, Protocol

from controlplane.adapters.cpu import CpuMeter
from controlplane.adapters.telemetry.blocking import OneAtATime
from controlplane.domain.telemetry import GpuSample, NodeSample
from controlplane.kernel.effects import Clock

READ_DEADLINE: Final = timedelta(seconds=2)
"""NVML answers for 8 GPUs in tens of milliseconds; beyond this the driver hangs and the caller should hear of it."""


class GpuSource(Protocol):
    """One node's GPUs."""

    def read(self) -> Sequence[GpuSample]:
        """Every GPU of the node, by index. Blocking. TerminalError without a driver; RetryableError otherwise."""
        ...


class GpuReader:
    """Readers that ask at the same time share one reading: NVML takes locks in the driver, so asks are kept few."""

    def __init__(
        self, source: GpuSource, clock: Clock, *, deadline: timedelta = READ_DEADLINE, cpu: CpuMeter | None = None
    ) -> None:
        self._source = source
        self._clock = clock
        self._deadline = deadline
        self._cpu = cpu
        self._driver = OneAtATime("the GPU driver", clock)
        self._flight: asyncio.Task[NodeSample] | None = None

    async def read(self) -> NodeSample:
        """The GPUs now. TerminalError, RetryableError as the source; RetryableError beyond the deadline."""
        if self._flight is None or self._flight.done():
            self._flight = asyncio.create_task(self._read(), name="gpu-read")
            # A failure that every waiter has left behind is nobody's news.
            self._flight.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._flight)

    async def _read(self) -> NodeSample:
        gpus = await self._driver.call(self._source.read, deadline=self._deadline)
        busy = None if self._cpu is None else self._cpu.utilization()
        return NodeSample(at=self._clock.now(), gpus=tuple(gpus), cpu_utilization=busy)
