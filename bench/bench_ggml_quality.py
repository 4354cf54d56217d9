"""Quality of every file type: KL divergence to the unquantized model, by how scales are chosen.

    python bench/bench_ggml_quality.py MODEL --calibration TEXT --data TEXT [--types Q4_K_M,...]

Columns: llama-quantize's bytes without and with an importance matrix of the calibration text, then
`--search exhaustive` without and with it (left out with `--search default`). Judge on another text
than the calibration's.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from halfbyte import pipeline
from halfbyte.converters.gguf.imatrix import write_importance
from halfbyte.errors import HalfbyteError
from halfbyte.importance import ImportanceRequest, collect_importance

TYPES = (
    *("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "IQ4_NL"),
    *("IQ4_XS", "Q4_0", "MXFP4", "NVFP4", "Q3_K_L", "Q3_K_M", "IQ3_M", "IQ3_S", "Q3_K_S"),
    *("IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M"),
    *("IQ1_S", "TQ2_0", "TQ1_0", "Q2_0", "Q1_0"),
)


def kl_text(
    reference: Path, folder: Path, kind: str, search: str, imatrix: str, data: Path, chunks: int
) -> tuple[str, int]:
    """Return the mean KL divergence as text and the file's bytes."""
    target = folder / "candidate.gguf"
    try:
        made = pipeline.quantize(reference, target, type=kind, search=search, imatrix=imatrix)
    except HalfbyteError:
        return "-", 0
    report = pipeline.verify(reference, target, data=data, chunks=chunks)
    target.unlink()
    return f"{report.figures['mean_kl']:.5f}", made.bytes


def main() -> None:
    """Print one line per type."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--search", choices=("default", "exhaustive"), default="exhaustive")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = folder / "reference.gguf"
        pipeline.convert(options.model, reference)
        model = pipeline.open(reference)
        found = collect_importance(model, str(options.calibration), ImportanceRequest(chunks=128))
        imatrix = str(folder / "imatrix.gguf")
        write_importance(found.matrix, Path(imatrix))
        print(f"{'type':<10} {'MB':>7} {'default':>9} {'imatrix':>9} {'exhaust.':>9} {'both':>9}")
        for kind in options.types.split(","):
            ways = [("default", ""), ("default", imatrix)]
            if options.search == "exhaustive":
                ways += [("exhaustive", ""), ("exhaustive", imatrix)]
            texts = [
                kl_text(reference, folder, kind, search, given, options.data, options.chunks)
                for search, given in ways
            ]
            size = max(count for _, count in texts) / 1e6
            print(f"{kind:<10} {size:7.2f} " + " ".join(f"{text:>9}" for text, _ in texts))


if __name__ == "__main__":
    main()
