"""Events, decisions and ticks: only ever appended, and pruned by age."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, Select, Table, bindparam, delete, func, select

from controlplane.adapters.db.codecs import (
    EVENT_DATA,
    duration_from_us,
    storable,
    time_from_us,
    us_from_duration,
    us_from_time,
)
from controlplane.adapters.db.session import Session
from controlplane.adapters.db.tables import BACKUP_RUNS, DECISIONS, EVENTS, IDEMPOTENT_ANSWERS, OVERRIDES, TICKS
from controlplane.domain.decision import DecisionRecord
from controlplane.domain.event import Event, EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.store import TickRecord
from controlplane.kernel.ids import DeploymentName, InstanceId

_APPEND_LOCK: Final = 0x51446170
"""PostgreSQL's advisory lock of appenders: `QDap`."""
_LOCK: Final = select(func.pg_advisory_xact_lock(bindparam("key")))


class HistoryRows:
    """Appends wait in memory until the transaction commits, or reads them.

    On PostgreSQL appenders then take turns from the numbering to the commit: otherwise a reader that resumes after
    the highest number it saw would miss a lower one committed later. As the last lock of each transaction it cannot
    take part in a deadlock.
    """

    _session: Session
    _unwritten: dict[Table, list[dict[str, Any]]]

    async def append_events(self, events: Sequence[NewEvent]) -> None:
        self._append(EVENTS, [_event_columns(event) for event in events])

    async def events(
        self,
        *,
        after: int = 0,
        limit: int = 200,
        kind: str | None = None,
        deployment: str | None = None,
        newest_first: bool = False,
    ) -> Sequence[Event]:
        statement = _page(EVENTS, after=after, limit=limit, newest_first=newest_first)
        if kind is not None:
            statement = statement.where(EVENTS.c.kind == kind)
        if deployment is not None:
            statement = statement.where(EVENTS.c.deployment == deployment)
        return [_event(row) for row in await self._read(statement)]

    async def append_decision(self, decision: DecisionRecord) -> None:
        self._append(DECISIONS, [_decision_columns(decision)])

    async def decisions(
        self,
        deployment: DeploymentName | None = None,
        *,
        after: int = 0,
        limit: int = 100,
        newest_first: bool = True,
        until: datetime | None = None,
    ) -> Sequence[DecisionRecord]:
        statement = _page(DECISIONS, after=after, limit=limit, newest_first=newest_first)
        if deployment is not None:
            statement = statement.where(DECISIONS.c.deployment == deployment)
        if until is not None:
            statement = statement.where(DECISIONS.c.at_us <= us_from_time(until))
        return [_decision(row) for row in await self._read(statement)]

    async def append_tick(self, tick: TickRecord) -> None:
        self._append(TICKS, [_tick_columns(tick)])

    async def ticks(self, *, limit: int = 100, loop: str | None = None) -> Sequence[TickRecord]:
        statement = _page(TICKS, after=0, limit=limit, newest_first=True)
        if loop is not None:
            statement = statement.where(TICKS.c.loop == loop)
        return [_tick(row) for row in await self._read(statement)]

    async def prune(self, *, events_before: datetime, decisions_before: datetime, ticks_before: datetime) -> int:
        await self.write_appended()
        gone = 0
        for column, before in (
            (EVENTS.c.at_us, events_before),
            (DECISIONS.c.at_us, decisions_before),
            (TICKS.c.started_at_us, ticks_before),
            (IDEMPOTENT_ANSWERS.c.at_us, events_before),
            (OVERRIDES.c.until_us, events_before),
        ):
            gone += await self._session.run(delete(column.table).where(column < us_from_time(before)))
        ended = BACKUP_RUNS.c.ended & (BACKUP_RUNS.c.asked_at_us < us_from_time(events_before))
        gone += await self._session.run(delete(BACKUP_RUNS).where(ended))
        return gone

    async def write_appended(self) -> None:
        """Called before each read of history and before the commit."""
        if not self._unwritten:
            return
        if self._session.is_postgresql:
            await self._session.rows(_LOCK, {"key": _APPEND_LOCK})
        for table, rows in self._unwritten.items():
            await self._session.run(table.insert(), rows)
        self._unwritten.clear()

    def _append(self, table: Table, rows: list[dict[str, Any]]) -> None:
        if rows:
            self._unwritten.setdefault(table, []).extend(rows)

    async def _read(self, statement: Select[Any]) -> Sequence[Row[Any]]:
        await self.write_appended()
        return await self._session.rows(statement)


def _page(table: Table, *, after: int, limit: int, newest_first: bool) -> Select[Any]:
    sequence = table.c.sequence
    statement = select(table).order_by(sequence.desc() if newest_first else sequence).limit(limit)
    return statement.where(sequence > after) if after else statement


def _event_columns(event: NewEvent) -> dict[str, Any]:
    return {
        "at_us": us_from_time(event.at),
        "kind": event.kind.value,
        "subject": storable(event.subject),
        "reason": event.reason.value,
        "sentence": storable(event.sentence),
        "deployment": event.deployment,
        "data": EVENT_DATA.encode(event.data),
    }


def _event(row: Row[Any]) -> Event:
    return Event(
        sequence=row.sequence,
        event=NewEvent(
            at=time_from_us(row.at_us),
            kind=EventKind(row.kind),
            subject=row.subject,
            reason=Reason(row.reason),
            sentence=row.sentence,
            deployment=row.deployment,
            data=EVENT_DATA.decode(row.data),
        ),
    )


def _decision_columns(decision: DecisionRecord) -> dict[str, Any]:
    return {
        "deployment": decision.deployment,
        "at_us": us_from_time(decision.at),
        "wanted_before": decision.wanted_before,
        "wanted": decision.wanted,
        "reason": decision.reason.value,
        "sentence": storable(decision.sentence),
        "policy": decision.policy,
        "observation": decision.observation_json,
        "state_before": decision.state_before_json,
        "state_after": decision.state_after_json,
        "params": decision.params_json,
    }


def _decision(row: Row[Any]) -> DecisionRecord:
    return DecisionRecord(
        deployment=DeploymentName(row.deployment),
        at=time_from_us(row.at_us),
        wanted_before=row.wanted_before,
        wanted=row.wanted,
        reason=Reason(row.reason),
        sentence=row.sentence,
        policy=row.policy,
        observation_json=row.observation,
        state_before_json=row.state_before,
        state_after_json=row.state_after,
        params_json=row.params,
        sequence=row.sequence,
    )


def _tick_columns(tick: TickRecord) -> dict[str, Any]:
    return {
        "loop": tick.loop,
        "resource": tick.resource,
        "holder": tick.holder,
        "started_at_us": us_from_time(tick.started_at),
        "duration_us": us_from_duration(tick.duration),
        "outcome": tick.outcome,
        "sentence": storable(tick.sentence),
    }


def _tick(row: Row[Any]) -> TickRecord:
    return TickRecord(
        loop=row.loop,
        resource=row.resource,
        holder=InstanceId(row.holder),
        started_at=time_from_us(row.started_at_us),
        duration=duration_from_us(row.duration_us),
        outcome=row.outcome,
        sentence=row.sentence,
    )
