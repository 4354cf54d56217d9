"""`halfbyte verify`."""

from __future__ import annotations

from typing import Any

import click

from halfbyte.cli.options import compute_option, device_options, output_options
from halfbyte.cli.output import print_json, print_table, progress_bar
from halfbyte.errors import EXIT_GATE, EXIT_OK

GATE_OPTIONS = {
    "max_kl": ("mean_kl", "Mean KL divergence in nats."),
    "max_p99_kl": ("p99_kl", "99th percentile of the KL divergence in nats."),
    "min_agreement": ("top1_agreement", "Share of equal top tokens, 0 to 1."),
    "max_ppl_increase": ("ppl_increase", "Relative rise of the perplexity, 0.01 for 1 %."),
    "min_cosine": ("cosine", "Cosine of every output."),
    "max_abs_error": ("max_abs_error", "Largest absolute error of every output."),
    "max_rel_error": ("max_rel_error", "Largest error over the largest reference value."),
}


def _gate_options(function: Any) -> Any:
    for name, (_, help_text) in reversed(GATE_OPTIONS.items()):
        flag = "--" + name.replace("_", "-")
        function = click.option(flag, name, type=float, default=None, help=f"Gate: {help_text}")(
            function
        )
    return function


@click.command("verify", help="Measure how far CAND is from REF. Exit code 3: a gate failed.")
@click.argument("reference", metavar="REF")
@click.argument("candidate", metavar="CAND")
@click.option("--data", default=None, metavar="FILE", help="Text, or an .npz of inputs.")
@click.option("--context", type=click.IntRange(min=4), default=512, show_default=True)
@click.option("--chunks", type=click.IntRange(min=1), default=None, help="Judge at most N chunks.")
@_gate_options
@click.option(
    "--reference-storage",
    type=click.Choice(("exact", "16-bit")),
    default="exact",
    show_default=True,
    help="16-bit rounds the reference as llama-perplexity stores it, for figures equal to its own.",
)
@click.option(
    "--allow-pickle", is_flag=True, help="Read pytorch_model.bin, through a restricted unpickler."
)
@compute_option("exact")
@click.option(
    "--activations",
    type=click.Choice(("float", "declared")),
    default="float",
    show_default=True,
    help="declared: rounded as a checkpoint says that servers do; float: weights alone count.",
)
@device_options()
@output_options()
def command(
    reference: str,
    candidate: str,
    data: str | None,
    context: int,
    chunks: int | None,
    reference_storage: str,
    allow_pickle: bool,
    compute: str,
    activations: str,
    device: str,
    threads: int,
    as_json: bool,
    quiet: bool,
    **gates: float | None,
) -> int:
    """Verify a candidate against a reference."""
    from halfbyte.pipeline import verify

    limits = {GATE_OPTIONS[name][0]: limit for name, limit in gates.items() if limit is not None}
    with progress_bar("verifying", silent=quiet or as_json, unit="chunks") as bar:
        report = verify(
            reference,
            candidate,
            data=data,
            context=context,
            chunks=chunks,
            limits=limits,
            reference_storage=reference_storage,
            device=device,
            compute=compute,
            activations=activations,
            threads=threads,
            allow_pickle=allow_pickle,
            progress=None if bar is None else bar.of_total,
        )
    if as_json:
        print_json(report.to_json())
    elif not quiet:
        from halfbyte.verification.reports.terminal import verify_report

        print_table(verify_report(report))
    return EXIT_OK if report.passed else EXIT_GATE
