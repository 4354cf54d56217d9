"""The options of integer activations."""

from __future__ import annotations

import click

from halfbyte.cli.options import Decorator, section

MODES = ("none", "int8-static", "int8-dynamic", "fp8", "fp8-static")
METHODS = ("minmax", "average", "percentile", "entropy", "mse")
TARGETS = ("x86", "x86-avx2", "arm", "gpu")


def activation_options() -> Decorator:
    """Add --activations, --calibration-method, --target and --keep-float."""
    added = (
        click.option(
            "--activations",
            type=click.Choice(MODES),
            default="none",
            show_default=True,
            help="8-bit activations of an ONNX file or, with --to hf:compressed-tensors, for "
            "servers; static: ranges from --calib, else found while it runs.",
        ),
        click.option(
            "--calibration-method",
            type=click.Choice(METHODS),
            default="mse",
            show_default=True,
            help="How static ranges are cut.",
        ),
        click.option(
            "--target",
            type=click.Choice(TARGETS),
            default="x86",
            show_default=True,
            help="What multiplies static integers; x86-avx2: 7-bit weights, for x86 without VNNI.",
        ),
        click.option(
            "--keep-float",
            multiple=True,
            metavar="GLOB",
            help="Operator or node that stays float; also 'first' and 'last'.",
        ),
    )

    return section("Activations", *added)
