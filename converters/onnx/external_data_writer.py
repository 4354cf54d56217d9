"""Where the bytes of constants lie in a file, and how they get there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

from halfbyte.converters.format import Progress
from halfbyte.converters.onnx.initializers import Initializer, Job, Piece
from halfbyte.engine import ordered_map

ALIGNMENT = 4096


@dataclass
class Layout:
    """Offsets by name, and which constants bring bytes of their own."""

    offsets: dict[str, int] = field(default_factory=dict)
    stored: list[Initializer] = field(default_factory=list)
    nbytes: int = 0


def external_layout(initializers: Iterable[Initializer]) -> Layout:
    """Return aligned offsets in one data file; constants with the same bytes share them."""
    layout = Layout()
    places: dict[object, int] = {}
    for initializer in initializers:
        identity = initializer.identity
        if identity not in places:
            start = layout.nbytes + -layout.nbytes % ALIGNMENT
            places[identity] = start
            layout.stored.append(initializer)
            layout.nbytes = start + initializer.nbytes
        layout.offsets[initializer.name] = places[identity]
    return layout


def write_constants(
    stream: IO[bytes],
    places: Sequence[tuple[Initializer, int]],
    threads: int,
    progress: Progress | None,
) -> None:
    """Write each constant at its offset; `progress` is called with the bytes of each piece."""
    stream.flush()
    for offset, piece in ordered_map(_run, _jobs(places), threads):
        for index, row in enumerate(piece.raw):
            _write_at(stream, offset + piece.offset + index * piece.stride, memoryview(row))
        if progress is not None:
            progress(piece.raw.size)


def _write_at(stream: IO[bytes], offset: int, raw: memoryview) -> None:
    """Write bytes at an offset in one call of the system, which strips of many rows need."""
    if not hasattr(os, "pwrite"):  # pragma: no cover
        stream.seek(offset)
        stream.write(raw)
        return
    while raw:
        written = os.pwrite(stream.fileno(), raw, offset)
        raw, offset = raw[written:], offset + written


def _jobs(places: Sequence[tuple[Initializer, int]]) -> Iterator[tuple[int, Job]]:
    for initializer, offset in places:
        for job in initializer.jobs():
            yield offset, job


def _run(placed: tuple[int, Job]) -> tuple[int, Piece]:
    offset, job = placed
    return offset, job()
