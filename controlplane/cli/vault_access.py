"""Recovery without a control plane: the site as it was applied last, or a file, and what opens its copies."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer

from controlplane.adapters.backup.keyfiles import read_passphrase
from controlplane.adapters.backup.vault import STORE_FILE, Vault, VaultPlace
from controlplane.adapters.instance import held_by, site_mark
from controlplane.adapters.sitefile.parse import parse_site, read_text
from controlplane.adapters.sitefile.secrets import resolve_secret
from controlplane.adapters.sqlite_site import applied_document
from controlplane.adapters.system import SystemClock
from controlplane.domain.dataset import BucketSpec, DatasetSpec, RecoverySpec
from controlplane.domain.refusals import not_found
from controlplane.kernel.errors import InvalidError, NotFoundError, Problem
from controlplane.settings import read_settings

_INSTEAD: Final = "QUARTERDECK_BREAK_GLASS_PASSPHRASE_FILE"
"""Names a file with the passphrase, where nobody can type it."""


def passphrase_from(file: Path | None, what: str, instead: str) -> bytes:
    """Out of the file, or else from whoever types it. InvalidError, naming what takes a file `instead`, for nobody."""
    if file is not None:
        return read_passphrase(file)
    try:
        return str(typer.prompt(f"Passphrase of {what}", hide_input=True, err=True)).encode()
    except typer.Abort:
        raise InvalidError(
            [
                Problem(
                    field="passphrase",
                    found="none typed",
                    expected=f"that of {what}",
                    hint=f"name a file with it in {instead}",
                )
            ]
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVault:
    vault: Vault
    declared: RecoverySpec
    site: str
    state_dir: Path

    def dataset(self, name: str) -> DatasetSpec:
        """NotFoundError with the nearest name."""
        found = self.declared.dataset(name)
        if found is None:
            raise not_found("dataset", name, [dataset.name for dataset in self.declared.datasets])
        return found

    def bucket(self, dataset: DatasetSpec, name: str | None) -> BucketSpec:
        """The dataset's first, or the one that a person names."""
        found = self.declared.bucket(name or dataset.buckets[0])
        if found is None:
            raise not_found("bucket", name or dataset.buckets[0], [bucket.name for bucket in self.declared.buckets])
        return found


@contextmanager
def open_vault(site: Path | None, state_dir: Path | None, break_glass: Path | None = None) -> Iterator[OpenVault]:
    """InvalidError for a bad site file, NotFoundError for none. The embedded store is left as it was found."""
    folder = state_dir or read_settings().state_dir
    if site is not None:
        text, name = read_text(site), str(site)
    else:
        text, name = applied_document(folder / STORE_FILE), "site.yaml"
    parsed = parse_site(text, file=name)
    if not parsed.recovery.buckets:
        raise NotFoundError(f"the site {parsed.name} has no section `recovery`: nothing of it is backed up")
    clock, settings = SystemClock(), read_settings()
    place = VaultPlace(
        state_dir=folder,
        site_mark=site_mark(folder),
        secret=lambda ref: resolve_secret(ref, os.environ, lambda path: Path(path).read_text(encoding="utf-8")),
        now=clock.now,
        break_glass=break_glass or settings.break_glass,
        passphrase=lambda: passphrase_from(settings.break_glass_passphrase, "the break-glass key", _INSTEAD),
    )
    vault = Vault(place)
    ran = vault.object_store.pid is not None
    try:
        yield OpenVault(vault=vault, declared=parsed.recovery, site=parsed.name, state_dir=folder)
    finally:
        if not ran and not held_by(folder):
            vault.object_store.stop()
