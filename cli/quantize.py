"""`halfbyte quantize`."""

from __future__ import annotations

from typing import Any

import click

from halfbyte.cli.activation_options import activation_options
from halfbyte.cli.calibration_options import calibration_options, check_calibration
from halfbyte.cli.convert import write
from halfbyte.cli.options import SectionedCommand, quantize_options, write_options


@click.command(
    "quantize",
    cls=SectionedCommand,
    help="Write the model SRC as DST with its weights in a smaller type.",
)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST", required=False)
@click.option(
    "--type",
    "type",
    required=True,
    metavar="TYPE",
    help="Mix or encoding of the weights, e.g. Q4_K_M, IQ3_M, int8, int4-g128, nvfp4.",
)
@click.option(
    "--method",
    default="rtn",
    show_default=True,
    help="How codes are chosen: rtn, hqq; with data gptq, gptaq, best; after awq, smoothquant or "
    "rotate, e.g. awq+gptq.",
)
@quantize_options()
@calibration_options()
@activation_options()
@write_options()
def command(**options: Any) -> None:
    """Quantize a model."""
    from halfbyte.pipeline import quantize

    if options["destination"] is None and not options["dry_run"]:
        raise click.UsageError("Missing argument 'DST'; only --dry-run does without.")
    if options["leave_output"] and options["output_type"]:
        raise click.UsageError("--leave-output and --output-type exclude each other")
    check_calibration(options)
    write(quantize, "quantizing", **options)
