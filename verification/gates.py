"""Limits on measured figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from halfbyte.errors import HalfbyteError
from halfbyte.verification.metrics import METRICS


@dataclass(frozen=True)
class Gate:
    """One limit and what was measured against it."""

    metric: str
    limit: float
    measured: float

    @property
    def passed(self) -> bool:
        """Whether the figure keeps the limit; NaN never does."""
        if math.isnan(self.measured):
            return False
        if METRICS[self.metric][1] == "min":
            return self.measured >= self.limit
        return self.measured <= self.limit

    def to_json(self) -> dict[str, object]:
        """Return the machine-readable form."""
        return {
            "metric": self.metric,
            "limit": self.limit,
            "measured": self.measured,
            "passed": self.passed,
        }


def require_figures(limits: Mapping[str, float], *, of_outputs: bool) -> None:
    """Check before the work that each limit names a figure of this kind of model.

    Raises:
        HalfbyteError: one does not.
    """
    known = [
        name
        for name, (module, _) in METRICS.items()
        if module.endswith(".output_error") == of_outputs
    ]
    for metric in limits:
        if metric not in known:
            raise HalfbyteError(
                f"gate {metric}: this kind of model has no such figure; it has {', '.join(known)}"
            )


def judge(limits: Mapping[str, float], measured: Mapping[str, float]) -> list[Gate]:
    """Return one gate per limit."""
    return [Gate(metric, limit, measured[metric]) for metric, limit in limits.items()]
