import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.kernel.ids import NAME_PATTERN, DeploymentName, RevisionId, parse_replica_name, replica_name


@given(st.from_regex(NAME_PATTERN, fullmatch=True), st.from_regex(r"[0-9a-f]{8}", fullmatch=True), st.integers(0, 9999))
def test_a_replica_name_parses_back(deployment: str, revision: str, ordinal: int) -> None:
    name = replica_name(DeploymentName(deployment), RevisionId(revision), ordinal)
    assert parse_replica_name(name) == (deployment, revision, ordinal)


@pytest.mark.parametrize("foreign", ["", "qd-chat", "chat-0a1b2c3d-0", "qd-chat-0a1b2c3d-x", "qd-chat-0a1b2c3d-1\nx"])
def test_a_foreign_name_is_not_ours(foreign: str) -> None:
    assert parse_replica_name(foreign) is None
