"""What the autoscaler sees, remembers, is told and answers: frozen values with a canonical text each.

Numbers here are as they are recorded: `_s` fields are seconds (moments: Unix seconds), counts are floats because
counters are. That keeps a record exact and its replay byte for byte the same; durations that come from the site stay
`timedelta`.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Final

from controlplane.domain.deployment import CapacityPrior
from controlplane.domain.reason import Reason
from controlplane.domain.slo import Slo

POLICY_NAME: Final = "learned-capacity/3"
"""Name and version. A change that gives another answer on an old record raises the version."""


class Trust(StrEnum):
    """How far a source may be believed at this moment; the worst of its parts."""

    FRESH = "fresh"
    STALE = "stale"
    MISSING = "missing"


class ArrivalSource(StrEnum):
    GATEWAY = "gateway"
    """The gateway's arrival counter: each request once, held ones included."""
    ENGINES = "engines"
    """Finished requests plus the change of running and waiting: lags, and does not see what the gateway holds."""
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyDelta:
    """Observations since the last look. A limit inside a bucket splits it in an unknown way, hence two counts."""

    count: float = 0.0
    sum_s: float = 0.0
    within_low: float = 0.0
    """Certainly within the SLO's limit."""
    within_high: float = 0.0
    """Possibly within: the bucket that holds the limit counted whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One deployment at one moment; increases are since the previous observation. All that `decide` learns."""

    at_s: float
    # -- trust
    gateway: Trust
    engines: Trust
    """The worst of the ready replicas; FRESH when there is none."""
    engines_fresh: int
    """Ready replicas with fresh data: the coverage is engines_fresh of ready."""
    # -- demand
    arrivals: float | None
    """Requests that came within `arrivals_seconds`. None: not known, which is never read as zero."""
    arrivals_seconds: float
    """Time between the two samples behind `arrivals`; 0 when there was no newer sample."""
    arrivals_source: ArrivalSource
    arrivals_complete: bool
    """False: a lower bound (a counter began anew in between, or not all replicas were seen)."""
    held: int
    """Requests waiting in the gateway because no replica is up."""
    queued: int
    """Requests waiting in the gateway's queue for a slot of a replica."""
    in_flight: int
    """Requests at replicas, as the gateway counts them."""
    # -- service, over the fresh replicas
    running: int
    waiting: int
    kv_usage: float
    """0..1, mean over fresh replicas."""
    engine_seconds: float
    """Mean time between the two samples of a replica; 0 when none has two."""
    engine_deltas: int
    """Replicas that have two samples: those that the increases below are summed over."""
    prompt_tokens: float
    generation_tokens: float
    finished: float
    failed: float
    preemptions: float
    ttft: LatencyDelta
    inter_token: LatencyDelta
    """Of gaps between tokens: its sum per second is the number of sequences that decode."""
    per_output_token: LatencyDelta
    """Of requests: each one's mean time per output token, what the inter-token SLO speaks of."""
    end_to_end: LatencyDelta
    # -- replicas
    wanted: int
    """What the autoscaler wanted so far."""
    ready: int
    starting: int
    """Pending, starting or waking."""
    draining: int
    sleeping: int
    starting_age_s: float
    """Of the oldest one that starts."""
    cold_starts_s: tuple[float, ...]
    """Launch to ready, of replicas that became ready since the last look."""
    # -- limits
    replicas_min: int
    replicas_max: int
    pinned: int | None
    paused: bool
    shadow_of: int | None = None
    """In shadow: the number that really holds, while `wanted` is what would be wanted. None: acted upon."""

    @property
    def work_waiting(self) -> int:
        return self.held + self.queued + self.waiting

    @property
    def work_open(self) -> int:
        """Requests that somebody waits for an answer to, by whichever count sees more of them."""
        return self.held + self.queued + max(self.in_flight, self.running + self.waiting)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The policy's knobs, as data. Each default has its reason; none was fitted to a trace that is reported.

    One exception: the last step of `recall_leads`, `up_z` and `scatter_proof_z` had llm-d's ramp in view.
    """

    # -- lead
    lead_quantile: float = 0.9
    """Of the measured cold starts: a slow start is the one that hurts."""
    lead_samples_min: int = 3
    """Below this many, the lead is not less than the catalog's expectation."""
    lead_samples_max: int = 16
    lead_floor_s: float = 2.0
    """A decision takes a scrape and a tick to be seen, whatever the start costs."""
    # -- demand
    bucket_per_lead: float = 20.0
    bucket_min_s: float = 1.0
    bucket_max_s: float = 15.0
    window_leads: float = 3.0
    """The long window: longer than the lead, so that a trend over it can be carried on for one lead."""
    window_min_s: float = 30.0
    window_max_s: float = 600.0
    first_window_s: float = 10.0
    """A rate from less history than this is taken over this long: two requests in the first second are not 2/s."""
    burst_z: float = 3.0
    """A short window overrules the long one where their bands of this width no longer touch: a change point."""
    burst_credit_z: float = 1.5
    """Lower band up to which that short window is then believed; it narrows as the window grows."""
    burst_window_share: float = 0.25
    """The longest `short` window, as a share of the long one."""
    up_z: float = 0.95
    """Upper band for ordering, in standard deviations of the forecast's own error: what a replica too many costs for
    a lead against what missed requests cost, settled on synthetic days (docs/autoscaling.md)."""
    keep_z: float = 0.95
    """Upper band for giving back. The hysteresis is in the hold time, and in taking the larger of now and ahead."""
    trend_z: float = 1.0
    """Only the part of a rising trend that exceeds its own standard error counts; a falling one never does."""
    trend_gain_max: float = 1.0
    """A trend may at most double today's rate within the horizon."""
    dispersion_max: float = 20.0
    """Real traces reach 13 at 1 s (Azure 2023 code, see docs); beyond it the estimate is noise."""
    reach_max_s: float = 60.0
    """Answers may take minutes; who asks for them does not make the fleet wait so long."""
    span_min_s: float = 5.0
    """The shortest span of an expert."""
    judged_share: float = 0.25
    """Of a lead: the time over which what came is compared with what was expected."""
    judged_max_s: float = 30.0
    judged_memory_leads: float = 4.0
    judged_memory_min_s: float = 300.0
    error_prior: float = 0.1
    """Before anybody was judged: relative error of an expectation."""
    error_prior_s: float = 30.0
    error_floor: float = 0.03
    """Experts that are better than this are equals."""
    error_most: float = 0.5
    """A surprise counts at most this much: after a start from nothing (a factor of 40) no band would be left that means
    anything."""
    recall_leads: float = 0.4
    """A peak of the last so many leads may come again before a replica that is ordered then is ready."""
    # -- scatter
    scatter_least_s: float = 10.0
    """Bursts of Azure's 2023 code trace last some ten seconds (`controlplane/simulation/fleet/rates.py`)."""
    scatter_most_s: float = 30.0
    scatter_memory_s: float = 900.0
    scatter_z: float = 1.0
    """Standard deviations of a span's rate, beyond Poisson's, that capacity is held for."""
    scatter_proof_z: float = 2.0
    """Standard errors by which the measured scatter must exceed Poisson's: steady arrivals must not pay for chance."""
    scatter_max: float = 10_000.0
    """It grows with the load: at 10 s Azure's 2023 code trace has a variance of 2.8 times the squared mean, so 2,800 of
    them at 100 requests/s. Beyond, a counter is broken."""
    # -- giving back
    hold_leads: float = 0.3
    """Ski rental without a forecast keeps a replica for as long as its start takes; here the need is already the larger
    of now and one lead ahead, so what is left is to sit out the scatter."""
    hold_min_leads: float = 6.0
    """Up to hold_floor_s: an engine that starts in seconds need not be kept for a minute."""
    hold_floor_s: float = 60.0
    """Never below what the last minute needed."""
    hold_least_s: float = 15.0
    first_hold_leads: float = 3.0
    """Nobody who has just begun to watch knows what a load comes back to; up to window_max_s."""
    hold_coverage: float = 0.8
    """Share of the hold time that must have been seen: blindness is not calm."""
    # -- capacity
    prompt_tokens_prior: float = 1000.0
    output_tokens_prior: float = 200.0
    """Mean request before any was seen: near Azure's 2023 conversation trace (1155 and 211 tokens)."""
    tokens_prior_weight: float = 10.0
    """In requests: after this many the seen mean weighs as much as the prior."""
    tokens_memory_s: float = 300.0
    prompt_cv: float = 1.0
    """Standard deviation of prompt lengths over their mean: 0.96 in Azure's 2023 conversation trace."""
    short_output: float = 0.25
    """The fifth percentile of output lengths over their mean, lognormal with the 0.77 of the same trace: short answers
    have the fewest tokens to spread a stall over."""
    concurrency_z: float = 1.3
    """Spread of open requests that a fleet is sized for, in standard deviations: Poisson's times the root of the
    index of dispersion."""
    utilization_max: float = 0.9
    """Of a replica's time, whatever the SLO allows: at 1 its queue has no bound."""
    kv_fill: float = 0.85
    """Share of the KV cache that is planned with; the rest takes the spread of request lengths."""
    kv_pressure: float = 0.9
    """Above this the engine is about to queue or preempt (the sites' "GPU memory > 90 %", read where it means it)."""
    kv_memory_s: float = 10.0
    slowness_sd_calibrated: float = 0.1
    slowness_sd_derived: float = 0.35
    """Prior spread of ln(measured / modelled) step time: coefficients measured for this GPU, or derived from specs."""
    slowness_sd_measured: float = 0.25
    """Noise of one tick's measurement, in quiet; prefills that stall decoding widen it."""
    slowness_surprise_max: float = 3.0
    """In standard deviations: one strange tick moves the belief no further than this."""
    slowness_drift_per_s: float = 1e-4
    """Variance added per second: what was learned is worth less after a quarter of an hour."""
    slowness_z: float = 0.5
    """Capacity is taken at the slow end of what is believed."""
    slowness_max: float = 20.0
    tokens_to_learn: float = 50.0
    """Token gaps in one tick below which the tick teaches nothing."""
    # -- objectives
    attainment_memory_s: float = 30.0
    attainment_requests: float = 20.0
    """Fewer requests than this prove no missed objective."""
    discount_step: float = 0.85
    """Capacity is cut to this share when objectives are missed though the model saw enough replicas."""
    discount_least: float = 0.6
    """The model is within a third of what the simulator carries; beyond that more replicas are not what is missing."""
    discount_recovery_s: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyParams:
    """Everything the site and the catalog say that the decision uses."""

    policy: str = POLICY_NAME
    prior: CapacityPrior
    slo: Slo
    decodes: bool
    """False for models without a decode phase (embeddings): only prefill and its queue count."""
    idle_after: timedelta | None
    """None: never to zero."""
    tuning: Tuning = field(default_factory=Tuning)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A span of measured time."""

    end_s: float
    seconds: float
    """Measured time in it; gaps without data are in no bucket."""
    arrivals: float
    need: int
    """The most replicas that a decision within it thought worth keeping."""

    @property
    def rate_rps(self) -> float:
        return self.arrivals / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """A rate that nothing later has exceeded."""

    at_s: float
    rate_rps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastErrors:
    """How well each expert of `experts`, and their blend (last), did on this load: exponentially forgotten."""

    judged_s: float
    """The moment up to which arrivals were compared with what had been expected."""
    weight_s: float
    """Seconds of judging behind the sums."""
    squares: tuple[float, ...]
    """Squared differences of logarithms times seconds."""
    peaks: tuple[Peak, ...] = ()
    """Of the rates that forecasts were compared with: falling, since a later and higher one makes earlier ones moot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """Differences between neighbouring spans of arrivals, exponentially forgotten, beside what Poisson would have."""

    seconds: float = 0.0
    arrivals: float = 0.0
    """Of the span that still grows."""
    before_s: float = 0.0
    """Length of the span before it; 0: there is none."""
    before: float = 0.0
    """Arrivals in it."""
    newest_square: float = 0.0
    newest_poisson: float = 0.0
    """Of the last comparison, which does not count before the next one."""
    squares: float = 0.0
    poisson: float = 0.0
    compared: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMemory:
    """Exponentially forgotten sums: their ratios are the mean request."""

    first_tokens: float = 0.0
    prompt_tokens: float = 0.0
    finished: float = 0.0
    """Whole outputs behind `output_tokens`: requests that run count half when they come and half when they end."""
    output_tokens: float = 0.0
    running: int = 0
    """At the last look."""

    @property
    def started(self) -> float:
        """A request starts with its first token; engines that do not tell those show it when it ends."""
        return max(self.first_tokens, self.finished)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowness:
    """Belief about ln(measured / modelled) step time: a normal with this mean and variance."""

    mean: float
    variance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttainmentMemory:
    """Exponentially forgotten observations of the three objectives."""

    ttft: LatencyDelta = field(default_factory=LatencyDelta)
    per_output_token: LatencyDelta = field(default_factory=LatencyDelta)
    end_to_end: LatencyDelta = field(default_factory=LatencyDelta)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyState:
    """All that a decision leaves for the next one. A value: the store keeps its text."""

    since_s: float
    """When the policy began to watch."""
    at_s: float
    """The last observation's moment."""
    buckets: tuple[Bucket, ...]
    last_request_s: float
    """When somebody last waited for an answer, or when watching began."""
    cold_starts_s: tuple[float, ...]
    errors: ForecastErrors
    scatter: Scatter
    tokens: TokenMemory
    slowness: Slowness
    attainment: AttainmentMemory
    kv_usage: float
    """0..1, smoothed: a peak of one second is what a cache is for."""
    discount: float
    """0..1, on the modelled capacity."""
    discounted_s: float
    short_s: float
    """When there were last fewer replicas than needed, or work queued: misses then do not speak against the model."""
    changed_s: float
    turned_s: float
    """When the direction of changes last changed."""
    direction: int
    """Of the last change: 1 up, -1 down, 0 none yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    wanted: int
    reason: Reason
    sentence: str
    state: PolicyState
