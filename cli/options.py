"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]
SECTION = "halfbyte_section"

DEVICES = ("cpu", "cuda", "metal")


SIZE_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
SIZE_UNITS |= {f"{name}I": 1 << (10 * power) for power, name in enumerate("KMGT", 1)}


def byte_size(context: click.Context, option: click.Parameter, text: str) -> int:
    """Return the bytes of a size, plain or with a unit: 500M, 2G, 1.5GiB; 0 for an empty text."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]I?)?B?", text.strip().upper())
    size = int(float(match[1]) * SIZE_UNITS[match[2] or ""]) if match else 0
    if text and size < 1:
        rule = f"{text!r} is no size; give bytes or a unit, e.g. 500M, 2G, 1.5GiB"
        raise click.BadParameter(rule, context, option)
    return size


def _or_zero(context: click.Context, option: click.Parameter, value: int | None) -> int:
    return value or 0


def _stack(*options: Callable[[Any], Any]) -> Callable[[Function], Function]:
    def apply(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


def section(name: str, *options: Callable[[Any], Any]) -> Decorator:
    """Return a decorator that adds options under a heading of the help, see `SectionedCommand`."""

    def apply(function: Any) -> Any:
        before = len(getattr(function, "__click_params__", ()))
        function = _stack(*options)(function)
        for param in function.__click_params__[before:]:
            if not hasattr(param, SECTION):
                setattr(param, SECTION, name)
        return function

    return apply


class SectionedCommand(click.Command):
    """A command whose help lists options under headings; those without one come first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(param, SECTION, "Options"), []).append(record)
        for name, rows in groups.items():
            with formatter.section(name):
                formatter.write_dl(rows)


def output_options() -> Callable[[Function], Function]:
    """Add --json and --quiet."""
    return section(
        "Machine and messages",
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
    return section(
        "Machine and messages",
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
    return section(
        "Source",
        click.option("--revision", default="", help="Branch, tag or commit of a hub id."),
        click.option(
            "--allow-pickle",
            is_flag=True,
            help="Read pytorch_model.bin, through a restricted unpickler.",
        ),
    )


def _adapters(
    context: click.Context, option: click.Parameter, entries: tuple[str, ...]
) -> list[tuple[str, float]]:
    """Return paths and factors of adapters."""
    from halfbyte.adapters import parse_adapters

    return parse_adapters(entries) if entries else []


def write_options() -> Callable[[Function], Function]:
    """Add the options that convert and quantize share."""
    return section(
        "Output",
        click.option(
            "--to",
            default="",
            metavar="FORMAT",
            help="gguf, hb, onnx, onnx:static, onnx:ort, hf, or hf: with gptq, awq, "
            "compressed-tensors, mlx or fp8; else DST's ending decides.",
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
            "--lora",
            "lora",
            multiple=True,
            callback=_adapters,
            metavar="ADAPTER[=SCALE]",
            help="LoRA adapter to merge, a PEFT folder or a GGUF file; several add up.",
        ),
        click.option(
            "--keep-split", is_flag=True, help="Write GGUF in the same parts as the source."
        ),
        click.option(
            "--split-max-size",
            "split_max_bytes",
            default="",
            callback=byte_size,
            metavar="SIZE",
            help="Split the output into files of at most so much tensor data, e.g. 2G or 500M.",
        ),
        click.option(
            "--split-max-tensors",
            type=click.IntRange(min=1),
            default=None,
            callback=_or_zero,
            metavar="N",
            help="Split a GGUF file into files of at most N tensors.",
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


def quantize_options() -> Callable[[Function], Function]:
    """Add the options that only quantize has."""
    return section(
        "Types of tensors",
        click.option("--pure", is_flag=True, help="One type for all weights: no mix."),
        click.option(
            "--output-type", default="", metavar="ENC", help="Encoding of the output head."
        ),
        click.option(
            "--token-embedding-type",
            default="",
            metavar="ENC",
            help="Encoding of the token embedding.",
        ),
        click.option(
            "--leave-output", is_flag=True, help="Leave the output head as the source has it."
        ),
        click.option(
            "--imatrix",
            default="",
            metavar="FILE",
            help="Importance matrix, as llama-imatrix or `halfbyte imatrix` writes it.",
        ),
        click.option(
            "--compat",
            is_flag=True,
            help="llama.cpp's own bytes also where its encoder has a fault.",
        ),
        click.option(
            "--search",
            type=click.Choice(("default", "exhaustive")),
            default="default",
            show_default=True,
            help="Scales tried per block: llama.cpp's, or all that can matter (much slower).",
        ),
        click.option(
            "--dry-run",
            is_flag=True,
            help="Print what each tensor would become and the size of the file; write nothing.",
        ),
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
