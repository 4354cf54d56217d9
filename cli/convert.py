"""`halfbyte convert`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from halfbyte.cli.options import parse_overrides, write_options
from halfbyte.cli.output import (
    print_json,
    print_table,
    print_warnings,
    progress_bar,
    size_text,
)

if TYPE_CHECKING:
    from rich.table import Table

    from halfbyte.convert_report import ConvertReport
    from halfbyte.quant.calibration.report import CalibrationReport, WeightReport


def summary_table(report: ConvertReport) -> Table:
    """Return tensors and bytes by source encoding, encoding and verdict."""
    from rich.table import Table

    groups: dict[tuple[str, str, str, str], list[int]] = {}
    for tensor in report.tensors:
        key = (tensor.source_encoding, tensor.encoding, tensor.verdict, tensor.reason)
        entry = groups.setdefault(key, [0, 0])
        entry[0] += 1
        entry[1] += tensor.bytes
    table = Table()
    for column in ("from", "to", "verdict", "tensors", "bytes", "why"):
        table.add_column(column, justify="right" if column in ("tensors", "bytes") else "left")
    for (source, target, verdict, reason), (count, size) in groups.items():
        table.add_row(source, target, verdict, str(count), size_text(size), reason)
    return table


def plan_table(report: ConvertReport) -> Table:
    """Return one line for each tensor: what it is and what it would become."""
    from rich.table import Table

    table = Table()
    for column in ("tensor", "shape", "from", "to", "bytes", "why"):
        table.add_column(column, justify="right" if column == "bytes" else "left")
    for tensor in report.tensors:
        shape = "x".join(map(str, tensor.shape))
        table.add_row(
            tensor.name,
            shape,
            tensor.source_encoding,
            tensor.encoding,
            str(tensor.bytes),
            tensor.reason,
        )
    return table


def calibration_table(report: CalibrationReport) -> Table:
    """Return weights and errors by encoding and method."""
    from rich.table import Table

    groups: dict[tuple[str, str], list[WeightReport]] = {}
    for weight in report.weights:
        groups.setdefault((weight.encoding, weight.method), []).append(weight)
    table = Table()
    for column in ("type", "method", "weights", "output error beside rounding's", "worst weight"):
        table.add_column(column, justify="right" if column == "weights" else "left")
    for (encoding, method), weights in groups.items():
        known = {w.name: w.error / w.rtn_error for w in weights if w.error and w.rtn_error}
        mean = f"{100 * sum(known.values()) / len(known):.0f} %" if known else ""
        name = max(known, key=known.__getitem__, default="")
        worst = f"{100 * known[name]:.0f} % {name}" if name else ""
        table.add_row(encoding, method, str(len(weights)), mean, worst)
    return table


def _print_calibration(report: CalibrationReport) -> None:
    print_table(calibration_table(report))
    print(report)
    if report.least_tokens is not None:
        print(f"experts: the least used saw {report.least_tokens} tokens")
    if report.largest:
        name = max(report.largest, key=report.largest.__getitem__)
        print(f"largest activation: {report.largest[name]:.4g} in {name}")


def _print_forecast(report: ConvertReport) -> None:
    print_table(plan_table(report))
    what = f"{report.bytes} bytes ({size_text(report.bytes)})"
    where = f"in {_files(report)}" if report.exact else "of weights, and what goes with them"
    print(f"would write {what} {where}")


def _files(report: ConvertReport) -> str:
    return "1 file" if len(report.files) == 1 else f"{len(report.files)} files"


def show_report(report: ConvertReport, as_json: bool, quiet: bool) -> None:
    """Print what a conversion did."""
    print_warnings(report.warnings)
    if as_json:
        print_json(report.to_json())
        return
    if quiet:
        return
    if report.dry_run:
        _print_forecast(report)
        return
    print_table(summary_table(report))
    memory = size_text(report.peak_memory_bytes)
    parts = "" if len(report.files) < 2 else f" in {_files(report)}"
    print(
        f"{report.output}: {size_text(report.bytes)}{parts} in {report.seconds:.1f} s, "
        f"peak anonymous memory {memory}"
    )
    if report.calibration is not None:
        _print_calibration(report.calibration)
    if report.pushed_to:
        print(f"uploaded to {report.pushed_to}")


def write(
    function: Callable[..., ConvertReport],
    label: str,
    overrides: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **arguments: Any,
) -> None:
    """Call `convert` or `quantize` of the pipeline behind a progress bar and print its report."""
    with progress_bar(label, silent=quiet or as_json) as bar:
        report = function(
            overrides=parse_overrides(overrides),
            progress=None if bar is None else bar.of_total,
            **arguments,
        )
    show_report(report, as_json, quiet)


@click.command(
    "convert", help="Write the model (or adapter) SRC as DST; weights keep their exact values."
)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option("--type", "type", default="", metavar="ENC", help="Encoding of the weights.")
@click.option(
    "--base",
    default="",
    metavar="MODEL",
    help="Base model of an adapter SRC, if not the one it names; only config.json is read.",
)
@write_options()
def command(**options: Any) -> None:
    """Convert a model."""
    from halfbyte.pipeline import convert

    write(convert, "converting", **options)
