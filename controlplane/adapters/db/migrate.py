"""Migrations by Alembic, run by the program itself: there is no command to forget."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from controlplane.adapters.db.schema import current_version
from controlplane.kernel.errors import TerminalError

MIGRATIONS: Final = Path(__file__).parent / "migrations"


def configuration() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def upgrade(connection: Connection) -> None:
    """To the newest version, inside the caller's transaction. TerminalError when the database is newer than that."""
    config = configuration()
    refuse_newer(current_version(connection), config)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def refuse_newer(version: str | None, config: Config) -> None:
    """TerminalError for a version that this program's migrations do not know."""
    scripts = ScriptDirectory.from_config(config)
    try:
        known = version is None or scripts.get_revision(version) is not None
    except CommandError:
        known = False
    if not known:
        raise TerminalError(
            f"the store is at schema version {version}, newer than this program, which knows up to "
            f"{scripts.get_current_head()}. Start the newer quarterdeck again, or restore a backup from before its "
            "first start"
        )
