"""How far and how fast the replica reconciler may go: one place for every bound, each with its why."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one deployment's tick. The defaults are judgements; the reason stands beside each."""

    launches_per_tick: int = 8
    """Starting is the heaviest thing a node does (weights from disk): at most a node's worth of single-GPU replicas."""
    removals_per_tick: int = 4
    """What one tick may take out of service on purpose; a wrong target costs at most this before the next look."""
    sick_removals_per_tick: int = 1
    """If many replicas look hung at once, our eyes are the likelier fault: take them one by one, never all."""
    surge: int = 1
    """Replicas above the target while a revision is rolled: add before remove, at the price of one replica's GPUs."""
    launch_settle: timedelta = timedelta(seconds=2)
    """A process just started may not show its environment yet: its absence is believed only after this."""
    drain_settle: timedelta = timedelta(seconds=2)
    """A server that the gateway does not know may be about to be added by a pass that read the row before: wait so long
    before absence counts as drained. Longer than one pass of the gateway loop."""
    hung_drain: timedelta = timedelta(seconds=10)
    """A hung replica's requests will not finish; they get this instead of the whole drain deadline."""
    resend_after: timedelta = timedelta(seconds=10)
    """vLLM loses a SIGTERM that arrives while its engine process is being spawned (seen 2 of 2): send it again."""
    kill_again_after: timedelta = timedelta(seconds=5)
    """Between two SIGKILLs to the same group: a process in uninterruptible sleep dies only when the kernel lets it."""
    hang_after: timedelta = timedelta(seconds=30)
    """Busy without any progress for so long is suspicious. Above the longest single prefill expected (128k tokens on a
    70B takes some 20 s), below what a caller would wait."""
    probe_every: timedelta = timedelta(seconds=5)
    """Between two probes of a replica that is already serving: each costs it a request."""
    probe_failures: int = 2
    """Failed probes in a row before a silent replica counts as hung: one may meet a full queue."""
    wake_factor: int = 5
    """A wake may take so many times what is expected of it: memory may be busy, but requests are held meanwhile."""
    wake_deadline_min: timedelta = timedelta(seconds=20)
    """Expected wakes are seconds or less: below this a slow machine would be taken for a broken engine."""
    sleep_tries: int = 2
    """An engine that refuses to sleep so often is stopped instead."""
    breaker_after: int = 3
    """Failed starts in a row of one revision before launching pauses: two may be bad luck, three is a pattern."""
    breaker_pause: timedelta = timedelta(seconds=30)
    """First pause of the open breaker; doubles with each further failure."""
    breaker_pause_max: timedelta = timedelta(minutes=15)
    """Longest pause: a broken image is found again within a coffee break after its repair."""
    stable_after: timedelta = timedelta(seconds=60)
    """A replica that served so long after the last failed start proves that the revision can start."""
    port_refused_for: timedelta = timedelta(minutes=1)
    """A port that somebody else held is not tried again for so long."""
    node_avoided_for: timedelta = timedelta(minutes=5)
    """After a failed start other nodes come first for so long; the node stays usable when there is no other."""
    ports: tuple[int, int] = (20000, 20999)
    """First and last port for replicas: `Site.replica_ports`."""
    port_seed: str = ""
    """Where in that range the search begins: the site's mark, so that two sites of one machine seldom meet on a port
    that is chosen but not bound yet. Empty: at the first."""


DEFAULT_LIMITS: Final = Limits()
