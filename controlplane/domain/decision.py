"""A scaling decision as kept: enough to ask why, and to replay it to the same answer."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from controlplane.domain.reason import Reason
from controlplane.kernel.ids import DeploymentName

SHADOW: Final = "+shadow"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """One decision. The three JSON texts are canonical (sorted keys): replaying compares them byte for byte."""

    deployment: DeploymentName
    at: datetime
    wanted_before: int
    wanted: int
    reason: Reason
    sentence: str
    policy: str
    """Name and version of the policy, e.g. `learned-capacity/1`; `+shadow` where it was not acted upon."""
    observation_json: str
    state_before_json: str
    state_after_json: str
    params_json: str
    sequence: int = 0
    """Given by the store."""

    @property
    def in_shadow(self) -> bool:
        """It was shown and not acted upon: both numbers are the shadow's."""
        return self.policy.endswith(SHADOW)

    @property
    def policy_name(self) -> str:
        return self.policy.removesuffix(SHADOW)
