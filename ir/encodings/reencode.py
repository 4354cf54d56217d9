"""Weights of one encoding into another, through values: fused where the compiled kernels can."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.encodings.encoding import Array, Encoding, Parts
from halfbyte.ir.encodings.kernel_choice import cpu_kernel


def reencoded(
    source: Encoding,
    parts: Parts,
    columns: int,
    target: Encoding,
    importance: NDArray[np.float32] | None = None,
    compat: bool = False,
) -> dict[str, Array]:
    """Return target.encode(source.decode(parts)); compat goes to encodings that know it.

    Raises:
        QuantizationError: as `encode`.
    """
    options = {"compat": True} if compat and _has_compat(type(target)) else {}
    data = _fused(source, parts, columns, target, importance, bool(options))
    if data is not None:
        return {"data": data}
    values = np.asarray(source.decode(parts, columns))
    if not isinstance(target, Dense):
        values = values.astype(np.float32, copy=False)
    return target.encode(values, importance, **options)


@functools.cache
def _has_compat(encoding: type[Encoding]) -> bool:
    return "compat" in inspect.signature(encoding.encode).parameters


def _fused(
    source: Encoding,
    parts: Parts,
    columns: int,
    target: Encoding,
    importance: NDArray[np.float32] | None,
    compat: bool,
) -> Array | None:
    """Return the blocks, or None where the kernels cannot or a value is NaN or too large."""
    check: Any = getattr(target, "require_finite_scales", None)
    can = cpu_kernel("decode", source.name) and cpu_kernel("encode", target.name)
    refuses = target.needs_importance and importance is None
    if check is None or not can or refuses or parts.keys() != {"data"}:
        return None
    if not parts["data"].size:
        return None
    from halfbyte.kernels.cpu import LinearWeight
    from halfbyte.kernels.cpu_encode import reencode

    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    rows = np.ascontiguousarray(parts["data"])
    weight = LinearWeight(source.name, rows, len(rows), columns)
    blocks = reencode(target.name, weight, weights, compat)
    if blocks is not None:
        check(blocks)
    return blocks
