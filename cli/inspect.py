"""`halfbyte inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from halfbyte.cli.options import device_options, output_options, source_options
from halfbyte.cli.output import print_json, print_table, size_text

if TYPE_CHECKING:
    from rich.table import Table

    from halfbyte.verification.inspection import Inspection

ROWS_SHOWN = 40
VALUES_SHOWN = 12


def _tensor_table(inspection: Inspection, every: bool) -> Table:
    from rich.table import Table

    from halfbyte.verification.inspection import shorten

    shown = inspection.tensors if every else inspection.tensors[:ROWS_SHOWN]
    table = Table()
    for column in ("tensor", "shape", "encoding", "bits", "bytes"):
        table.add_column(column, justify="right" if column in ("bits", "bytes") else "left")
    for tensor in shown:
        shape = " x ".join(str(dim) for dim in tensor["shape"]) or "scalar"
        bits = f"{tensor['bits_per_weight']:.2f}"
        size = size_text(tensor["bytes"])
        table.add_row(shorten(tensor["name"]), shape, tensor["encoding"], bits, size)
    hidden = len(inspection.tensors) - len(shown)
    if hidden:
        table.caption = f"{hidden} more; --all shows them"
    return table


def _typed(value: dict[str, Any]) -> str:
    from halfbyte.verification.inspection import shorten

    dims = "*" if value["shape"] is None else ", ".join(str(dim) for dim in value["shape"])
    return shorten(f"{value['name']}: {value['dtype'] or '?'}[{dims}]")


def _show(inspection: Inspection, every: bool) -> None:
    from halfbyte.verification.inspection import encoding_summary, shorten

    print(f"{inspection.source}")
    print(f"  format        {inspection.format}")
    print(f"  architecture  {inspection.architecture or 'unknown'}")
    print(f"  parameters    {inspection.parameters:,}")
    bits = f"{inspection.bits_per_weight:.3f} bits per weight"
    print(f"  weights       {size_text(inspection.bytes)}, {bits}")
    print(f"  tokenizer     {inspection.tokenizer or 'none'}")
    groups = encoding_summary(inspection)
    print(f"  encodings     {', '.join(f'{name} ({count})' for name, count, _ in groups)}")
    for word, values in (("input", inspection.inputs), ("output", inspection.outputs)):
        for typed in values[:VALUES_SHOWN]:
            print(f"  {word:<13} {_typed(typed)}")
        if len(values) > VALUES_SHOWN:
            print(f"  {word:<13} and {len(values) - VALUES_SHOWN} more; --json lists them")
    if inspection.opsets:
        opsets = ", ".join(f"{name or 'ai.onnx'} {v}" for name, v in inspection.opsets.items())
        print(f"  opsets        {shorten(opsets)}")
    if inspection.operators:
        operators = ", ".join(f"{name} x{count}" for name, count in inspection.operators.items())
        print(f"  operators     {operators}")
    for name, value in inspection.metadata.items():
        print(f"  {name} = {value}")
    print_table(_tensor_table(inspection, every))
    for problem in inspection.problems:
        print(f"problem: {problem}")


@click.command("inspect", help="Show what SRC is.")
@click.argument("source", metavar="SRC")
@click.option("--verify", is_flag=True, help="Check hashes and every value; reads the whole file.")
@click.option("--all", "every", is_flag=True, help="List every tensor.")
@device_options()
@source_options()
@output_options()
def command(
    source: str,
    verify: bool,
    every: bool,
    device: str,
    threads: int,
    revision: str,
    allow_pickle: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Describe a model, or an importance matrix."""
    from halfbyte.importance import find_importance
    from halfbyte.pipeline import inspect

    matrix = find_importance(source)
    if matrix is not None:
        from halfbyte.cli.imatrix import show_importance

        show_importance(matrix, every, as_json, quiet)
        return
    found = inspect(
        source, verify=verify, threads=threads, revision=revision, allow_pickle=allow_pickle
    )
    if as_json:
        print_json(found.to_json())
    elif not quiet:
        _show(found, every)
