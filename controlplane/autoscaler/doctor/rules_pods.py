"""Pods of an engine that is scaled: whether they are let start, and whether their requests end before they do."""

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from controlplane.autoscaler.doctor.live import Case
from controlplane.autoscaler.doctor.model import Field, Finding, Rule, Severity, in_seconds
from controlplane.autoscaler.doctor.recipe import Workload
from controlplane.autoscaler.doctor.rules_outage import COLD_START

_GRACE: Final = timedelta(seconds=30)
"""terminationGracePeriodSeconds where none is given. Source: Kubernetes, pod lifecycle."""
_DRAIN_MIN: Final = timedelta(seconds=30)
"""A preStop shorter than this outlives the endpoint's removal, not the requests: one of 1,000 tokens takes 15-40 s."""
_SLEEP: Final = re.compile(r"\bsleep\s+(\d+)")
_SHUTDOWN: Final = "--shutdown-timeout"

CUT: Final = Rule(
    id="in-flight-cut",
    severity=Severity.RISKY,
    looks_for="an engine without --shutdown-timeout",
    why="With vLLM's default of 0 SIGTERM aborts what is running: clients get a truncated answer, or hang.",
    source="measured on vLLM 0.32 (docs/vllm.md): 6 of 9 stops aborted all requests, 3 hung",
)
NO_PRESTOP: Final = Rule(
    id="no-prestop",
    severity=Severity.RISKY,
    looks_for="an engine without a preStop hook",
    why="After SIGTERM /health stays 200 and new requests get 500 until the endpoint is gone from every proxy.",
    source="measured on vLLM 0.32 (docs/vllm.md); Kubernetes, pod termination",
)
GRACE: Final = Rule(
    id="grace-too-short",
    severity=Severity.RISKY,
    looks_for="terminationGracePeriodSeconds below preStop and --shutdown-timeout together",
    why="When the grace period ends the pod is killed, whatever it still answers.",
    source="Kubernetes, pod termination",
)
START_BUDGET: Final = Rule(
    id="start-budget-too-short",
    severity=Severity.RISKY,
    looks_for="probes that give up before the engine has started",
    why="vLLM opens its port only when the model is loaded; a probe that gives up before that restarts it for ever.",
    source="measured on vLLM 0.32 (docs/vllm.md): connection refused while starting; starts of 59 to 277 s",
)
NO_READINESS: Final = Rule(
    id="no-readiness-probe",
    severity=Severity.RISKY,
    looks_for="an engine without readiness probe",
    why="Without one a pod counts as ready at once: it gets requests that it refuses for the whole of its start.",
    source="measured on vLLM 0.32 (docs/vllm.md); Kubernetes, probes",
)
RULES: Final = (CUT, NO_PRESTOP, GRACE, START_BUDGET, NO_READINESS)


def check(case: Case) -> Iterator[Finding]:
    seen: set[int] = set()
    for scaler in case.recipe.autoscalers:
        workload = case.recipe.workload_of(scaler)
        if workload is None or workload.engine is None or id(workload) in seen:
            continue
        seen.add(id(workload))
        yield from _end(workload, workload.engine)
        yield from _start(workload.engine)


def _end(workload: Workload, engine: Field) -> Iterator[Finding]:
    hook = engine.at("lifecycle", "preStop")
    pause = _pause(hook)
    drain = _shutdown_timeout(workload)
    args = engine["args"] if engine["args"].there else engine["command"]
    if not drain and (pause or timedelta(0)) < _DRAIN_MIN and not (hook.there and pause is None):
        expected = f"{_SHUTDOWN}, in seconds, longer than the longest request"
        found = "no time to finish requests" if drain is None else f"{_SHUTDOWN} 0"
        yield Finding(rule=CUT, at=args, found=found, expected=expected, fix=f'"{_SHUTDOWN}", "120"', at_key=True)
    if not hook.there:
        yield Finding(
            rule=NO_PRESTOP,
            at=engine.at("lifecycle"),
            found="nothing",
            expected="a pause in which proxies learn that the pod goes",
            fix='lifecycle: {preStop: {exec: {command: ["sleep", "15"]}}}',
        )
    grace = workload.pod.at("spec", "terminationGracePeriodSeconds")
    given = grace.duration or _GRACE
    needed = (pause or timedelta(0)) + (drain or timedelta(0))
    if given < needed:
        found = grace.text if grace.there else f"nothing, which is {in_seconds(_GRACE)}"
        fix = f"terminationGracePeriodSeconds: {needed.total_seconds() + 10:g}"
        yield Finding(rule=GRACE, at=grace, found=found, expected=f"more than {in_seconds(needed)}", fix=fix)


def _pause(hook: Field) -> timedelta | None:
    """How long the hook waits; None where it does something that is not understood."""
    if hook["sleep"].there:
        return hook.at("sleep", "seconds").duration
    words = " ".join(word.text for word in hook.at("exec", "command").items())
    match = _SLEEP.search(words)
    return None if match is None else timedelta(seconds=min(int(match[1][:6]), 999_999))


def _shutdown_timeout(workload: Workload) -> timedelta | None:
    words = list(workload.engine_arguments)
    for index, word in enumerate(words):
        name, is_joined, value = word.partition("=")
        if name == _SHUTDOWN:
            text = value if is_joined else "".join(words[index + 1 : index + 2])
            return timedelta(seconds=min(int(text), 999_999)) if text.isdigit() else None
    return None


def _start(engine: Field) -> Iterator[Finding]:
    startup, liveness, readiness = (engine[f"{name}Probe"] for name in ("startup", "liveness", "readiness"))
    probe = startup if startup.there else liveness
    if probe.there and _budget(probe) < COLD_START:
        yield Finding(
            rule=START_BUDGET,
            at=probe,
            found=f"gives up after {in_seconds(_budget(probe))}",
            expected=f"a startupProbe that waits for {in_seconds(COLD_START)} at the least",
            fix="startupProbe: {httpGet: {path: /health, port: 8000}, periodSeconds: 5, failureThreshold: 120}",
            at_key=True,
        )
    if not readiness.there:
        fix = "readinessProbe: {httpGet: {path: /health, port: 8000}, periodSeconds: 5}"
        yield Finding(rule=NO_READINESS, at=readiness, found="nothing", expected="a probe of /health", fix=fix)


def _budget(probe: Field) -> timedelta:
    """Source of the defaults: Kubernetes, probes."""
    delay = probe["initialDelaySeconds"].number or 0.0
    period = probe["periodSeconds"].number or 10.0
    failures = probe["failureThreshold"].number or 3.0
    return timedelta(seconds=min(delay + period * failures, 999_999.0))
