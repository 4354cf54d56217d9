"""`halfbyte run`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from halfbyte.cli.options import compute_option, device_options, output_options, source_options
from halfbyte.cli.output import print_json

if TYPE_CHECKING:
    from halfbyte.ir.model import Model
    from halfbyte.text_generation import TextRequest


def _run_arrays(model: Model, arrays: str, output: str, options: dict[str, Any]) -> dict[str, Any]:
    from halfbyte.array_files import graph_owner, read_inputs, write_arrays
    from halfbyte.ir.dtypes import dtype_of
    from halfbyte.pipeline import session as open_session
    from halfbyte.verification.outputs import flat

    model = graph_owner(arrays, model)
    results = open_session(model, **options).run(read_inputs(arrays, model.graph))
    if output:
        write_arrays(output, results)
    return {
        "output": output,
        "outputs": [
            {"name": name, "shape": list(array.shape), "dtype": dtype_of(array)}
            for name, array in flat(results).items()
        ],
    }


def _text_request(
    prompt: str, raw: bool, system: str, max_tokens: int, stops: tuple[str, ...], **sampling: Any
) -> TextRequest:
    from halfbyte.runtime.sampling import Sampling
    from halfbyte.text_generation import TextRequest

    return TextRequest(prompt, raw, system, max_tokens, Sampling(**sampling), stops)


def _run_prompt(
    model: Model, request: TextRequest, options: dict[str, Any], is_shown: bool
) -> dict[str, Any]:
    from halfbyte.pipeline import session as open_session
    from halfbyte.text_generation import generate_text

    def show(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    result = generate_text(
        model, open_session(model, **options), request, show if is_shown else None
    )
    return result.to_json()


def _require_usage(prompt: str | None, arrays: str, output: str) -> None:
    if (prompt is None) == (not arrays):
        raise click.UsageError("give either a PROMPT or --input, not both and not neither")
    if output and not arrays:
        raise click.UsageError("--output goes with --input")


@click.command("run", help="Generate text after PROMPT, or run the arrays of --input.")
@click.argument("model", metavar="MODEL")
@click.argument("prompt", metavar="[PROMPT]", required=False)
@click.option("--input", "arrays", default="", metavar="FILE.npz", help="Inputs by graph name.")
@click.option("--output", default="", metavar="FILE.npz", help="Where outputs go.")
@click.option("--max-tokens", type=click.IntRange(min=0), default=128, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.8, show_default=True)
@click.option("--top-k", type=click.IntRange(min=0), default=40, show_default=True)
@click.option("--top-p", type=click.FloatRange(0, 1), default=0.95, show_default=True)
@click.option("--min-p", type=click.FloatRange(0, 1), default=0.05, show_default=True)
@click.option("--repetition-penalty", type=click.FloatRange(min=0, min_open=True), default=1.0)
@click.option("--seed", type=click.IntRange(min=0), default=None, help="Same seed, same text.")
@click.option("--stop", "stops", multiple=True, help="End where this text appears.")
@click.option("--system", default="", help="System message of the chat.")
@click.option("--raw", is_flag=True, help="No chat template: the prompt as it is.")
@compute_option("")
@device_options()
@source_options()
@output_options()
def command(
    model: str,
    prompt: str | None,
    arrays: str,
    output: str,
    raw: bool,
    system: str,
    compute: str | None,
    device: str,
    threads: int,
    revision: str,
    allow_pickle: bool,
    as_json: bool,
    quiet: bool,
    **sampling: Any,
) -> None:
    """Run a model."""
    from halfbyte.pipeline import open

    _require_usage(prompt, arrays, output)
    opened = open(model, revision=revision, allow_pickle=allow_pickle)
    options: dict[str, Any] = {"device": device, "threads": threads}
    if arrays:
        options["compute"] = compute or "exact"
        found = _run_arrays(opened, arrays, output, options)
        lines = [f"{e['name']}  {e['dtype']}  {e['shape']}\n" for e in found["outputs"]]
    else:
        options["compute"] = compute or "int8"
        request = _text_request(str(prompt), raw, system, **sampling)
        found = _run_prompt(opened, request, options, is_shown=not (as_json or quiet))
        lines = ["\n"]
    if as_json:
        print_json(found)
    elif not quiet:
        sys.stdout.writelines(lines)
