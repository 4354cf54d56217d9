"""Plain numbers: one element of a numpy (or ml_dtypes) type per weight.

Part "data": [rows, columns] of the dtype.

Encoding rounds to nearest, ties to even. NaN and infinities pass between floating types that have
them; a finite weight that would become one of them, or an infinity where the type has none
(float8_e4m3fn), is an error, never clipped. Integer types take whole finite numbers after rounding,
inside their range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir import dtypes as graph_dtypes
from halfbyte.ir.dtypes import numpy_dtype
from halfbyte.ir.encodings.encoding import Array, Encoding, Parts, PartSpec, Scales, Unpacked
from halfbyte.ir.encodings.grid import UNNAMED
from halfbyte.ir.encodings.kernel_choice import cpu_kernel

# ml_dtypes.finfo knows numpy's types as well; it has no annotations.
float_limits: Any = ml_dtypes.finfo

FLOATS: dict[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
INTEGERS: dict[str, np.dtype[Any]] = {
    f"{kind}{bits}": np.dtype(f"{kind}{bits}")
    for bits in (8, 16, 32, 64)
    for kind in ("int", "uint")
}
DTYPES: dict[str, np.dtype[Any]] = {**FLOATS, **INTEGERS, "bool": np.dtype(np.bool_)}

# Constants of a graph may also have these; weights do not. Sub-byte values take one byte each.
GRAPH_ONLY: dict[str, np.dtype[Any]] = {
    name: numpy_dtype(name) for name in sorted(graph_dtypes.DTYPES - DTYPES.keys())
}
_SHORT = {
    name: name.replace("uint", "u").replace("int", "i") for name in sorted(graph_dtypes.INTEGERS)
}
_LONG = {short: name for name, short in _SHORT.items()}
GGUF_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}


@dataclass(frozen=True)
class Dense(Encoding):
    """Plain values of `dtype_name`: numpy's name, for example `float16`, `bfloat16`, `int8`."""

    dtype_name: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype_name not in DTYPES and self.dtype_name not in GRAPH_ONLY:
            raise UnsupportedError(f"dtype {self.dtype_name!r}", "dense encoding", list(DTYPES))

    @classmethod
    def from_name(cls, name: str) -> Dense | None:
        """Return the encoding for numpy's float names, `i8` ... `u64`, `bool` or GGUF's names."""
        dtype_name = GGUF_NAMES.get(name) or _LONG.get(name, name)
        known = (dtype_name in DTYPES or dtype_name in GRAPH_ONLY) and name not in _SHORT
        return cls(dtype_name) if known else None

    @classmethod
    def examples(cls) -> list[Encoding]:
        """Return one encoding for each dtype."""
        return [cls(name) for name in DTYPES]

    @property
    def name(self) -> str:
        """Return numpy's name for floats and bool, `i8` ... `u64` for integers."""
        return _SHORT.get(self.dtype_name, self.dtype_name)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the element type."""
        return DTYPES.get(self.dtype_name) or GRAPH_ONLY[self.dtype_name]

    @property
    def is_float(self) -> bool:
        """Whether the values are floating point."""
        return self.dtype_name in FLOATS

    @property
    def bits_per_weight(self) -> float:
        """Return 8 x the element's bytes."""
        return 8.0 * self.dtype.itemsize

    @property
    def block_shape(self) -> tuple[int, int]:
        """Return (1, 1): every value stands alone."""
        return 1, 1

    @property
    def is_quantized(self) -> bool:
        """Return False."""
        return False

    @property
    def error_bound(self) -> float:
        """Return half a unit in the last place; 0 for integers, which take whole numbers."""
        return float(float_limits(self.dtype).eps) / 2 if self.is_float else 0.0

    def part_specs(self, rows: int, columns: int) -> dict[str, PartSpec]:
        """Return the one part `data`."""
        return {"data": PartSpec(self.dtype, (rows, columns))}

    def _no_codes(self) -> NoReturn:
        raise UnsupportedError(f"codes of {self.name}", "dense encoding", advice="decode it")

    def unpack(self, parts: Parts, columns: int) -> Unpacked:
        """Raise: plain numbers have no codes."""
        self._no_codes()

    def pack(self, unpacked: Unpacked) -> dict[str, Array]:
        """Raise: plain numbers have no codes."""
        self._no_codes()

    def fit(
        self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> Scales:
        """Raise: plain numbers have no scales."""
        self._no_codes()

    def assign(self, rows: NDArray[np.float32], scales: Scales) -> NDArray[np.int32]:
        """Raise: plain numbers have no codes."""
        self._no_codes()

    def encode(
        self, rows: Array, importance: NDArray[np.float32] | None = None
    ) -> dict[str, Array]:
        """Return the part `data` for rows of any dtype; importance has no effect.

        Raises:
            QuantizationError: a weight lies outside the range of the dtype.
        """
        if rows.dtype == self.dtype:
            return {"data": rows}
        finite = self.require_range(rows)
        if self.is_float:
            kernel = cpu_kernel("encode", self.dtype_name)
            # NaN payloads differ between numpy and the kernel; all else is the same.
            if kernel is not None and finite and rows.dtype == np.float32:
                data = kernel(self.dtype_name, np.ascontiguousarray(rows))
                return {"data": data.view(self.dtype).reshape(rows.shape)}
            return {"data": _nearest(rows, self.dtype)}
        whole = rows if rows.dtype.kind in "iub" else np.rint(rows.astype(np.float64))
        return {"data": whole.astype(self.dtype)}

    def decode(self, parts: Parts, columns: int) -> Array:
        """Return the stored values, without a copy."""
        return np.asarray(parts["data"])

    def require_range(self, rows: Array) -> bool:
        """Return whether all weights are finite; check that no finite one overflows.

        Raises:
            QuantizationError: one does, or an integer type is to take what is not finite.
        """
        if not self.is_float:
            self._require_integer_range(rows)
            return True
        with np.errstate(over="ignore"):
            largest, finite = _largest_magnitude(rows)
            overflow = not np.isfinite(largest.astype(self.dtype).astype(np.float32))
        if overflow:
            raise QuantizationError(
                UNNAMED,
                f"holds {float(largest):.6g}, beyond the range of {self.name} "
                f"(+-{float(float_limits(self.dtype).max):.6g}); "
                "keep a wider type for it, for example bfloat16 or float32",
            )
        if not finite and self.dtype_name == "float8_e4m3fn" and np.isinf(rows).any():
            raise QuantizationError(UNNAMED, f"holds infinite weights, which {self.name} has not")
        return finite

    def _require_integer_range(self, rows: Array) -> None:
        if not rows.size:
            return
        low, high = (0, 1)
        if self.dtype_name in INTEGERS:
            info = np.iinfo(self.dtype)
            low, high = int(info.min), int(info.max)
        small, large = rows.min(), rows.max()
        finite = bool(np.isfinite(small) and np.isfinite(large))
        if not finite or round(small.item()) < low or round(large.item()) > high:
            raise QuantizationError(
                UNNAMED, f"holds values outside {low}..{high}, the range of {self.name}"
            )


def _nearest(rows: Array, dtype: np.dtype[Any]) -> Array:
    """Return rows rounded once; float64 goes to short types through float32 rounded to odd."""
    if rows.dtype != np.float64 or dtype in (np.float64, np.float32, np.float16):
        with np.errstate(over="ignore"):
            return rows.astype(dtype)
    with np.errstate(over="ignore"):
        single = rows.astype(np.float32)
    toward = np.where(rows > single, np.float32(np.inf), np.float32(-np.inf))
    inexact = (rows != single) & np.isfinite(rows) & (single.view(np.uint32) & 1 == 0)
    single = np.where(inexact, np.nextafter(single, toward), single)
    return single.astype(dtype)


def _largest_magnitude(rows: Array) -> tuple[Array, bool]:
    """Return the largest finite |value|, 0-d, in the rows' dtype, and whether all are finite.

    Integers give float64.
    """
    if rows.dtype.kind in "iub":
        extremes = [abs(float(rows.min())), abs(float(rows.max()))] if rows.size else [0.0]
        return np.asarray(max(extremes)), True
    word = np.dtype(f"u{rows.dtype.itemsize}")
    bits = np.ascontiguousarray(rows).view(word) & word.type(np.iinfo(word).max >> 1)
    limit = np.asarray(float_limits(rows.dtype).max, rows.dtype).view(word)
    top = bits.max(initial=0)
    finite = bool(top <= limit)
    if not finite:
        top = bits[bits <= limit].max(initial=0)
    return np.asarray(top, word).view(rows.dtype), finite
