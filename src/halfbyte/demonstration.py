"""The embedded model through every stage: read, quantize, write, verify."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from halfbyte.pipeline import convert, quantize, verify

REFERENCE = "demo-bfloat16.gguf"
OUTPUTS = (
    ("demo-Q8_0.gguf", "Q8_0"),
    ("demo-Q4_0.gguf", "Q4_0"),
    ("demo-int4-g32.hb", "int4-g32"),
)
CONTEXT = 256


@dataclass(frozen=True)
class DemoRow:
    """One written file and what it costs in accuracy."""

    file: str
    format: str
    type: str
    bytes: int
    bits_per_weight: float
    mean_kl: float
    top1_agreement: float
    ppl_ratio: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        return asdict(self)


def demo_model() -> Path:
    """Return the folder of the embedded model."""
    location = import_module("halfbyte.demo").__file__
    assert location is not None
    return Path(location).parent


def demo_text() -> Path:
    """Return the held-out text that the embedded model is judged on."""
    return demo_model() / "validation.txt"


def run_demo(
    folder: Path,
    *,
    chunks: int = 8,
    threads: int = 0,
    show: Callable[[str], None] = lambda line: None,
) -> list[DemoRow]:
    """Write the embedded model in several types under `folder`, verify each against the source."""
    source = demo_model()
    rows = []
    show(f"read {source}")
    for name, type_name in ((REFERENCE, ""), *OUTPUTS):
        path = folder / name
        if type_name:
            written = quantize(source, path, type=type_name, threads=threads)
        else:
            written = convert(source, path, threads=threads)
        show(f"wrote {path.name} ({type_name or 'as it is'}), verifying")
        report = verify(
            source, path, data=demo_text(), context=CONTEXT, chunks=chunks, threads=threads
        )
        values = sum(tensor.values for tensor in written.tensors)
        stored = sum(tensor.bytes for tensor in written.tensors)
        rows.append(
            DemoRow(
                name,
                path.suffix.removeprefix("."),
                type_name or "bfloat16",
                written.bytes,
                8 * stored / values,
                report.figures["mean_kl"],
                report.figures["top1_agreement"],
                report.figures["ppl_ratio"],
                written.seconds + report.seconds,
            )
        )
    return rows
