"""Old decisions decided again: the proof that a record tells the whole reason."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from controlplane.autoscaler.codec import decode, encode
from controlplane.autoscaler.model import POLICY_NAME, Decision, Observation, PolicyParams, PolicyState
from controlplane.autoscaler.policy import decide
from controlplane.autoscaler.rules import decide_by_rules
from controlplane.autoscaler.rules_model import RULES_NAME, RulesDecision, RulesObservation, RulesParams, RulesState
from controlplane.domain.decision import SHADOW, DecisionRecord
from controlplane.kernel.errors import InvalidError
from controlplane.kernel.ids import DeploymentName

_SHOWN_MAX: Final = 200
"""Characters of a value shown: a line in a terminal."""
_FIRST: Final = ""
"""`state_before_json` of a first decision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One record that does not come out the same."""

    sequence: int
    deployment: DeploymentName
    field: str
    recorded: str
    replayed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    total: int
    same: int
    differences: tuple[Difference, ...]
    """One per record that differs: its first differing field."""

    @property
    def is_clean(self) -> bool:
        return self.same == self.total


def record(
    deployment: DeploymentName,
    params: PolicyParams | RulesParams,
    observation: Observation | RulesObservation,
    state: PolicyState | RulesState | None,
    decision: Decision | RulesDecision,
) -> DecisionRecord:
    """The decision with everything it was made from."""
    seen = observation.seen if isinstance(observation, RulesObservation) else observation
    return DecisionRecord(
        deployment=deployment,
        at=datetime.fromtimestamp(observation.at_s, tz=UTC),
        wanted_before=observation.wanted,
        wanted=decision.wanted,
        reason=decision.reason,
        sentence=decision.sentence,
        policy=params.policy if seen.shadow_of is None else f"{params.policy}{SHADOW}",
        observation_json=encode(observation),
        state_before_json=_FIRST if state is None else encode(state),
        state_after_json=encode(decision.state),
        params_json=encode(params),
    )


def replay(record: DecisionRecord) -> Decision | RulesDecision:
    """Decide again from the record alone. InvalidError when its texts do not fit this version's values."""
    if record.policy_name == RULES_NAME:
        return decide_by_rules(*rules_input(record))
    return decide(*slo_input(record))


def slo_input(record: DecisionRecord) -> tuple[PolicyParams, Observation, PolicyState | None]:
    """What the policy for the SLO was given. InvalidError as `replay`."""
    state = None if record.state_before_json == _FIRST else decode(PolicyState, record.state_before_json)
    return decode(PolicyParams, record.params_json), decode(Observation, record.observation_json), state


def rules_input(record: DecisionRecord) -> tuple[RulesParams, RulesObservation, RulesState | None]:
    """What the rules were given. InvalidError as `replay`."""
    state = None if record.state_before_json == _FIRST else decode(RulesState, record.state_before_json)
    return decode(RulesParams, record.params_json), decode(RulesObservation, record.observation_json), state


def replay_all(records: Iterable[DecisionRecord]) -> ReplayReport:
    """Replay each record and compare number, reason, sentence and the state's text byte for byte."""
    total = 0
    differences = []
    for kept in records:
        total += 1
        difference = _compare(kept)
        if difference is not None:
            differences.append(difference)
    return ReplayReport(total=total, same=total - len(differences), differences=tuple(differences))


def _compare(kept: DecisionRecord) -> Difference | None:
    if kept.policy_name not in (POLICY_NAME, RULES_NAME):
        return _difference(kept, "policy", kept.policy, POLICY_NAME)
    try:
        again = replay(kept)
    except InvalidError as error:
        return _difference(kept, "record", "a text of another version", str(error))
    pairs = (
        ("wanted", str(kept.wanted), str(again.wanted)),
        ("reason", str(kept.reason), str(again.reason)),
        ("sentence", kept.sentence, again.sentence),
    )
    plain = next((_difference(kept, *pair) for pair in pairs if pair[1] != pair[2]), None)
    return plain or _state_difference(kept, encode(again.state))


def _state_difference(kept: DecisionRecord, replayed: str) -> Difference | None:
    if kept.state_after_json == replayed:
        return None
    where, recorded, now = first_difference(orjson.loads(kept.state_after_json), orjson.loads(replayed), "state_after")
    return _difference(kept, where, recorded, now)


def first_difference(recorded: Any, replayed: Any, path: str) -> tuple[str, str, str]:
    """Path and both texts of the first part of two JSON values that differs; of the whole when only its form does."""
    match recorded, replayed:
        case dict(), dict() if recorded.keys() == replayed.keys():
            parts = [(f"{path}.{name}", recorded[name], replayed[name]) for name in sorted(recorded)]
        case list(), list() if len(recorded) == len(replayed):
            parts = [(f"{path}[{index}]", *pair) for index, pair in enumerate(zip(recorded, replayed, strict=True))]
        case _:
            parts = []
    for where, before, now in parts:
        if orjson.dumps(before) != orjson.dumps(now):
            return first_difference(before, now, where)
    return path, orjson.dumps(recorded).decode()[:_SHOWN_MAX], orjson.dumps(replayed).decode()[:_SHOWN_MAX]


def _difference(kept: DecisionRecord, field: str, recorded: str, replayed: str) -> Difference:
    return Difference(
        sequence=kept.sequence, deployment=kept.deployment, field=field, recorded=recorded, replayed=replayed
    )
