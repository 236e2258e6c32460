"""The files of a restored pgBackRest backup against the list that pgBackRest made of them."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from controlplane.adapters.backup.assertions import differences, failed
from controlplane.domain.recovery import CheckOutcome
from controlplane.kernel.units import MIB
from controlplane.recovery.ports import Watch

LIST_NAME: Final = "backup.manifest"
_SECTION: Final = "[target:file]"
_DATA: Final = "pg_data/"
_REWRITTEN: Final = frozenset({"postgresql.auto.conf", "recovery.signal", "standby.signal"})
"""A restore writes these anew."""
_READ_BYTES: Final = MIB


def compare_files(listing: Path, data: Path, watch: Watch) -> CheckOutcome:
    """Every file's length and SHA-1. Never raises for what it finds."""
    try:
        listed = dict(_listed(listing.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return failed("files", f"the list of files cannot be read: {error}")
    if not listed:
        return failed("files", f"{LIST_NAME} names no files")
    wrong = [problem for name, fact in listed.items() if (problem := _problem(data / name, name, fact, watch))]
    return differences("files", wrong, otherwise=f"all {len(listed)} files have the length and SHA-1 of the backup")


def _listed(text: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Name in the data folder, and what the list says of it; tablespaces are reached through the data folder."""
    inside = False
    for line in text.splitlines():
        if line.startswith("["):
            inside = line == _SECTION
        elif inside and line.startswith(_DATA):
            name, _, value = line.partition("={")
            if name.removeprefix(_DATA) not in _REWRITTEN:
                yield name.removeprefix(_DATA), json.loads("{" + value)


def _problem(path: Path, name: str, fact: dict[str, object], watch: Watch) -> str:
    try:
        size_bytes = path.stat().st_size
        if size_bytes != fact.get("size", size_bytes):
            return f"{name}: {size_bytes} bytes, expected {fact['size']}"
        if fact.get("checksum", found := _sha1(path, watch)) != found and size_bytes:
            return f"{name}: its {size_bytes} bytes are not those of the backup"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return ""


def _sha1(path: Path, watch: Watch) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            watch.advance(len(piece))
    return digest.hexdigest()
