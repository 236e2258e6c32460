"""What a replica would take for the next request, told from its gauges: the learned models of Dynamo and llm-d.

Both projects fit such a model online. Here the fit is taken as exact: it has the simulator's own coefficients, so what
a peer loses is never owed to a bad fit.
"""

from dataclasses import dataclass, replace

import numpy as np

from controlplane.simulation.fleet.compiled import Floats
from controlplane.simulation.fleet.policy import Counter, Facts, Gauge, Metrics
from controlplane.simulation.peers.signals import known

_PREFILL_SHARE_MAX = 0.95
"""Of a replica's time: beyond it a queue forms, which the gauges show by themselves."""
_RATE_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """One value per ready replica."""

    running: Floats
    waiting: Floats
    kv_tokens: Floats
    """In use."""
    queued_prompt: Floats
    """Prompt tokens that nobody has prefilled yet."""
    prompt_tokens_per_s: float
    """That arrive at each."""

    def scaled(self, factor: float) -> "Engines":
        """The same load on fewer: what each would hold."""
        return replace(
            self,
            running=self.running * factor,
            waiting=self.waiting * factor,
            kv_tokens=self.kv_tokens * factor,
            queued_prompt=self.queued_prompt * factor,
            prompt_tokens_per_s=self.prompt_tokens_per_s * factor,
        )


def observed(metrics: Metrics, facts: Facts) -> Engines | None:
    """None where a gauge is missing, for all or for some of the replicas."""
    gauges = [
        metrics.per_replica(gauge)
        for gauge in (Gauge.RUNNING, Gauge.WAITING, Gauge.KV_USAGE, Gauge.QUEUED_PROMPT_TOKENS)
    ]
    count = len(gauges[0])
    if count == 0 or any(len(values) != count or np.isnan(values).any() for values in gauges):
        return None
    rate = known(metrics.rate(Counter.ARRIVED, _RATE_WINDOW_S))
    return Engines(
        running=gauges[0],
        waiting=gauges[1],
        kv_tokens=gauges[2] * facts.timing.kv_tokens,
        queued_prompt=gauges[3],
        prompt_tokens_per_s=rate * facts.mean_prompt_tokens / count,
    )


def per_prompt_token_s(facts: Facts) -> float:
    """Prefill time of one token of the mean prompt."""
    return facts.timing.prefill_per_token_s + facts.timing.prefill_per_token2_s * facts.mean_prompt_tokens


def decode_step_s(engines: Engines, facts: Facts) -> Floats:
    """One step without any prefill in it."""
    timing = facts.timing
    base = max(timing.step_base_s, timing.prefill_base_s) if engines.prompt_tokens_per_s else timing.step_base_s
    return base + timing.step_per_seq_s * engines.running + timing.step_per_context_token_s * engines.kv_tokens


def token_gap_s(engines: Engines, facts: Facts) -> Floats:
    """Mean time between two tokens: prefills take their share of the time."""
    share = min(_PREFILL_SHARE_MAX, engines.prompt_tokens_per_s * per_prompt_token_s(facts))
    return decode_step_s(engines, facts) / (1 - share)


def prefill_wait_s(engines: Engines, facts: Facts, *, tokens: float) -> Floats:
    """Until `tokens` more are through their prefill behind what is queued, chunk by chunk between decode steps."""
    ahead = engines.queued_prompt + tokens
    chunks = np.ceil(ahead / facts.timing.max_num_batched_tokens)
    return chunks * decode_step_s(engines, facts) + ahead * per_prompt_token_s(facts)


def slot_wait_s(engines: Engines, facts: Facts) -> Floats:
    """Until a full replica has let out as many sequences as wait, and one more; 0 where the next one is admitted."""
    timing = facts.timing
    full = (engines.running >= timing.max_num_seqs) | (engines.kv_tokens + facts.mean_prompt_tokens > timing.kv_tokens)
    let_out_per_s = np.maximum(engines.running, 1) / (facts.mean_output_tokens * token_gap_s(engines, facts))
    return np.where(full, (engines.waiting + 1) / let_out_per_s, 0.0)
