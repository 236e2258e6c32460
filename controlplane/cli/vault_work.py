"""The work of the commands beside the loops: keys, buckets, evidence, reading a copy to its last byte."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.markup import escape

from controlplane.adapters.backup.archive_reader import verify_archive
from controlplane.adapters.backup.keyfiles import generate_break_glass
from controlplane.adapters.backup.rotation import rewrap
from controlplane.adapters.evidence import read_public_key, verify_chain
from controlplane.adapters.objectstore.bucket import apply_plan, read_state
from controlplane.cli.exits import ExitCode
from controlplane.cli.restoring import BarWatch, bars
from controlplane.cli.vault_access import OpenVault, open_vault
from controlplane.cli.view import make_console, print_json
from controlplane.domain.dataset import BucketSpec, KeyPurpose
from controlplane.domain.refusals import not_found
from controlplane.kernel.errors import NotFoundError
from controlplane.kernel.ids import BucketName, PointId
from controlplane.kernel.units import format_bytes
from controlplane.recovery.bucket import declare_bucket
from controlplane.recovery.bucket_plan import BucketPlan, plan_bucket
from controlplane.recovery.ports import ObjectStore, manifest_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the site is known from, and how its copies are opened."""

    site: Path | None
    state_dir: Path | None
    break_glass_key: Path | None = None


def verify(place: Place, dataset: str, point: str, bucket: str | None, *, as_json: bool) -> None:
    """Exit code 1 when a byte is not what was written."""
    console = make_console()
    with open_vault(place.site, place.state_dir, place.break_glass_key) as opened:
        spec = opened.dataset(dataset)
        store = opened.vault.store(opened.bucket(spec, bucket))
        _check_there(store, spec.name, point)
        with bars(console) as progress:
            found = verify_archive(
                store,
                opened.vault.keyring(opened.declared.keys),
                manifest_key(spec.name, PointId(point)),
                only=None if place.break_glass_key is None else KeyPurpose.BREAK_GLASS,
                watch=BarWatch(progress),
            )
    if as_json:
        body = {"point": point, "opened_by": found.opened_by.key_id, "problems": list(found.problems)}
        print_json(console, {**body, "stored_bytes": found.stored_bytes})
    else:
        for problem in found.problems:
            console.print(f"[red]{escape(problem)}[/red]")
        verdict = "[red]damaged[/red]" if found.problems else "[green]whole[/green]"
        console.print(f"{verdict}  {point}: {format_bytes(found.stored_bytes)} read, by {found.opened_by.key_id}")
    if found.problems:
        raise typer.Exit(ExitCode.FAILED)


def _check_there(store: ObjectStore, dataset: str, point: str) -> None:
    """NotFoundError, with the nearest name, for one that no manifest is of."""
    if any(True for _ in store.objects(manifest_key(dataset, PointId(point)))):
        return
    keys = (info.key.split("/") for info in store.objects(f"{dataset}/points/"))
    names = dict.fromkeys(parts[2] for parts in keys if parts[3:] == ["manifest.json"])
    raise not_found("recovery point", point, names)


def make_break_glass(private: Path, public: Path, *, passphrase: bool) -> None:
    """A new pair of key files."""
    words = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True) if passphrase else None
    made = generate_break_glass(private, public, passphrase=None if words is None else words.encode())
    console = make_console()
    console.print(f"{made.key_id}: private half in {private}, public half in {public}", markup=False)
    console.print("Move the private half off this machine, twice; drill it with --key break-glass each quarter.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rewrapped:
    dataset: str
    bucket: str
    rewritten: int
    already: int
    logs: int
    problems: tuple[str, ...]


def rewrap_all(place: Place, *, as_json: bool) -> None:
    """Exit code 1 when a manifest was left alone."""
    rows: list[_Rewrapped] = []
    with open_vault(place.site, place.state_dir) as opened:
        keyring = opened.vault.keyring(opened.declared.keys)
        for spec in opened.declared.datasets:
            for name in spec.buckets:
                done = rewrap(opened.vault.store(opened.bucket(spec, name)), spec.name, keyring, keyring)
                rows.append(
                    _Rewrapped(
                        dataset=spec.name,
                        bucket=name,
                        rewritten=len(done.rewritten),
                        already=len(done.already),
                        logs=done.logs,
                        problems=done.problems,
                    )
                )
    _show_rewrapped(rows, as_json=as_json)
    if any(row.problems for row in rows):
        raise typer.Exit(ExitCode.FAILED)


def _show_rewrapped(rows: Sequence[_Rewrapped], *, as_json: bool) -> None:
    console = make_console()
    if as_json:
        names = ("dataset", "bucket", "rewritten", "already", "logs", "problems")
        console.print_json(data=[{name: getattr(row, name) for name in names} for row in rows])
        return
    for row in rows:
        console.print(f"{row.dataset} in {row.bucket}: {_rewrapped_words(row)}")
        for problem in row.problems:
            console.print(f"  [red]{escape(problem)}[/red]")


def _rewrapped_words(row: _Rewrapped) -> str:
    logs = f", {row.logs} keys of its log" if row.logs else ""
    return f"{row.rewritten} rewrapped{logs}, {row.already} were already"


def show_drift(place: Place, name: str | None, *, as_json: bool) -> None:
    """Exit code 1 when a bucket differs."""
    with open_vault(place.site, place.state_dir) as opened:
        plans = {one.name: _plan(opened, one) for one in _buckets(opened, name)}
    _show_plans(plans, as_json=as_json)
    if any(plan.steps for plan in plans.values()):
        raise typer.Exit(ExitCode.FAILED)


def mend_drift(place: Place, name: str | None, *, yes: bool) -> None:
    """Exit code 1 when a step failed."""
    console = make_console()
    failed = False
    with open_vault(place.site, place.state_dir) as opened:
        for one in _buckets(opened, name):
            plan = _plan(opened, one)
            _show_plans({one.name: plan}, as_json=False)
            if not plan.steps or (not yes and not typer.confirm("Apply?", default=False)):
                continue
            for outcome in apply_plan(opened.vault.client(one), plan):
                failed = failed or bool(outcome.failure)
                mark = "[red]failed[/red]" if outcome.failure else "[green]done[/green]"
                console.print(f"  {mark}  {escape(outcome.failure or outcome.step.sentence)}")
    if failed:
        raise typer.Exit(ExitCode.FAILED)


def _buckets(opened: OpenVault, name: str | None) -> list[BucketSpec]:
    found = [one for one in opened.declared.buckets if name in (None, one.name)]
    if not found:
        known = ", ".join(one.name for one in opened.declared.buckets)
        raise NotFoundError(f"no bucket is called {name}; the site has {known}")
    return found


def _plan(opened: OpenVault, spec: BucketSpec) -> BucketPlan:
    using = [dataset for dataset in opened.declared.datasets if spec.name in dataset.buckets]
    return plan_bucket(declare_bucket(spec, using), read_state(opened.vault.client(spec), spec.bucket))


def _show_plans(plans: Mapping[BucketName, BucketPlan], *, as_json: bool) -> None:
    console = make_console()
    if as_json:
        console.print_json(
            data={
                name: {"steps": [step.sentence for step in plan.steps], "warnings": list(plan.warnings)}
                for name, plan in plans.items()
            }
        )
        return
    for name, plan in plans.items():
        console.print(f"[bold]{name}[/bold]  {'differs' if plan.steps else 'is as declared'}")
        for step in plan.steps:
            console.print(f"  [yellow]{escape(step.sentence)}[/yellow]")
        for warning in plan.warnings:
            console.print(f"  {escape(warning)}", style="dim")


def verify_evidence(bundles: Sequence[Path], public_key: Path | None, *, as_json: bool) -> None:
    """Exit code 1 when one is refused."""
    console = make_console()
    key = None if public_key is None else read_public_key(public_key)
    findings = verify_chain({str(path): path.read_bytes() for path in bundles}, key)
    if as_json:
        print_json(console, {name: list(found) for name, found in findings.items()})
    for name, found in () if as_json else findings.items():
        console.print(f"{'[red]refused[/red]' if found else '[green]verified[/green]'}  {escape(name)}")
        for finding in found:
            console.print(f"  {escape(finding)}")
    if any(findings.values()):
        raise typer.Exit(ExitCode.FAILED)


def write_evidence_key(place: Place, out: Path) -> None:
    """The public half."""
    with open_vault(place.site, place.state_dir) as opened:
        signer = opened.vault.signer()
        signer.write_public_key(out)
    make_console().print(f"{out}  fingerprint {signer.fingerprint}", markup=False)
