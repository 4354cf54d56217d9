"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

DEVICES = ("cpu", "cuda", "metal")


def _stack(*options: Callable[[Any], Any]) -> Callable[[Function], Function]:
    def apply(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


def output_options() -> Callable[[Function], Function]:
    """Add --json and --quiet."""
    return _stack(
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
        click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
    )


def _usable(context: click.Context, option: click.Parameter, device: str) -> str:
    """Refuse a device that this version or this machine does not have, whatever the command."""
    if device != "cpu":
        from halfbyte.runtime import get_backend

        get_backend(device)
    return device


def device_options() -> Callable[[Function], Function]:
    """Add --device and --threads; 0 threads means all processors."""
    return _stack(
        click.option(
            "--device",
            type=click.Choice(DEVICES),
            default="cpu",
            callback=_usable,
            help="Where to compute.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=0),
            default=0,
            metavar="N",
            help="Worker threads; 0 takes every processor.",
        ),
    )


def compute_option(default: str) -> Callable[[Function], Function]:
    """Add --compute; without a default the command chooses by what it runs."""
    return click.option(
        "--compute",
        type=click.Choice(("exact", "int8")),
        default=default or None,
        show_default=bool(default),
        help="Activations that meet quantized weights: exact float32, or int8.",
    )


def source_options() -> Callable[[Function], Function]:
    """Add --revision and --allow-pickle."""
    return _stack(
        click.option("--revision", default="", help="Branch, tag or commit of a hub id."),
        click.option(
            "--allow-pickle",
            is_flag=True,
            help="Read pytorch_model.bin, through a restricted unpickler.",
        ),
    )


def write_options() -> Callable[[Function], Function]:
    """Add the options that convert and quantize share."""
    return _stack(
        click.option(
            "--to",
            default="",
            metavar="FORMAT",
            help="gguf, hb, hf, onnx, onnx:static or onnx:ort; else DST's ending decides.",
        ),
        click.option(
            "--opset",
            type=click.IntRange(min=1),
            metavar="N",
            help="Operator set of an ONNX file; else the lowest that fits.",
        ),
        click.option(
            "--tensor",
            "overrides",
            multiple=True,
            metavar="GLOB=TYPE",
            help="Encoding of the tensors a glob names, e.g. 'blk.*.ffn_down=Q8_0'.",
        ),
        click.option(
            "--requantize", is_flag=True, help="Allow encoding weights that are already quantized."
        ),
        click.option(
            "--push-to-hub", default="", metavar="ORG/NAME", help="Upload what was written."
        ),
        device_options(),
        source_options(),
        output_options(),
    )


def parse_overrides(overrides: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return (glob, type) pairs.

    Raises:
        click.BadParameter: an entry has no `=`.
    """
    pairs = []
    for entry in overrides:
        pattern, separator, type_name = entry.rpartition("=")
        if not separator or not pattern or not type_name:
            raise click.BadParameter(f"{entry!r} is not GLOB=TYPE", param_hint="--tensor")
        pairs.append((pattern, type_name))
    return pairs
