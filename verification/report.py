"""What a verification measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from halfbyte.errors import GateError
from halfbyte.verification.gates import Gate


@dataclass(frozen=True)
class VerifyReport:
    """Figures of a candidate against a reference.

    `figures` holds a language model's figures, `outputs` those of any other model, one entry per
    output; `gates` the limits asked for; `notes` what the figures leave out.
    """

    reference: str
    candidate: str
    figures: dict[str, float] = field(default_factory=dict)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return all(gate.passed for gate in self.gates)

    def raise_if_failed(self) -> None:
        """Raise for the first gate that failed.

        Raises:
            GateError: a measured figure is outside its limit.
        """
        for gate in self.gates:
            if not gate.passed:
                raise GateError(gate.metric, gate.measured, gate.limit)

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        body: dict[str, Any] = {"reference": self.reference, "candidate": self.candidate}
        if self.outputs:
            body["outputs"] = self.outputs
        else:
            body.update(self.figures)
        body["seconds"] = self.seconds
        if self.notes:
            body["notes"] = list(self.notes)
        body["gates"] = [gate.to_json() for gate in self.gates]
        body["passed"] = self.passed
        return body
