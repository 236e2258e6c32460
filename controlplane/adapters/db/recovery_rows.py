"""Backup runs, drills, inventories of buckets, overrides: few rows, read whole."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, Table, delete, select

from controlplane.adapters.db.codecs import BACKUP_RUN, DRILL, INVENTORY, OVERRIDE, Codec, storable, us_from_time
from controlplane.adapters.db.session import Session
from controlplane.adapters.db.tables import BACKUP_RUNS, DRILLS, INVENTORIES, OVERRIDES
from controlplane.domain.recovery import BackupRun, Drill, Inventory, Override
from controlplane.kernel.ids import BucketName, DatasetName


class RecoveryRows:
    _session: Session

    async def backup_runs(self, dataset: DatasetName | None = None, *, limit: int = 100) -> Sequence[BackupRun]:
        statement = _newest(BACKUP_RUNS, "run", dataset).limit(limit)
        return [BACKUP_RUN.decode(row.body) for row in await self._session.rows(statement)]

    async def put_backup_run(self, run: BackupRun) -> None:
        columns = {
            "dataset": run.dataset,
            "ended": run.ended,
            "asked_at_us": us_from_time(run.asked_at),
            "body": _text(BACKUP_RUN, run),
        }
        await self._put(BACKUP_RUNS, {"run": run.run}, columns)

    async def drills(self, dataset: DatasetName | None = None, *, limit: int = 100) -> Sequence[Drill]:
        statement = _newest(DRILLS, "drill", dataset).limit(limit)
        return [DRILL.decode(row.body) for row in await self._session.rows(statement)]

    async def put_drill(self, drill: Drill) -> None:
        columns = {
            "dataset": drill.dataset,
            "asked_at_us": us_from_time(drill.asked_at),
            "body": _text(DRILL, drill),
        }
        await self._put(DRILLS, {"drill": drill.drill}, columns)

    async def inventories(self) -> Sequence[Inventory]:
        statement = select(INVENTORIES).order_by(INVENTORIES.c.dataset, INVENTORIES.c.bucket)
        return [INVENTORY.decode(row.body) for row in await self._session.rows(statement)]

    async def put_inventory(self, inventory: Inventory) -> None:
        key = {"dataset": inventory.dataset, "bucket": inventory.bucket}
        await self._put(INVENTORIES, key, {"body": _text(INVENTORY, inventory)})

    async def delete_inventory(self, dataset: DatasetName, bucket: BucketName) -> None:
        columns = INVENTORIES.c
        await self._session.run(delete(INVENTORIES).where(columns.dataset == dataset, columns.bucket == bucket))

    async def overrides(self, *, now: datetime) -> Sequence[Override]:
        in_force = OVERRIDES.c.until_us > us_from_time(now)
        statement = select(OVERRIDES).where(in_force).order_by(OVERRIDES.c.sequence.desc())
        return [OVERRIDE.decode(row.body) for row in await self._session.rows(statement)]

    async def append_override(self, override: Override) -> None:
        columns = {
            "at_us": us_from_time(override.at),
            "until_us": us_from_time(override.until),
            "body": _text(OVERRIDE, override),
        }
        await self._session.run(OVERRIDES.insert(), columns)

    async def _put(self, table: Table, key: dict[str, Any], columns: dict[str, Any]) -> None:
        insert = self._session.insert(table).values(**key, **columns)
        await self._session.run(insert.on_conflict_do_update(index_elements=list(key), set_=columns))


def _newest(table: Table, identifier: str, dataset: DatasetName | None) -> Select[Any]:
    statement = select(table).order_by(table.c.asked_at_us.desc(), table.c[identifier].desc())
    return statement if dataset is None else statement.where(table.c.dataset == dataset)


def _text[T](codec: Codec[T], value: T) -> str:
    return storable(codec.encode(value))
