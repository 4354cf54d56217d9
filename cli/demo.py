"""`halfbyte demo`."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from halfbyte.cli.options import device_options, output_options
from halfbyte.cli.output import print_json, print_table, size_text

if TYPE_CHECKING:
    from rich.table import Table

    from halfbyte.demonstration import DemoRow


def _table(rows: list[DemoRow]) -> Table:
    from rich.table import Table

    table = Table(title="the embedded model, each file verified against its source")
    for column in ("file", "type", "size", "bits/weight", "mean KL", "top-1 agreement", "ppl"):
        table.add_column(column, justify="left" if column in ("file", "type") else "right")
    for row in rows:
        table.add_row(
            row.file,
            row.type,
            size_text(row.bytes),
            f"{row.bits_per_weight:.2f}",
            f"{row.mean_kl:.6f}",
            f"{row.top1_agreement:.2%}",
            f"x {row.ppl_ratio:.4f}",
        )
    return table


@click.command("demo", help="Read, quantize, write and verify the embedded model.")
@click.option("--output", default="", metavar="FOLDER", help="Keep the written files here.")
@click.option("--chunks", type=click.IntRange(min=1), default=8, show_default=True)
@device_options()
@output_options()
def command(
    output: str, chunks: int, device: str, threads: int, as_json: bool, quiet: bool
) -> None:
    """Run the demonstration."""
    from halfbyte.demonstration import run_demo

    silent = as_json or quiet
    with contextlib.ExitStack() as stack:
        if output:
            folder = Path(output)
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="halfbyte-")))
        rows = run_demo(
            folder,
            chunks=chunks,
            threads=threads,
            show=lambda line: None if silent else print(line, file=sys.stderr),
        )
    if as_json:
        print_json({"rows": [row.to_json() for row in rows]})
    elif not quiet:
        print_table(_table(rows))
