"""Statistics in a file: gathered once on the float model, used for any type and method.

The file is an .npz archive of plain arrays and `index.json`. Matrices are symmetric, so that their
upper triangle is kept, in float32. Weights that read one value share an entry.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import FormatError, HalfbyteError
from halfbyte.files import atomic_file
from halfbyte.ir.model import Model
from halfbyte.quant.calibration.statistics import InputStatistics, WeightStatistics, pooled

KIND = "halfbyte statistics"
INDEX = "index.json"
SAMPLE_ROWS = 1
VECTORS = ("squares", "absolute", "low", "high")


def fingerprint(model: Model) -> str:
    """Return a hash of the weights' names, shapes and first rows."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.weights.items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.encoding}".encode())
        if tensor.encoding.can_decode and tensor.rows and tensor.encoding.block_shape[0] == 1:
            for part in tensor.read(0, SAMPLE_ROWS).values():
                digest.update(np.ascontiguousarray(part).reshape(-1)[:1024].tobytes())
    return digest.hexdigest()


class StatisticsWriter:
    """Writes entries one after the other, so that only one is in memory."""

    def __init__(self, archive: zipfile.ZipFile, model_hash: str, facts: Mapping[str, Any]) -> None:
        """Write into an open archive."""
        self._archive = archive
        self._entries: list[dict[str, Any]] = []
        self._head = {"kind": KIND, "model": model_hash, "facts": dict(facts)}

    def add(
        self,
        weights: Sequence[str],
        statistics: WeightStatistics,
        shared: InputStatistics | None = None,
    ) -> None:
        """Add what weights met; shared: of experts that read the same rows, of all of these."""
        number = len(self._entries)
        matrices = statistics if isinstance(statistics, list) else [statistics]
        counts = [0 if held is None else held.count for held in matrices]
        entry = {
            "weights": list(weights),
            "experts": isinstance(statistics, list),
            "counts": counts,
            "shared": None if shared is None else shared.count,
        }
        self._entries.append(entry)
        for place, held in enumerate(matrices):
            if held is not None:
                self._write(f"{number}/{place}", held)
        if shared is not None:
            self._write(f"{number}/shared", shared)

    def _write(self, stem: str, held: InputStatistics) -> None:
        for name in VECTORS:
            self._array(f"{stem}/{name}", getattr(held, name))
        if held.hessian is not None:
            upper = np.triu_indices(held.columns)
            self._array(f"{stem}/hessian", held.hessian[upper].astype(np.float32))

    def _array(self, name: str, array: NDArray[Any]) -> None:
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)

    def finish(self) -> None:
        """Write the index."""
        document = {**self._head, "entries": self._entries}
        self._archive.writestr(INDEX, json.dumps(document))


@contextmanager
def statistics_file(
    path: Path, model: Model, facts: Mapping[str, Any]
) -> Iterator[StatisticsWriter]:
    """Yield a writer for a file that appears under its name when the block ends.

    facts: what is told of the calibration: samples, dataset and so on.
    """
    with atomic_file(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        writer = StatisticsWriter(archive, fingerprint(model), facts)
        yield writer
        writer.finish()


class SavedStatistics:
    """The statistics in a file, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Read the index.

        Raises:
            FormatError: the file is none of ours.
        """
        self.path = path
        if not path.is_file():
            raise HalfbyteError(f"{path}: no such file; give a file that --save-stats wrote")
        try:
            self._archive = zipfile.ZipFile(path)
            document = json.loads(self._archive.read(INDEX))
            if document["kind"] != KIND:
                raise KeyError(KIND)
            self.model = str(document["model"])
            self.facts: dict[str, Any] = dict(document["facts"])
            self._entries: list[dict[str, Any]] = list(document["entries"])
            self._places = {
                name: number for number, e in enumerate(self._entries) for name in e["weights"]
            }
        except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
            rule = "holds no statistics; give a file that --save-stats wrote"
            raise FormatError(path, rule) from error

    @property
    def weights(self) -> list[str]:
        """Return the names of the weights."""
        return list(self._places)

    @property
    def samples(self) -> int:
        """Return how many samples the statistics are of, with those that were made up."""
        made = (self.facts.get("own_text") or {}).get("sequences", 0)
        return int(self.facts.get("samples", 0)) + int(self.facts.get("random", 0)) + int(made)

    def require_model(self, model: Model) -> None:
        """Check that the statistics are of this model.

        Raises:
            HalfbyteError: they are not.
        """
        if fingerprint(model) != self.model:
            raise HalfbyteError(
                f"{self.path}: holds statistics of another model, those of "
                f"{model.provenance.source or 'this one'} are required; gather them anew"
            )

    def is_stack(self, weight: str) -> bool:
        """Whether a weight is a stack of experts."""
        return bool(self._entry(weight)["experts"])

    def has_shared(self, weight: str) -> bool:
        """Whether the experts of a stack read the same rows."""
        return self._entry(weight)["shared"] is not None

    def counts(self, weight: str) -> list[int]:
        """Return the rows that each matrix of a weight met."""
        return [int(count) for count in self._entry(weight)["counts"]]

    def get(self, weight: str, matrix: int = 0, *, hessian: bool = True) -> InputStatistics | None:
        """Return the statistics of one matrix of a weight, None where no row came."""
        count = self.counts(weight)[matrix]
        return self._read(f"{self._places[weight]}/{matrix}", count, hessian) if count else None

    def shared(self, weight: str) -> InputStatistics:
        """Return the statistics of all rows, whichever expert they went to."""
        entry = self._entry(weight)
        if entry["shared"] is not None:
            return self._read(f"{self._places[weight]}/shared", int(entry["shared"]))
        held = (self.get(weight, number) for number in range(len(entry["counts"])))
        found = pooled([one for one in held if one is not None])
        if found is None:
            raise HalfbyteError(f"{self.path}: holds no row for {weight!r}; gather on more data")
        return found

    def importance(self, weight: str) -> NDArray[np.float32] | None:
        """Return mean squares [columns] or [experts, columns] as an importance matrix has them.

        Experts without a row get ones. None where the weight is not known.
        """
        if weight not in self._places:
            return None
        rows = []
        for number in range(len(self.counts(weight))):
            held = self.get(weight, number, hessian=False)
            rows.append(None if held is None else held.importance)
        width = next((len(row) for row in rows if row is not None), 0)
        whole = np.stack([np.ones(width, np.float32) if row is None else row for row in rows])
        return whole if self.is_stack(weight) else whole[0]

    def _entry(self, weight: str) -> dict[str, Any]:
        return self._entries[self._places[weight]]

    def _read(self, stem: str, count: int, hessian: bool = True) -> InputStatistics:
        vectors = {name: self._array(f"{stem}/{name}") for name in VECTORS}
        columns = len(vectors["squares"])
        matrix = None
        if hessian and f"{stem}/hessian.npy" in self._archive.namelist():
            matrix = np.zeros((columns, columns), np.float64)
            upper = np.triu_indices(columns)
            matrix[upper] = self._array(f"{stem}/hessian")
            matrix.T[upper] = matrix[upper]
        return InputStatistics(matrix, None, **vectors, count=count)

    def _array(self, name: str) -> NDArray[Any]:
        try:
            with self._archive.open(f"{name}.npy") as stream:
                return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
        except (KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise FormatError(self.path, f"entry {name!r} is damaged; gather anew") from error
