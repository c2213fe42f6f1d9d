"""The command export: a mixture as a model, as an adapter, or as sampling weights for a trainer."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.command.options import (
    DEFAULT_STORE,
    RunName,
    StoreUrl,
    err,
    faults,
    local,
    open_store,
    out,
)


def export(
    mixture: Annotated[str, typer.Argument(help="'best', 'a + b', '3 a + b' or '0.7 a + 0.3 b'.")],
    store: StoreUrl = DEFAULT_STORE,
    run: RunName = None,
    model: Annotated[
        Path | None,
        typer.Option(help="New folder for the merged model (Hugging Face).", callback=local),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="New folder for the mean of adapters (peft).", callback=local),
    ] = None,
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Sampling weights as yaml, or for a trainer: huggingface, torchdata, grain, streaming, "
            "litdata, maxtext, llama-factory, olmo-core, megatron, nanotron, gpt-neox, levanter.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="File for --format; without it the text is printed.", callback=local),
    ] = None,
    unit: Annotated[
        Literal["domain", "partition"],
        typer.Option(help="What a trainer samples from; yaml always has both."),
    ] = "domain",
    rows: Annotated[
        Literal["documents", "blocks"],
        typer.Option(
            help="What a row is for a loader that draws rows: a document, or a block of tokens that is "
            "as long as all others. Trainers that pack by themselves have the same weights for both."
        ),
    ] = "documents",
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of the training, for epochs of each source; default: those of the recipe's "
            "search.constraints.repetition.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the trainer's tokenizer: shares of its tokens, counted on the documents.",
            callback=local,
        ),
    ] = None,
    paths: Annotated[
        list[str] | None,
        typer.Option(
            help="A source's data, a folder, file or glob: NAME=PATH, or a YAML file of them. May be "
            "repeated."
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The same as --format yaml --output FILE.", callback=local)
    ] = None,
    licence: Annotated[
        str,
        typer.Option(
            "--license", help="Licence in the model's card, as the hub calls it: apache-2.0, other."
        ),
    ] = "unknown",
) -> None:
    """Write a mixture's merged model, its adapter, its sampling weights for a trainer, or several."""
    from flows.chain.recipe_file import UsageError
    from flows.export import export as exports
    from flows.export import sampling as samplings
    from flows.export.adapter import export_adapter
    from flows.export.formats import WITHOUT_NOTES, notes, render
    from flows.export.sizes import sizes_of
    from flows.run import stored

    # Where weights are printed, nothing else is.
    say = err if format_name is not None and output is None else out
    with faults():
        outputs = _formats(format_name, output, weights)
        if model is None and adapter is None and not outputs:
            raise UsageError(
                "say what to write: --model FOLDER, --adapter FOLDER, --format FORMAT, --weights FILE, "
                "or several"
            )
        opened = open_store(store)
        content = stored.find_run(opened, run)
        chosen = samplings.parse_mixture(mixture, content)
        texts: list[tuple[str, Path | None]] = []
        told: list[str] = []
        if outputs:
            sources = samplings.partitions_of(content, chosen, unit)
            names = [name for members in sources.values() for name in members]
            sizes = sizes_of(opened, content, names, tokenizer)
            repetition = samplings.repetition_of(opened, content, tokens)
            sampling = samplings.sampling_of(
                content, chosen, sizes, unit, paths or [], rows, repetition
            )
            texts = [(render(name, sampling), file) for name, file in outputs]
            formats = {name for name, _ in outputs}
            if formats & WITHOUT_NOTES:
                told = notes(sampling)
            elif formats - {"yaml"}:
                told = sampling.notes
        if model is not None:
            exports.export_model(opened, content, chosen, model, licence)
            say.print(f"merged model of {chosen.label}: {model}", soft_wrap=True)
        if adapter is not None:
            export_adapter(opened, content, chosen, adapter, licence)
            say.print(f"adapter of {chosen.label}: {adapter}", soft_wrap=True)
        for text, file in texts:
            exports.write_text(file, text)
            if file is not None:
                say.print(f"sampling weights of {chosen.label}: {file}", soft_wrap=True)
        for sentence in told:
            err.print(f"note: {sentence}", soft_wrap=True)
        if texts and (replays := exports.replays(opened, content, chosen)):
            shares = ", ".join(f"{name} ({share:g})" for name, share in replays.items())
            err.print(
                f"note: a share of these trainings was replay of the base model's documents: {shares}. "
                "The weights leave it out",
                soft_wrap=True,
            )


def _formats(
    format_name: str | None, output: Path | None, weights: Path | None
) -> list[tuple[str, Path | None]]:
    """Formats that are wanted, each with its file; None where it is to be printed."""
    from flows.chain.recipe_file import UsageError
    from flows.export.formats import FORMATS, unknown_format

    if format_name is not None and format_name not in FORMATS:
        raise UsageError(unknown_format(format_name))
    outputs: list[tuple[str, Path | None]] = []
    if format_name is not None or output is not None:
        outputs.append((format_name or "yaml", output))
    return [*outputs, ("yaml", weights)] if weights is not None else outputs
