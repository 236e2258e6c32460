"""Fair shares: whatever the start, surveys in any order end with every resource worked on by exactly one."""

import random
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.store import Claim
from controlplane.kernel.ids import ClaimToken, InstanceId
from controlplane.runtime.sharing import claim_name, fair_share, presence
from controlplane.testing.effects import START

LOOP = "replicas"
TTL = timedelta(seconds=15)


def make_claim(resource: str, holder: InstanceId, *, expired: bool = False) -> Claim:
    expires_at = START if expired else START + TTL
    return Claim(resource=resource, token=ClaimToken(f"t-{holder}"), holder=holder, expires_at=expires_at)


def survey(board: dict[str, Claim], resources: list[str], instance: InstanceId, busy: frozenset[str]) -> None:
    """What a driver does: show itself, give up, take."""
    shown = presence(LOOP, instance)
    board[shown] = make_claim(shown, instance)
    share = fair_share(loop=LOOP, resources=resources, busy=busy, claims=board.values(), instance=instance, now=START)
    for claim in share.give_up:
        del board[claim.resource]
    for resource in share.work:
        name = claim_name(LOOP, resource)
        held = board.get(name)
        assert held is None or held.holder == instance or held.expires_at <= START, "takes from a living instance"
        board[name] = make_claim(name, instance)


@given(
    resources=st.lists(st.sampled_from([f"r{number}" for number in range(12)]), unique=True),
    count=st.integers(1, 4),
    first_owner=st.dictionaries(
        st.sampled_from([f"r{number}" for number in range(14)]), st.tuples(st.integers(0, 5), st.booleans())
    ),
    order=st.randoms(use_true_random=False),
)
def test_every_resource_ends_with_one_living_owner_and_fair_parts(
    resources: list[str], count: int, first_owner: dict[str, tuple[int, bool]], order: random.Random
) -> None:
    instances = [InstanceId(f"i{number}") for number in range(count)]
    board = {"other/x": make_claim("other/x", InstanceId("i0"))}
    for resource, (owner, expired) in first_owner.items():
        name = claim_name(LOOP, resource)
        # Owners beyond the living ones are dead: their claims have expired.
        board[name] = make_claim(name, InstanceId(f"i{owner}"), expired=expired or owner >= count)
    for _ in range(4):
        turns = list(instances)
        order.shuffle(turns)
        for instance in turns:
            survey(board, resources, instance, frozenset())
    owners = {resource: board[claim_name(LOOP, resource)].holder for resource in resources}
    assert set(owners.values()) <= set(instances)
    parts = [sum(owner == instance for owner in owners.values()) for instance in instances]
    assert max(parts) <= -(-len(resources) // count)
    assert board["other/x"].holder == "i0"
    left = {name for name in board if not name.startswith((f"{LOOP}/@", "other/"))}
    gone = left - {claim_name(LOOP, resource) for resource in resources}
    assert all(board[name].holder not in instances or board[name].expires_at <= START for name in gone)


def test_what_is_busy_is_not_given_up() -> None:
    one, two = InstanceId("one"), InstanceId("two")
    board: dict[str, Claim] = {}
    resources = ["a", "b"]
    survey(board, resources, one, frozenset())
    shown = presence(LOOP, two)
    board[shown] = make_claim(shown, two)
    survey(board, resources, one, frozenset(resources))
    assert {board[claim_name(LOOP, resource)].holder for resource in resources} == {one}
    survey(board, resources, one, frozenset("a"))
    assert claim_name(LOOP, "a") in board
    assert claim_name(LOOP, "b") not in board


def test_who_is_busy_at_every_look_begins_no_more_than_its_part() -> None:
    one, two = InstanceId("one"), InstanceId("two")
    board: dict[str, Claim] = {}
    resources = ["a", "b", "c", "d"]
    survey(board, resources, one, frozenset())
    shown = presence(LOOP, two)
    board[shown] = make_claim(shown, two)
    share = fair_share(loop=LOOP, resources=resources, busy=resources, claims=board.values(), instance=one, now=START)
    assert (len(share.work), len(share.finishing), share.give_up) == (2, 2, ())
    # The two that were under way have ended; whatever is begun meanwhile is of its part.
    survey(board, resources, one, share.work)
    assert {resource for resource in resources if claim_name(LOOP, resource) in board} == share.work


def test_it_stays_with_what_it_has() -> None:
    board: dict[str, Claim] = {}
    one, two = InstanceId("one"), InstanceId("two")
    resources = [f"r{number}" for number in range(6)]
    for instance in (one, two, one, two):
        survey(board, resources, instance, frozenset())
    before = dict(board)
    for instance in (two, one):
        survey(board, resources, instance, frozenset())
    assert board == before
