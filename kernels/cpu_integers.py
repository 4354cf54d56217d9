"""Typed face of the C++ kernels for 8-bit integers: products, convolutions, quantization.

A value stands for (byte - zero) * scale. Sums of products are exact 32-bit integers and are rounded
once per output, so results depend neither on the instruction set's order nor on threads.

Raises (all functions): ValueError for a wrong dtype or shape; BackendError without the extension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from halfbyte.kernels.cpu import Float32, native

Bytes = NDArray[np.uint8] | NDArray[np.int8]
Int32 = NDArray[np.int32]
ALIGN = 4  # bytes of depth per multiply-add
UNLIMITED = (-np.inf, np.inf)
MOST = 128  # 255 * 128 fits into 16 bits
FEW_IN_PANEL = 0.01  # the same for panels, whose columns share what they leave over
MOST_LEFT = 0.7  # of a panel's words, beyond which 16-bit halves are faster
FEW_LANES = 0.06  # of doubled words, beyond which what they leave over costs more than they save


@dataclass(frozen=True)
class Finish:
    """What becomes of the sum of an output channel: sum * scale + shift, kept in `limits`.

    scale, shift: [channels] float32, output scale included; zero: the output's zero point, for
    byte outputs. low and high bound the value before the zero point is added.
    """

    scale: Float32
    shift: Float32 | None = None
    limits: tuple[float, float] = UNLIMITED
    zero: int = 0


def unsigned(array: Bytes) -> NDArray[np.uint8]:
    """Return the bytes of an array as they lie."""
    return np.ascontiguousarray(array).view(np.uint8)


def contiguous(array: Bytes) -> Bytes:
    """Return an array whose elements lie side by side."""
    found: Any = np.ascontiguousarray(array)
    return cast("Bytes", found)


def unsigned_zero(zero: int, signed: bool) -> int:
    """Return the zero point after signed bytes are moved to 0..255."""
    return zero + 128 if signed else zero


def _output(out: NDArray[Any], zero: int) -> tuple[int, bool, int, NDArray[Any]]:
    """Return (zero point, signed, kind, memory) of an output array, as the extension takes it."""
    if out.dtype in (np.float32, np.int32):
        return 0, False, 1 if out.dtype == np.float32 else 2, out
    if out.dtype not in (np.uint8, np.int8):
        raise ValueError(f"out is {out.dtype}, required float32, int32, uint8 or int8")
    signed = out.dtype == np.int8
    return unsigned_zero(zero, signed), signed, 0, out.view(np.uint8)


class _Sums:
    """Sums of the weights per channel: what corrects products for zero points."""

    def __init__(self, rows: NDArray[np.int8], weight_zero: Int32 | None) -> None:
        # rows: [channels, depth]
        self.weights = rows.sum(axis=1, dtype=np.int32)
        self.depth = rows.shape[1]
        has_zero = weight_zero is not None and np.any(weight_zero)
        self.zero = np.asarray(weight_zero, np.int32) if has_zero else None
        self._latest: tuple[int, Int32 | None, Int32] | None = None

    def native_zero(self) -> Int32 | None:
        return self.zero

    def offset(self, x_zero: int, bias: Int32 | None) -> Int32:
        """Return what is added to the raw sums; x_zero is that of unsigned bytes."""
        latest = self._latest
        if latest is not None and latest[0] == x_zero and latest[1] is bias:
            return latest[2]
        offset: Int32 = self.weights * np.int32(int(native().integer_shift()) - x_zero)
        if self.zero is not None:
            offset += np.int32(x_zero * self.depth) * self.zero
        if bias is not None:
            offset += bias
        self._latest = x_zero, bias, offset
        return offset


def lanes_of(rows: NDArray[np.int8], words: int) -> NDArray[np.int16]:
    """Return rows [n, depth] as [n, groups, lane, weights]: what meets in 16 bits.

    A lane sums a pair of each of `words` words of four weights that follow one another.
    """
    whole = np.pad(rows, [(0, 0), (0, -rows.shape[1] % (ALIGN * words))])
    lanes = whole.reshape(len(rows), -1, words, 2, 2)
    return np.moveaxis(lanes, 2, 3).reshape(len(rows), -1, 2, 2 * words).astype(np.int16)


def saturating(lanes: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Return which lanes may leave 16 bits, all activations being 0 or 255."""
    above, below = np.maximum(lanes, 0).sum(axis=-1), np.minimum(lanes, 0).sum(axis=-1)
    return np.asarray((above > MOST) | (below < -MOST))


def excess_of_pairs(rows: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return what has to be taken off rows [n, depth] so that no pair saturates."""
    pairs = rows.reshape(len(rows), -1, 2).astype(np.int16)
    over = np.maximum(np.maximum(pairs, 0).sum(axis=2) - MOST, 0)
    excess = over + np.minimum(np.minimum(pairs, 0).sum(axis=2) + MOST, 0)
    second = (pairs[..., 1] > pairs[..., 0]) == (excess > 0)
    rest = np.stack([np.where(second, 0, excess), np.where(second, excess, 0)], axis=2)
    return rest.astype(np.int8).reshape(rows.shape)


def second_words(rows: NDArray[np.int8], few: float) -> tuple[NDArray[np.int8], bool]:
    """Return what of rows [n, depth] is better left to a second sum, and whether words are doubled.

    They are where at most `few` of the lanes of two words saturate; those leave the pair of the
    second word over.
    """
    bad = saturating(lanes_of(rows, 2))
    if bad.mean() > few:
        return np.zeros_like(rows), False
    mask = np.zeros((*bad.shape, 2, 2), np.bool_)
    mask[..., 1, :] = bad[..., None]
    taken = np.moveaxis(mask, 2, 3).reshape(len(rows), -1)[:, : rows.shape[1]]
    return np.where(taken, rows, np.int8(0)), True


class Split(NamedTuple):
    """Rows [n, depth] without what saturates, and that as entries of (place, four weights).

    Row i has the entries [start[i], start[i + 1]).
    """

    rows: NDArray[np.int8]
    start: Int32 | None
    entries: Int32 | None
    doubled: bool


def split_rows(rows: NDArray[np.int8], few: float) -> Split:
    """Split rows so that sums of products in 16 bits are exact."""
    if not native().integers_saturate():
        return Split(rows, None, None, False)
    second, doubled = second_words(rows, few)
    main = rows - second
    parts = [excess_of_pairs(main), excess_of_pairs(second)]
    rests = [parts[0], second - parts[1], parts[1]]
    found = []
    for rest in rests:
        words = rest.reshape(len(rows), -1, ALIGN).view(np.int32)[..., 0]
        row, place = np.nonzero(words)
        found.append(np.stack([row, place * ALIGN, words[row, place]], axis=1))
    entries = np.concatenate(found)
    if not len(entries):
        return Split(main, None, None, doubled)
    entries = entries[np.argsort(entries[:, 0], kind="stable")]
    start = np.searchsorted(entries[:, 0], np.arange(len(rows) + 1)).astype(np.int32)
    return Split(
        main - parts[0], start, np.ascontiguousarray(entries[:, 1:], dtype=np.int32), doubled
    )


def panel_rest(split: Split, panel: int) -> tuple[Int32, Int32, NDArray[np.uint8]]:
    """Return what the rows of each panel leave over: start, places of the depth, words.

    Rows that leave over words at the same place share an entry.
    """
    assert split.start is not None and split.entries is not None
    row = np.repeat(np.arange(len(split.rows)), np.diff(split.start))
    place, word = split.entries.T
    order = np.lexsort((place, row))
    row, place, word = row[order], place[order], word[order]
    fresh = np.ones(len(row), np.bool_)
    fresh[1:] = (row[1:] != row[:-1]) | (place[1:] != place[:-1])
    index = np.arange(len(row))
    layer = index - np.maximum.accumulate(np.where(fresh, index, 0))
    wide = split.rows.shape[1]
    keys = (row // panel * wide + place) * ALIGN + layer
    shared, inverse = np.unique(keys, return_inverse=True)
    words = np.zeros((len(shared), panel), np.int32)
    words[inverse.reshape(-1), row % panel] = word
    panels = np.arange(-(-len(split.rows) // panel) + 1)
    start = np.searchsorted(shared // ALIGN // wide, panels).astype(np.int32)
    return start, (shared // ALIGN % wide).astype(np.int32), words.view(np.uint8)


def summed_words(rows: NDArray[np.int8]) -> int:
    """Return how many words of rows [n, k] may be summed in 16 bits as they are: 0, 1 or 2."""
    if not native().integers_saturate():
        return 1
    return next((words for words in (2, 1) if not saturating(lanes_of(rows, words)).any()), 0)


class ByteProduct:
    """A constant matrix of bytes packed for products with rows of bytes.

    weight: [k, n] int8, or [n, k] if `rows`; weight_zero: [n] int32.
    """

    def __init__(
        self,
        weight: NDArray[np.int8],
        rows: bool = False,
        weight_zero: Int32 | None = None,
        split: bool = True,
    ) -> None:
        """Pack the matrix; split: let what 16 bits do not hold be summed apart."""
        if weight.dtype != np.int8 or weight.ndim != 2:
            raise ValueError(
                f"weight is {weight.dtype} of rank {weight.ndim}, required int8 [k, n]"
            )
        self.n, self.k = weight.shape if rows else weight.shape[::-1]
        self.depth = -(-self.k // ALIGN) * ALIGN
        columns = weight if rows else np.ascontiguousarray(weight.T)
        self._sums = _Sums(columns, weight_zero)
        self._level: tuple[Any, ...] = (summed_words(columns), None, None, None)
        if split and self._level[0] < 2 and native().integers_saturate():
            columns = self._split(np.pad(columns, [(0, 0), (0, self.depth - self.k)]))
        panel = int(native().integer_panel())
        self._packed = np.empty(-(-self.n // panel) * panel * self.depth, np.uint8)
        native().pack_bytes(unsigned(columns), self.n, columns.shape[1], True, self._packed)
        self._zero = self._sums.native_zero()

    def _split(self, columns: NDArray[np.int8]) -> NDArray[np.int8]:
        """Return columns that 16 bits hold, where what they leave over is little."""
        panel, split = int(native().integer_panel()), split_rows(columns, FEW_IN_PANEL)
        if split.start is None:
            self._level = (2 if split.doubled else 1, None, None, None)
            return split.rows
        rest = panel_rest(split, panel)
        if len(rest[1]) > MOST_LEFT * len(columns) / panel * self.depth / ALIGN:
            return columns
        self._level = (2 if split.doubled else 1, *rest)
        return split.rows

    def packed(self) -> tuple[NDArray[np.uint8], int, Int32, Int32 | None]:
        """Return the packed matrix, how many words are summed, sums and zero points per column."""
        return self._packed, int(self._level[0]), self._sums.weights, self._zero

    def __call__(
        self, x: Bytes, x_zero: int, finish: Finish, out: NDArray[Any], bias: Int32 | None = None
    ) -> NDArray[Any]:
        """Multiply x [..., k] into out [..., n]: float32, bytes, or int32 sums.

        bias: [n] int32 in units of the product of both scales.
        """
        self.prepare(contiguous(x), x_zero, finish, out, bias)()
        return out

    def prepare(
        self, x: Bytes, x_zero: int, finish: Finish, out: NDArray[Any], bias: Int32 | None = None
    ) -> Callable[[], object]:
        """Return the product as a call; it reads what x, contiguous, holds then."""
        if x.shape[-1] != self.k or out.shape != (*x.shape[:-1], self.n):
            raise ValueError(f"x {x.shape} and out {out.shape}, required [..., {self.k}] and n")
        signed = x.dtype == np.int8
        source = rows = unsigned(x).reshape(-1, self.k)
        if signed or self.depth != self.k:
            rows = np.zeros((len(source), self.depth), np.uint8)
        offset = self._sums.offset(unsigned_zero(x_zero, signed), bias)
        zero, is_signed, kind, memory = _output(out, finish.zero)
        packed = (rows, self._packed, self.n, self._level, offset, self._zero)
        ends = (finish.scale, finish.shift, *finish.limits, zero, is_signed, kind, memory)
        product = partial(native().byte_product, *packed, *ends)
        if rows is source:
            return product
        flip = np.uint8(0x80 if signed else 0)

        def moved() -> None:
            np.bitwise_xor(source, flip, out=rows[:, : self.k])
            product()

        return moved


@dataclass(frozen=True)
class Geometry:
    """How a filter goes over images; pads: top, left (what lies below follows from the sizes)."""

    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)
    groups: int = 1


def filter_rows(weight: NDArray[np.int8], by_taps: bool) -> NDArray[np.int8]:
    """Return filters [out, in, kh, kw] as rows of fours, 0 where they fill up.

    A four holds neighbouring taps of one channel, or one tap of four channels.
    """
    rows, channels, height, width = weight.shape
    if by_taps:
        padded = np.pad(weight, [(0, 0), (0, 0), (0, 0), (0, -width % ALIGN)])
    else:
        whole = np.pad(weight, [(0, 0), (0, -channels % ALIGN), (0, 0), (0, 0)])
        fours = whole.reshape(rows, -1, ALIGN, height, width)
        padded = np.moveaxis(fours, 2, -1)
    return np.ascontiguousarray(padded).reshape(rows, -1)


class ByteConvolution:
    """Constant filters of bytes: weight [out, in of a group, kh, kw] int8, weight_zero [out]."""

    def __init__(
        self, weight: NDArray[np.int8], geometry: Geometry, weight_zero: Int32 | None = None
    ) -> None:
        """Lay the filters out for the kernel."""
        if weight.dtype != np.int8 or weight.ndim != 4:
            raise ValueError(f"weight is {weight.dtype} of rank {weight.ndim}, required int8, 4")
        self.shape, self.geometry = weight.shape, geometry
        rows = np.ascontiguousarray(weight).reshape(weight.shape[0], -1)
        self._sums = _Sums(rows, weight_zero)
        self._zero = self._sums.native_zero()
        self._filters: list[Any]
        depthwise = weight.shape[1] == 1 and geometry.groups > 1
        by_taps = not depthwise and weight.shape[1] < ALIGN and geometry.dilations[1] == 1
        if depthwise:
            self._filters = [unsigned(rows), None, None, None, False, True, False]
            return
        split = split_rows(filter_rows(weight, by_taps), FEW_LANES)
        ones = None
        if self._zero is not None:
            ones = unsigned(filter_rows(np.ones_like(weight[:1]), by_taps))
        held = [unsigned(split.rows), split.start, split.entries, ones]
        self._filters = [*held, by_taps, False, split.doubled]

    def __call__(
        self, x: Bytes, x_zero: int, finish: Finish, out: NDArray[Any], bias: Int32 | None = None
    ) -> NDArray[Any]:
        """Convolve x [batch, in, h, w] into out [batch, out, oh, ow], as ByteProduct."""
        self.prepare(contiguous(x), x_zero, finish, out, bias)()
        return out

    def prepare(
        self, x: Bytes, x_zero: int, finish: Finish, out: NDArray[Any], bias: Int32 | None = None
    ) -> Callable[[], object]:
        """Return the convolution as a call; it reads what x, contiguous, holds then."""
        signed = x.dtype == np.int8
        byte_zero = unsigned_zero(x_zero, signed)
        zero, is_signed, kind, memory = _output(out, finish.zero)
        offset = self._sums.offset(byte_zero, bias)
        inputs = (unsigned(x), signed, byte_zero, self._filters, offset, self._zero)
        ends = (finish.scale, finish.shift, *finish.limits, zero, is_signed, kind)
        return partial(native().byte_conv, *inputs, *ends, self._sizes(x.shape, out.shape), memory)

    def _sizes(self, x: Sequence[int], out: Sequence[int]) -> list[int]:
        geometry = self.geometry
        if len(x) != 4 or x[1] != self.shape[1] * geometry.groups or out[1] != self.shape[0]:
            raise ValueError(f"x {tuple(x)} and out {tuple(out)} do not fit filters {self.shape}")
        places = (*geometry.strides, *geometry.dilations, *geometry.pads)
        return [*x, *out[1:], geometry.groups, *self.shape[2:], *places]


def quantize(x: Float32, scale: float, zero: int, out: Bytes) -> Bytes:
    """Write nearest(x / scale) + zero, saturated, into out (uint8 or int8)."""
    prepared_quantize(x, scale, zero, out)()
    return out


def prepared_quantize(x: Float32, scale: float, zero: int, out: Bytes) -> Callable[[], object]:
    """Return `quantize` as a call."""
    byte_zero, signed, kind, memory = _output(out, zero)
    if kind:
        raise ValueError(f"out is {out.dtype}, required uint8 or int8")
    return partial(native().quantize_bytes, x, scale, byte_zero, signed, memory)


def dequantize(x: Bytes, scale: float, zero: int, out: Float32) -> Float32:
    """Write (x - zero) * scale into out."""
    prepared_dequantize(contiguous(x), scale, zero, out)()
    return out


def prepared_dequantize(x: Bytes, scale: float, zero: int, out: Float32) -> Callable[[], object]:
    """Return `dequantize` as a call; it reads what x, contiguous, holds then."""
    signed = x.dtype == np.int8
    byte_zero = unsigned_zero(zero, signed)
    return partial(native().dequantize_bytes, unsigned(x), scale, byte_zero, signed, out)


def value_range(x: Float32) -> tuple[float, float]:
    """Return the least and the greatest value, 0 included."""
    low, high = native().value_range(x)
    return float(low), float(high)


def add(
    a: Bytes,
    b: Bytes,
    scales: tuple[float, float, float],
    zeros: tuple[int, int, int],
    limits: tuple[float, float],
    out: Bytes,
) -> Bytes:
    """Write the quantized sum of two quantized values into out, clipped to `limits` before.

    scales, zeros: of a, b and out. b has the shape of a, or is one row, added to all of a's. Each
    step rounds to float32 as the operators one by one would, so ties fall the same way.
    """
    byte_zero, signed, _, memory = _output(out, zeros[2])
    signs = a.dtype == np.int8, b.dtype == np.int8
    places = [unsigned_zero(zero, sign) for zero, sign in zip(zeros, signs, strict=False)]
    native().add_bytes(
        unsigned(a), unsigned(b), *signs, scales, (*places, byte_zero), *limits, signed, memory
    )
    return out


def look_up(table: NDArray[Any], x: Bytes, out: NDArray[Any]) -> NDArray[Any]:
    """Write table[x] into out; entry i of a table is of the byte that lies as i.

    table: [256] or [channels, 256], channels being the last axis of x; bytes or float32.
    """
    floats = table.dtype == np.float32
    if out.dtype != table.dtype:
        raise ValueError(f"out is {out.dtype}, required {table.dtype} as the table")
    held, memory = (table, out) if floats else (unsigned(table), out.view(np.uint8))
    native().look_up_bytes(held, unsigned(x), floats, memory)
    return out


class ByteRecurrence:
    """Recurrent weights of one LSTM direction: [hidden, 4 * hidden] int8, gates i, o, f, c.

    weight_zero: [4 * hidden] int32; scale: [4 * hidden].
    """

    def __init__(
        self, weight: NDArray[np.int8], scale: Float32, weight_zero: Int32 | None = None
    ) -> None:
        """Pack the weights."""
        if weight.ndim != 2 or weight.shape[1] != 4 * weight.shape[0]:
            raise ValueError(f"weight has shape {weight.shape}, required [n, 4 * n]")
        product = ByteProduct(weight, False, weight_zero, split=False)
        self._held = product.packed()
        self._scale = scale

    def __call__(
        self, gates: Float32, h: Float32, c: Float32, y: Float32, reverse: bool = False
    ) -> None:
        """Run over gates [steps, batch, 4 * hidden]; h and c become the last states.

        y: [steps, batch, hidden], the hidden states.
        """
        native().byte_lstm(gates, (*self._held, self._scale), h, c, reverse, y)
