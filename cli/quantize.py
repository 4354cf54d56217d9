"""`halfbyte quantize`."""

from __future__ import annotations

from typing import Any

import click

from halfbyte.cli.convert import write
from halfbyte.cli.options import write_options


@click.command("quantize", help="Write the model SRC as DST with its weights in a smaller type.")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option(
    "--type",
    "type",
    required=True,
    metavar="TYPE",
    help="Encoding of the weights, e.g. Q4_0, Q8_0, int8, int4-g128.",
)
@click.option("--method", default="rtn", show_default=True, help="How codes are chosen.")
@write_options()
def command(**options: Any) -> None:
    """Quantize a model."""
    from halfbyte.pipeline import quantize

    write(quantize, "quantizing", **options)
