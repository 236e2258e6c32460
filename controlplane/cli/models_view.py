"""Catalog entries and fit answers as tables, lines and JSON."""

from collections.abc import Iterable, Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from controlplane.catalog.fit import FitAnswer
from controlplane.catalog.known import Check
from controlplane.catalog.licence import licence_note
from controlplane.catalog.memory import kv_bytes_per_token
from controlplane.catalog.model import ModelCard
from controlplane.catalog.recommend import Placement, Recommendation
from controlplane.catalog.weights import active_parameters_of, parameters_of, total_weight_bytes
from controlplane.cli.client import Json
from controlplane.cli.view import table_of
from controlplane.kernel.units import KIB, format_bytes

_GIGA = 1e9
_NOTHING = "-"
_NUMBERS = frozenset(
    ("parameters", "KV / token", "context", "bytes", "share", "USD / h", "KV tokens", "largest context", "at once")
)


def models_table(cards: Iterable[ModelCard]) -> Table:
    table = table_of(
        "model", "task", "parameters", "KV / token", "context", "commercial", "precisions", "engines", right=_NUMBERS
    )
    for card in cards:
        table.add_row(
            card.id,
            card.task.value,
            _parameters(card),
            _kv(card),
            str(card.context_tokens or _NOTHING),
            card.licence.commercial.value,
            " ".join(offer.name for offer in card.precisions),
            " ".join(sorted(card.engines)),
        )
    return table


def show_lines(card: ModelCard) -> Iterator[str]:
    yield f"[bold]{escape(card.title)}[/bold]  {card.id}"
    yield f"weights: {escape(card.repo)}"
    yield f"licence: {escape(licence_note(card))} (commercial use: {card.licence.commercial})"
    shape = card.shape
    if shape is None:
        yield f"not servable by vllm: served by {escape(card.served_elsewhere)}"
        yield f"takes about {format_bytes(card.resident_bytes)}"
    else:
        stack = shape.text
        yield f"{shape.architecture}: {_parameters(card)} parameters"
        heads = f"{stack.heads} heads, {stack.kv_heads} KV heads of {stack.head_dim}"
        yield f"{stack.layers} layers, hidden {stack.hidden}, {heads}, vocabulary {shape.vocab}"
        extended = f" ({card.context_extended_tokens} with rope scaling)" if card.context_extended_tokens else ""
        yield f"context: {card.context_tokens} tokens{extended}; KV per token: {_kv(card)}"
        for offer in card.precisions:
            start = ", quantized at start" if offer.quantize_at_start else ""
            size = format_bytes(total_weight_bytes(shape, offer.name))
            yield f"{offer.name}: {size} of weights from {escape(offer.repo)}{start}"
    yield f"source: {escape(card.source)}"
    for fact in card.unconfirmed:
        yield f"[yellow]unconfirmed:[/yellow] {escape(fact)}"


def fit_lines(card: ModelCard, answer: FitAnswer) -> Iterator[str]:
    verdict = "[green]fits[/green]" if answer.fits else "[red]does not fit[/red]"
    yield f"{card.id} in {answer.precision} on {answer.tensor_parallel} x {answer.gpu}: {verdict}"
    for line in answer.proof:
        yield f"  {escape(line)}"
    if answer.fits:
        smallest = answer.smallest_tensor_parallel or answer.tensor_parallel
        yield (
            f"smallest TP {smallest}, largest context {answer.largest_context}, "
            f"largest concurrency {answer.largest_concurrency} at {answer.mean_tokens} tokens"
        )
    yield f"licence: {escape(licence_note(card))} (commercial use: {card.licence.commercial})"
    for fact in card.unconfirmed:
        yield f"[yellow]unconfirmed:[/yellow] {escape(fact)}"


def parts_table(answer: FitAnswer) -> Table:
    table = table_of("per GPU", "bytes", "share", right=_NUMBERS)
    assert answer.budget is not None, "only an answer with arithmetic has parts"
    rows = [(part.name, part.size_bytes) for part in answer.budget.parts]
    left = "KV cache" if answer.kv_bytes_per_token else "free"
    for name, size in [*rows, (left, answer.budget.kv_bytes)]:
        table.add_row(name, format_bytes(size), f"{size / answer.cap_bytes:.1%}")
    table.add_row("cap", format_bytes(answer.cap_bytes), "", style="bold")
    return table


def placements_table(places: Sequence[Placement]) -> Table:
    table = table_of("gpus", "USD / h", "KV tokens", "largest context", "at once", right=_NUMBERS)
    for place in places:
        answer = place.answer
        table.add_row(
            f"{answer.tensor_parallel} x {answer.gpu}",
            f"{place.price_usd_per_hour:.2f}",
            str(answer.kv_tokens or _NOTHING),
            str(answer.largest_context or _NOTHING),
            str(answer.largest_concurrency),
        )
    return table


def recommendations_table(found: Sequence[Recommendation]) -> Table:
    table = table_of("model", "precision", "TP", "fits", "at once", "KV tokens", "why not", right=_NUMBERS)
    for item in found:
        answer = item.answer
        why = answer.refusals[0].found if answer.refusals else ""
        if answer.fits and not item.licence_accepted:
            why = f"{item.model.licence.name}: needs --accept-license"
        table.add_row(
            item.model.id,
            answer.precision,
            str(answer.tensor_parallel),
            "[green]yes[/green]" if item.fits else "[red]no[/red]",
            str(answer.largest_concurrency),
            str(answer.kv_tokens),
            escape(why),
        )
    return table


def checks_table(found: Sequence[Check]) -> Table:
    table = table_of("section", "subject", "figure", "known", "computed", "error", "agrees", right=_NUMBERS)
    for item in found:
        table.add_row(
            item.section,
            item.subject,
            item.figure,
            item.known,
            f"{item.computed:.6g}",
            f"{item.error:+.1%}",
            "[green]yes[/green]" if item.agrees else "[red]no[/red]",
        )
    return table


def json_of_card(card: ModelCard) -> dict[str, Json]:
    shape = card.shape
    return {
        "id": card.id,
        "title": card.title,
        "repo": card.repo,
        "task": card.task.value,
        "parameters": None if shape is None else parameters_of(shape),
        "parameters_active": None if shape is None else active_parameters_of(shape),
        "kv_bytes_per_token": None if shape is None else kv_bytes_per_token(shape, "auto", 1),
        "context_tokens": card.context_tokens,
        "context_extended_tokens": card.context_extended_tokens,
        "precisions": {
            offer.name: None if shape is None else total_weight_bytes(shape, offer.name) for offer in card.precisions
        },
        "licence": {
            "name": card.licence.name,
            "commercial": card.licence.commercial.value,
            "condition": card.licence.condition,
        },
        "engines": [engine.value for engine in sorted(card.engines)],
        "served_elsewhere": card.served_elsewhere or None,
        "source": card.source,
        "unconfirmed": list(card.unconfirmed),
    }


def json_of_fit(answer: FitAnswer) -> dict[str, Json]:
    parts: dict[str, Json] = {}
    if answer.budget is not None:
        parts.update({part.name: part.size_bytes for part in answer.budget.parts})
        parts["kv"] = answer.budget.kv_bytes
    return {
        "model": answer.model,
        "gpu": answer.gpu,
        "fits": answer.fits,
        "precision": answer.precision,
        "kv_precision": answer.kv_precision,
        "tensor_parallel": answer.tensor_parallel,
        "smallest_tensor_parallel": answer.smallest_tensor_parallel,
        "utilization": answer.utilization,
        "cap_bytes": answer.cap_bytes,
        "bytes_per_gpu": parts,
        "kv_bytes_per_token_per_gpu": answer.kv_bytes_per_token,
        "kv_tokens": answer.kv_tokens,
        "context_tokens": answer.context_tokens,
        "largest_context": answer.largest_context,
        "sequences_at_context": round(answer.sequences_at_context, 3),
        "concurrency": answer.concurrency,
        "mean_tokens": answer.mean_tokens,
        "largest_concurrency": answer.largest_concurrency,
        "refusals": [
            {"field": item.field, "found": item.found, "expected": item.expected, "advice": item.advice}
            for item in answer.refusals
        ],
        "proof": list(answer.proof),
    }


def json_of_placement(place: Placement) -> Json:
    answer = place.answer
    return {
        "gpu": answer.gpu,
        "gpus": answer.tensor_parallel,
        "price_usd_per_hour": place.price_usd_per_hour,
        "kv_tokens": answer.kv_tokens,
        "largest_context": answer.largest_context,
        "largest_concurrency": answer.largest_concurrency,
    }


def json_of_check(item: Check) -> Json:
    return {
        "section": item.section,
        "subject": item.subject,
        "figure": item.figure,
        "known": item.known,
        "computed": item.computed,
        "error": item.error,
        "tolerance": item.tolerance,
        "agrees": item.agrees,
    }


def _parameters(card: ModelCard) -> str:
    if card.shape is None:
        return _NOTHING
    total, active = parameters_of(card.shape), active_parameters_of(card.shape)
    sparse = f" ({active / _GIGA:.1f} active)" if active != total else ""
    return f"{total / _GIGA:.2f} B{sparse}"


def _kv(card: ModelCard) -> str:
    if card.shape is None or not card.shape.keeps_kv:
        return "none"
    return f"{kv_bytes_per_token(card.shape, 'auto', 1) / KIB:g} KiB"
