"""A restored PostgreSQL that runs and lets nobody in fails at once, in its own words; one that starts is waited for."""

import json
from pathlib import Path

import psycopg
import pytest

from controlplane.adapters.backup.postgresql.places import places_of
from controlplane.adapters.backup.postgresql.recovering import _refuse_for_good
from controlplane.adapters.backup.postgresql.server import postmaster_of
from controlplane.adapters.backup.postgresql.source import PostgreSQLAdapter
from controlplane.kernel.errors import TerminalError
from controlplane.recovery.ports import RestoreRequest, SilentWatch
from tests.integration.postgresql_lab import DATASET, copy_of, enterable_folder, primary_in
from tests.postgresql import running_postgresql

FAILED = 'connection failed: connection to server on socket "/s/.s.PGSQL.5432" failed: '


@pytest.mark.parametrize(
    "words",
    [
        "FATAL:  the database system is starting up",
        "FATAL:  the database system is not yet accepting connections\nDETAIL:  Consistent recovery state has not been",
        "FATAL:  the database system is not accepting connections\nDETAIL:  Hot standby mode is disabled.",
        "FATAL:  the database system is shutting down",
        "FATAL:  the database system is in recovery mode",
        "FATAL:  sorry, too many clients already",
        "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
        "FATAL:  terminating connection due to administrator command",
        "No such file or directory\n\tIs the server running locally and accepting connections on that socket?",
        "Connection refused",
        "server closed the connection unexpectedly",
    ],
)
def test_what_passes_is_waited_for(words: str) -> None:
    _refuse_for_good(psycopg.OperationalError(FAILED + words))


@pytest.mark.parametrize(
    "words",
    [
        'database "shop" does not exist',
        'role "app" does not exist',
        'role "app" is not permitted to log in',
        'database "shop" is not currently accepting connections',
        'cannot connect to invalid database "shop"',
        'permission denied for database "shop"',
        'no pg_hba.conf entry for host "[local]", user "app", database "shop", no encryption',
        'password authentication failed for user "app"',
        'peer authentication failed for user "app"',
    ],
)
def test_what_stays_as_it_is_is_told_in_the_servers_words(words: str) -> None:
    with pytest.raises(TerminalError) as refused:
        _refuse_for_good(psycopg.OperationalError(f"{FAILED}FATAL:  {words}\nDETAIL:  and more"))
    assert str(refused.value) == f"the restored PostgreSQL runs, and lets nobody in: {words}"


def test_a_restored_copy_without_the_database_that_it_is_asked_for_fails_at_once() -> None:
    with enterable_folder() as folder, primary_in(folder / "live") as primary:
        adapter = PostgreSQLAdapter(url=primary.url, dataset=DATASET)
        into = folder / "into"
        try:
            adapter.restore(RestoreRequest(chain=(copy_of(adapter, "a"),), into=into), SilentWatch())
            note = places_of(into).note
            note.write_text(json.dumps(json.loads(note.read_text()) | {"database": "nowhere"}))
            with pytest.raises(TerminalError, match='lets nobody in: database "nowhere" does not exist'):
                adapter.start(into, SilentWatch()).__enter__()
            assert postmaster_of(places_of(into).data) is None, "and it does not go on"
        finally:
            adapter.end_leftovers(into)


def test_a_real_server_says_it_like_this(tmp_path: Path) -> None:
    with running_postgresql() as server:
        at_home = psycopg.conninfo.make_conninfo(f"{server}/postgres")
        refusals = {
            f"{server}/nowhere": 'database "nowhere" does not exist',
            psycopg.conninfo.make_conninfo(at_home, user="nobody"): 'role "nobody" does not exist',
        }
        for url, words in refusals.items():
            with pytest.raises(psycopg.OperationalError) as error:
                psycopg.connect(url, connect_timeout=60)
            with pytest.raises(TerminalError, match=words):
                _refuse_for_good(error.value)
    with pytest.raises(psycopg.OperationalError) as absent:
        psycopg.connect(f"postgresql:///postgres?host={tmp_path}", connect_timeout=60)
    _refuse_for_good(absent.value)
