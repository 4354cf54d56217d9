"""The interface of a quantized checkpoint, and what a folder says about its quantization."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from halfbyte.converters.hugging_face.checkpoints.gathered import GatheredPart
from halfbyte.converters.hugging_face.safetensors_writer import ArraySpec, Job
from halfbyte.errors import FormatError
from halfbyte.ir.activation_scheme import ACTIVATIONS as ACTIVATIONS
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.profile import Profile
from halfbyte.ir.tensor import CHUNK_BYTES, Part, Tensor


@dataclass(frozen=True)
class Quantization:
    """What a folder says about its quantization.

    method: the quant_method. settings: the object that says it (`quantization_config` of
    config.json, or what a file of older tools holds), as it stands there. config: config.json.
    where: the file or folder that errors name. notes: warnings that the reader appends to. carried:
    what it puts into the model's metadata for a writer.
    """

    method: str
    settings: Mapping[str, Any]
    config: Mapping[str, Any]
    where: Path
    notes: list[str] = field(default_factory=list)
    carried: dict[str, Any] = field(default_factory=dict)

    def error(self, tensor: str, rule: str) -> FormatError:
        """Return the error of a tensor that breaks a rule: what was found, what was required."""
        return FormatError(self.where, f"tensor {tensor!r} {rule}")


@dataclass(frozen=True)
class StoredArray:
    """One array of the output: its full name, its data, its shape (that of the part if None)."""

    name: str
    part: Part
    shape: tuple[int, ...] | None = None

    @property
    def spec(self) -> ArraySpec:
        """Return name, dtype and shape for the header."""
        return ArraySpec(self.name, self.part.dtype, self.stored_shape)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Return the shape in the header."""
        return self.part.shape if self.shape is None else self.shape

    @property
    def nbytes(self) -> int:
        """Return the bytes of the array."""
        return self.spec.nbytes

    def jobs(self) -> Iterator[Job]:
        """Yield what computes the array, about CHUNK_BYTES of float32 at a time."""
        if isinstance(self.part, GatheredPart):
            for number in range(self.part.fills):
                yield partial(self._fill, self.part, number)
        shape = self.part.shape
        length = shape[0] if shape else 1
        columns = int(np.prod(shape[1:], dtype=np.int64)) if shape else 1
        step = max(1, CHUNK_BYTES // max(1, 4 * columns))
        for start in range(0, length, step):
            yield partial(self._read, start, min(start + step, length))

    def _read(self, start: int, stop: int) -> list[tuple[str, Array]]:
        return [(self.name, self.part.read(start, stop))]

    def _fill(self, part: GatheredPart, number: int) -> list[tuple[str, Array]]:
        part.fill(number)
        return []


@dataclass(frozen=True)
class Description:
    """What a folder says beside its tensors: keys for config.json, and further JSON files."""

    config: Mapping[str, Any]
    files: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """How the tensors of one output are stored.

    arrays: the arrays of one quantized tensor, whose name ends with `.weight`; the one with the
    codes comes first. Parts are read by ranges of their first axis; one that is filled by columns
    is a GatheredPart. further: arrays that belong to no weight.
    """

    description: Description
    arrays: Callable[[Tensor], list[StoredArray]]
    further: tuple[StoredArray, ...] = ()


class Checkpoint(Protocol):
    """Reads and writes the checkpoints of one quant_method. Nothing is loaded before it is read."""

    def read(self, tensors: Mapping[str, Tensor], found: Quantization) -> dict[str, Tensor]:
        """Return the stored tensors with every quantized weight P as one tensor `P.weight`.

        tensors: dense, as they lie in the files, by name. Others than those of quantized weights
        are returned as they are. An encoded weight is [out, in], whatever order is stored; names
        of architectures, row orders and stacks of experts come afterwards.

        Raises:
            FormatError: an array of a weight is missing, or does not fit the others.
            UnsupportedError: a variant is not read here.
        """

    def profile(self) -> Profile:
        """Return what such a checkpoint can hold."""

    def layout(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Layout:
        """Return how to store the tensors of an output, all of them, dense ones too.

        tensors: under their names in the output, experts one by one; config: that of the model,
        and ACTIVATIONS where the model's metadata has it.

        Raises:
            UnsupportedError: weights that servers fuse differ in their scheme, or nothing is
                quantized.
        """
