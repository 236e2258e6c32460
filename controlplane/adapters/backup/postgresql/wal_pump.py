"""One connection's loop: take the log, cut it, send it; tell the server what is durable, and vouch for an idle log."""

import select
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Final, Protocol

import psycopg

from controlplane.adapters.backup.postgresql.lsn import Position, format_lsn
from controlplane.adapters.backup.postgresql.replication import SILENCE_S, Keepalive, Replication
from controlplane.adapters.backup.postgresql.wal_layout import moment
from controlplane.adapters.backup.postgresql.wal_pieces import FullSegment, Ledger, Piece, WalCutter
from controlplane.adapters.backup.postgresql.wal_upload import WalUploader

PENDING_BYTES_MAX: Final = 64 * 1024 * 1024
"""Received and not durable; beyond it the socket is left alone, and the server keeps the rest for its slot."""

_PING_SHARE: Final = 0.3
"""Of the distance of heads: how often the server is asked for its position and time."""
_REPORT_S: Final = 10.0
"""A sign of life to the server, whose wal_sender_timeout is 60 s."""


class Clock(Protocol):
    """The part of `kernel.effects.Clock` that a thread needs."""

    def now(self) -> datetime: ...
    def monotonic(self) -> float: ...


class WalPump:
    """One connection's loop: take, cut, send; report what is durable."""

    def __init__(
        self,
        server: Replication,
        uploader: WalUploader,
        cutter: WalCutter,
        clock: Clock,
        *,
        head_s: float,
        eager: bool,
        stop_s: float,
        tell: Callable[..., None],
    ) -> None:
        self._server = server
        self._uploader = uploader
        self._cutter = cutter
        self._clock = clock
        self._head_s = head_s
        self._eager = eager
        self._stop_s = stop_s
        self._tell = tell
        self.ledger = Ledger(durable=cutter.next_cut)
        self._full: list[FullSegment] = []
        self._poll = select.poll()
        self._poll.register(server.fileno(), select.POLLIN)
        self._poll.register(uploader.fileno(), select.POLLIN)
        self._ping_at = self._report_at = self._head_at = clock.monotonic()
        self._ping_open = False
        self._vouched_us = 0
        self._server_end = 0

    def run(self, stop: threading.Event, *, until: datetime) -> None:
        """Until told to stop, or until the key is to be changed."""
        while not stop.is_set() and self._clock.now() < until:
            self._poll.poll(self._timeout_ms())
            if self._has_room():
                self._take()
            self._send_due()
            self._collect()
            if self._uploader.failure is not None:
                raise self._uploader.failure
            self._keep_in_touch()

    def settle(self, stop: threading.Event) -> None:
        """Send what was received, and wait until it is durable; when asked to stop only for some seconds."""
        piece = self._cutter.flush()
        if piece is not None:
            self._send(piece)
        stopped_at: float | None = None
        while not self.ledger.idle and self._uploader.failure is None:
            if stop.is_set() and stopped_at is None:
                stopped_at = self._clock.monotonic()
            if stopped_at is not None and self._clock.monotonic() - stopped_at > self._stop_s:
                break
            self._poll_uploads()
            self._collect_quietly()
        self._uploader.give_up()
        with suppress(psycopg.Error):
            self._report()

    def _poll_uploads(self) -> None:
        waiting = select.poll()
        waiting.register(self._uploader.fileno(), select.POLLIN)
        waiting.poll(100)

    def _has_room(self) -> bool:
        return self.ledger.pending_bytes < PENDING_BYTES_MAX

    def _take(self) -> None:
        for message in self._server.take():
            self._server_end = max(self._server_end, message.server_end)
            if isinstance(message, Keepalive):
                self._ping_open = False
                self._cutter.hear(message.server_end, message.sent_at_us)
                if message.reply_wanted:
                    self._report()
                continue
            found = self._cutter.feed(
                start=message.start,
                data=message.data,
                server_end=message.server_end,
                sent_at_us=message.sent_at_us,
                now_s=self._clock.monotonic(),
            )
            for part in found:
                if isinstance(part, Piece):
                    self._send(part)
                else:
                    self._full.append(part)

    def _send_due(self) -> None:
        # While a commit waits for the bucket, waiting for company pays only behind another upload.
        at_once = self._eager and self.ledger.idle
        piece = self._cutter.flush() if at_once else self._cutter.due(self._clock.monotonic())
        if piece is not None:
            self._send(piece)

    def _send(self, piece: Piece) -> None:
        self.ledger.sent(piece)
        self._uploader.send(piece)

    def _collect(self) -> None:
        if self._collect_quietly():
            self._report()

    def _collect_quietly(self) -> bool:
        moved = False
        for piece in self._uploader.completed():
            moved = self.ledger.arrived(piece) or moved
        while self._full and self._full[0].end <= self.ledger.durable:
            self._uploader.compact(self._full.pop(0))
        if moved:
            self._cutter.claims.forget_below(self.ledger.durable)
            self._tell_where()
        return moved

    def _keep_in_touch(self) -> None:
        now_s = self._clock.monotonic()
        if self._ping_open and now_s - self._ping_at > SILENCE_S:
            raise psycopg.OperationalError(f"the server answered nothing for {SILENCE_S:.0f} s")
        if now_s >= self._ping_at and not self._ping_open:
            # One question at a time: the proof of a covered moment needs the server's loop to turn between answers.
            self._ping_open = True
            self._ping_at = now_s + self._head_s * _PING_SHARE
            self._report(reply=True)
            self._tell_where()
        elif now_s >= self._report_at:
            self._report()
        self._vouch(now_s)

    def _vouch(self, now_s: float) -> None:
        """A head, when the pieces do not say how far it is covered."""
        claimed_us = self._cutter.claims.at(self.ledger.durable)
        newest_us = max(self._vouched_us, self.ledger.covered_us)
        if now_s < self._head_at or claimed_us <= newest_us:
            return
        at = Position(self._cutter.timeline, self.ledger.durable)
        if self._uploader.send_head(at, moment(claimed_us // 1000)):
            self._vouched_us = claimed_us
            self._head_at = now_s + self._head_s
            self._tell_where()

    def _report(self, *, reply: bool = False) -> None:
        self._report_at = self._clock.monotonic() + _REPORT_S
        self._server.report(self.ledger.durable, reply=reply)

    def _tell_where(self) -> None:
        covered_us = max(self._vouched_us, self.ledger.covered_us)
        behind = self._server_end - self.ledger.durable
        caught_up = behind < PENDING_BYTES_MAX
        self._tell(
            state="streaming" if caught_up else "catching up",
            sentence="" if caught_up else f"{behind // 1024**2} MiB behind {format_lsn(self._server_end)}",
            timeline=self._cutter.timeline,
            received=self._cutter.received,
            durable=self.ledger.durable,
            server_end=self._server_end,
            covered_at=moment(covered_us // 1000) if covered_us else None,
            pending_bytes=self.ledger.pending_bytes,
            objects=self._uploader.objects,
            stored_bytes=self._uploader.stored_bytes,
        )

    def _timeout_ms(self) -> float:
        now_s = self._clock.monotonic()
        waits = [self._ping_at - now_s, self._report_at - now_s, 0.2]
        due_s = self._cutter.wait_s(now_s)
        if due_s is not None:
            waits.append(due_s)
        # While there is no room a readable socket would wake us at once, again and again.
        floor_ms = 1.0 if self._has_room() else 20.0
        return max(min(waits) * 1000, floor_ms)
