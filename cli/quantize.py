"""`halfbyte quantize`."""

from __future__ import annotations

from typing import Any

import click

from halfbyte.cli.activation_options import activation_options
from halfbyte.cli.convert import write
from halfbyte.cli.options import quantize_options, write_options


@click.command("quantize", help="Write the model SRC as DST with its weights in a smaller type.")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST", required=False)
@click.option(
    "--type",
    "type",
    required=True,
    metavar="TYPE",
    help="Mix or encoding of the weights, e.g. Q4_K_M, IQ3_M, Q8_0, int8, int4-g128.",
)
@click.option("--method", default="rtn", show_default=True, help="How codes are chosen.")
@activation_options()
@quantize_options()
@write_options()
def command(**options: Any) -> None:
    """Quantize a model."""
    from halfbyte.pipeline import quantize

    if options["destination"] is None and not options["dry_run"]:
        raise click.UsageError("Missing argument 'DST'; only --dry-run does without.")
    if options["leave_output"] and options["output_type"]:
        raise click.UsageError("--leave-output and --output-type exclude each other")
    write(quantize, "quantizing", **options)
