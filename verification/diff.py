"""What two models differ in: settings, tokenizer, metadata, and each tensor's place and values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from halfbyte.ir.model import Model
from halfbyte.ir.roles import WeightKey
from halfbyte.ir.tensor import Tensor
from halfbyte.ir.tokenizer import Tokenizer
from halfbyte.verification.inspection import shorten

ABSENT = "absent"
_NOT_COMPARED = frozenset({"source", "warnings"})  # of a tokenizer record: files, not facts


@dataclass(frozen=True)
class EntryDifference:
    """One setting or metadata key; a value that is not there is `absent`."""

    section: str
    key: str
    first: str
    second: str


@dataclass(frozen=True)
class TensorDifference:
    """One tensor that is not the same in both.

    kind: `missing`, `shape`, `encoding` (stored otherwise, values compared) or `values`.
    shape: of the first, or of the one that is there. first, second: encodings, with the shape where
    shapes differ, or `absent`.
    blocks, differing_blocks: of the encoding, where both have the same one.
    max_abs_error: largest |second - first|, infinite if one is NaN. relative_error: root mean
    square of the difference over that of the first; NaN where values were not compared.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    first: str
    second: str
    blocks: int = 0
    differing_blocks: int = 0
    max_abs_error: float = math.nan
    relative_error: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """All differences of two models. identical: none was found."""

    first: str
    second: str
    entries: list[EntryDifference] = field(default_factory=list)
    tensors: list[TensorDifference] = field(default_factory=list)
    same_tensors: int = 0

    @property
    def identical(self) -> bool:
        """Whether nothing differs."""
        return not self.entries and not self.tensors

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        return {
            "first": self.first,
            "second": self.second,
            "identical": self.identical,
            "entries": [dataclasses.asdict(entry) for entry in self.entries],
            "tensors": [dataclasses.asdict(tensor) for tensor in self.tensors],
            "same_tensors": self.same_tensors,
        }


def compare(
    first: Model,
    second: Model,
    metadata: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Return what differs between two models whose rows are in the same rotary order.

    metadata: key-value data of both containers, to be compared as it stands. `progress` is called
    with the bytes of each tensor of the first model that was compared.
    """
    generations = first.generation_config, second.generation_config
    if first.provenance.format != second.provenance.format:
        common = generations[0].keys() & generations[1].keys()
        said, heard = generations
        generations = {k: said[k] for k in common}, {k: heard[k] for k in common}
    entries = [
        *_entries("config", first.config, second.config),
        *_entries("generation", *generations),
        *_tokenizer_entries(first.tokenizer, second.tokenizer),
        *_entries("metadata", *metadata),
    ]
    tensors: list[TensorDifference] = []
    same = 0
    for name, one, other in _pairs(first, second):
        found = _tensor_difference(name, one, other)
        same += found is None
        if found is not None:
            tensors.append(found)
        if progress is not None and one is not None:
            progress(one.nbytes)
    sources = first.provenance.source, second.provenance.source
    return Comparison(*sources, entries, tensors, same)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    same: bool = one == other
    return same


def _entries(
    section: str, first: Mapping[str, Any], second: Mapping[str, Any]
) -> Iterator[EntryDifference]:
    for key in sorted({*first, *second}):
        one, other = first.get(key, ABSENT), second.get(key, ABSENT)
        if key in first and key in second and _equal(one, other):
            continue
        yield EntryDifference(section, key, *_described(one, other))


def _items(value: Any) -> Any:
    """Return a long value as a sequence, or None for one that is shown whole."""
    inner = getattr(value, "value", value)
    return inner if isinstance(inner, (list, tuple, np.ndarray)) else None


def _described(one: Any, other: Any) -> tuple[str, str]:
    """Return both values in short words; sequences by length and first difference."""
    first, second = _items(one), _items(other)
    if first is None or second is None:
        return _short(one), _short(other)
    differing = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    at = next(differing, min(len(first), len(second)))
    return _at(first, at), _at(second, at)


def _at(items: Any, index: int) -> str:
    if index >= len(items):
        return f"{len(items)} entries"
    return f"{len(items)} entries, [{index}] = {shorten(repr(_plain(items[index])))}"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _short(value: Any) -> str:
    items = _items(value)
    if items is not None:
        return f"{len(items)} entries"
    kind = getattr(getattr(value, "type", None), "name", "")
    text = shorten(str(getattr(value, "value", value)))
    return f"{text} ({kind.lower()})" if kind else text


def _tokenizer_entries(
    first: Tokenizer | None, second: Tokenizer | None
) -> Iterator[EntryDifference]:
    if first is None or second is None:
        if first is not second:
            words = [ABSENT if t is None else f"{t.kind}, {len(t)} tokens" for t in (first, second)]
            yield EntryDifference("tokenizer", "tokenizer", *words)
        return
    names = [f.name for f in dataclasses.fields(first) if f.name not in _NOT_COMPARED]
    pairs = [(name, getattr(first, name), getattr(second, name)) for name in names]
    said = [(name, one, other) for name, one, other in pairs if None not in (one, other)]
    yield from _entries(
        "tokenizer",
        {name: one for name, one, _ in said},
        {name: other for name, _, other in said},
    )


def _pairs(first: Model, second: Model) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
    """Yield tensors of both models that stand for the same weight, by role or else by name."""

    def identity(name: str, tensor: Tensor) -> WeightKey | str:
        return name if tensor.key is None else tensor.key

    others = {identity(name, tensor): name for name, tensor in second.weights.items()}
    for name, tensor in first.weights.items():
        partner = others.pop(identity(name, tensor), None)
        yield name, tensor, None if partner is None else second.weights[partner]
    for name in others.values():
        yield name, None, second.weights[name]


def _placed(one: Tensor | None, other: Tensor | None) -> tuple[tuple[int, ...], str, str]:
    """Return the shape to show, and what to say of each."""
    shapes = [() if tensor is None else tensor.shape for tensor in (one, other)]
    alike = shapes[0] == shapes[1]
    words = [
        ABSENT
        if tensor is None
        else f"{tensor.encoding}{'' if alike else ' ' + 'x'.join(map(str, tensor.shape))}"
        for tensor in (one, other)
    ]
    return shapes[0] if one is not None else shapes[1], words[0], words[1]


def _tensor_difference(
    name: str, one: Tensor | None, other: Tensor | None
) -> TensorDifference | None:
    words = _placed(one, other)
    if one is None or other is None:
        return TensorDifference(name, "missing", *words)
    if one.size != other.size or one.shape[-1:] != other.shape[-1:]:
        return TensorDifference(name, "shape", *words)
    stored_alike = one.encoding == other.encoding
    errors = _Errors()
    blocks = differing = 0
    for start, stop in one.row_ranges():
        if stored_alike:
            count, unequal = _block_counts(one, other, start, stop)
            blocks, differing = blocks + count, differing + unequal
            if not unequal:
                continue
        if one.encoding.can_decode and other.encoding.can_decode:
            errors.add(one.float32(start, stop), other.float32(start, stop))
    if stored_alike and not differing and one.shape == other.shape:
        return None
    kind = "shape" if one.shape != other.shape else "values" if stored_alike else "encoding"
    relative = errors.relative(one) if errors.counted or stored_alike else math.nan
    largest = errors.largest if errors.counted else math.nan
    return TensorDifference(name, kind, *words, blocks, differing, largest, relative)


def _block_counts(one: Tensor, other: Tensor, start: int, stop: int) -> tuple[int, int]:
    """Return the blocks (or values) of rows [start, stop) and how many of them differ."""
    per_row = max(1, one.columns // max(1, one.encoding.block_shape[1]))
    differing = np.zeros((stop - start, per_row), np.bool_)
    theirs = other.read(start, stop)
    for name, mine in one.read(start, stop).items():
        unequal = _bytes(mine) != _bytes(theirs[name])
        if unequal.shape[0] == stop - start and unequal.shape[1] % per_row == 0:
            differing |= unequal.reshape(stop - start, per_row, -1).any(axis=2)
        elif unequal.any():
            differing[:] = True
    return differing.size, int(np.count_nonzero(differing))


def _bytes(part: Any) -> Any:
    whole = np.ascontiguousarray(part)
    return whole.reshape(len(whole) if whole.ndim else 1, -1).view(np.uint8)


class _Errors:
    """Running sums over the rows that were compared."""

    def __init__(self) -> None:
        self.counted = False
        self.largest = 0.0
        self.difference = 0.0

    def add(self, first: Any, second: Any) -> None:
        """Add rows [rows, columns] float32 of both."""
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.abs(second.astype(np.float64) - first)
        same = (first == second) | (np.isnan(first) & np.isnan(second))
        gap[np.isnan(gap)] = np.inf
        gap[same] = 0
        self.counted = True
        self.largest = max(self.largest, float(gap.max(initial=0.0)))
        self.difference += float(np.square(gap).sum())

    def relative(self, first: Tensor) -> float:
        """Return the root of the squared differences over that of the first tensor's squares."""
        if not first.encoding.can_decode:
            return math.nan
        total = sum(
            float(np.square(first.float32(a, b).astype(np.float64)).sum())
            for a, b in first.row_ranges()
        )
        if self.difference == 0:
            return 0.0
        return math.sqrt(self.difference / total) if total else math.inf
