import pytest

from controlplane.domain.replica import REPLICA_TRANSITIONS, ReplicaPhase
from controlplane.kernel.errors import ConflictError


def test_every_phase_can_be_reached_and_can_end() -> None:
    assert REPLICA_TRANSITIONS.reachable(ReplicaPhase.PENDING) == frozenset(ReplicaPhase)
    for phase in ReplicaPhase:
        assert ReplicaPhase.STOPPING in REPLICA_TRANSITIONS.reachable(phase)


def test_stopping_is_the_only_final_phase() -> None:
    assert [phase for phase in ReplicaPhase if REPLICA_TRANSITIONS.is_final(phase)] == [ReplicaPhase.STOPPING]


def test_a_starting_replica_is_never_routed_without_a_probe() -> None:
    with pytest.raises(ConflictError, match="cannot go from pending to ready"):
        REPLICA_TRANSITIONS.check(ReplicaPhase.PENDING, ReplicaPhase.READY, subject="qd-x")
