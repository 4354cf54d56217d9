"""What a calibration says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from halfbyte.quant.algorithms import CALIBRATED


@dataclass(frozen=True)
class WeightReport:
    """What became of one weight.

    error, rtn_error: mean square of the output's error, summed over rows, and that of plain
    rounding; None where no inputs are known. tokens: rows that its inputs were taken from. experts:
    tokens of each matrix of a stack. note: what was done otherwise than asked.
    """

    name: str
    encoding: str
    method: str
    error: float | None = None
    rtn_error: float | None = None
    tokens: int = 0
    note: str = ""
    experts: tuple[int, ...] = ()


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibration did.

    samples: sequences, or whatever stood along the first axis. largest: the largest |activation| by
    the name of each input.
    """

    method: str
    weights: tuple[WeightReport, ...]
    samples: int
    largest: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def least_tokens(self) -> int | None:
        """Return the rows that the expert with the fewest saw, None without experts."""
        return min((min(weight.experts) for weight in self.weights if weight.experts), default=None)

    @property
    def error_ratio(self) -> float | None:
        """Return the mean over the weights of error / rtn_error, None where none is known."""
        known = [w.error / w.rtn_error for w in self.weights if w.error is not None and w.rtn_error]
        return sum(known) / len(known) if known else None

    def __str__(self) -> str:
        """Return one line for a user."""
        ratio = self.error_ratio
        told = "" if ratio is None else f", output error {100 * ratio:.0f} % of plain rounding's"
        solved = sum(weight.error is not None for weight in self.weights)
        count = f"{self.samples} {'sample' if self.samples == 1 else 'samples'}"
        weights = f"{solved} {'weight' if solved == 1 else 'weights'}{told}"
        rounding = self.method.rpartition("+")[2]
        # A chain that rounds plainly measures no errors.
        return f"{self.method} on {count}" + (f": {weights}" if rounding in CALIBRATED else "")

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        return {
            "method": self.method,
            "samples": self.samples,
            "weights": [vars(weight) for weight in self.weights],
            "largest": self.largest,
            "warnings": list(self.warnings),
        }
