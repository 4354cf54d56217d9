"""What a conversion says of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from halfbyte.converters.format import WrittenTensor

if TYPE_CHECKING:
    from halfbyte.quant.calibrated import CalibrationReport
    from halfbyte.quant.plan import Decision, Plan


@dataclass(frozen=True)
class TensorVerdict:
    """What became of one weight."""

    name: str
    source_name: str
    source_encoding: str
    encoding: str
    verdict: str
    bytes: int
    values: int = 0
    reason: str = ""
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion wrote, or would write.

    output: the file to open. exact: False where a dry run knows the bytes of the weights only.
    """

    output: str
    bytes: int
    tensors: list[TensorVerdict]
    seconds: float
    peak_memory_bytes: int
    warnings: tuple[str, ...] = ()
    pushed_to: str = ""
    files: tuple[str, ...] = ()
    dry_run: bool = False
    exact: bool = True
    calibration: CalibrationReport | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        found = {
            "output": self.output,
            "bytes": self.bytes,
            "tensors": [vars(tensor) for tensor in self.tensors],
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "warnings": list(self.warnings),
            "pushed_to": self.pushed_to,
            "files": list(self.files),
            "dry_run": self.dry_run,
            "exact": self.exact,
        }
        if self.calibration is not None:
            found["calibration"] = self.calibration.to_json()
        return found


def _verdict(decision: Decision | None, tensor: WrittenTensor) -> str:
    """Return what the plan says, or the writer where the plan only kept the encoding."""
    planned = str(decision.verdict) if decision else "exact"
    return tensor.verdict if tensor.verdict and planned == "exact" else planned


def with_merged(found: list[TensorVerdict], merged: Mapping[str, str]) -> list[TensorVerdict]:
    """Return the verdicts with those of weights that adapters changed, by source name."""
    return [
        replace(
            tensor,
            verdict=merged[tensor.source_name] if tensor.verdict == "exact" else tensor.verdict,
            reason=f"adapter merged; {tensor.reason}",
        )
        if tensor.source_name in merged
        else tensor
        for tensor in found
    ]


def with_integers_told(
    found: list[TensorVerdict], encodings: Mapping[str, str]
) -> list[TensorVerdict]:
    """Return the verdicts with those of weights that became integers, by what they were."""
    return [
        replace(
            tensor,
            source_encoding=encodings[tensor.source_name],
            verdict="quantized",
            reason="int8-static",
        )
        if tensor.source_name in encodings
        else tensor
        for tensor in found
    ]


def verdicts(plan: Plan, written: list[WrittenTensor]) -> list[TensorVerdict]:
    """Return what became of each tensor that was written."""
    decided = {decision.tensor.name: decision for decision in plan.decisions}
    found = []
    for tensor in written:
        decision = decided.get(tensor.source_name)
        shape = decision.tensor.shape if decision else ()
        shape = shape if tensor.shape is None else tensor.shape
        found.append(
            TensorVerdict(
                tensor.name,
                tensor.source_name,
                str(decision.source) if decision else tensor.encoding,
                tensor.encoding,
                _verdict(decision, tensor),
                tensor.nbytes,
                math.prod(shape) if decision else 0,
                decision.reason if decision else "",
                shape,
            )
        )
    return found
