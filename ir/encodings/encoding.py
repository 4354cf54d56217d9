"""The interface of an encoding: how the values of a weight lie in bytes.

An encoding sees one array of rows x columns and works on ranges of rows, so that a tensor larger
than memory streams. It owns named parts ("data", or "codes"/"scales"/"zero_points"/"g_idx");
each part is an array whose first axis counts rows unless its spec says otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Parts = Mapping[str, Array]


@dataclass(frozen=True)
class PartSpec:
    """Type and shape of one stored part; `per_row` is False for parts that all rows share."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    per_row: bool = True

    @property
    def nbytes(self) -> int:
        """Return the bytes that the whole part takes."""
        count = 1
        for dim in self.shape:
            count *= dim
        return count * self.dtype.itemsize


@dataclass(frozen=True)
class Scales:
    """The grid of each group: value = (code - zero_point) * scale + offset.

    scale: [rows, groups] float32; zero_point: [rows, groups] int32 (float32 where the encoding
    has fractional zero points) or None for 0;
    offset: [rows, groups] float32 or None for 0; group_of_column: [columns] int32 or None when
    group = column // group_size. fields: the stored numbers that scale and offset are products of,
    for encodings whose scales are codes themselves.
    """

    scale: NDArray[np.float32]
    group_size: int
    zero_point: NDArray[np.int32] | NDArray[np.float32] | None = None
    offset: NDArray[np.float32] | None = None
    group_of_column: NDArray[np.int32] | None = None
    fields: Mapping[str, Array] | None = None


@dataclass(frozen=True)
class Unpacked:
    """Codes [rows, columns] int32 on the grid that `scales` describes."""

    codes: NDArray[np.int32]
    scales: Scales


@dataclass(frozen=True)
class Grid:
    """Which codes and scales an encoding can hold; transcoding is judged from it alone.

    low, high: the range of stored codes. zero: how value 0 is placed: `fixed` (code `zero_point`
    in every group), `integer` (a stored code per group, 0..255), `float` (a stored fraction of a
    code per group) or `offset` (value = code * scale + offset). group_size 0 means the whole row.
    composed_scales: scales are products of stored numbers, so scales from elsewhere do not fit.
    """

    low: int
    high: int
    zero: Literal["fixed", "integer", "float", "offset"] = "fixed"
    zero_point: int = 0
    group_size: int = 0
    scale_dtype: str = "float16"
    act_order: bool = False
    composed_scales: bool = False

    @property
    def signed_range(self) -> tuple[int, int]:
        """Return the smallest and largest code - zero_point that can occur."""
        if self.zero == "fixed":
            return self.low - self.zero_point, self.high - self.zero_point
        return self.low - self.high, self.high - self.low


@dataclass(frozen=True)
class Codebook:
    """The points and scales of an encoding whose codes lie on no plain grid.

    levels: the values that codes stand for, ascending, in units of the scale. indexed: codes of
    `unpack` number the levels; otherwise they are the levels themselves. group_size: columns per
    scale, 0 for the whole row. scale_dtype: a float type, `e8m0` (powers of two), `e4m3` (8 bits,
    exponent of 4), `e4m3*float32` (the same times one number per matrix), or `composed` (other
    products of stored numbers).
    """

    levels: tuple[float, ...]
    group_size: int
    scale_dtype: str
    indexed: bool = False


class Encoding(ABC):
    """How values lie in bytes. Implementations are frozen dataclasses, equal by their fields."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Return the published name; `encoding_from_name(name)` gives an equal encoding."""

    @property
    @abstractmethod
    def bits_per_weight(self) -> float:
        """Return the stored bits per value, scales included, for long rows."""

    @property
    @abstractmethod
    def block_shape(self) -> tuple[int, int]:
        """Return (rows, columns) of the smallest unit that is encoded on its own."""

    @property
    def is_quantized(self) -> bool:
        """Whether values are codes on a grid rather than plain numbers."""
        return True

    @property
    def can_decode(self) -> bool:
        """Whether values can be had at all; False for types that are only carried along."""
        return True

    @property
    def needs_importance(self) -> bool:
        """Whether `encode` and `fit` work only with importance."""
        return False

    @property
    def grid(self) -> Grid | None:
        """Return the grid of the codes; None for dense and codebook encodings."""
        return None

    @property
    def codebook(self) -> Codebook | None:
        """Return the points of the codes where they lie on no plain grid, else None."""
        return None

    @property
    def shared_rows(self) -> int:
        """Return how many rows, from the first of a matrix on, share what `measure` gives.

        1: none; 0: all of a matrix. Parts hold it once per row all the same, so that any range of
        rows can be read.
        """
        return 1

    @property
    def span(self) -> Grid | None:
        """Return a grid that all values lie on, where `unpack` gives its codes.

        For a codebook encoding some codes of it never occur: others can hold its values, not it
        theirs.
        """
        return self.grid

    @property
    def error_bound(self) -> float:
        """Return the largest error of `encode`, in units of the block's largest |value|.

        It holds where no scale falls below the normal numbers of its dtype.
        """
        return float("inf")

    @classmethod
    def from_name(cls, name: str) -> Encoding | None:
        """Return the encoding of this class called `name`, or None."""
        encoding = cls()
        return encoding if name == encoding.name else None

    @classmethod
    def examples(cls) -> list[Encoding]:
        """Return the encodings of this class that lists and tests show."""
        return [cls()]

    @abstractmethod
    def part_specs(self, rows: int, columns: int) -> dict[str, PartSpec]:
        """Return the parts that hold rows x columns values, in storage order, codes first.

        Raises:
            QuantizationError: rows of this length cannot be encoded.
        """

    @abstractmethod
    def unpack(self, parts: Parts, columns: int) -> Unpacked:
        """Return codes and scales of a range of rows."""

    @abstractmethod
    def pack(self, unpacked: Unpacked) -> dict[str, Array]:
        """Return the parts that hold exactly these codes and scales.

        Raises:
            QuantizationError: a code or scale does not fit.
        """

    @abstractmethod
    def fit(
        self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> Scales:
        """Choose the scales for rows [rows, columns] float32; importance: [columns] float32."""

    def measure(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what rows that share scales must agree on before `fit_measured`: [n] float32.

        Of several ranges of such rows it is the maximum, entry by entry.
        """
        raise NotImplementedError(f"rows of {self.name} share nothing")

    def fit_measured(
        self,
        rows: NDArray[np.float32],
        measured: NDArray[np.float32],
        importance: NDArray[np.float32] | None = None,
    ) -> Scales:
        """Choose the scales like `fit`, for rows whose `measure` is given: [rows, n] float32."""
        raise NotImplementedError(f"rows of {self.name} share nothing")

    @abstractmethod
    def assign(self, rows: NDArray[np.float32], scales: Scales) -> NDArray[np.int32]:
        """Choose the nearest code on a given grid: rows [rows, columns] to codes of that shape."""

    def encode(
        self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> dict[str, Array]:
        """Return the parts for rows [rows, columns] float32: `fit`, then `assign`.

        An encoding with a search of its own does something else here.
        """
        scales = self.fit(rows, importance)
        return self.pack(Unpacked(self.assign(rows, scales), scales))

    @abstractmethod
    def decode(self, parts: Parts, columns: int) -> Array:
        """Return the values [rows, columns]: float32, or the stored dtype of a dense encoding."""

    def pack_scales(self, scales: Scales, columns: int) -> dict[str, Array]:
        """Return the parts that hold scales only; none when scales lie inside the blocks.

        An encoding with such parts keeps `encode(rows) == pack(assign(rows, s), s)` with
        `s = fit(rows)`, so that its parts can be made one after the other.
        """
        return {}

    def unpack_scales(self, parts: Parts, columns: int) -> Scales:
        """Return the scales from the parts that `pack_scales` made."""
        raise NotImplementedError(f"{self.name} has no parts that hold scales only")

    def nbytes(self, rows: int, columns: int) -> int:
        """Return the stored bytes of rows x columns values."""
        return sum(spec.nbytes for spec in self.part_specs(rows, columns).values())

    def __str__(self) -> str:
        """Return the name."""
        return self.name
