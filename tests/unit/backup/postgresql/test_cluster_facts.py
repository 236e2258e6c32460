"""What counts mean, whose programs are taken, and where files lie."""

import shutil
import uuid
from pathlib import Path

import pytest

from controlplane.adapters.backup.postgresql.counting import WriteMark, verdict
from controlplane.adapters.backup.postgresql.places import places_of
from controlplane.adapters.backup.postgresql.programs import (
    Account,
    Programs,
    account,
    first_closed,
    must_run,
    programs_for,
    run_program,
    servable,
)
from controlplane.adapters.backup.postgresql.server import postmaster_of, socket_folder, tail
from controlplane.domain.recovery import Verdict
from controlplane.kernel.errors import TerminalError
from controlplane.recovery.manifest import Count
from controlplane.recovery.ports import CancelledWorkError
from controlplane.testing.backups import RecordingWatch

COUNTED = (Count(name="shop.public.large", rows=5000), Count(name="shop.public.small", rows=3))


@pytest.mark.parametrize(
    ("large", "small", "exact", "wanted"),
    [
        (5000, 3, True, Verdict.PASSED),
        (5000, 4, True, Verdict.FAILED),
        (None, 3, True, Verdict.FAILED),
        (4000, 9, False, Verdict.PASSED),
        (4000, 0, False, Verdict.PASSED),
        (0, 3, False, Verdict.FAILED),
        (5000, None, False, Verdict.FAILED),
    ],
)
def test_counts_hold_exactly_or_as_an_order_of_magnitude(
    large: int | None, small: int | None, exact: bool, wanted: Verdict
) -> None:
    rows = {"shop.public.large": large, "shop.public.small": small}
    found = [Count(name=name, rows=count) for name, count in rows.items() if count is not None]
    outcome = verdict(COUNTED, found, exact=exact)
    assert outcome.verdict is wanted
    assert outcome.sentence


def test_only_equal_marks_without_a_running_writer_are_quiet() -> None:
    quiet, busy, later = WriteMark("7", running=False), WriteMark("7", running=True), WriteMark("8", running=False)
    assert quiet.quiet_until(quiet)
    assert not quiet.quiet_until(later)
    assert not busy.quiet_until(quiet)
    assert not quiet.quiet_until(busy)


def test_the_first_closed_folder_on_the_way_is_named(tmp_path: Path) -> None:
    stranger = Account(name="stranger", uid=4_000_000, gid=4_000_000)
    inner = tmp_path / "closed" / "inner"
    inner.mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "closed", inner):
        folder.chmod(0o755)
    (tmp_path / "closed").chmod(0o700)
    outer = first_closed(tmp_path, stranger)
    assert first_closed(inner, stranger) == (outer or tmp_path / "closed")


def test_programs_that_only_root_may_enter_are_copied_to_where_servers_may_start_them(tmp_path: Path) -> None:
    """As the wheel unpacks them; and a copy that was as closed as its source is opened."""
    who = account()
    if who is None:
        pytest.skip("servers run as ourselves: run as root")
    folder = tmp_path / f"closed-{uuid.uuid4().hex}" / "bin"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    programs = Programs(folder=folder, major=18)
    copied = servable(programs).folder
    try:
        assert first_closed(copied, who) is None
        copied.parent.chmod(0o700)
        assert servable(programs).folder == copied
        assert first_closed(copied, who) is None
    finally:
        shutil.rmtree(copied.parent.parent)


def test_programs_of_no_such_version_are_refused_with_the_way_to_get_them() -> None:
    with pytest.raises(TerminalError, match="apt-get install postgresql-7"):
        programs_for(7)


def test_a_program_is_ended_at_its_deadline_or_when_asked(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match=r"sleep did not end within 0 s"):
        run_program(["sleep", "60"], cwd=Path("/"), deadline_s=0.1)
    watch = RecordingWatch(cancel_at_step="now")
    watch.step("now")
    with pytest.raises(CancelledWorkError):
        run_program(["sleep", "60"], cwd=Path("/"), deadline_s=60, watch=watch)
    with pytest.raises(TerminalError, match="false failed with status 1"):
        must_run(["false"], cwd=Path("/"), deadline_s=10)
    with pytest.raises(TerminalError, match="does not start"):
        run_program([tmp_path / "nothing"], cwd=Path("/"), deadline_s=10)


def test_places_follow_from_the_folder_alone(tmp_path: Path) -> None:
    one, other = places_of(tmp_path / "a"), places_of(tmp_path / "b")
    assert one == places_of(tmp_path / "a")
    assert one.home != other.home
    assert one.note.parent == tmp_path / "a"
    assert one.data.parent == one.home


def test_a_socket_has_a_short_name_however_long_its_folder_is(tmp_path: Path) -> None:
    assert socket_folder(Path("/run/x")) == Path("/run/x/socket")
    deep = tmp_path / ("long" * 30)
    assert len(str(socket_folder(deep))) < 60
    assert socket_folder(deep) == socket_folder(deep)
    assert socket_folder(deep) != socket_folder(tmp_path / ("lang" * 30))


def test_a_pid_file_alone_is_no_server(tmp_path: Path) -> None:
    assert postmaster_of(tmp_path) is None
    for content in ("", "garbage\n", "1\n", "99999999\n"):
        (tmp_path / "postmaster.pid").write_text(content, encoding="utf-8")
        assert postmaster_of(tmp_path) is None
    assert tail(tmp_path / "none") == "it has no log yet"
