"""What a logical dump consists of: one script of roles, one archive of pg_dump for each database, and this list.

    <into>/contents.json      the list
    <into>/globals.sql        roles and who belongs to whom, by pg_dumpall
    <into>/database-000.dump  a database, by pg_dump; the list says which

With `psql` and `pg_restore` they can be read without anything of ours.
"""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from controlplane.kernel.errors import TerminalError
from controlplane.recovery.manifest import Manifest

GLOBALS: Final = "globals.sql"
CONTENTS: Final = "contents.json"
FACT: Final = "contents"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Extension(_Part):
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class DumpedDatabase(_Part):
    name: str
    file: Annotated[str, StringConstraints(pattern=r"^database-\d{3,}\.dump$")]
    encoding: str
    locale: str
    """With its provider, e.g. `C.UTF-8 (libc)`."""
    extensions: tuple[Extension, ...]


class DumpContents(_Part):
    """Small enough for a manifest: some hundred bytes a database."""

    format: Literal[1] = 1
    server: str
    """Version, e.g. `15.18`."""
    pg_dump: str
    """Version; a server of its major or a newer one takes what it wrote."""
    major: int
    """Of pg_dump."""
    superuser: str
    """The role that the source's cluster was made by."""
    database: str
    """The one that assertions ask."""
    size_bytes: int
    """Of the databases on the source's disk, indexes included."""
    databases: tuple[DumpedDatabase, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return (GLOBALS, *(database.file for database in self.databases))


def contents_of(manifest: Manifest) -> DumpContents:
    """TerminalError when the manifest has none, or names files that the copy does not hold."""
    try:
        contents = DumpContents.model_validate_json(manifest.fact(FACT) or "")
    except ValidationError as error:
        raise TerminalError(
            f"recovery point {manifest.point} does not say what it consists of (its fact {FACT}): it is no logical "
            "dump of this version or an earlier one"
        ) from error
    streams = {stream.name for stream in manifest.streams}
    missing = [file for file in contents.files if file not in streams]
    if missing:
        raise TerminalError(f"recovery point {manifest.point} lacks {', '.join(missing)}; use another copy")
    return contents


def read_contents(into: Path) -> DumpContents:
    """TerminalError when the folder holds no restored dump."""
    try:
        return DumpContents.model_validate_json((into / CONTENTS).read_bytes())
    except (OSError, ValidationError) as error:
        raise TerminalError(f"{into} holds no restored dump (no whole {CONTENTS}): restore it") from error
