"""`quarterdeck models`: the catalog, the memory fit and its error. Works without a control plane."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.markup import escape

from controlplane.catalog.files import SCHEMAS, load_catalog, schema_text
from controlplane.catalog.fit import UTILIZATION_DEFAULT, FitAnswer, fit
from controlplane.catalog.known import checks
from controlplane.catalog.licence import licence_note, licence_problem
from controlplane.catalog.model import Catalog, Gpu, ModelCard
from controlplane.catalog.recommend import Placement, placements, recommend
from controlplane.catalog.uncatalogued import card_from_config
from controlplane.cli.client import AsJson, Json
from controlplane.cli.exits import ExitCode, reported
from controlplane.cli.models_view import (
    checks_table,
    fit_lines,
    json_of_card,
    json_of_check,
    json_of_fit,
    json_of_placement,
    models_table,
    parts_table,
    placements_table,
    recommendations_table,
    show_lines,
)
from controlplane.cli.view import make_console, print_table
from controlplane.domain.deployment import TaskKind
from controlplane.kernel.errors import InvalidError, Problem

app = typer.Typer(name="models", help="Models, GPUs and what fits where.", no_args_is_help=True)

GpuName = Annotated[str, typer.Option("--gpu", help="A GPU of the catalog: b200, h100, a100-40, rtx-4090, tier-24...")]
Context = Annotated[int | None, typer.Option(min=1, help="Tokens of the longest sequence.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Sequences at once.")]
MeanTokens = Annotated[int | None, typer.Option(min=1, help="Their mean length; left out: as long as the context.")]
Utilization = Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the GPU that the engine may take.")]
KvPrecision = Annotated[str, typer.Option(help="Precision of the KV cache: auto, bf16, fp8.")]
AcceptLicense = Annotated[bool, typer.Option("--accept-license", help="Say yes to a non-commercial licence.")]
Prices = Annotated[list[str] | None, typer.Option("--price", help="Your own hourly price, e.g. h100=2.10.")]
Config = Annotated[Path | None, typer.Option(help="A config.json, for a model that the catalog does not have.")]


@app.command("list")
def list_models(
    task: Annotated[TaskKind | None, typer.Option(help="Only models of this task.")] = None, *, as_json: AsJson = False
) -> None:
    """Every model of the catalog."""
    with reported():
        cards = [card for card in load_catalog().models.values() if task in (None, card.task)]
        if as_json:
            return _print_json([json_of_card(card) for card in cards])
        print_table(make_console(), models_table(cards))
    return None


@app.command()
def show(model: Annotated[str, typer.Argument(help="A model of the catalog.")], *, as_json: AsJson = False) -> None:
    """One model: shape, memory by precision, licence, and where it fits at what price."""
    with reported():
        catalog = load_catalog()
        card = catalog.model(model)
        places = placements(card, catalog.gpus.values())
        if as_json:
            return _print_json(json_of_card(card) | {"placements": [json_of_placement(place) for place in places]})
        _print_lines(show_lines(card))
        _print_placements(places)
    return None


@app.command("fit")
def fit_model(
    model: Annotated[str | None, typer.Argument(help="A model of the catalog; or give --config.")] = None,
    gpu: GpuName = "b200",
    tp: Annotated[int | None, typer.Option(min=1, help="Tensor parallel degree; left out: the smallest.")] = None,
    precision: Annotated[str | None, typer.Option(help="bf16, fp8, awq...; left out: the model's first.")] = None,
    context: Context = None,
    concurrency: Concurrency = 1,
    mean_tokens: MeanTokens = None,
    utilization: Utilization = UTILIZATION_DEFAULT,
    kv_precision: KvPrecision = "auto",
    max_num_seqs: Annotated[int | None, typer.Option(min=1, help="The engine's limit of running sequences.")] = None,
    max_batched_tokens: Annotated[int | None, typer.Option(min=1, help="The engine's tokens per step.")] = None,
    config: Config = None,
    price: Prices = None,
    *,
    accept_license: AcceptLicense = False,
    as_json: AsJson = False,
) -> None:
    """Whether a model fits a GPU, with the arithmetic; exit code 1 when not, 4 when its licence needs a yes."""
    with reported():
        catalog = load_catalog()
        card = _card(catalog, model, config)
        answer = fit(
            card,
            _gpu(catalog, gpu),
            tp=tp,
            precision=precision,
            context=context,
            concurrency=concurrency,
            mean_tokens=mean_tokens,
            utilization=utilization,
            kv_precision=kv_precision,
            max_num_seqs=max_num_seqs,
            max_batched_tokens=max_batched_tokens,
        )
        places = placements(
            card,
            catalog.gpus.values(),
            precision=answer.precision,
            context=context,
            concurrency=concurrency,
            mean_tokens=mean_tokens,
            utilization=utilization,
            kv_precision=kv_precision,
            prices=_prices(catalog, price),
        )
        if as_json:
            _print_json(json_of_fit(answer) | {"placements": [json_of_placement(place) for place in places]})
        else:
            _print_fit(card, answer, places)
    _exit_by(card, answer, accepted=accept_license)


@app.command("recommend")
def recommend_models(
    gpu: GpuName,
    context: Annotated[int, typer.Option(min=1, help="Tokens of the longest sequence.")],
    concurrency: Concurrency = 1,
    mean_tokens: MeanTokens = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of that kind for one replica, at most.")] = 1,
    task: Annotated[TaskKind, typer.Option(help="What the model should do.")] = TaskKind.GENERATE,
    utilization: Utilization = UTILIZATION_DEFAULT,
    kv_precision: KvPrecision = "auto",
    *,
    accept_license: AcceptLicense = False,
    as_json: AsJson = False,
) -> None:
    """Which models fit, largest first, in the best precision that does; exit code 1 when none does."""
    with reported():
        catalog = load_catalog()
        found = recommend(
            catalog.models.values(),
            _gpu(catalog, gpu),
            context=context,
            concurrency=concurrency,
            mean_tokens=mean_tokens,
            gpus=gpus,
            task=task,
            accept_licence=accept_license,
            utilization=utilization,
            kv_precision=kv_precision,
        )
        if as_json:
            _print_json([json_of_fit(item.answer) | {"licence_accepted": item.licence_accepted} for item in found])
        else:
            print_table(make_console(), recommendations_table(found))
            make_console().print(f"for {concurrency} sequences of {mean_tokens or context} tokens at once", style="dim")
    if not any(item.fits for item in found):
        raise typer.Exit(int(ExitCode.FAILED))


@app.command()
def check(*, as_json: AsJson = False) -> None:
    """Every figure known from elsewhere beside the computed one, with the error; exit code 1 if one disagrees."""
    with reported():
        found = list(checks(load_catalog()))
        wrong = [item for item in found if not item.agrees]
        if as_json:
            _print_json([json_of_check(item) for item in found])
        else:
            print_table(make_console(), checks_table(found))
            make_console().print(f"{len(found) - len(wrong)} of {len(found)} figures agree")
    if wrong:
        raise typer.Exit(int(ExitCode.FAILED))


@app.command()
def schema(
    write: Annotated[Path | None, typer.Option(help="Write them into this folder, the catalog's.")] = None,
) -> None:
    """The JSON schemas of the catalog's files, for editors."""
    with reported():
        for name, model in SCHEMAS.items():
            if write is None:
                typer.echo(schema_text(model), nl=False)
                continue
            if not write.is_dir():
                raise InvalidError([Problem(field="--write", found=str(write), expected="an existing folder")])
            (write / name).write_text(schema_text(model), encoding="utf-8")


def _print_lines(lines: Iterable[str]) -> None:
    console = make_console()
    for line in lines:
        console.print(line, soft_wrap=True)


def _print_json(value: Json) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_fit(card: ModelCard, answer: FitAnswer, places: tuple[Placement, ...]) -> None:
    _print_lines(fit_lines(card, answer))
    if answer.budget is not None:
        print_table(make_console(), parts_table(answer))
    _print_placements(places)


def _print_placements(places: tuple[Placement, ...]) -> None:
    if not places:
        return
    make_console().print("cheapest placements of one replica (indicative prices):", style="bold")
    print_table(make_console(), placements_table(places))


def _exit_by(card: ModelCard, answer: FitAnswer, *, accepted: bool) -> None:
    if not answer.fits:
        raise typer.Exit(int(ExitCode.FAILED))
    if licence_problem(card, accepted=accepted) is not None:
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"[yellow]licence:[/yellow] {escape(licence_note(card))}; say --accept-license if your use is")
        raise typer.Exit(int(ExitCode.CONFLICT))


def _card(catalog: Catalog, model: str | None, config: Path | None) -> ModelCard:
    if config is None:
        if model is None:
            raise InvalidError([Problem(field="MODEL", found="nothing", expected="a model, or --config")])
        return catalog.model(model)
    return card_from_config(_read_config(config), name=model or config.resolve().parent.name or "model")


def _read_config(path: Path) -> dict[str, object]:
    try:
        content = orjson.loads(path.read_bytes())
    except OSError as error:
        raise InvalidError([Problem(field="--config", found=str(error), expected="a readable file")]) from error
    except orjson.JSONDecodeError as error:
        found = f"{path}: {error}"
        raise InvalidError([Problem(field="--config", found=found, expected="JSON")]) from error
    if not isinstance(content, dict):
        raise InvalidError([Problem(field="--config", found=type(content).__name__, expected="a JSON object")])
    return content


def _gpu(catalog: Catalog, name: str) -> Gpu:
    """As written, or as people write it: `A100 40`, `RTX_4090`."""
    return catalog.gpu(name.strip().lower().replace(" ", "-").replace("_", "-"))


def _prices(catalog: Catalog, given: list[str] | None) -> dict[str, float]:
    prices = {}
    for text in given or []:
        name, _, amount = text.partition("=")
        try:
            prices[_gpu(catalog, name).name] = float(amount)
        except ValueError as error:
            raise InvalidError([Problem(field="--price", found=text, expected="GPU=USD_PER_HOUR")]) from error
    return prices
