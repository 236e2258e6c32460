"""What only the real databases can get wrong: schema, versions, locks, death, odd bytes."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from controlplane.adapters.db.engine import create_engine, parse_url, sqlite_url
from controlplane.adapters.db.migrate import configuration
from controlplane.adapters.db.schema import HEAD
from controlplane.adapters.db.store import SqlStore, open_store
from controlplane.adapters.db.tables import METADATA
from controlplane.domain.event import EventKind, NewEvent
from controlplane.domain.reason import Reason
from controlplane.domain.store import Transaction
from controlplane.kernel.errors import ConflictError, RetryableError, StaleClaimError, TerminalError
from controlplane.kernel.ids import ClaimToken, InstanceId
from controlplane.testing.builders import make_node_spec, make_plan, make_replica, make_spec
from controlplane.testing.effects import START

EXPIRES = START + timedelta(seconds=15)


def make_event(subject: str = "chat") -> NewEvent:
    return NewEvent(at=START, kind=EventKind.REPLICA, subject=subject, reason=Reason.WANTED, sentence="")


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    made = create_engine(parse_url(database_url))
    yield made
    await made.dispose()


@pytest.fixture
async def twins(database_url: str) -> AsyncIterator[tuple[SqlStore, SqlStore]]:
    """Two control planes on one database."""
    one, two = await open_store(database_url), await open_store(database_url)
    yield one, two
    await one.close()
    await two.close()


@pytest.fixture
async def postgresql_twins(postgresql_empty_url: str) -> AsyncIterator[tuple[SqlStore, SqlStore]]:
    """For what cannot happen on SQLite, where a transaction has the whole file."""
    one, two = await open_store(postgresql_empty_url), await open_store(postgresql_empty_url)
    yield one, two
    await one.close()
    await two.close()


class TestSchema:
    async def test_the_migrations_make_the_tables(self, engine: AsyncEngine) -> None:
        def differences(connection: Connection) -> list[object]:
            return list(compare_metadata(MigrationContext.configure(connection), METADATA))

        async with engine.connect() as connection:
            assert await connection.run_sync(differences) == []

    def test_the_head_is_the_newest_migration(self) -> None:
        assert ScriptDirectory.from_config(configuration()).get_current_head() == HEAD

    async def test_a_newer_database_is_refused_with_the_way_out(self, database_url: str, engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        try:
            with pytest.raises(TerminalError, match=rf"version 9999, newer than .* {HEAD}\. Start the newer"):
                await open_store(database_url)
        finally:
            async with engine.begin() as connection:
                await connection.execute(text(f"UPDATE alembic_version SET version_num = '{HEAD}'"))

    async def test_several_instances_may_start_at_once(self, empty_database_url: str) -> None:
        stores = await asyncio.gather(*(open_store(empty_database_url) for _ in range(4)))
        for number, store in enumerate(stores):
            async with store.transaction() as tx:
                await tx.put_node_spec(make_node_spec(f"n{number}"))
                assert len(await tx.nodes()) == number + 1
        for store in stores:
            await store.close()


class TestConstraints:
    async def test_a_gpu_cannot_be_assigned_twice_by_any_program(self, database_url: str, engine: AsyncEngine) -> None:
        store = await open_store(database_url)
        async with store.transaction() as tx:
            await tx.put_replica(make_replica("chat", 0, gpus=(0,)))
            await tx.put_replica(make_replica("chat", 1, gpus=(1,), port=20001))
        await store.close()
        for statement in (
            f"UPDATE replica_gpus SET gpu = 0 WHERE replica = '{make_replica('chat', 1).name}'",
            "UPDATE replicas SET port = 20000",
        ):
            with pytest.raises(IntegrityError):
                await execute(engine, statement)

    async def test_two_control_planes_cannot_both_take_a_gpu(self, twins: tuple[SqlStore, SqlStore]) -> None:
        async def take(store: SqlStore, ordinal: int) -> bool:
            try:
                async with store.transaction() as tx:
                    await tx.nodes()  # the snapshot is taken before the other commits
                    await tx.put_replica(make_replica("chat", ordinal, gpus=(0,), port=20000 + ordinal))
            except ConflictError:
                return False
            return True

        assert sum(await asyncio.gather(take(twins[0], 0), take(twins[1], 1))) == 1


async def execute(engine: AsyncEngine, statement: str) -> None:
    async with engine.begin() as connection:
        await connection.exec_driver_sql(statement)


class TestClaimsBetweenInstances:
    async def test_a_required_claim_stays_until_the_commit(self, twins: tuple[SqlStore, SqlStore]) -> None:
        one, two = twins
        async with one.transaction() as tx:
            assert await claim(tx, "t1", "one") is not None
        required, go_on = asyncio.Event(), asyncio.Event()

        async def apply() -> None:
            async with one.transaction() as tx:
                await tx.require_claim("r/a", ClaimToken("t1"))
                required.set()
                await go_on.wait()
                await tx.put_replica(make_replica())

        async def take_over() -> None:
            async with two.transaction() as tx:
                taken = await tx.claim(
                    "r/a", token=ClaimToken("t2"), holder=InstanceId("two"), now=EXPIRES, expires_at=EXPIRES
                )
                assert taken is not None
            async with two.transaction() as tx:
                assert len(await tx.replicas()) == 1, "taken over before the result was there"

        applying = asyncio.create_task(apply())
        await required.wait()
        taking = asyncio.create_task(take_over())
        await asyncio.sleep(0.1)  # time for a wrong take-over to happen
        assert not taking.done()
        go_on.set()
        await applying
        await taking

    async def test_a_take_over_since_the_snapshot_is_a_stale_claim(
        self, postgresql_twins: tuple[SqlStore, SqlStore]
    ) -> None:
        one, two = postgresql_twins
        async with one.transaction() as tx:
            await claim(tx, "t1", "one")
        with pytest.raises(StaleClaimError):
            await self._read_lose_apply(one, two)

    async def _read_lose_apply(self, one: SqlStore, two: SqlStore) -> None:
        async with one.transaction() as tx:
            await tx.replicas()
            async with two.transaction() as other:
                taken = await other.claim(
                    "r/a", token=ClaimToken("t2"), holder=InstanceId("two"), now=EXPIRES, expires_at=EXPIRES
                )
                assert taken is not None
            await tx.require_claim("r/a", ClaimToken("t1"))


async def claim(tx: Transaction, token: str, holder: str) -> object:
    return await tx.claim("r/a", token=ClaimToken(token), holder=InstanceId(holder), now=START, expires_at=EXPIRES)


class TestHistoryBetweenInstances:
    async def test_a_reader_that_resumes_by_number_misses_nothing(self, twins: tuple[SqlStore, SqlStore]) -> None:
        async def write(store: SqlStore, name: str, count: int) -> None:
            for number in range(count):
                async with store.transaction() as tx:
                    await tx.append_events([make_event(f"{name}-{number}")])
                    await tx.nodes()

        seen: list[int] = []
        subjects: list[str] = []

        async def read() -> None:
            async with twins[0].transaction() as tx:
                found = await tx.events(after=seen[-1] if seen else 0)
            seen.extend(event.sequence for event in found)
            subjects.extend(event.event.subject for event in found)

        writers = asyncio.gather(*(write(store, f"{index}", 10) for index, store in enumerate((*twins, *twins))))
        while not writers.done():
            await read()
        await writers
        await read()
        assert len(subjects) == 40
        assert seen == sorted(set(seen))


class TestOddContents:
    async def test_bytes_that_a_database_refuses_are_replaced(self, database_url: str) -> None:
        store = await open_store(database_url)
        replica = replace(make_replica(), sentence="exit \0 \udcff é")
        async with store.transaction() as tx:
            await tx.put_replica(replica)
            await tx.append_events([replace(make_event(), sentence="\0")])
        async with store.transaction() as tx:
            assert (await tx.replicas())[0].sentence == "exit \ufffd \ufffd é"
            assert (await tx.events())[0].event.sentence == "\ufffd"
        await store.close()

    async def test_a_row_of_an_older_version_takes_defaults(self, database_url: str, engine: AsyncEngine) -> None:
        store = await open_store(database_url)
        async with store.transaction() as tx:
            await tx.put_deployment_spec(make_spec("chat"), make_plan(), START)
        await execute(engine, """UPDATE deployments SET intent = '{"later_field":1}'""")
        async with store.transaction() as tx:
            (deployment,) = await tx.deployments()
        assert not deployment.intent.paused
        await execute(engine, """UPDATE deployments SET intent = '{"paused":"perhaps"}'""")
        with pytest.raises(TerminalError, match="intent that this program cannot read: paused"):
            await read_deployments(store)
        await store.close()


async def read_deployments(store: SqlStore) -> None:
    async with store.transaction() as tx:
        await tx.deployments()


KILLED_WRITER = """
import asyncio, os, signal, sys
from controlplane.adapters.db.store import open_store
from controlplane.testing.builders import make_replica
async def main():
    store = await open_store(sys.argv[1])
    async with store.transaction() as tx:
        await tx.put_replica(make_replica("chat", 0))
    async with store.transaction() as tx:
        await tx.put_replica(make_replica("chat", 1, gpus=(1,), port=20001))
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def test_what_was_committed_survives_kill_9_and_nothing_else(database_url: str) -> None:
    command = [sys.executable, "-c", KILLED_WRITER, database_url]
    ended = await asyncio.to_thread(subprocess.run, command, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    store = await open_store(database_url)
    async with store.transaction() as tx:
        assert [replica.ordinal for replica in await tx.replicas()] == [0]
    await store.close()


class TestTrouble:
    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("mysql://host/db", "'mysql', expected postgresql or sqlite"),
            ("not a url", "cannot be read; expected postgresql://"),
        ],
    )
    async def test_a_url_that_is_not_supported(self, url: str, words: str) -> None:
        with pytest.raises(TerminalError, match=words):
            await open_store(url)

    async def test_a_server_that_is_not_there(self, unused_tcp_port: int) -> None:
        with pytest.raises(RetryableError, match="try again") as caught:
            await open_store(f"postgresql://someone:s3cret@127.0.0.1:{unused_tcp_port}/nothing")
        assert "s3cret" not in str(caught.value)

    async def test_a_file_that_cannot_be_opened(self, tmp_path: Path) -> None:
        with pytest.raises(TerminalError, match="unable to open database file"):
            await open_store(sqlite_url(tmp_path / "absent" / "store.sqlite3"))

    async def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        path = tmp_path / "store.sqlite3"
        path.write_bytes(b"something else entirely " * 100)
        with pytest.raises(TerminalError, match="not a database"):
            await open_store(sqlite_url(path))

    async def test_another_process_at_the_file_is_waited_for(self, tmp_path: Path) -> None:
        path = tmp_path / "store.sqlite3"
        store = await open_store(sqlite_url(path))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(write_node(store))
        await asyncio.sleep(0.05)  # the other process's transaction takes a while
        other.execute("COMMIT")
        other.close()
        await writing
        await store.close()

    async def test_a_lost_connection_is_retryable_and_replaced(
        self, postgresql_twins: tuple[SqlStore, SqlStore]
    ) -> None:
        one, two = postgresql_twins
        with pytest.raises(RetryableError):
            await self._lose(one, two)
        await write_node(one)

    async def _lose(self, one: SqlStore, two: SqlStore) -> None:
        async with one.transaction() as tx:
            await tx.nodes()
            await execute(
                two._engine,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
            await tx.put_node_spec(make_node_spec())


async def write_node(store: SqlStore) -> None:
    async with store.transaction() as tx:
        await tx.put_node_spec(make_node_spec())
