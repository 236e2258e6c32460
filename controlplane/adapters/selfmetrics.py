"""The control plane's own /metrics. Whoever knows a value sets it; labels are closed sets or names of the site."""

from collections import Counter as Tally
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

import prometheus_client as prometheus
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from controlplane.domain.deployment import Deployment
from controlplane.domain.node import Node, NodeState
from controlplane.domain.reason import Reason
from controlplane.domain.replica import Replica, ReplicaPhase

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

_TICK_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""From a quiet tick to the longest deadline; 0.25 s, the aim for a decision over 2,000 replicas, is an edge."""
_SCRAPE_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""The deadlines of one target (2 s) and of one round (4 s) are edges."""


class SelfMetrics:
    """One registry per control plane: nothing is global, so two can live in one process."""

    def __init__(self, *, version: str) -> None:
        self._registry = registry = prometheus.CollectorRegistry(auto_describe=False)
        prometheus.ProcessCollector(registry=registry)
        build = prometheus.Gauge("quarterdeck_build_info", "1; the version is a label.", ["version"], registry=registry)
        build.labels(version).set(1)
        self._ticks = prometheus.Counter(
            "quarterdeck_ticks", "Ticks of a loop, by how they ended.", ["loop", "outcome"], registry=registry
        )
        self._tick_seconds = prometheus.Histogram(
            "quarterdeck_tick_duration_seconds",
            "How long a loop's ticks take.",
            ["loop"],
            buckets=_TICK_BUCKETS_S,
            registry=registry,
        )
        self._stale_claims = prometheus.Counter(
            "quarterdeck_stale_claims",
            "Results dropped because the claim had passed to another instance.",
            ["loop"],
            registry=registry,
        )
        self._decisions = prometheus.Counter(
            "quarterdeck_decisions",
            "Scaling decisions that were kept, by reason and direction.",
            ["deployment", "reason", "direction"],
            registry=registry,
        )
        self._replicas = prometheus.Gauge(
            "quarterdeck_replicas", "Replicas, by phase.", ["deployment", "phase"], registry=registry
        )
        self._wanted = prometheus.Gauge(
            "quarterdeck_replicas_target", "Replicas that there should be.", ["deployment"], registry=registry
        )
        self._nodes = prometheus.Gauge("quarterdeck_nodes", "Nodes, by state.", ["state"], registry=registry)
        self._scrape_seconds = prometheus.Histogram(
            "quarterdeck_scrape_duration_seconds",
            "How long a round of scrapes takes, by what is scraped.",
            ["kind"],
            buckets=_SCRAPE_BUCKETS_S,
            registry=registry,
        )
        self._targets = prometheus.Gauge(
            "quarterdeck_scrape_targets", "Targets of the last round, by result.", ["kind", "result"], registry=registry
        )

    def tick(self, loop: str, outcome: str, duration: timedelta) -> None:
        """A tick ended. `outcome` as in TickRecord, or `quiet`."""
        self._ticks.labels(loop, outcome).inc()
        self._tick_seconds.labels(loop).observe(duration.total_seconds())

    def stale_claim(self, loop: str) -> None:
        self._stale_claims.labels(loop).inc()

    def decision(self, deployment: str, reason: Reason, *, wanted_before: int, wanted: int) -> None:
        """A decision was written to the store."""
        direction = "up" if wanted > wanted_before else "down" if wanted < wanted_before else "hold"
        self._decisions.labels(deployment, reason.value, direction).inc()

    def scraped(self, kind: str, *, fresh: int, missing: int, duration: timedelta) -> None:
        """A round ended. `kind`: engines, nodes or gateway."""
        self._scrape_seconds.labels(kind).observe(duration.total_seconds())
        self._targets.labels(kind, "fresh").set(fresh)
        self._targets.labels(kind, "missing").set(missing)

    def rows(self, deployments: Iterable[Deployment], replicas: Iterable[Replica], nodes: Iterable[Node]) -> None:
        """The store as it is now. Every phase of a present deployment has a value; absent deployments have none."""
        present = list(deployments)
        phases = Tally((replica.deployment, replica.phase) for replica in replicas)
        self._replicas.clear()
        self._wanted.clear()
        for deployment in present:
            self._wanted.labels(deployment.name).set(deployment.replicas_target)
            for phase in ReplicaPhase:
                self._replicas.labels(deployment.name, phase.value).set(phases[deployment.name, phase])
        states = Tally(node.state for node in nodes)
        for state in NodeState:
            self._nodes.labels(state.value).set(states[state])

    def register(self, collector: Collector) -> None:
        """Further families on the same page."""
        self._registry.register(collector)

    def render(self) -> bytes:
        """The page, format 0.0.4, to be sent as CONTENT_TYPE."""
        return prometheus.generate_latest(self._registry)

    def names(self) -> frozenset[str]:
        """Of all our families, as documented; process_* comes from prometheus_client."""
        return frozenset(family.name for family in self._registry.collect() if family.name.startswith("quarterdeck_"))
