"""Where a stream goes on: from what the bucket has, the slot keeps and the server is at. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.adapters.backup.postgresql.lsn import Position, Switch, format_lsn, segment_start
from controlplane.adapters.backup.postgresql.replication import ServerFacts
from controlplane.kernel.errors import TerminalError


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    timeline: int
    begin: int
    """A segment's first byte: from here the log is asked for."""
    durable: int
    """From here it is new to the bucket."""
    live: bool
    """The server still writes this timeline."""
    gap: str = ""
    """What the bucket will never have."""


def resume_at(durable: Position | None, kept: Position, server: ServerFacts, history: Sequence[Switch]) -> Resume:
    """`kept`: from where the slot keeps the log. `history`: of the server's timeline.

    TerminalError when the bucket is ahead of the server: that server was restored or reset, and what it writes now
    would contradict the bucket.
    """
    if durable is None:
        return _at(server, server.timeline, segment_start(kept.lsn, server.segment_bytes))
    if durable.timeline == server.timeline:
        _refuse_ahead(durable, server)
        return _at(server, durable.timeline, durable.lsn)
    if durable.timeline > server.timeline:
        raise TerminalError(
            f"the bucket has timeline {durable.timeline} already, the server is on {server.timeline}: it is an older "
            "copy. Point the dataset at the server that was promoted last, or give this one another dataset name"
        )
    own = next((index for index, switch in enumerate(history) if switch.ancestor == durable.timeline), None)
    if own is None:
        start = segment_start(kept.lsn, server.segment_bytes)
        gap = f"timeline {server.timeline} does not descend from {durable.timeline}, which the bucket has"
        return _at(server, server.timeline, start, gap=gap)
    fork = history[own].lsn
    if durable.lsn < fork:
        return _at(server, durable.timeline, durable.lsn)
    following = history[own + 1].ancestor if own + 1 < len(history) else server.timeline
    return _at(server, following, segment_start(fork, server.segment_bytes))


def resume_after_loss(durable: Position | None, kept: Position, server: ServerFacts) -> Resume:
    """The server has removed what comes next: go on with the oldest that is there."""
    start = segment_start(kept.lsn, server.segment_bytes)
    missing = (
        f"{format_lsn(durable.lsn)} to {format_lsn(start)}" if durable else f"everything below {format_lsn(start)}"
    )
    gap = f"timeline {server.timeline}: {missing}; the server had removed it: take a full backup now"
    return _at(server, server.timeline, start, gap=gap)


def _at(server: ServerFacts, timeline: int, durable: int, *, gap: str = "") -> Resume:
    return Resume(
        timeline=timeline,
        begin=segment_start(durable, server.segment_bytes),
        durable=durable,
        live=timeline == server.timeline,
        gap=gap,
    )


def _refuse_ahead(durable: Position, server: ServerFacts) -> None:
    if durable.lsn > server.flushed:
        raise TerminalError(
            f"the bucket has timeline {durable.timeline} up to {format_lsn(durable.lsn)}, the server only up to "
            f"{format_lsn(server.flushed)}: it was set back without a new timeline. Restore it with a promotion, or "
            "give it another dataset name"
        )
