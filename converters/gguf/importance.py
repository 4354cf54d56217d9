"""What an importance matrix is: sums of squared inputs by weight, and the means taken from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import FormatError

Importance = NDArray[np.float32]
DEFAULT_CHUNK_SIZE = 512


@dataclass(frozen=True, eq=False)
class ImportanceEntry:
    """Sums of one weight. sums: [matrices, columns] float32; counts: [matrices] int64."""

    sums: NDArray[np.float32]
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class ImportanceMatrix:
    """Sums by GGUF name of the weight, and where they come from.

    per_call: entries as the older file form holds them: one count, of chunks instead of tokens,
    and sums that are means times that count.
    """

    entries: Mapping[str, ImportanceEntry]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = DEFAULT_CHUNK_SIZE
    path: str = ""
    per_call: bool = field(default=False)

    @property
    def names(self) -> list[str]:
        """Return the weights' names in the order of their bytes."""
        return sorted(self.entries, key=lambda name: name.encode("utf-8", "surrogateescape"))

    def importance(self, name: str) -> Importance | None:
        """Return the importance of a weight's columns, None for a weight without an entry.

        [columns] float32, or [matrices, columns] where each matrix has its own count. A matrix that
        saw no token gets ones. These are llama-quantize's float32 divisions.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        counts = entry.counts.astype(np.float32)[:, None]
        seen = counts > 0
        means = np.asarray(entry.sums / np.where(seen, counts, np.float32(1)), np.float32)
        if not self.per_call:
            means[~seen[:, 0]] = 1
        return means[0] if len(means) == 1 else means

    def for_weight(self, name: str, shape: Sequence[int]) -> Importance | None:
        """Return the importance for a weight of this numpy shape, None without an entry.

        [columns], or [matrices, columns] for a stacked weight [matrices, rows, columns].

        Raises:
            FormatError: the entry has another length than the weight needs.
        """
        means = self.importance(name)
        if means is None:
            return None
        columns = int(shape[-1])
        matrices = int(np.prod(shape[:-2], dtype=np.int64))
        if means.size != matrices * columns:
            raise FormatError(
                self.path,
                f"weight {name!r} has {means.size} values, {matrices} x {columns} are required by "
                "its shape; collect the matrix on this model",
            )
        return means.reshape(-1) if len(shape) < 3 else means.reshape(matrices, columns)

    def raw(self, chunk_size: int | None = None) -> ImportanceMatrix:
        """Return the matrix with sums and counts of tokens; chunk_size: tokens per chunk."""
        if not self.per_call:
            return self
        size = chunk_size or self.chunk_size or DEFAULT_CHUNK_SIZE
        entries = {
            name: ImportanceEntry(entry.sums * np.float32(size), entry.counts * size)
            for name, entry in self.entries.items()
        }
        return replace(self, entries=entries, chunk_size=size, per_call=False)


def check_entry(path: str | PathLike[str], name: str, entry: ImportanceEntry) -> None:
    """Refuse sums that no collection gives.

    Raises:
        FormatError: a sum is negative, infinite or NaN.
    """
    least, most = float(entry.sums.min()), float(entry.sums.max())
    if not (least >= 0 and most < np.inf):
        bad = entry.sums[~((entry.sums >= 0) & (entry.sums < np.inf))][0]
        raise FormatError(
            path,
            f"weight {name!r} has the sum {bad}, finite sums of squares are required; collect the "
            "matrix anew",
        )
