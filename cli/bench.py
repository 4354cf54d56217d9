"""`halfbyte bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from halfbyte.cli.options import compute_option, device_options, output_options, source_options
from halfbyte.cli.output import print_json, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from halfbyte.ir.model import Model


def _results(
    opened: Model, arrays: str, prefill: int, decode: int, repetitions: int, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return prefill and decode speed of a language model, the time of a run of any other."""
    from halfbyte.array_files import graph_owner, read_inputs
    from halfbyte.evaluation_data import is_language_model
    from halfbyte.pipeline import session
    from halfbyte.runtime.benchmark import benchmark, run_speed
    from halfbyte.verification.outputs import random_inputs

    if arrays:
        opened = graph_owner(arrays, opened)
    elif is_language_model(opened):
        running = session(opened, **options)
        return benchmark(running, prefill=prefill, decode=decode, repetitions=repetitions)
    inputs = read_inputs(arrays, opened.graph) if arrays else random_inputs(opened.graph, 1)[0]
    return run_speed(session(opened, **options), inputs, repetitions)


def _table(results: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    of_runs = results[0]["test"] == "run" if results else False
    table = Table()
    columns = ("test", "ms") if of_runs else ("test", "tokens/s", "bandwidth used")
    for column in columns:
        table.add_column(column, justify="left" if column == "test" else "right")
    for entry in results:
        if of_runs:
            time = f"{entry['milliseconds']:.2f} ± {entry['spread']:.2f}"
            table.add_row(entry["test"], time)
            continue
        speed = f"{entry['tokens_per_s']:.1f} ± {entry['spread']:.1f}"
        share = entry["bandwidth_share"]
        table.add_row(entry["test"], speed, "" if share is None else f"{share:.0%}")
    return table


@click.command("bench", help="Measure prefill and decode speed of MODEL, or the time of a run.")
@click.argument("model", metavar="MODEL")
@click.option(
    "--input", "arrays", default="", metavar="FILE.npz", help="Inputs by graph name; else random."
)
@click.option("--prefill", type=click.IntRange(min=0), default=256, show_default=True)
@click.option("--decode", type=click.IntRange(min=0), default=64, show_default=True)
@click.option("--repetitions", type=click.IntRange(min=1), default=5, show_default=True)
@compute_option("int8")
@device_options()
@source_options()
@output_options()
def command(
    model: str,
    arrays: str,
    prefill: int,
    decode: int,
    repetitions: int,
    compute: str,
    device: str,
    threads: int,
    revision: str,
    allow_pickle: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Benchmark a model."""
    from halfbyte.pipeline import open

    opened = open(model, revision=revision, allow_pickle=allow_pickle)
    options = {"device": device, "compute": compute, "threads": threads}
    results = _results(opened, arrays, prefill, decode, repetitions, options)
    if as_json:
        print_json({"model": model, "compute": compute, "results": results})
    elif not quiet:
        print_table(_table(results))
