"""`halfbyte imatrix`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from halfbyte.cli.options import device_options, output_options, source_options
from halfbyte.cli.output import print_json, print_table, print_warnings, progress_bar
from halfbyte.errors import HalfbyteError

if TYPE_CHECKING:
    from rich.table import Table

    from halfbyte.converters.gguf.importance import ImportanceMatrix
    from halfbyte.verification.importance import ImportanceReport, WeightFigures

HELP = """Collect an importance matrix: how much each column of the weights matters on a text.

\b
halfbyte imatrix MODEL --data TEXT -o FILE    run MODEL over a text
halfbyte imatrix MODEL --from-stats FILE -o FILE
halfbyte imatrix --merge A B ... -o FILE      add up several files
halfbyte imatrix --show FILE                  show what a file holds
"""
ROWS_SHOWN = 40
COLUMNS = ("weight", "tokens", "sum", "min", "max", "mean", "std", "active", "even", "ZD", "cosine")


@click.command("imatrix", help=HELP)
@click.argument("sources", metavar="SRC...", nargs=-1, required=True)
@click.option("--merge", is_flag=True, help="Add up the files SRC.")
@click.option("--show", is_flag=True, help="Show the figures of the file SRC.")
@click.option("--data", metavar="TEXT", help="Text file to run over.")
@click.option(
    "--from-stats", metavar="FILE", help="Take it from what `quantize --save-stats` wrote."
)
@click.option("-o", "--output", metavar="FILE", help="Where the matrix goes.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("gguf", "dat")),
    help="File form; else the ending .dat means the older one.",
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Tokens per chunk.",
)
@click.option("--batch", type=click.IntRange(min=1), help="Tokens per run; else one chunk.")
@click.option("--chunks", type=click.IntRange(min=1), help="Collect at most N chunks.")
@click.option(
    "--from-chunk", type=click.IntRange(min=0), default=0, help="Leave out the first N chunks."
)
@click.option("--process-output", is_flag=True, help="Collect output.weight too.")
@click.option(
    "--save-every",
    type=click.IntRange(min=1),
    metavar="N",
    help="Write FILE after every N chunks, not at the end alone.",
)
@click.option("--parse-special", is_flag=True, help="Read special tokens in the text as such.")
@click.option("--all", "every", is_flag=True, help="Show every weight.")
@device_options()
@source_options()
@output_options()
def command(
    sources: tuple[str, ...], merge: bool, show: bool, output: str | None, **options: Any
) -> None:
    """Collect, merge or show."""
    if merge and show:
        raise click.UsageError("--merge and --show exclude each other")
    if show:
        _require_one(sources)
        _show_file(sources[0], options)
        return
    if output is None:
        raise click.UsageError("-o FILE is required")
    started = time.perf_counter()
    tokens: int | None = None
    warnings: tuple[str, ...] = ()
    if merge:
        matrix = _merged(sources)
    elif options["from_stats"] is not None:
        _require_one(sources)
        matrix = _from_statistics(sources[0], options)
    else:
        _require_one(sources)
        matrix, tokens, warnings = _collected(sources[0], output, options)
    _write(matrix, output, options["form"])
    seconds = time.perf_counter() - started
    if options["as_json"]:
        print_json(_summary(matrix, output, tokens, warnings, seconds))
    elif not options["quiet"]:
        print_warnings(warnings)
        told = f"{len(matrix.entries)} weights, {matrix.chunk_count} chunks"
        print(f"{output}: {told} of {matrix.chunk_size} tokens, in {seconds:.1f} s")


def _require_one(sources: tuple[str, ...]) -> None:
    if len(sources) > 1:
        raise click.UsageError(f"one SRC is required, {len(sources)} were given; --merge adds up")


def _merged(sources: tuple[str, ...]) -> ImportanceMatrix:
    from halfbyte.converters.gguf.imatrix import merge_importance, read_importance

    return merge_importance([read_importance(path) for path in sources])


def _from_statistics(source: str, options: dict[str, Any]) -> ImportanceMatrix:
    from halfbyte.importance import importance_of_statistics
    from halfbyte.pipeline import open

    if options["data"] is not None:
        raise click.UsageError("--data and --from-stats exclude each other")
    model = open(source, revision=options["revision"], allow_pickle=options["allow_pickle"])
    return importance_of_statistics(model, options["from_stats"], options["process_output"])


def _collected(
    source: str, output: str, options: dict[str, Any]
) -> tuple[ImportanceMatrix, int, tuple[str, ...]]:
    from halfbyte.conversion import refuse_replacing_data
    from halfbyte.importance import ImportanceRequest, collect_importance
    from halfbyte.pipeline import open

    if options["data"] is None:
        raise click.UsageError(
            "--data TEXT is required; --from-stats, --merge and --show do without"
        )
    request = ImportanceRequest(
        context=options["context"],
        batch=options["batch"],
        chunks=options["chunks"],
        skip=options["from_chunk"],
        process_output=options["process_output"],
        parse_special=options["parse_special"],
        save_every=options["save_every"] or 1,
        threads=options["threads"],
        device=options["device"],
    )
    target = Path(output)
    if target.exists() and Path(options["data"]).exists() and target.samefile(options["data"]):
        raise HalfbyteError(f"{output}: is the text itself; write somewhere else")
    model = open(source, revision=options["revision"], allow_pickle=options["allow_pickle"])
    refuse_replacing_data(model, [target])
    silent = options["quiet"] or options["as_json"]

    def save(matrix: ImportanceMatrix) -> None:
        _write(matrix, output, options["form"])

    with progress_bar("collecting", silent=silent, unit="tokens") as bar:
        found = collect_importance(
            model,
            options["data"],
            request,
            None if bar is None else bar.of_total,
            save if options["save_every"] else None,
        )
    return found.matrix, found.tokens, found.warnings


def _write(matrix: ImportanceMatrix, output: str, form: str | None) -> None:
    from halfbyte.converters.gguf.imatrix import write_importance

    write_importance(matrix, output, form or ("dat" if Path(output).suffix == ".dat" else "gguf"))


def _summary(
    matrix: ImportanceMatrix,
    output: str,
    tokens: int | None,
    warnings: tuple[str, ...],
    seconds: float,
) -> dict[str, Any]:
    return {
        "output": output,
        "entries": len(matrix.entries),
        "datasets": list(matrix.datasets),
        "chunk_count": matrix.chunk_count,
        "chunk_size": matrix.chunk_size,
        "tokens": tokens,
        "warnings": list(warnings),
        "seconds": seconds,
    }


def _show_file(source: str, options: dict[str, Any]) -> None:
    from halfbyte.converters.gguf.imatrix import read_importance

    show_importance(read_importance(source), options["every"], options["as_json"], options["quiet"])


def show_importance(matrix: ImportanceMatrix, every: bool, as_json: bool, quiet: bool) -> None:
    """Print the figures of an importance matrix."""
    from halfbyte.importance import describe_importance

    report = describe_importance(matrix)
    if as_json:
        print_json(report.to_json())
    elif not quiet:
        _show(report, every)


def _show(report: ImportanceReport, every: bool) -> None:
    from halfbyte.verification.inspection import shorten

    print(report.source)
    print(f"  format        importance matrix ({report.form})")
    print(f"  data sets     {', '.join(map(shorten, report.datasets)) or 'not told'}")
    size = f" of {report.chunk_size} tokens" if report.chunk_size else ""
    print(f"  chunks        {report.chunk_count}{size}")
    print(f"  weights       {len(report.weights)}")
    print_table(_weight_table(report, every))
    print_table(_layer_table(report, every))
    for found in report.weights:
        if found.unseen_matrices:
            told = f"{found.unseen_matrices} of {found.matrices} experts saw no token"
            print(f"problem: {shorten(found.name)}: {told}")


def _cells(found: WeightFigures) -> tuple[str, ...]:
    return (
        f"{found.tokens:,}",
        f"{found.total:.2f}",
        f"{found.least:.4f}",
        f"{found.most:.4f}",
        f"{found.mean:.3f}",
        f"{found.deviation:.2f}",
        f"{found.active:.1%}",
        f"{found.evenness:.1%}",
        f"{found.z_density:.1%}",
        "" if found.cosine is None else f"{found.cosine:.4f}",
    )


def _weight_table(report: ImportanceReport, every: bool) -> Table:
    from rich.table import Table

    from halfbyte.verification.inspection import shorten

    shown = report.weights if every else report.weights[:ROWS_SHOWN]
    table = Table(padding=(0, 0))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "weight" else "right")
    for found in shown:
        table.add_row(shorten(found.name.removesuffix(".weight")), *_cells(found))
    hidden = len(report.weights) - len(shown)
    if hidden:
        table.caption = f"{hidden} more; --all shows them"
    return table


def _layer_table(report: ImportanceReport, every: bool) -> Table:
    from rich.table import Table

    shown = report.layers if every else report.layers[:ROWS_SHOWN]
    table = Table()
    for column in ("layer", "mean sum", "mean ZD", "mean cosine"):
        table.add_column(column, justify="right")
    for found in shown:
        cosine = "" if found.cosine is None else f"{found.cosine:.4f}"
        table.add_row(str(found.layer), f"{found.total:.2f}", f"{found.z_density:.2%}", cosine)
    return table
