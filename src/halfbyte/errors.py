"""Error classes and the exit codes of the command line.

Every error a user can cause derives from `HalfbyteError` and reads
*where: what was found, what was required; what to do*.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_GATE = 3
EXIT_INTERRUPTED = 130


def and_others(names: Sequence[str]) -> str:
    """Return what follows the first of several names in a message: nothing, ` and 2 others`."""
    more = len(names) - 1
    return f" and {more} {'other' if more == 1 else 'others'}" if more > 0 else ""


class HalfbyteError(Exception):
    """Base of all errors that a user can cause or mend."""

    exit_code = EXIT_ERROR


class FormatError(HalfbyteError):
    """A file breaks a rule of its format."""

    def __init__(self, path: str | os.PathLike[str], rule: str, offset: int | None = None) -> None:
        """Name the file, the byte offset where known, and the broken rule."""
        self.path = os.fspath(path)
        self.offset = offset
        self.rule = rule
        where = self.path if offset is None else f"{self.path} at byte {offset}"
        super().__init__(f"{where}: {rule}")


class UnsupportedError(HalfbyteError):
    """Something valid that this version does not handle."""

    def __init__(
        self, what: str, where: str, supported: list[str] | tuple[str, ...] = (), advice: str = ""
    ) -> None:
        """Name the unsupported thing, its place, at most five alternatives and what to do."""
        self.what = what
        self.where = where
        self.supported = list(supported)
        message = f"{where}: {what} is not supported"
        if self.supported:
            shown = ", ".join(self.supported[:5])
            more = len(self.supported) - 5
            message += f"; supported: {shown}" + (f" and {more} more" if more > 0 else "")
        if advice:
            message += f"; {advice}"
        super().__init__(message)


class GraphError(HalfbyteError):
    """A graph breaks a rule of the IR."""

    def __init__(self, node: str, rule: str) -> None:
        """Name the node (or value) and the broken rule."""
        self.node = node
        self.rule = rule
        super().__init__(f"graph node {node}: {rule}")


class QuantizationError(HalfbyteError):
    """A tensor cannot be encoded as asked."""

    def __init__(self, tensor: str, rule: str) -> None:
        """Name the tensor and why it cannot be encoded."""
        self.tensor = tensor
        self.rule = rule
        super().__init__(f"tensor {tensor!r}: {rule}")


class BackendError(HalfbyteError):
    """A device or an optional package is missing."""

    def __init__(self, missing: str, how_to_install: str) -> None:
        """Name what is missing and how to get it."""
        self.missing = missing
        self.how_to_install = how_to_install
        super().__init__(f"{missing}; {how_to_install}")


class GateError(HalfbyteError):
    """A measured figure is outside its limit."""

    exit_code = EXIT_GATE

    def __init__(self, metric: str, measured: float, limit: float) -> None:
        """Name the metric, the measured figure and the limit."""
        self.metric = metric
        self.measured = measured
        self.limit = limit
        super().__init__(f"gate {metric}: measured {measured:.6g}, limit {limit:.6g}")
