"""`halfbyte quantize`."""

from __future__ import annotations

from typing import Any

import click

from halfbyte.cli.convert import show_report
from halfbyte.cli.options import parse_overrides, write_options
from halfbyte.cli.output import progress_bar


@click.command("quantize", help="Write the model SRC as DST with its weights in a smaller type.")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option(
    "--type",
    "type_name",
    required=True,
    metavar="TYPE",
    help="Encoding of the weights, e.g. Q4_0, Q8_0, int8, int4-g128.",
)
@click.option("--method", default="rtn", show_default=True, help="How codes are chosen.")
@write_options()
def command(
    source: str,
    destination: str,
    overrides: tuple[str, ...],
    type_name: str,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Quantize a model."""
    from halfbyte.pipeline import quantize

    with progress_bar("quantizing", silent=quiet or as_json) as bar:
        report = quantize(
            source,
            destination,
            type=type_name,
            overrides=parse_overrides(overrides),
            progress=None if bar is None else bar.of_total,
            **options,
        )
    show_report(report, as_json, quiet)
