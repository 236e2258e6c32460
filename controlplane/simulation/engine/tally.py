"""What an engine has counted so far, in vLLM's terms. Pure: steps and requests go in, numbers stay."""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Final

from controlplane.simulation.engine import families
from controlplane.simulation.engine.families import FinishReason, Rejection
from controlplane.simulation.engine.sequence import Sequence, Step


class Histogram:
    """Observations by bucket, not cumulative: that is made when somebody looks."""

    __slots__ = ("buckets", "edges", "sum")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges: Final = edges
        self.buckets = [0] * (len(edges) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.buckets[bisect_left(self.edges, value)] += times
        self.sum += value * times


class EngineTally:
    """Counters and histograms of one engine since it started."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.prompt_tokens_cached = 0
        self.generation_tokens = 0
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.finished = dict.fromkeys(FinishReason, 0)
        self.rejected = dict.fromkeys(Rejection, 0)
        self.histograms: Mapping[str, Histogram] = {
            family.name: Histogram(family.edges) for family in families.HISTOGRAMS
        }
        self._iterations = self.histograms[families.ITERATION_TOKENS.name]
        self._ttft = self.histograms[families.TIME_TO_FIRST_TOKEN.name]
        self._inter_token = self.histograms[families.INTER_TOKEN_LATENCY.name]

    def record_step(self, step: Step) -> None:
        """Everything but the ends of requests: their reason is known to the caller only."""
        arrived = len(step.first_tokens) + len(step.resumed)
        decoded = step.decoded * step.count
        self.generation_tokens += decoded + arrived
        self._iterations.observe(step.decoded + step.prefill_tokens, step.count)
        if decoded:
            self._inter_token.observe((step.ends_at - step.started_at) / step.count, decoded)
        for sequence in step.admitted:
            self.prefix_queries += sequence.prompt_tokens
            self.prefix_hits += sequence.cached_tokens
        for sequence in step.first_tokens:
            self._first_token(sequence)
        for _, gap_s in step.resumed:
            self._inter_token.observe(gap_s)
        self.preemptions += len(step.preempted)

    def record_end(self, sequence: Sequence, reason: FinishReason, max_tokens: int) -> None:
        """A request ended; one that never got a token counts by its reason only."""
        self.finished[reason] += 1
        if sequence.admitted_at is None or sequence.first_token_at is None:
            return
        if sequence.output_tokens == 0:
            self._first_token(sequence)
        generated = sequence.generated_base
        decode_s = sequence.last_token_at - sequence.first_token_at
        observe = self._observe
        observe(families.PROMPT_TOKENS, sequence.prompt_tokens)
        observe(families.GENERATION_TOKENS, generated)
        observe(families.MAX_GENERATION_TOKENS, max_tokens)
        observe(families.PARAMS_N, 1)
        observe(families.PARAMS_MAX_TOKENS, max_tokens)
        if generated > 1:
            observe(families.TIME_PER_OUTPUT_TOKEN, decode_s / (generated - 1))
        observe(families.END_TO_END, sequence.finished_at - sequence.arrived_at)
        observe(families.QUEUE_TIME, sequence.admitted_at - sequence.arrived_at)
        observe(families.INFERENCE_TIME, sequence.last_token_at - sequence.admitted_at)
        observe(families.PREFILL_TIME, sequence.first_token_at - sequence.admitted_at)
        observe(families.DECODE_TIME, decode_s)
        observe(families.PREEMPTIONS, sequence.preemptions)
        observe(families.KV_COMPUTED_TOKENS, sequence.prompt_tokens - sequence.cached_tokens)

    def _observe(self, family: families.HistogramFamily, value: float) -> None:
        self.histograms[family.name].observe(value)

    def _first_token(self, sequence: Sequence) -> None:
        assert sequence.first_token_at is not None, "only sequences with a first token come here"
        self._ttft.observe(sequence.first_token_at - sequence.arrived_at)
        self.prompt_tokens += sequence.prompt_tokens
        self.prompt_tokens_cached += sequence.cached_tokens


class HttpTally:
    """What the instrumentator in front of vLLM's application counts, by route."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, str], int] = {}
        """By (handler, method, status class as 2xx)."""
        self.request_bytes: dict[str, list[float]] = {}
        """By handler: count, sum."""
        self.response_bytes: dict[str, list[float]] = {}
        self.durations: dict[tuple[str, str], Histogram] = {}
        """By (handler, method)."""
        self.fine_durations = Histogram(families.HTTP_DURATION_FINE_EDGES)

    def record(
        self, *, handler: str, method: str, status: int, seconds: float, request_bytes: int, response_bytes: int
    ) -> None:
        """`handler` is a known route or "none": what clients invent must not grow the table."""
        key = (handler, method, f"{status // 100}xx")
        self.requests[key] = self.requests.get(key, 0) + 1
        for table, size in ((self.request_bytes, request_bytes), (self.response_bytes, response_bytes)):
            entry = table.setdefault(handler, [0, 0])
            entry[0] += 1
            entry[1] += size
        histogram = self.durations.get((handler, method))
        if histogram is None:
            histogram = self.durations[handler, method] = Histogram(families.HTTP_DURATION_EDGES)
        histogram.observe(seconds)
        self.fine_durations.observe(seconds)
