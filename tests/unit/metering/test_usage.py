from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.event import GPUS_KEY, HELD_SINCE_KEY, Event, EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.metering.usage import Holding, holdings, measure_usage
from controlplane.testing.builders import make_replica
from controlplane.testing.effects import START


def _at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def _held(gpus: int, start: float, end: float, deployment: str = "chat") -> Holding:
    return Holding(deployment=deployment, gpus=gpus, start=_at(start), end=_at(end))


def test_gpu_hours_are_clipped_to_the_window_and_compared_with_the_peak() -> None:
    usage = measure_usage([_held(4, -30, 30), _held(4, 15, 45), _held(1, 0, 60, "embed")], _at(0), _at(60))
    assert usage.by_deployment == {"chat": 4.0, "embed": 1.0}
    assert usage.gpus_peak == 9
    assert usage.gpu_hours == 5.0
    assert usage.gpu_hours_static_peak == 9.0


def test_a_replacement_at_the_same_moment_is_no_peak() -> None:
    assert measure_usage([_held(8, 0, 30), _held(8, 30, 60)], _at(0), _at(60)).gpus_peak == 8


def test_rows_that_live_and_events_of_those_gone_both_count() -> None:
    gone = NewEvent(
        at=_at(10),
        kind=EventKind.REPLICA,
        subject="qd-chat-0a1b2c3d-1",
        reason=Reason.STOPPED,
        sentence="stopped",
        deployment="chat",
        data=((GPUS_KEY, 2), (HELD_SINCE_KEY, _at(0).isoformat())),
    )
    spans = holdings([make_replica(gpus=(0, 1))], [Event(sequence=1, event=gone)], _at(30))
    assert sorted((span.gpus, span.end) for span in spans) == [(2, _at(10)), (2, _at(30))]


@given(st.lists(st.tuples(st.integers(1, 8), st.floats(0, 60), st.floats(0, 60)), max_size=20))
def test_static_peak_is_never_less_than_what_was_used(spans: list[tuple[int, float, float]]) -> None:
    usage = measure_usage([_held(g, min(a, b), max(a, b)) for g, a, b in spans], _at(0), _at(60))
    assert usage.gpu_hours <= usage.gpu_hours_static_peak + 1e-9
