"""A real trace, sped up, against the demo: does the fleet follow it without a lost request, at what cost.

    python -m benchmarks.replay --trace azure_llm_2023_conv.parquet --speed 10 --duration 5m

Without --trace a generated day goes by in the time of the run. Exit code 1 when a request was lost or nothing scaled.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.product import Load, NotReachedError, Product

MODELS: Final = ("--model", "chat-8b=88", "--model", "chat-70b=11.5", "--embed", "embed=0.5")
"""The demo's own shares."""
DAY: Final = ("--peak-rps", "70", "--trough-rps", "3")
SCALE_EVENTS_MIN: Final = 10
_SETTLE_S: Final = 60.0
"""Between the duration and a report: the last answers, and the load's own tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a replay did to the fleet and to its users."""

    requests: int
    answered: int
    failed: int
    responses_5xx: int
    """As the gateway counted them, of all deployments."""
    attainment: float
    """0..1, of the requests whose model has an objective: all limits met."""
    attainment_by_model: dict[str, float | None]
    ttft_p95_s: dict[str, float | None]
    scale_events: int
    gpu_hours: float
    gpu_hours_static_peak: float
    sent_late_p99_s: float
    seconds: float

    def problems(self) -> list[str]:
        found = []
        if self.failed or self.answered != self.requests:
            found.append(f"{self.requests} requests were sent, {self.answered} answered, {self.failed} failed")
        if self.responses_5xx:
            found.append(f"the gateway answered {self.responses_5xx} times with 5xx")
        if self.scale_events < SCALE_EVENTS_MIN:
            found.append(f"{self.scale_events} scale events, expected {SCALE_EVENTS_MIN} or more")
        return found

    def lines(self) -> list[str]:
        saved = 1.0 - self.gpu_hours / self.gpu_hours_static_peak if self.gpu_hours_static_peak else 0.0
        by_model = ", ".join(
            f"{name} {share:.1%}" for name, share in self.attainment_by_model.items() if share is not None
        )
        return [
            f"requests        {self.requests} in {self.seconds:.0f} s, {self.answered} answered, {self.failed} failed",
            f"gateway         {self.responses_5xx} times 5xx",
            f"load            {self.sent_late_p99_s * 1e3:.0f} ms late at p99: above some ms the client is the limit",
            f"SLO attainment  {self.attainment:.1%} ({by_model})",
            f"GPU-hours       {self.gpu_hours:.3f}, a static peak {self.gpu_hours_static_peak:.3f} ({saved:.0%} saved)",
            f"scale events    {self.scale_events}",
        ]


def replay(product: Product, folder: Path, *, trace: Path | None, speed: float, duration_s: float) -> Outcome:
    """Send the load to a product that is up. NotReachedError when the load ended without a report."""
    shape = ["--day", f"{duration_s}s", *DAY] if trace is None else ["--trace", str(trace), "--speed", str(speed)]
    before = _responses_5xx(product)
    load = Load(product, [*MODELS, *shape, "--duration", f"{duration_s}s"], folder / "load.json")
    report = load.finished(duration_s + _SETTLE_S)
    total, models, fleet = report["total"], report["models"], report["fleet"]
    assert isinstance(total, dict), "a report has totals"
    assert isinstance(models, dict), "a report tells each model"
    assert isinstance(fleet, dict), "a control plane was named"
    late, seconds = report["late_p99_s"], report["seconds"]
    assert isinstance(late, float | int), "a report says how late requests were sent"
    assert isinstance(seconds, float | int), "a report says how long it took"
    return Outcome(
        requests=total["sent"],
        answered=total["ok"],
        failed=total["failed"] + total["unfinished"],
        responses_5xx=_responses_5xx(product) - before,
        attainment=total["attainment"]["all_met"],
        attainment_by_model={name: model["attainment"]["all_met"] for name, model in models.items()},
        ttft_p95_s={name: (model["ttft_s"] or {}).get("p95") for name, model in models.items()},
        scale_events=fleet["scale_events"],
        gpu_hours=fleet["gpu_hours"],
        gpu_hours_static_peak=fleet["gpu_hours_static_peak"],
        sent_late_p99_s=float(late),
        seconds=float(seconds),
    )


def _responses_5xx(product: Product) -> int:
    rows = product.get("/api/v1/status").json()["deployments"]
    return int(sum(row["traffic"]["responses_5xx_total"] for row in rows if row["traffic"] is not None))


def _seconds(text: str) -> float:
    return float(text[:-1]) * 60.0 if text.endswith("m") else float(text.removesuffix("s"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, help="parquet with timestamp_s, prompt_tokens, output_tokens")
    parser.add_argument("--speed", type=float, default=10.0)
    parser.add_argument("--duration", type=_seconds, default=300.0, help="such as 5m or 90s (default 5m)")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quarterdeck-replay-") as name:
        product = Product(Path(name) / "state")
        try:
            product.start()
            product.until_ready()
            outcome = replay(product, Path(name), trace=options.trace, speed=options.speed, duration_s=options.duration)
        except NotReachedError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            product.end()
    print(json.dumps(asdict(outcome), indent=1) if options.json else "\n".join(outcome.lines()))
    for problem in outcome.problems():
        print(f"not as it should be: {problem}", file=sys.stderr)
    return 1 if outcome.problems() else 0


if __name__ == "__main__":
    sys.exit(main())
