"""An importance file on its way into a conversion: read, matched to weights, told in the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from halfbyte.converters.gguf.importance import ImportanceMatrix
    from halfbyte.ir.tensor import Tensor
    from halfbyte.quant.plan import Plan

KEY_BYTES = 127  # llama-quantize keeps no more of a text

ByWeight = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Importance:
    """What was given as `--imatrix`, if anything."""

    path: str = ""
    matrix: ImportanceMatrix | None = None

    @classmethod
    def read(cls, path: str) -> Importance:
        """Read the file at `path`; an empty path means that none was given.

        Raises:
            FormatError: the file breaks a rule of its form.
        """
        if not path:
            return cls()
        from halfbyte.converters.gguf.imatrix import read_importance

        return cls(path, read_importance(path))

    @property
    def is_given(self) -> bool:
        """Whether there is a matrix."""
        return self.matrix is not None

    def matched(
        self, plan: Plan, name_of: Callable[[Tensor], str]
    ) -> tuple[ByWeight, tuple[str, ...]]:
        """Return importance for the weights that the plan encodes anew, and notices.

        Raises:
            QuantizationError: an entry does not fit its weight.
        """
        from halfbyte.quant.importance import planned_importance

        if self.matrix is None:
            return {}, ()
        found, notices = planned_importance(plan, self.matrix, name_of)
        return found, tuple(notices)

    def require(self, plan: Plan, by_weight: Mapping[str, NDArray[np.float32]]) -> None:
        """Check that the weights which need importance have it.

        Raises:
            QuantizationError: one has not.
        """
        from halfbyte.quant.importance import require_importance

        require_importance(plan, by_weight, self.path)

    def keys(self) -> dict[str, Any]:
        """Return the keys by which llama-quantize says what importance a file was made with."""
        if self.matrix is None:
            return {}
        found: dict[str, Any] = {"quantize.imatrix.file": _cut(self.path)}
        if self.matrix.datasets:
            found["quantize.imatrix.dataset"] = _cut(self.matrix.datasets[0])
        found["quantize.imatrix.entries_count"] = np.uint32(len(self.matrix.entries))
        if self.matrix.chunk_count > 0:
            found["quantize.imatrix.chunks_count"] = np.uint32(self.matrix.chunk_count)
        return found


def _cut(text: str) -> str:
    return text.encode("utf-8", "surrogateescape")[:KEY_BYTES].decode("utf-8", "surrogateescape")
