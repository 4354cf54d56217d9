"""Values between pieces, for each run: in memory up to a limit, in files past it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Key = tuple[str, int]
SMALLEST_SPILLED = 1 << 12  # bytes; smaller values stay in memory


@dataclass(frozen=True)
class _Spilled:
    """Where an array lies in the file of its value."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def read(self) -> Array:
        """Return the array, mapped: its pages are the system's to keep or to drop."""
        mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        return mapped.view(np.ndarray)


@dataclass(eq=False)
class ActivationStore:
    """Values by name and number of the run. Use as a context manager: files go at its end.

    limit_bytes: of arrays held in memory. folder: where the folder of files is made; None takes the
    system's.
    """

    limit_bytes: int
    folder: Path | None = None
    held_bytes: int = 0
    spilled_bytes: int = 0
    _held: dict[Key, Any] = field(default_factory=dict)
    _runs: dict[str, list[int]] = field(default_factory=dict)
    _made: tempfile.TemporaryDirectory[str] | None = None
    _files: dict[str, Path] = field(default_factory=dict)
    _count: int = 0

    def __enter__(self) -> ActivationStore:
        """Start empty."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the files."""
        self._held.clear()
        if self._made is not None:
            self._made.cleanup()
            self._made = None

    def put(self, name: str, run: int, value: Any) -> None:
        """Keep a value of a run; an array must not be changed afterwards."""
        self._drop_run(name, run)
        self._runs.setdefault(name, []).append(run)
        nbytes = value.nbytes if isinstance(value, np.ndarray) else 0
        fits = self.held_bytes + nbytes <= self.limit_bytes
        if fits or nbytes < SMALLEST_SPILLED or not _is_plain(value):
            self._held[name, run] = value
            self.held_bytes += nbytes
            return
        path = self._file(name)
        array = np.ascontiguousarray(value)
        with path.open("ab") as stream:
            offset = stream.tell()
            stream.write(array.data.cast("B"))
        self.spilled_bytes += nbytes
        self._held[name, run] = _Spilled(path, offset, array.dtype, array.shape)

    def get(self, name: str, run: int) -> Any:
        """Return a value; do not change it."""
        held = self._held[name, run]
        return held.read() if isinstance(held, _Spilled) else held

    def has(self, name: str) -> bool:
        """Whether a value of this name is kept."""
        return name in self._runs

    def free(self, name: str) -> None:
        """Forget a value of all runs, and its file."""
        for run in list(self._runs.pop(name, [])):
            self._forget(name, run)
        path = self._files.pop(name, None)
        if path is not None:
            path.unlink(missing_ok=True)

    def free_run(self, name: str, run: int) -> None:
        """Forget the value of one run."""
        self._drop_run(name, run)

    def _drop_run(self, name: str, run: int) -> None:
        if (name, run) in self._held:
            self._runs[name].remove(run)
            self._forget(name, run)

    def _forget(self, name: str, run: int) -> None:
        held = self._held.pop((name, run))
        if isinstance(held, np.ndarray):
            self.held_bytes -= held.nbytes

    def _file(self, name: str) -> Path:
        if self._made is None:
            self._made = tempfile.TemporaryDirectory(prefix=".activations-", dir=self.folder)
        if name not in self._files:
            self._files[name] = Path(self._made.name) / f"{self._count}.bin"
            self._count += 1
        return self._files[name]


def _is_plain(value: Any) -> bool:
    """Whether a value is an array of numbers that a file can hold as it lies in memory."""
    return isinstance(value, np.ndarray) and not value.dtype.hasobject and value.ndim > 0
