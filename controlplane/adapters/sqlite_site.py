"""The site document that a state folder's store holds, read without starting anything."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from controlplane.kernel.errors import NotFoundError, TerminalError

_WAIT_S: Final = 5.0
"""For a writer of the store that holds it."""


def applied_document(store: Path) -> str:
    """NotFoundError when no site was applied there; TerminalError when the file is no store."""
    hint = "name the site file with --site FILE, or the state folder with --state-dir DIR"
    if not store.is_file():
        raise NotFoundError(f"{store} is not there, so the site is not known: {hint}")
    try:
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=_WAIT_S)) as connection:
            row = connection.execute("SELECT document FROM site").fetchone()
    except sqlite3.Error as error:
        raise TerminalError(f"{store} cannot be read ({error}): {hint}") from error
    if row is None:
        raise NotFoundError(f"{store} has no site yet: {hint}")
    return str(row[0])
