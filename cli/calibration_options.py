"""The options of calibrated methods."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from halfbyte.cli.options import Decorator, byte_size, section
from halfbyte.quant.method import ACT_ORDERS, Chain, MethodOptions

# Options that only methods with a hessian read.
OF_ROUNDING = (
    *("damping", "act_order", "static_groups", "refine", "trials", "tail_damping"),
    *("group_search", "true_sequential"),
)


def _image_size(
    context: click.Context, option: click.Parameter, text: str | None
) -> tuple[int, int] | None:
    """Return height and width of `224` or `224x256`."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() and int(side) for side in sides):
        raise click.BadParameter(f"{text!r} is no size; give HxW, e.g. 224x224", context, option)
    return int(sides[0]), int(sides[-1])


def _numbers(context: click.Context, option: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        rule = f"{text!r} is no list of numbers; give e.g. 0.5,0.5,0.5"
        raise click.BadParameter(rule, context, option) from None


def _positive(context: click.Context, option: click.Parameter, text: str) -> tuple[float, ...]:
    values = _numbers(context, option, text)
    if min(values) <= 0:
        raise click.BadParameter("must be above 0", context, option)
    return values


def calibration_options() -> Decorator:
    """Add the options that say what a calibrated method sees and how it rounds."""
    data = section(
        "Calibration data",
        click.option(
            "--calib",
            multiple=True,
            metavar="DATA",
            help="Text, .jsonl, .npz, a folder of them or of images or .wav, a hub data set, or "
            "preset:novels; several texts are mixed.",
        ),
        click.option(
            "--calib-samples",
            type=click.IntRange(min=1),
            default=128,
            show_default=True,
            help="Sequences, or samples of other inputs, drawn from it.",
        ),
        click.option(
            "--calib-length",
            type=click.IntRange(min=2),
            default=512,
            show_default=True,
            help="Tokens of each sequence.",
        ),
        click.option(
            "--calib-random",
            type=click.IntRange(min=0),
            default=0,
            metavar="N",
            help="Add N sequences of random tokens, which make up for a narrow text.",
        ),
        click.option(
            "--calib-skip-first",
            is_flag=True,
            help="Leave each sequence's first token out of the statistics.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**32 - 1),
            default=0,
            show_default=True,
            help="Of the choice of samples, of random tokens, of the text of best, of rotations.",
        ),
        click.option(
            "--image-size",
            callback=_image_size,
            metavar="HxW",
            help="Size of images, where the model leaves it open.",
        ),
        click.option(
            "--image-mean",
            default="0.485,0.456,0.406",
            show_default=True,
            callback=_numbers,
            metavar="R,G,B",
            help="Taken from pixels between 0 and 1.",
        ),
        click.option(
            "--image-std",
            default="0.229,0.224,0.225",
            show_default=True,
            callback=_positive,
            metavar="R,G,B",
            help="What they are then divided by.",
        ),
        click.option(
            "--sample-rate",
            type=click.IntRange(min=1),
            metavar="HZ",
            help="Rate that .wav files must have; else that of the first.",
        ),
        click.option(
            "--stats", default="", metavar="FILE", help="Saved statistics, instead of --calib."
        ),
        click.option(
            "--save-stats",
            default="",
            metavar="FILE",
            help="Save the statistics of the data, for --stats with any type and method.",
        ),
    )
    method = section(
        "Calibrated methods",
        click.option(
            "--damping",
            type=click.FloatRange(0, 1),
            default=MethodOptions.damping,
            show_default=True,
            help="Added to the hessian's diagonal, in units of its mean.",
        ),
        click.option(
            "--act-order",
            type=click.Choice(ACT_ORDERS),
            default="none",
            show_default=True,
            help="Columns by falling activation: with groups by place, or groups of their own.",
        ),
        click.option("--static-groups", is_flag=True, help="Scales of all groups up front."),
        click.option(
            "--refine",
            type=click.IntRange(min=0),
            default=MethodOptions.refine,
            show_default=True,
            metavar="N",
            help="Rounds of refitting scales and descending on codes afterwards.",
        ),
        click.option(
            "--trials/--no-trials",
            default=True,
            show_default=True,
            help="Round each group on several grids and keep the best.",
        ),
        click.option(
            "--tail-damping/--no-tail-damping",
            default=True,
            show_default=True,
            help="Damp more where inputs have heavy tails.",
        ),
        click.option(
            "--group-search/--no-group-search",
            default=None,
            help="Look for better ranges of affine groups than the plain ones; by default best "
            "does, and in models that are no decoders every method.",
        ),
        click.option(
            "--true-sequential/--no-true-sequential",
            default=True,
            show_default=True,
            help="Weights see what the earlier ones of their layer became.",
        ),
        click.option(
            "--smoothquant-alpha",
            type=click.FloatRange(0, 1),
            default=0.5,
            show_default=True,
            help="Of smoothquant: 1 evens out the activations, 0 the weights.",
        ),
        click.option(
            "--activation-limit",
            "activation_limit_bytes",
            default="128MiB",
            show_default=True,
            callback=byte_size,
            metavar="SIZE",
            help="Activations held in memory; more go to a file.",
        ),
        click.option(
            "--journal/--no-journal",
            default=True,
            show_default=True,
            help="Keep finished weights in DST.halfbyte-journal; a stopped run goes on from there.",
        ),
    )

    def add(function: Any) -> Any:
        return data(method(function))

    return add


def check_calibration(options: dict[str, Any]) -> None:
    """Refuse data and options where they are of no use, and the absence of data where it is.

    Raises:
        click.UsageError: so it is.
    """
    from halfbyte.quant.method import parse_method

    chain = parse_method(options["method"])
    given = bool(options["calib"] or options["stats"])
    if options["calib"] and options["stats"]:
        raise click.UsageError("--calib and --stats exclude each other")
    if options["save_stats"] and not options["calib"]:
        raise click.UsageError("--save-stats needs --calib DATA")
    if chain.is_calibrated and not given and not options["dry_run"]:
        raise click.UsageError(
            f"--method {chain.name} needs data: give --calib FILE or --calib preset:novels"
        )
    static = options["activations"].endswith("-static")
    if given and not chain.is_calibrated and not static:
        what = "--calib" if options["calib"] else "--stats"
        raise click.UsageError(
            f"{what}: --method {options['method']} takes no data; give e.g. --method gptq"
        )
    _require_used(chain)


def _require_used(chain: Chain) -> None:
    """Check that the method reads the options that were given for methods."""
    context = click.get_current_context()
    instead = {} if chain.needs_hessian else dict.fromkeys(OF_ROUNDING, "gptq")
    if "smoothquant" not in chain.transforms:
        instead["smoothquant_alpha"] = f"smoothquant+{chain.rounding}"
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and option.name in instead:
            spelled = "/".join([*option.opts, *option.secondary_opts])
            raise click.UsageError(
                f"{spelled}: --method {chain.name} does not read it; give e.g. "
                f"--method {instead[option.name]}"
            )
