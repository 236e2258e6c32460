"""Recovery as text."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from rich.markup import escape
from rich.table import Table

from controlplane.api.wire_recovery import (
    BackupRunOut,
    DatasetOut,
    DrillOut,
    FurtherOut,
    KeepOut,
    PointOut,
    RecoveryOut,
    ScheduleOut,
)
from controlplane.cli.view import table_of
from controlplane.kernel.units import format_bytes, format_duration

_COLOURS: Final = {"ok": "green", "warning": "yellow", "passed": "green", "failed": "red", "done": "green"}
_ELSE: Final = "red"
_RIGHT: Final = frozenset({"points", "in the bucket", "size", "stored", "a month", "took"})
_SHORT: Final = 8
"""Characters of a drill's identifier: enough to tell them apart, and accepted by `drill show`."""


def seconds(value: float | None) -> str:
    return "-" if value is None else format_duration(timedelta(seconds=value))


def coloured(state: str) -> str:
    colour = _COLOURS.get(state, _ELSE if state in {"breached", "unknown", "never"} else "cyan")
    return f"[{colour}]{state}[/{colour}]"


def recovery_table(recovery: RecoveryOut) -> Table:
    """One line a dataset: may it be lost, how soon is it back, who proved it."""
    table = table_of(
        "dataset", "kind", "RPO", "would be lost now", "RTO", "back in", "last drill", "points", "in the bucket",
        "a month", right=_RIGHT,
    )  # fmt: skip
    for row in recovery.datasets:
        drill = row.last_drill
        proven = "none yet" if drill is None else f"{coloured(drill.phase)} {_ago(drill.phase_since, recovery.now)}"
        table.add_row(
            row.name,
            row.kind,
            seconds(row.rpo_s),
            f"{coloured(row.rpo_state)} {_lost(row.age_s)}",
            seconds(row.rto_s),
            seconds(drill.rto_s if drill is not None and drill.phase == "passed" else row.rto_forecast_s),
            proven,
            str(row.points),
            format_bytes(row.stored_bytes + row.log_bytes),
            "-" if row.cost_per_month is None else f"${row.cost_per_month:.2f}",
        )
        for further in row.further:
            table.add_row(f"  in {further.bucket}", "", "", *_further_cells(further))
    return table


def _further_cells(row: FurtherOut) -> Iterator[str]:
    """What would be lost if the first bucket were gone as well, and what lies in this one."""
    yield f"{coloured(row.rpo_state)} {_lost(row.age_s)}"
    yield from ("", "", "")
    yield str(row.points)
    yield format_bytes(row.stored_bytes + row.log_bytes)
    yield ""


def _lost(age_s: float | None) -> str:
    return seconds(age_s) if age_s is not None else "everything"


def recovery_lines(recovery: RecoveryOut) -> Iterator[str]:
    """What a person has to know beside the table."""
    for row in recovery.datasets:
        if row.rpo_state not in {"ok", "warning"}:
            yield f"[red]{escape(row.sentence)}[/red]"
            yield from (f"  {escape(note)}" for note in row.notes)
        for further in row.further:
            if further.rpo_state not in {"ok", "warning"}:
                yield f"[yellow]in {further.bucket}: {escape(further.sentence)}[/yellow]"
                yield from (f"  {escape(note)}" for note in further.notes)
        yield from (f"[yellow]{escape(told)}[/yellow]" for told in (*row.promises, *row.held))
        if row.running is not None:
            yield f"[cyan]{escape(row.running.sentence)}{_progress(row.running)}[/cyan]"
        if row.last_backup is not None and row.last_backup.phase == "failed":
            yield f"[yellow]{escape(row.last_backup.sentence)}[/yellow]"
    reasons = {reason: None for permission in recovery.permissions for reason in permission.reasons}
    refused = [permission.action for permission in recovery.permissions if not permission.allowed]
    if refused:
        yield f"[red]refused now: {', '.join(refused)}[/red]"
        yield from (f"  {escape(reason)}" for reason in reasons)
    overridden = {permission.sentence: None for permission in recovery.permissions if permission.overridden_by}
    yield from (f"[yellow]{escape(sentence)}[/yellow]" for sentence in overridden)


def points_table(points: Sequence[PointOut]) -> Table:
    table = table_of(
        "recovery point", "dataset", "bucket", "of", "size", "stored", "class", "kept by", "locked until", "drilled",
        "back in", right=_RIGHT,
    )  # fmt: skip
    for row in points:
        table.add_row(
            row.point if not row.problems else f"[red]{row.point}[/red]",
            row.dataset,
            row.bucket,
            _moment(row.consistent_at),
            format_bytes(row.plain_bytes),
            format_bytes(row.stored_bytes),
            " ".join(row.storage_classes) or "-",
            " ".join(row.kept_by) or "-",
            _moment(row.locked_until),
            _moment(row.drilled_at),
            seconds(row.rto_forecast_s),
        )
    return table


def point_lines(row: PointOut) -> Iterator[str]:
    yield f"[bold]{row.point}[/bold]  {row.dataset} in {row.bucket}"
    yield f"  of             {_moment(row.consistent_at)} UTC"
    yield f"  size           {format_bytes(row.plain_bytes)}, stored as {format_bytes(row.stored_bytes)}"
    yield f"  class          {' '.join(row.storage_classes) or '-'}"
    yield f"  builds on      {row.parent or 'nothing: a full copy'}"
    yield f"  opened by      {', '.join(row.key_ids)}"
    yield f"  kept by        {', '.join(row.kept_by) or 'no rule'}"
    yield f"  locked until   {_moment(row.locked_until)}"
    yield f"  last drilled   {_moment(row.drilled_at)}"
    yield f"  back in about  {seconds(row.rto_forecast_s)}"
    yield from (f"  [red]{escape(problem)}[/red]" for problem in row.problems)


def runs_table(runs: Sequence[BackupRunOut]) -> Table:
    table = table_of("asked", "dataset", "because of", "state", "what")
    for row in runs:
        table.add_row(
            _moment(row.asked_at), row.dataset, row.cause, coloured(row.phase), escape(row.sentence) + _progress(row)
        )
    return table


def drills_table(drills: Sequence[DrillOut]) -> Table:
    table = table_of(
        "drill", "name", "dataset", "asked", "state", "recovery point", "took", "lost", "key", right=_RIGHT
    )
    for row in drills:
        table.add_row(
            row.drill[:_SHORT],
            row.name,
            row.dataset,
            _moment(row.asked_at),
            coloured(row.phase),
            row.point or "-",
            seconds(row.rto_s) if row.rto_s else "-",
            seconds(row.rpo_s),
            row.key_id or "-",
        )
    return table


def drill_lines(row: DrillOut) -> Iterator[str]:
    yield f"[bold]{row.name}[/bold] {row.drill}  {coloured(row.phase)}"
    yield f"  {escape(row.failure or row.sentence)}"
    classes = " ".join(row.storage_classes) or "-"
    yield f"  restored     {row.point or '-'} of {row.dataset} from {row.bucket} ({classes})"
    yield f"  opened by    {row.key_id or '-'} ({row.key} key asked for)"
    yield f"  bytes        {format_bytes(row.fetched_bytes)} fetched, {format_bytes(row.plain_bytes)} restored"
    yield (
        f"  times        retrieval {seconds(row.retrieval_wait_s)}, fetch and restore "
        f"{seconds(row.fetch_and_restore_s)}, start and replay {seconds(row.start_and_replay_s)}, "
        f"verify {seconds(row.verify_s)}, clean-up {seconds(row.clean_up_s)}"
    )
    yield f"  RTO          {seconds(row.rto_s)} (forecast {seconds(row.rto_forecast_s)})"
    yield f"  RPO          {seconds(row.rpo_s)}; newest moment in the data {_moment(row.newest_at)}"
    for check in row.checks:
        yield f"  check        {coloured(check.verdict)} {check.name}: {escape(check.sentence)}"
    yield from (f"  cleaned up   {escape(proof)}" for proof in row.clean_proof)
    yield f"  evidence     {row.evidence_key or '-'}"


def schedule_table(rows: Sequence[ScheduleOut]) -> Table:
    table = table_of("drill", "dataset", "how often", "which", "key", "from", "last passed", "due", "now")
    for row in rows:
        table.add_row(
            row.name,
            row.dataset,
            row.cadence,
            row.selection,
            row.key,
            row.bucket or "-",
            _moment(row.last_passed_at),
            _moment(row.due_at),
            escape(row.sentence),
        )
    return table


def retention_table(rows: Sequence[KeepOut]) -> Table:
    table = table_of("bucket", "", "why")
    for row in rows:
        table.add_row(row.bucket, "stays" if row.stays else "[yellow]goes[/yellow]", escape(row.sentence))
    return table


def dataset_sentences(rows: Sequence[DatasetOut]) -> Iterator[str]:
    yield from (escape(row.sentence) for row in rows)


def _progress(row: BackupRunOut) -> str:
    if row.phase not in {"copying", "replicating"}:
        return ""
    total = f" of {format_bytes(row.total_bytes)}" if row.total_bytes else ""
    return f" ({format_bytes(row.done_bytes)}{total})"


def _moment(at: datetime | None) -> str:
    return "-" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"


def _ago(at: datetime, now: datetime) -> str:
    return f"{format_duration(max(now - at, timedelta(0)))} ago"
