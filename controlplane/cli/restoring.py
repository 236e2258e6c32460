"""The work of `quarterdeck restore`: a plan first, then the copy into a folder of its own."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from controlplane.adapters.backup.archive_reader import open_archive
from controlplane.adapters.backup.drill_work import thaw_points
from controlplane.adapters.backup.restore_claims import RestoreClaim
from controlplane.adapters.system import SystemClock
from controlplane.cli.exits import ExitCode, agreed, check_json_asks_nothing
from controlplane.cli.restore_plan import RestorePlan, check_moment, check_target, chosen_chain
from controlplane.cli.vault_access import OpenVault, open_vault
from controlplane.cli.view import make_console, print_json
from controlplane.domain.dataset import BucketSpec, DatasetSpec, KeyPurpose, WalMode
from controlplane.domain.recovery import CheckOutcome, Verdict
from controlplane.kernel.errors import ConflictError
from controlplane.kernel.units import format_bytes
from controlplane.recovery.ports import ObjectStore, RestoreRequest, VerifyRequest, manifest_key

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
    dry_run: bool
    yes: bool
    as_json: bool


def carry_out(wish: Wish) -> None:
    """The plan, the question, the restore."""
    console = make_console()
    check_json_asks_nothing(as_json=wish.as_json, answered=wish.yes or wish.dry_run)
    with open_vault(wish.site, wish.state_dir, wish.break_glass_key) as opened:
        spec = opened.dataset(wish.dataset)
        place = opened.bucket(spec, wish.bucket)
        check_moment(wish.to_time, SystemClock().now())
        check_target(opened, wish.into)
        plan = RestorePlan(
            dataset=spec,
            bucket=place,
            chain=chosen_chain(opened, spec, place, wish.point, wish.to_time),
            moment=wish.to_time,
            into=wish.into,
            only=KeyPurpose.SITE if wish.break_glass_key is None else KeyPurpose.BREAK_GLASS,
        )
        _show_plan(console, plan, wish)
        if wish.dry_run:
            return
        if not wish.yes:
            agreed("Restore?")
        with _claimed(console, opened, spec, place, wish):
            _restore(console, opened, plan, wish)


def _show_plan(console: Console, plan: RestorePlan, wish: Wish) -> None:
    if wish.as_json and wish.dry_run:
        print_json(console, plan.json())
    elif not wish.as_json:
        for line in plan.lines():
            console.print(line)


def _claimed(console: Console, opened: OpenVault, spec: DatasetSpec, place: BucketSpec, wish: Wish) -> RestoreClaim:
    """While it runs, control planes that look into the bucket delete nothing of it, and refuse deploys."""

    def warn(problem: str) -> None:
        where = Console(stderr=True, soft_wrap=True, highlight=False) if wish.as_json else console
        where.print(f"[yellow]no control plane will see this restore: {escape(problem)}[/yellow]")

    return RestoreClaim(lambda: opened.vault.store(place), spec.name, now=SystemClock().now, on_problem=warn)


def _restore(console: Console, opened: OpenVault, plan: RestorePlan, wish: Wish) -> None:
    spec, place, chain, moment, only = plan.dataset, plan.bucket, plan.chain, plan.moment, plan.only
    into = wish.into.resolve()
    store, keyring = opened.vault.store(place), opened.vault.keyring(opened.declared.keys)
    _ask_for_archived(store, plan)
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


def _ask_for_archived(store: ObjectStore, plan: RestorePlan) -> None:
    """ConflictError while parts are not readable yet: they are asked for, and the same command goes on later."""
    if not plan.archived:
        return
    asked = thaw_points(store, plan.dataset.name, [link.point for link in plan.chain.links])
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
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class BarWatch:
    """A Watch that draws a bar for each step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("open", total=None)

    def step(self, name: str, total_bytes: int | None = None) -> None:
        self._progress.reset(self._task, description=name, total=total_bytes)

    def advance(self, plain_bytes: int) -> None:
        self._progress.advance(self._task, plain_bytes)
