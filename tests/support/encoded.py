"""Tensors of every encoding, made from the same values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.tensor import ArrayPart, Part, Tensor, tensor_from_array
from halfbyte.quant.algorithms.rtn import requantize


def normal_rows(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def dense_tensor(rows: int = 24, columns: int = 128, seed: int = 0, name: str = "w") -> Tensor:
    return tensor_from_array(name, normal_rows(rows, columns, seed))


def importance_for(encoding: Encoding, columns: int) -> np.ndarray | None:
    """Return equal importance for encodings that cannot do without, else None."""
    return np.ones(columns, np.float32) if encoding.needs_importance else None


def held(tensor: Tensor) -> Tensor:
    """Return the tensor with all its parts in memory."""
    parts: dict[str, Part] = {
        name: ArrayPart(np.array(part.read())) for name, part in tensor.parts.items()
    }
    return Tensor(
        tensor.name, tensor.shape, tensor.encoding, parts, tensor.role, tensor.layer, tensor.kind
    )


def encoded(encoding: Encoding | str, rows: int = 24, columns: int = 128, seed: int = 0) -> Tensor:
    """Return random weights in an encoding; dense integers get small whole numbers."""
    wanted = encoding_from_name(encoding) if isinstance(encoding, str) else encoding
    tensor = dense_tensor(rows, columns, seed)
    if not wanted.is_quantized and not getattr(wanted, "is_float", True):
        whole = np.random.default_rng(seed).integers(0, 2, (rows, columns))
        tensor = tensor_from_array("w", whole.astype(np.float32))
    return held(requantize(tensor, wanted, importance_for(wanted, columns)))


def bits(parts: Mapping[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return what the arrays hold, comparable bit for bit."""
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in sorted(parts.items())}


def read_in_ranges(tensor: Tensor, *cuts: int) -> dict[str, np.ndarray]:
    """Return the parts of a tensor read in the row ranges between `cuts`."""
    specs = tensor.encoding.part_specs(tensor.rows, tensor.columns)
    edges = [0, *cuts, tensor.rows]
    pieces = [tensor.read(a, b) for a, b in itertools.pairwise(edges)]
    return {
        name: np.concatenate([piece[name] for piece in pieces]) if spec.per_row else pieces[0][name]
        for name, spec in specs.items()
    }
