"""What a stream has just written, for those who carry it on: a mailbox that never makes the stream wait."""

import threading
from dataclasses import dataclass, field
from typing import Final

from controlplane.adapters.backup.postgresql.wal_layout import (
    HistoryObject,
    WalRange,
    is_head,
    parse_history_key,
    parse_range,
)
from controlplane.recovery.ports import ObjectInfo

NEWS_MAX: Final = 10_000
"""Objects (about 3 MB) while nobody looks: half an hour of pieces. Then all is forgotten, and listings are compared."""


@dataclass(slots=True, kw_only=True)
class News:
    """Since the look before."""

    ranges: list[WalRange] = field(default_factory=list)
    histories: list[HistoryObject] = field(default_factory=list)
    head: bool = False
    """There is another."""
    lost: bool = False
    """There was more than fits: only a listing tells."""


class WalNews:
    """Safe for threads."""

    def __init__(self, *, most: int = NEWS_MAX) -> None:
        self._most = most
        self._news = News()
        self._lock = threading.Lock()

    def wrote(self, info: ObjectInfo) -> None:
        """It is durable in the first bucket. What a larger object replaces is told of before that is deleted."""
        found, history = parse_range(info), parse_history_key(info.key)
        with self._lock:
            if found is not None:
                self._news.ranges.append(found)
            elif history is not None:
                self._news.histories.append(history)
            elif is_head(info.key):
                self._news.head = True
            if len(self._news.ranges) > self._most:
                self._news = News(head=self._news.head, lost=True)

    def take(self) -> News:
        with self._lock:
            taken, self._news = self._news, News()
            return taken
