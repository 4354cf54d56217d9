"""Finished weights in files of a folder, until a writer streams them from there.

A weight's record is written after its parts: what has a record is whole, so a run that was stopped
finds in the folder what it need not do again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from halfbyte.engine import ordered_map
from halfbyte.errors import QuantizationError
from halfbyte.files import atomic_file
from halfbyte.ir.encodings.encoding import Array, Encoding
from halfbyte.ir.tensor import FilePart, Part, Tensor

Record = dict[str, Any]


class Spool:
    """A folder of weights by name."""

    def __init__(self, folder: Path) -> None:
        """Use a folder that is there."""
        self.folder = folder

    def stem(self, name: str) -> Path:
        """Return the path, without ending, of a weight's files."""
        return self.folder / hashlib.sha256(name.encode()).hexdigest()[:24]

    def finished(self, tensor: Tensor, encoding: Encoding) -> tuple[Tensor, Record] | None:
        """Return a weight and its record, None if it is not there in this encoding."""
        path = self.stem(tensor.name).with_suffix(".json")
        if not path.is_file():
            return None
        held = json.loads(path.read_text(encoding="utf-8"))
        wanted = [tensor.name, encoding.name, list(tensor.shape)]
        if [held.get("name"), held.get("encoding"), held.get("shape")] != wanted:
            return None
        found = self._tensor(tensor, encoding)
        return None if found is None else (found, held["record"])

    def _tensor(self, tensor: Tensor, encoding: Encoding) -> Tensor | None:
        parts: dict[str, Part] = {}
        for part, spec in encoding.part_specs(tensor.rows, tensor.columns).items():
            path = self.stem(tensor.name).with_suffix(f".{part}")
            if not path.is_file() or path.stat().st_size != spec.nbytes:
                return None
            parts[part] = FilePart(path, 0, spec.dtype, spec.shape)
        return replace(tensor, encoding=encoding, parts=parts)

    def kept(
        self,
        wanted: Mapping[str, tuple[Tensor, Encoding]],
        rounded: Callable[[str], Tensor],
        threads: int = 1,
        advance: Callable[[int], None] | None = None,
    ) -> dict[str, Tensor]:
        """Return weights over files, those that an earlier run finished and the others.

        wanted: what to round to what, by any names. rounded: the weight of that name in its new
        encoding, computed while it is read. advance: takes weights done.
        """
        found: dict[str, Tensor] = {}
        missing: dict[str, Tensor] = {}
        for name, (tensor, encoding) in wanted.items():
            held = self.finished(tensor, encoding)
            if held is None:
                missing[name] = rounded(name)
            else:
                found[name] = held[0]
        if advance is not None:
            advance(len(found))
        made = self._keep(list(missing.values()), threads)
        for name, tensor in zip(missing, made, strict=True):
            found[name] = tensor
            if advance is not None:
                advance(1)
        return found

    def _keep(self, tensors: Sequence[Tensor], threads: int = 1) -> Iterator[Tensor]:
        """Yield the same weights, parts computed once and kept in files; in order.

        Threads that have nothing left to do for one weight begin with the next.
        """
        tasks = ((tensor, span) for tensor in tensors for span in tensor.row_ranges())
        made = ordered_map(lambda task: task[0].read(*task[1]), tasks, threads)
        with closing(cast("Generator[dict[str, Array]]", made)):
            for tensor in tensors:
                with self.writer(tensor, tensor.encoding) as writer:
                    for _ in tensor.row_ranges():
                        writer.add(next(made))
                    yield writer.finish({})

    def writer(self, tensor: Tensor, encoding: Encoding) -> SpoolWriter:
        """Return what takes a weight's parts, ranges of rows in order."""
        return SpoolWriter(self, tensor, encoding)


class SpoolWriter:
    """Takes the encoded rows of one weight."""

    def __init__(self, spool: Spool, tensor: Tensor, encoding: Encoding) -> None:
        """Prepare files for the parts of `tensor` in `encoding`."""
        self._spool = spool
        self._tensor = tensor
        self._encoding = encoding
        self._specs = encoding.part_specs(tensor.rows, tensor.columns)
        self._streams: dict[str, IO[bytes]] = {}
        self._shared: dict[str, Array] = {}
        self._stack = ExitStack()

    def __enter__(self) -> SpoolWriter:
        """Open the files; what an earlier run left there goes."""
        stem = self._spool.stem(self._tensor.name)
        stem.with_suffix(".json").unlink(missing_ok=True)
        for part in self._specs:
            stream = stem.with_suffix(f".{part}").open("wb")
            self._streams[part] = self._stack.enter_context(stream)
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._stack.close()

    def add(self, parts: Mapping[str, Array]) -> None:
        """Take the next rows.

        Raises:
            QuantizationError: parts that all rows share are not the same for all.
        """
        for name, spec in self._specs.items():
            array = np.ascontiguousarray(parts[name], spec.dtype)
            if not spec.per_row:
                if name in self._shared:
                    if not np.array_equal(self._shared[name], array):
                        rule = f"{self._encoding} holds one {name} for all rows, several were made"
                        raise QuantizationError(self._tensor.name, rule)
                    continue
                self._shared[name] = array
            self._streams[name].write(array.reshape(-1).view(np.uint8).data)

    def finish(self, record: Record) -> Tensor:
        """Return the weight over its files; `record` stays beside them."""
        for stream in self._streams.values():
            stream.flush()
            os.fsync(stream.fileno())
        held = {
            "name": self._tensor.name,
            "encoding": self._encoding.name,
            "shape": list(self._tensor.shape),
            "record": record,
        }
        with atomic_file(self._spool.stem(self._tensor.name).with_suffix(".json")) as stream:
            stream.write(json.dumps(held).encode())
        found = self._spool._tensor(self._tensor, self._encoding)
        if found is None:
            raise QuantizationError(self._tensor.name, "rows are missing; this is a fault")
        return found
