"""`halfbyte bench`."""

from __future__ import annotations

import click

from halfbyte.cli.options import compute_option, device_options, output_options, source_options
from halfbyte.cli.output import print_json, print_table


@click.command("bench", help="Measure prefill and decode speed of MODEL.")
@click.argument("model", metavar="MODEL")
@click.option("--prefill", type=click.IntRange(min=0), default=256, show_default=True)
@click.option("--decode", type=click.IntRange(min=0), default=64, show_default=True)
@click.option("--repetitions", type=click.IntRange(min=1), default=5, show_default=True)
@compute_option("int8")
@device_options()
@source_options()
@output_options()
def command(
    model: str,
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
    from halfbyte.pipeline import open, session
    from halfbyte.runtime.benchmark import benchmark

    opened = open(model, revision=revision, allow_pickle=allow_pickle)
    running = session(opened, device=device, compute=compute, threads=threads)
    results = benchmark(running, prefill=prefill, decode=decode, repetitions=repetitions)
    if as_json:
        print_json({"model": model, "compute": compute, "results": results})
        return
    if quiet:
        return
    from rich.table import Table

    table = Table()
    for column in ("test", "tokens/s", "bandwidth used"):
        table.add_column(column, justify="left" if column == "test" else "right")
    for entry in results:
        speed = f"{entry['tokens_per_s']:.1f} ± {entry['spread']:.1f}"
        share = entry["bandwidth_share"]
        table.add_row(entry["test"], speed, "" if share is None else f"{share:.0%}")
    print_table(table)
