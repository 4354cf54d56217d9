"""`halfbyte diff`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from halfbyte.cli.options import device_options, output_options
from halfbyte.cli.output import print_json, print_table, progress_bar
from halfbyte.errors import EXIT_GATE, EXIT_OK

if TYPE_CHECKING:
    from rich.table import Table

    from halfbyte.verification.diff import Comparison, TensorDifference

ROWS_SHOWN = 40


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _blocks(tensor: TensorDifference) -> str:
    if not tensor.blocks:
        return ""
    return f"{tensor.differing_blocks:,} of {tensor.blocks:,}"


def _tensor_table(found: list[TensorDifference], every: bool) -> Table:
    from rich.table import Table

    from halfbyte.verification.inspection import shorten

    table = Table()
    for column in ("tensor", "shape", "differs in", "first", "second"):
        table.add_column(column, overflow="fold")
    for column in ("blocks", "max error", "rel. error"):
        table.add_column(column, justify="right")
    for tensor in found if every else found[:ROWS_SHOWN]:
        errors = _number(tensor.max_abs_error), _number(tensor.relative_error)
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        words = shorten(tensor.name), shape, tensor.kind, tensor.first, tensor.second
        table.add_row(*words, _blocks(tensor), *errors)
    if not every and len(found) > ROWS_SHOWN:
        table.caption = f"{len(found) - ROWS_SHOWN} more; --all shows them"
    return table


def _entry_table(found: Comparison) -> Table:
    from rich.table import Table

    table = Table()
    for column in ("where", "key", "first", "second"):
        table.add_column(column, overflow="fold")
    for entry in found.entries:
        table.add_row(entry.section, entry.key, entry.first, entry.second)
    return table


def _show(found: Comparison, every: bool) -> None:
    if found.entries:
        print_table(_entry_table(found))
    if found.tensors:
        print_table(_tensor_table(found.tensors, every))
    if found.identical:
        print(f"no difference: {found.same_tensors} tensors and all settings are the same")
    else:
        counts = f"{len(found.entries)} settings and {len(found.tensors)} tensors differ"
        print(f"{counts}, {found.same_tensors} tensors are the same")


@click.command("diff", help="Show what differs between the models A and B, of any format.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--exit-code", is_flag=True, help="Exit with 3 if anything differs.")
@click.option("--all", "every", is_flag=True, help="List every tensor that differs.")
@device_options()
@output_options()
def command(
    first: str,
    second: str,
    exit_code: bool,
    every: bool,
    device: str,
    threads: int,
    as_json: bool,
    quiet: bool,
) -> int:
    """Compare two models."""
    from halfbyte.pipeline import diff

    with progress_bar("comparing", silent=quiet or as_json) as bar:
        found = diff(first, second, threads=threads, progress=None if bar is None else bar.of_total)
    if as_json:
        print_json(found.to_json())
    elif not quiet:
        _show(found, every)
    return EXIT_GATE if exit_code and not found.identical else EXIT_OK
