"""The supervisor: order of the stop, deadlines, and that nothing ends unnoticed."""

import asyncio
import logging
from datetime import timedelta

import pytest

from controlplane.kernel.errors import ConflictError, TerminalError
from controlplane.runtime.supervisor import Service, Supervisor
from controlplane.testing.effects import FakeClock, settle


class Eternal:
    """Runs until it is stopped, then takes its time."""

    def __init__(self, name: str, journal: list[str], clock: FakeClock, *, ending_s: float = 0.0) -> None:
        self.name = name
        self._journal = journal
        self._clock = clock
        self._ending = timedelta(seconds=ending_s)
        self._stop = asyncio.Event()

    async def run(self) -> None:
        self._journal.append(f"{self.name} starts as {asyncio.current_task().get_name()}")  # type: ignore[union-attr] # inside a task
        try:
            await self._stop.wait()
            await self._clock.sleep(self._ending)
            self._journal.append(f"{self.name} ended")
        except asyncio.CancelledError:
            self._journal.append(f"{self.name} cancelled")
            raise

    def stop(self) -> None:
        self._journal.append(f"{self.name} told")
        self._stop.set()

    def service(self) -> Service:
        return Service(name=self.name, run=self.run, stop=self.stop, stop_deadline=timedelta(seconds=10))


def raising(error: Exception, name: str = "broken") -> Service:
    async def run() -> None:
        raise error

    return Service(name=name, run=run, stop=lambda: None)


async def test_services_stop_in_reverse_each_after_the_other_has_ended() -> None:
    clock, journal = FakeClock(), list[str]()
    services = [Eternal(name, journal, clock, ending_s=2.0) for name in ("store", "loops", "api")]
    supervisor = Supervisor([service.service() for service in services], clock=clock)
    task = asyncio.create_task(supervisor.run())
    await settle()
    assert journal == ["store starts as store", "loops starts as loops", "api starts as api"]
    journal.clear()
    supervisor.stop()
    await clock.advance(timedelta(seconds=10))
    await task
    assert journal == ["api told", "api ended", "loops told", "loops ended", "store told", "store ended"]


async def test_a_service_that_does_not_stop_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    clock, journal = FakeClock(), list[str]()
    first, slow = Eternal("first", journal, clock), Eternal("slow", journal, clock, ending_s=1000.0)
    supervisor = Supervisor([first.service(), slow.service()], clock=clock)
    task = asyncio.create_task(supervisor.run())
    await settle()
    supervisor.stop()
    with caplog.at_level(logging.WARNING):
        await clock.advance(timedelta(seconds=11))
    await task
    assert journal[2:] == ["slow told", "slow cancelled", "first told", "first ended"]
    assert [record.message for record in caplog.records] == ["a service did not stop in time"]


async def test_a_failure_stops_the_others_in_order_and_comes_out() -> None:
    clock, journal = FakeClock(), list[str]()
    first, last = Eternal("first", journal, clock), Eternal("last", journal, clock)
    supervisor = Supervisor(
        [first.service(), raising(ConflictError("port 8000 is taken")), last.service()], clock=clock
    )
    with pytest.raises(ConflictError, match="port 8000"):
        await supervisor.run()
    assert journal[2:] == ["last told", "last ended", "first told", "first ended"]


async def test_an_eternal_service_that_returns_is_an_error() -> None:
    async def run() -> None:
        return

    clock, journal = FakeClock(), list[str]()
    supervisor = Supervisor(
        [Eternal("first", journal, clock).service(), Service(name="short", run=run, stop=lambda: None)], clock=clock
    )
    with pytest.raises(TerminalError, match="'short' ended by itself"):
        await supervisor.run()
    assert journal[-1] == "first ended"


async def test_a_service_cancelled_from_inside_is_an_error() -> None:
    async def run() -> None:
        raise asyncio.CancelledError

    with pytest.raises(TerminalError, match="'odd' was cancelled"):
        await Supervisor([Service(name="odd", run=run, stop=lambda: None)], clock=FakeClock()).run()


async def test_several_failures_come_out_together() -> None:
    services = [raising(ConflictError("one"), "a"), raising(ConflictError("two"), "b")]
    with pytest.raises(ExceptionGroup) as caught:
        await Supervisor(services, clock=FakeClock()).run()
    assert [str(error) for error in caught.value.exceptions] == ["one", "two"]


async def test_cancelling_the_supervisor_leaves_no_task() -> None:
    clock, journal = FakeClock(), list[str]()
    supervisor = Supervisor([Eternal("only", journal, clock).service()], clock=clock)
    task = asyncio.create_task(supervisor.run())
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert journal[-1] == "only cancelled"
    assert [left.get_name() for left in asyncio.all_tasks() if left.get_name() == "only"] == []
