"""What is asked of Prometheus: a query for each thing that the history is rebuilt from.

Samples are looked at with `last_over_time` and not as they stand: an instant selector believes a sample for five
minutes, so that replicas that ended without Prometheus noticing would live on. Counters are looked back on for a whole
step, so that what a replica counted just before it ended is not lost; gauges only as far as the last scrape.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

from controlplane.simulation.dry_run.grid import Grid

SUCCESS: Final = "vllm:request_success_total"
RUNNING: Final = "vllm:num_requests_running"
WAITING: Final = "vllm:num_requests_waiting"
PROMPT_TOKENS: Final = "vllm:prompt_tokens_total"
OUTPUT_TOKENS: Final = "vllm:generation_tokens_total"
TTFT: Final = "vllm:time_to_first_token_seconds"
PER_TOKEN: Final = (
    "vllm:request_time_per_output_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:time_per_output_token_seconds",
)
"""Of each request; of each token, where an older vLLM has no more; and that under its old name."""
PROMPT_LENGTH: Final = "vllm:request_prompt_tokens"
OUTPUT_LENGTH: Final = "vllm:request_generation_tokens"
CACHE_HITS: Final = "vllm:prefix_cache_hits_total"
CACHE_QUERIES: Final = "vllm:prefix_cache_queries_total"
NEEDED: Final = (SUCCESS, RUNNING)
"""Without these there is no demand to rebuild."""

_SCRAPES_MISSED: Final = 2.5
"""Of scrape intervals: one scrape may be late or lost before a replica counts as gone."""
_INSIDE_A_REPLICA: Final = "engine, finished_reason"
"""Labels by which one process has several series."""
_POD: Final = re.compile(r"(?P<deployment>.+)-[a-z0-9]{6,10}-[a-z0-9]{5}")
"""Source: Kubernetes names a Deployment's pods by the hash of the ReplicaSet and five characters of their own."""


class Ask(StrEnum):
    """One question, and the key of its answer."""

    SUCCESS = "finished requests"
    RUNNING = "running requests"
    WAITING = "waiting requests"
    PROMPT_TOKENS = "prompt tokens"
    OUTPUT_TOKENS = "output tokens"
    TTFT = "time to first token at the edges beside its objective"
    PER_TOKEN = "time per output token at the edges beside its objective"  # noqa: S105  # a word, not a secret
    WATCHED = "targets that Prometheus scraped at all"
    FAILING = "targets of the engines' jobs that did not answer"
    HELD = "pods that exist"
    WANTED = "pods that were wanted"


def window_s(scrape_s: float) -> float:
    """How long a sample of a gauge is believed."""
    return math.ceil(_SCRAPES_MISSED * scrape_s)


def questions(
    selector: str,
    grid: Grid,
    scrape_s: float,
    *,
    names: Collection[str],
    ttft_edges: Iterable[str],
    per_token: str,
    per_token_edges: Iterable[str],
) -> Mapping[Ask, str]:
    """Those that can have an answer where Prometheus has these `names`. `selector`: matchers without braces."""
    gauge, counter = window_s(scrape_s), max(window_s(scrape_s), math.ceil(grid.step_s))
    asked = {
        Ask.SUCCESS: _each(SUCCESS, selector, counter),
        Ask.RUNNING: _each(RUNNING, selector, gauge),
        Ask.WAITING: _each(WAITING, selector, gauge),
        Ask.PROMPT_TOKENS: _each(PROMPT_TOKENS, selector, counter),
        Ask.OUTPUT_TOKENS: _each(OUTPUT_TOKENS, selector, counter),
        Ask.TTFT: _each(f"{TTFT}_bucket", with_matcher(selector, "le", ttft_edges), counter),
        Ask.PER_TOKEN: _each(f"{per_token}_bucket", with_matcher(selector, "le", per_token_edges), counter),
        Ask.WATCHED: f"count(last_over_time(up[{gauge}s]))",
    }
    return {ask: query for ask, query in asked.items() if _name_in(query) in {*names, "up"}}


def failing(jobs: Collection[str], scrape_s: float) -> str:
    """Targets of these jobs that are there and do not answer."""
    return f"count(last_over_time(up{{{with_matcher('', 'job', jobs)}}}[{window_s(scrape_s)}s]) == 0)"


def kubernetes(namespace: str, deployment: str) -> Mapping[Ask, str]:
    """What kube-state-metrics tells of a Deployment.

    Its interval is not that of the engines, so that a sample is believed as long as Prometheus itself would.
    """
    matchers = f'deployment="{quoted(deployment)}"'
    matchers += f',namespace="{quoted(namespace)}"' if namespace else ""
    return {
        Ask.HELD: f"max(kube_deployment_status_replicas{{{matchers}}})",
        Ask.WANTED: f"max(kube_deployment_spec_replicas{{{matchers}}})",
    }


def bounds(namespace: str, deployment: str) -> tuple[str, str]:
    """The least and the most that an HPA allowed to the Deployment, over time."""
    target = f'scaletargetref_name="{quoted(deployment)}"'
    target += f',namespace="{quoted(namespace)}"' if namespace else ""
    on = f"and on (namespace, horizontalpodautoscaler) kube_horizontalpodautoscaler_info{{{target}}}"
    return (
        f"min(kube_horizontalpodautoscaler_spec_min_replicas {on})",
        f"max(kube_horizontalpodautoscaler_spec_max_replicas {on})",
    )


def scrapes(selector: str, window: str) -> str:
    """How many samples of a replica there are within the window."""
    return f"max(count_over_time({RUNNING}{{{selector}}}[{window}]))"


def histogram(name: str, selector: str, span_s: float) -> str:
    """What was observed within the span, by edge; by nothing finer, since no sum of it is needed exactly."""
    return f"sum by (le) (increase({name}_bucket{{{selector}}}[{math.ceil(span_s)}s]))"


def grown(name: str, selector: str, span_s: float) -> str:
    return f"sum(increase({name}{{{selector}}}[{math.ceil(span_s)}s]))"


def with_matcher(selector: str, label: str, values: Iterable[str]) -> str:
    """The matchers, and one that admits exactly these values."""
    one = f'{label}=~"{quoted("|".join(re.escape(value) for value in sorted(set(values))))}"'
    return f"{selector},{one}" if selector else one


def quoted(text: str) -> str:
    """Inside of double quotes in PromQL."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def deployment_of(pods: Sequence[str]) -> str | None:
    """The one Deployment whose pods these are, by their names."""
    matches = [_POD.fullmatch(pod) for pod in pods]
    found = {match["deployment"] for match in matches if match is not None}
    return found.pop() if len(found) == 1 and None not in matches else None


def _each(name: str, selector: str, seconds: float) -> str:
    return f"sum without ({_INSIDE_A_REPLICA}) (last_over_time({name}{{{selector}}}[{seconds:.0f}s]))"


def _name_in(query: str) -> str:
    found = re.search(r"last_over_time\(([\w:]+)", query)
    assert found is not None, "every question looks at samples"
    return found[1]
