"""A restore by hand announces itself by an object in the bucket that it reads from, written anew while it runs.

No control plane is needed for it, and every one that looks into the bucket sees it. Its age by the store's own clock
tells whether the restore still lives, so a listing is enough, and one that was killed counts no longer after a while.
"""

import json
import os
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Self

from controlplane.domain.recovery import RestoreSeen
from controlplane.kernel.errors import QuarterdeckError
from controlplane.recovery.ports import ObjectStore, restoring_prefix

CLAIM_LASTS: Final = timedelta(minutes=5)
"""After the last renewal: four may fail, and clocks may be apart by some, before a living restore is taken for dead."""
RENEW_EVERY: Final = timedelta(minutes=1)
FORGOTTEN_AFTER: Final = timedelta(hours=1)
"""What a killed restore left is removed then."""
_END_WAIT_S: Final = 10.0
"""For the claim to be given back; a store that is slower keeps it until it runs out."""
_STRANGE: Final = re.compile(r"[^a-z0-9-]+")


def claim_name(began_at: datetime, host: str, pid: int) -> str:
    """`20261122T015919Z-db1-4711`: it is read by people who ask whose restore it is."""
    machine = _STRANGE.sub("-", host.lower()).strip("-")[:40] or "unknown"
    return f"{began_at.astimezone(UTC):%Y%m%dT%H%M%SZ}-{machine}-{pid}"


class RestoreClaim:
    """Held while its block runs, by a thread of its own: a restore never waits for it, and never fails with it."""

    def __init__(
        self,
        store: Callable[[], ObjectStore],
        dataset: str,
        *,
        now: Callable[[], datetime],
        on_problem: Callable[[str], None],
        renew_every: timedelta = RENEW_EVERY,
    ) -> None:
        """`on_problem`: told once, from that thread, when nobody will see the restore."""
        self._store = store
        self._now = now
        self._name = claim_name(now(), socket.gethostname(), os.getpid())
        self._key = f"{restoring_prefix(dataset)}{self._name}"
        self._on_problem = on_problem
        self._renew_every_s = renew_every.total_seconds()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._hold, name="restore-claim", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join(_END_WAIT_S)

    def _hold(self) -> None:
        told = False
        while True:
            try:
                self._store().put(self._key, self._body())
            except (QuarterdeckError, OSError) as error:
                if not told:
                    self._on_problem(str(error))
                told = True
            if self._end.wait(self._renew_every_s):
                break
        with suppress(QuarterdeckError, OSError):
            self._store().delete(self._key)

    def _body(self) -> bytes:
        facts = {"restore": self._name, "renewed_at": self._now().astimezone(UTC).isoformat()}
        return (json.dumps(facts, indent=2) + "\n").encode()


def running_restores(store: ObjectStore, dataset: str, now: datetime) -> tuple[RestoreSeen, ...]:
    """By one listing. Errors of the store are raised."""
    prefix = restoring_prefix(dataset)
    found: list[RestoreSeen] = []
    for info in list(store.objects(prefix)):
        # A store's clock that is ahead must not make a claim last longer than one.
        until = min(info.modified_at, now) + CLAIM_LASTS
        if until > now:
            found.append(RestoreSeen(name=info.key.removeprefix(prefix), until=until))
        elif now - info.modified_at > FORGOTTEN_AFTER:
            with suppress(QuarterdeckError):  # without the permission it stays, and counts nothing
                store.delete(info.key)
    return tuple(found)
