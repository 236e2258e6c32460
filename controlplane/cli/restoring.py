"""The work of `quarterdeck restore`: a plan first, then the copy into a folder of its own."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from controlplane.adapters.backup.archive_reader import open_archive
from controlplane.adapters.backup.drill_work import thaw_points
from controlplane.adapters.backup.inventory import inventory, recovery_points
from controlplane.cli.exits import ExitCode
from controlplane.cli.vault_access import OpenVault, open_vault
from controlplane.cli.view import make_console, print_json
from controlplane.domain.dataset import BucketSpec, DatasetSpec, DrillSelection, KeyPurpose, WalMode
from controlplane.domain.recovery import CheckOutcome, RecoveryPoint, Verdict
from controlplane.kernel.errors import ConflictError, NotFoundError
from controlplane.kernel.ids import PointId
from controlplane.kernel.units import format_bytes
from controlplane.recovery.classes import is_archive
from controlplane.recovery.forecast import forecast_rto
from controlplane.recovery.lineage import BrokenChain, Chain, chain_of
from controlplane.recovery.ports import ObjectStore, RestoreRequest, VerifyRequest, manifest_key
from controlplane.recovery.rates import GUESSED_RATES
from controlplane.recovery.selection import NoneQualifies, select_point

_KEY: Final = "opened with the key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a person asks to have back."""

    dataset: str
    into: Path
    to_time: datetime | None
    point: str | None
    bucket: str | None
    site: Path | None
    state_dir: Path | None
    break_glass_key: Path | None
    verify: bool
    yes: bool
    as_json: bool


def carry_out(wish: Wish) -> None:
    """The plan, the question, the restore."""
    console = make_console()
    with open_vault(wish.site, wish.state_dir, wish.break_glass_key) as opened:
        spec = opened.dataset(wish.dataset)
        place = opened.bucket(spec, wish.bucket)
        moment = None if wish.to_time is None else wish.to_time.replace(tzinfo=UTC)
        chain = _chosen(opened, spec, place, wish.point, moment)
        if not wish.as_json:
            _print_plan(console, spec, place, chain, wish, moment)
        if not wish.yes and not typer.confirm("Restore?", default=False):
            raise typer.Exit(ExitCode.CONFLICT)
        _restore(console, opened, spec, place, chain, moment, wish)


def _chosen(
    opened: OpenVault, spec: DatasetSpec, place: BucketSpec, point: str | None, moment: datetime | None
) -> Chain:
    keyring = opened.vault.keyring(opened.declared.keys)
    found = recovery_points(inventory(opened.vault.store(place), spec.name, keyring=keyring), place.name)
    rows = [row for row in found if moment is None or row.consistent_at <= moment]
    if point is not None:
        named = next((row for row in found if row.point == PointId(point)), None)
        if named is None:
            raise NotFoundError(f"{point} is not in {place.name}; `quarterdeck backup list` shows what is")
        chain = chain_of(named, found)
        if isinstance(chain, BrokenChain):
            raise ConflictError(f"{chain.problem}; choose another recovery point")
        return chain
    selected = select_point(DrillSelection.LATEST, rows, spec.name, place.name, draw=0.0)
    if isinstance(selected, NoneQualifies):
        before = "" if moment is None else f" of {moment:%Y-%m-%d %H:%M:%S} or before"
        raise NotFoundError(f"{selected.sentence}{before and f' (looked for one{before})'}")
    return selected.chain


def _print_plan(
    console: Console, spec: DatasetSpec, place: BucketSpec, chain: Chain, wish: Wish, moment: datetime | None
) -> None:
    console.print(f"[bold]plan[/bold]  restore {spec.name} ({spec.kind}) from {place.name}")
    for link in chain.links:
        console.print(f"  copy    {link.point} of {link.consistent_at:%Y-%m-%d %H:%M:%S} UTC, {_size(link)}")
    if spec.wal != "off":
        until = "everything there is" if moment is None else f"up to {moment:%Y-%m-%d %H:%M:%S} UTC"
        console.print(f"  log     from there on, {until}")
    console.print(f"  key     {'the break-glass key alone' if wish.break_glass_key else 'the site key'}")
    console.print(f"  into    {escape(str(wish.into))}", soft_wrap=True)
    for line in forecast_rto(chain, GUESSED_RATES).lines:
        console.print(f"  {line}", style="dim", markup=False)
    if any(is_archive(storage_class) for storage_class in chain.storage_classes):
        console.print("  [yellow]parts lie in an archive class: they are asked for first, which takes hours[/yellow]")


def _size(link: RecoveryPoint) -> str:
    return f"{format_bytes(link.plain_bytes)} (stored as {format_bytes(link.stored_bytes)})"


def _restore(
    console: Console,
    opened: OpenVault,
    spec: DatasetSpec,
    place: BucketSpec,
    chain: Chain,
    moment: datetime | None,
    wish: Wish,
) -> None:
    only = KeyPurpose.BREAK_GLASS if wish.break_glass_key is not None else KeyPurpose.SITE
    into = wish.into.resolve()
    store, keyring = opened.vault.store(place), opened.vault.keyring(opened.declared.keys)
    _ask_for_archived(store, spec, chain)
    adapter = opened.vault.adapter(spec)
    with bars(console) as progress:
        watch = BarWatch(progress)
        sources = tuple(
            open_archive(store, keyring, manifest_key(spec.name, link.point), only=only, watch=watch)
            for link in chain.links
        )
        log = opened.vault.log_reader(spec, place, opened.declared.keys, only=only)
        request = RestoreRequest(chain=sources, into=into, log=log, to_time=moment)
        restored = adapter.restore(request, watch)
        checks: tuple[CheckOutcome, ...] = ()
        if wish.verify:
            with adapter.start(into, watch, to_time=moment) as instance:
                newest = instance.started.newest_at
                wanted = VerifyRequest(
                    manifest=sources[-1].manifest,
                    checks=spec.checks,
                    exact_counts=spec.wal is WalMode.OFF,
                    point_at=moment or newest,
                )
                checks = tuple(instance.verify(wanted, watch))
    failed = [check for check in checks if check.verdict is Verdict.FAILED]
    if wish.as_json:
        body = {
            "dataset": spec.name,
            "point": chain.point.point,
            "into": str(into),
            "plain_bytes": restored.plain_bytes,
            "opened_by": sources[-1].opened_by.key_id,
            "checks": [{"name": one.name, "verdict": one.verdict, "sentence": one.sentence} for one in checks],
        }
        print_json(console, body)
    else:
        for check in checks:
            colour = "red" if check.verdict is Verdict.FAILED else "green"
            console.print(f"[{colour}]{check.verdict}[/{colour}]  {check.name}: {escape(check.sentence)}")
        for note in restored.notes:
            console.print(f"[yellow]{escape(note)}[/yellow]")
        console.print(
            f"{format_bytes(restored.plain_bytes)} of {spec.name} in {escape(str(into))}, "
            f"{_KEY} {sources[-1].opened_by.key_id}"
        )
    if failed:
        raise typer.Exit(ExitCode.FAILED)


def _ask_for_archived(store: ObjectStore, spec: DatasetSpec, chain: Chain) -> None:
    """ConflictError while parts are not readable yet: they are asked for, and the same command goes on later."""
    if not any(is_archive(storage_class) for storage_class in chain.storage_classes):
        return
    asked = thaw_points(store, spec.name, [link.point for link in chain.links])
    if asked.pending:
        raise ConflictError(f"{asked.sentence}; the others were asked for: run the same command again later (hours)")


def bars(console: Console) -> Progress:
    """For a `BarWatch`; gone when it ends."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)


class BarWatch:
    """A Watch that draws a bar for each step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("open", total=None)

    def step(self, name: str, total_bytes: int | None = None) -> None:
        self._progress.reset(self._task, description=name, total=total_bytes)

    def advance(self, plain_bytes: int) -> None:
        self._progress.advance(self._task, plain_bytes)
