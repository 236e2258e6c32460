"""What a restore by hand would do: which copies, from where, into what; and where it may not go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.markup import escape

from controlplane.adapters.backup.inventory import inventory, recovery_points
from controlplane.cli.client import Json
from controlplane.cli.vault_access import OpenVault
from controlplane.domain.dataset import BucketSpec, DatasetKind, DatasetSpec, DrillSelection, KeyPurpose, WalMode
from controlplane.domain.recovery import RecoveryPoint
from controlplane.domain.refusals import not_found
from controlplane.kernel.errors import ConflictError, InvalidError, NotFoundError, Problem
from controlplane.kernel.ids import PointId
from controlplane.kernel.units import format_bytes
from controlplane.recovery.classes import is_archive
from controlplane.recovery.forecast import Forecast, forecast_rto
from controlplane.recovery.lineage import BrokenChain, Chain, chain_of
from controlplane.recovery.phrases import moment as said
from controlplane.recovery.rates import GUESSED_RATES
from controlplane.recovery.selection import NoneQualifies, select_point


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePlan:
    dataset: DatasetSpec
    bucket: BucketSpec
    chain: Chain
    moment: datetime | None
    into: Path
    only: KeyPurpose
    """No other key is used."""

    @property
    def forecast(self) -> Forecast:
        return forecast_rto(self.chain, GUESSED_RATES)

    @property
    def archived(self) -> bool:
        return any(is_archive(storage_class) for storage_class in self.chain.storage_classes)

    @property
    def rolls_forward(self) -> bool:
        return self.dataset.wal is not WalMode.OFF

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"[bold]plan[/bold]  restore {self.dataset.name} ({self.dataset.kind}) from {self.bucket.name}"
        for link in self.chain.links:
            size = f"{format_bytes(link.plain_bytes)} (stored as {format_bytes(link.stored_bytes)})"
            yield f"  copy    {link.point} of {said(link.consistent_at)}, {size}"
        if self.rolls_forward:
            until = "everything there is" if self.moment is None else f"up to {said(self.moment)}"
            yield f"  log     from there on, {until}"
        yield f"  key     {'the break-glass key alone' if self.only is KeyPurpose.BREAK_GLASS else 'the site key'}"
        yield f"  into    {escape(str(self.into))}"
        yield from (f"[dim]  {escape(line)}[/dim]" for line in self.forecast.lines)
        if self.archived:
            yield "  [yellow]parts lie in an archive class: they are asked for first, which takes hours[/yellow]"

    def json(self) -> dict[str, Json]:
        """For scripts."""
        copies: list[Json] = [
            {
                "point": link.point,
                "consistent_at": link.consistent_at.isoformat(),
                "plain_bytes": link.plain_bytes,
                "stored_bytes": link.stored_bytes,
                "storage_classes": list[Json](sorted(link.storage_classes)),
            }
            for link in self.chain.links
        ]
        forecast = self.forecast
        return {
            "dataset": self.dataset.name,
            "bucket": self.bucket.name,
            "copies": copies,
            "log": self.rolls_forward,
            "to_time": None if self.moment is None else self.moment.isoformat(),
            "key": self.only,
            "into": str(self.into),
            "archived": self.archived,
            "rto_forecast_s": forecast.total_s,
            "rto_forecast_low_s": forecast.low_s,
            "rto_forecast_high_s": forecast.high_s,
        }


def chosen_chain(
    opened: OpenVault, spec: DatasetSpec, place: BucketSpec, point: str | None, moment: datetime | None
) -> Chain:
    """Out of the bucket as it is now. Errors as of `chain_for`."""
    keyring = opened.vault.keyring(opened.declared.keys)
    found = recovery_points(inventory(opened.vault.store(place), spec.name, keyring=keyring), place.name)
    return chain_for(found, spec, place, point, moment)


def chain_for(
    found: Sequence[RecoveryPoint],
    spec: DatasetSpec,
    place: BucketSpec,
    point: str | None,
    moment: datetime | None,
) -> Chain:
    """The copy that was named, or the newest whole one of the moment or before, with all that it builds on.

    NotFoundError where there is none, InvalidError for one that is younger than the moment, ConflictError for one that
    is not whole.
    """
    if point is None:
        return _newest(found, spec, place, moment)
    named = next((row for row in found if row.point == PointId(point)), None)
    if named is None:
        raise not_found("recovery point", point, [row.point for row in found])
    if moment is not None and named.consistent_at > moment:
        expected = f"{said(named.consistent_at)}, of which {point} is, or later; or an older copy"
        raise InvalidError([Problem(field="--to-time", found=said(moment), expected=expected)])
    chain = chain_of(named, found)
    if isinstance(chain, BrokenChain):
        raise ConflictError(f"{chain.problem}; choose another recovery point")
    return chain


def _newest(
    found: Sequence[RecoveryPoint],
    spec: DatasetSpec,
    place: BucketSpec,
    moment: datetime | None,
) -> Chain:
    rows = [row for row in found if moment is None or row.consistent_at <= moment]
    if moment is not None and found and not rows:
        oldest = min(row.consistent_at for row in found)
        raise NotFoundError(
            f"the oldest copy of {spec.name} in {place.name} is of {said(oldest)}, and nothing brings back "
            f"{said(moment)}; name a later moment, or another bucket with --bucket"
        )
    selected = select_point(DrillSelection.LATEST, rows, spec.name, place.name, draw=0.0)
    if isinstance(selected, NoneQualifies):
        before = "" if moment is None else f" (looked for one of {said(moment)} or before)"
        raise NotFoundError(f"{selected.sentence}{before}")
    return selected.chain


def check_moment(moment: datetime | None, now: datetime) -> None:
    """InvalidError for a moment that has not come."""
    if moment is not None and moment > now:
        expected = f"a moment that has passed; now it is {said(now)}"
        raise InvalidError([Problem(field="--to-time", found=said(moment), expected=expected)])


def check_target(opened: OpenVault, into: Path) -> None:
    """ConflictError for a folder with something in it, and for one inside of something that lives. Makes nothing."""
    folder = into.resolve()
    if into.is_symlink() or (into.exists() and not into.is_dir()):
        raise ConflictError(f"{into} is not a folder; name an empty folder, or one that is not there yet")
    live = {opened.state_dir.resolve(): "the control plane's own state folder"}
    for dataset in opened.declared.datasets:
        if dataset.kind is DatasetKind.FILES and dataset.path is not None:
            live[Path(dataset.path).resolve()] = f"the live folder of {dataset.name}"
    for root, what in live.items():
        if folder.is_relative_to(root):
            raise ConflictError(f"{into} is inside of {what}; name an empty folder elsewhere")
    there = next(folder.iterdir(), None) if folder.exists() else None
    if there is not None:
        raise ConflictError(
            f"{into} is not empty (it holds {there.name}); a restore overwrites nothing: name an empty folder"
        )
