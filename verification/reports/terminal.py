"""Tables for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from halfbyte.verification.report import VerifyReport

LANGUAGE_ROWS = (
    ("mean KL divergence", "mean_kl", "{:.6f} nats"),
    ("median KL divergence", "median_kl", "{:.6f} nats"),
    ("99th percentile KL", "p99_kl", "{:.6f} nats"),
    ("max KL divergence", "max_kl", "{:.6f} nats"),
    ("top-1 agreement", "top1_agreement", "{:.2%}"),
    ("RMS probability change", "rms_probability_change", "{:.3%}"),
)


def _language_table(report: VerifyReport) -> Table:
    figures = report.figures
    table = Table()
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_row("tokens judged", f"{int(figures['tokens']):,}")
    for label, key, pattern in LANGUAGE_ROWS:
        table.add_row(label, pattern.format(figures[key]))
    for name in ("reference", "candidate"):
        value, error = figures[f"ppl_{name}"], figures[f"ppl_{name}_error"]
        table.add_row(f"perplexity, {name}", f"{value:.4f} ± {error:.4f}")
    ratio, error = figures["ppl_ratio"], figures["ppl_ratio_error"]
    table.add_row("perplexity ratio", f"{ratio:.6f} ± {error:.6f}")
    return table


def _output_table(report: VerifyReport) -> Table:
    table = Table()
    for column in ("output", "cosine", "max abs error", "max rel error"):
        table.add_column(column, justify="left" if column == "output" else "right")
    for entry in report.outputs:
        table.add_row(
            str(entry["name"]),
            f"{entry['cosine']:.9f}",
            f"{entry['max_abs_error']:.3e}",
            f"{entry['max_rel_error']:.3e}",
        )
    return table


def _gate_table(report: VerifyReport) -> Table:
    table = Table()
    for column in ("gate", "limit", "measured", "verdict"):
        table.add_column(column, justify="left" if column in ("gate", "verdict") else "right")
    for gate in report.gates:
        verdict = Text("passed", "green") if gate.passed else Text("FAILED", "bold red")
        table.add_row(gate.metric, f"{gate.limit:g}", f"{gate.measured:.6g}", verdict)
    return table


def verify_report(report: VerifyReport) -> RenderableType:
    """Return the tables of a verification."""
    parts: list[RenderableType] = [
        Text(f"{report.candidate} against {report.reference}", overflow="fold"),
        _output_table(report) if report.outputs else _language_table(report),
    ]
    if report.gates:
        parts.append(_gate_table(report))
    parts += [Text(note, overflow="fold") for note in report.notes]
    return Group(*parts)
