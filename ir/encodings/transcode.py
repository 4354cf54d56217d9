"""Moving a weight from one encoding to another without choosing its values anew.

`judge` compares two encodings by type; `judge_tensor` also looks at the data where the type alone
does not decide (a bfloat16 scale that float16 may or may not hold). `transcode` makes the tensor,
through `unpack` and `pack` only: it checks every code and scale while packing and raises rather
than change a value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import Enum

import numpy as np

from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.encodings import list_encodings
from halfbyte.ir.encodings.dense import FLOATS, Dense, float_limits
from halfbyte.ir.encodings.encoding import Array, Encoding, Grid
from halfbyte.ir.encodings.grid import regroup
from halfbyte.ir.streamed_parts import computed_parts, naming
from halfbyte.ir.tensor import Part, Tensor


class Verdict(str, Enum):
    """How a weight fares on its way from one encoding to another."""

    EXACT = "exact"
    REGROUPED = "exact after regrouping"
    EXACT_TO_ROUNDING = "exact to rounding"
    OFFSETS_ROUNDED = "exact codes, rounded offsets"
    ROUNDED = "rounded"
    QUANTIZED = "quantized"
    REFUSED = "refused"

    def __str__(self) -> str:
        """Return the words that are printed."""
        return self.value

    @property
    def is_lossless(self) -> bool:
        """Whether the way back is possible: exact, regrouped, or one float32 rounding."""
        return self in (Verdict.EXACT, Verdict.REGROUPED, Verdict.EXACT_TO_ROUNDING)

    @property
    def keeps_codes(self) -> bool:
        """Whether nothing is chosen anew: lossless, or but for offsets that are rounded once."""
        return self.is_lossless or self is Verdict.OFFSETS_ROUNDED


def judge(source: Encoding, target: Encoding) -> Verdict:
    """Return the verdict by type. Where the data decide, it is the verdict of data that fit."""
    return _compare(source, target)[0]


def depends_on_data(source: Encoding, target: Encoding) -> bool:
    """Whether data of `source` exist that `target` cannot hold although `judge` is favourable."""
    return _compare(source, target)[1]


def judge_tensor(tensor: Tensor, target: Encoding) -> Verdict:
    """Return the verdict for this tensor; reads it only where its data decide.

    Raises:
        QuantizationError: the target cannot hold rows of this length, or not these values at all.
    """
    with naming(tensor.name):
        target.part_specs(tensor.rows, tensor.columns)
    verdict, by_data = _compare(tensor.encoding, target)
    if not by_data:
        return verdict
    if isinstance(target, Dense):
        require_range(tensor, target)
        return verdict
    parts = _transcoded_parts(tensor, target)
    try:
        for start, stop in tensor.row_ranges():
            for name in parts:
                parts[name].read(start, stop)
    except QuantizationError:
        return Verdict.QUANTIZED
    return verdict


def require_range(tensor: Tensor, target: Dense) -> None:
    """Check that no weight overflows a dense target.

    Raises:
        QuantizationError: one does; the tensor is named.
    """
    with naming(tensor.name):
        for start, stop in tensor.row_ranges():
            target.require_range(tensor.decode(start, stop))


def lossless_alternatives(source: Encoding) -> list[Encoding]:
    """Return the encodings that hold what `source` holds, smallest first."""
    found = [e for e in list_encodings() if e != source and judge(source, e).is_lossless]
    return sorted(found, key=lambda e: (_compare(source, e)[1], e.bits_per_weight))


def transcode(tensor: Tensor, target: Encoding) -> Tensor:
    """Return the tensor in another encoding, lazily; values change at most by the verdict's words.

    Dense to smaller dense rounds and checks the range. Everything else must keep the codes.

    Raises:
        UnsupportedError: the target cannot hold the source's values; alternatives are named.
        QuantizationError: the target cannot hold rows of this length; while reading: a value that
            does not fit.
    """
    if tensor.encoding == target:
        return tensor
    verdict = judge(tensor.encoding, target)
    dense_rounding = verdict is Verdict.ROUNDED and not tensor.encoding.is_quantized
    if not verdict.keeps_codes and not dense_rounding:
        raise refusal(tensor, target)
    with naming(tensor.name):
        target.part_specs(tensor.rows, tensor.columns)
    return replace(tensor, encoding=target, parts=_transcoded_parts(tensor, target))


def refusal(
    tensor: Tensor, target: Encoding, allowed: Callable[[Encoding], bool] = lambda encoding: True
) -> UnsupportedError:
    """Return the error that says why `transcode` refuses and what would hold the values.

    allowed: whether an alternative may be named, for example because a container can hold it.
    """
    names = []
    for encoding in lossless_alternatives(tensor.encoding):
        try:
            encoding.part_specs(tensor.rows, tensor.columns)
        except QuantizationError:
            continue
        by_data = depends_on_data(tensor.encoding, encoding)
        if allowed(encoding) and not (by_data and _changes(tensor, encoding)):
            names.append(encoding.name)
    return UnsupportedError(
        f"{tensor.encoding} to {target} without loss",
        f"tensor {tensor.name!r}",
        names,
        "or allow it to be quantized again (--requantize)",
    )


def _changes(tensor: Tensor, target: Encoding) -> bool:
    return not judge_tensor(tensor, target).is_lossless


def _transcoded_parts(tensor: Tensor, target: Encoding) -> dict[str, Part]:
    specs = target.part_specs(tensor.rows, tensor.columns)
    main = next(iter(specs))

    def compute(start: int, stop: int) -> dict[str, Array]:
        with naming(tensor.name):
            if isinstance(target, Dense):
                return target.encode(tensor.decode(start, stop))
            unpacked = tensor.encoding.unpack(tensor.read(start, stop), tensor.columns)
            kept = target.grid or target.codebook
            assert kept is not None
            return target.pack(regroup(unpacked, kept.group_size))

    def large(start: int, stop: int, known: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        parts = compute(start, stop)
        return parts.pop(main), parts

    def small(start: int, stop: int) -> dict[str, Array]:
        return large(start, stop, {})[1]

    return computed_parts(specs, tensor.columns, small, large)


def _compare(source: Encoding, target: Encoding) -> tuple[Verdict, bool]:
    """Return the verdict by type and whether data may still overrule it."""
    if source == target:
        return Verdict.EXACT, False
    if not (source.can_decode and target.can_decode):
        return Verdict.REFUSED, False
    if isinstance(target, Dense):
        if isinstance(source, Dense):
            return _dense_to_dense(source, target)
        return _quantized_to_dense(source, target)
    if isinstance(source, Dense):
        return (Verdict.QUANTIZED if source.is_float else Verdict.REFUSED), False
    if target.grid is None:
        return _codebook_to_codebook(source, target)
    if source.span is None:
        return Verdict.QUANTIZED, False
    return _grid_to_grid(source.span, target.grid)


def _dense_to_dense(source: Dense, target: Dense) -> tuple[Verdict, bool]:
    if source.is_float and target.is_float:
        narrow, wide = float_limits(source.dtype), float_limits(target.dtype)
        holds = (
            narrow.nmant <= wide.nmant
            and float(narrow.max) <= float(wide.max)
            and float(narrow.smallest_subnormal) >= float(wide.smallest_subnormal)
            and target.dtype_name != "float8_e4m3fn"
        )
        if holds:
            return Verdict.EXACT, False
        return Verdict.ROUNDED, float(narrow.max) > float(wide.max)
    if source.is_float:
        return Verdict.REFUSED, False
    low, high = _integer_range(source)
    if target.is_float:
        limits = float_limits(target.dtype)
        whole = min(1 << (int(limits.nmant) + 1), int(limits.max))
        exact = -whole <= low and high <= whole
    else:
        target_low, target_high = _integer_range(target)
        exact = target_low <= low and high <= target_high
    return (Verdict.EXACT if exact else Verdict.REFUSED), False


def _integer_range(encoding: Dense) -> tuple[int, int]:
    if encoding.dtype_name == "bool":
        return 0, 1
    info = np.iinfo(encoding.dtype)
    return int(info.min), int(info.max)


def _quantized_to_dense(source: Encoding, target: Dense) -> tuple[Verdict, bool]:
    if not target.is_float:
        return Verdict.REFUSED, False
    if target.dtype_name not in ("float32", "float64"):
        return Verdict.ROUNDED, True
    grid = source.span
    if grid is None:
        return Verdict.EXACT_TO_ROUNDING, False
    # A short scale times a code of at most 9 bits fits float32's 24 bits.
    short_scale = float_limits(FLOATS[grid.scale_dtype]).nmant + 1 <= 24 - 9
    exact = grid.zero in ("fixed", "integer") and short_scale
    return (Verdict.EXACT if exact else Verdict.EXACT_TO_ROUNDING), False


# Types of a codebook's scales -> the types that hold every one of them.
_SCALES_HELD = {
    "e8m0": {"e8m0", "bfloat16", "float32"},
    "e4m3": {"e4m3", "e4m3*float32", "float16", "bfloat16", "float32"},
    "e4m3*float32": {"e4m3*float32"},
    "float16": {"float16", "float32"},
    "bfloat16": {"bfloat16", "float32"},
    "float32": {"float32"},
}


def _codebook_to_codebook(source: Encoding, target: Encoding) -> tuple[Verdict, bool]:
    """Compare encodings that may have the same points; rows that share scales must go on to."""
    own, wanted = source.codebook, target.codebook
    quantized = Verdict.QUANTIZED, False
    if own is None or wanted is None:
        return quantized
    if (own.levels, own.indexed) != (wanted.levels, wanted.indexed):
        return quantized
    if "composed" in (own.scale_dtype, wanted.scale_dtype):
        return quantized
    if own.group_size != wanted.group_size:
        if not wanted.group_size or own.group_size % wanted.group_size:
            return quantized
        regrouped = Verdict.REGROUPED
    else:
        regrouped = Verdict.EXACT
    if not _shares_rows(source, target):
        return quantized
    return regrouped, wanted.scale_dtype not in _SCALES_HELD[own.scale_dtype]


def _shares_rows(source: Encoding, target: Encoding) -> bool:
    """Whether rows that share something in the target are sure to share it in the source.

    nvfp4 shares a factor that is 1 where the source has none.
    """
    book, rows = target.codebook, target.shared_rows
    if rows == 1 or source.shared_rows == 0 or (book and book.scale_dtype == "e4m3*float32"):
        return True
    return rows > 1 and source.shared_rows > 1 and source.shared_rows % rows == 0


def _grid_to_grid(source: Grid, target: Grid) -> tuple[Verdict, bool]:
    if target.composed_scales:
        return Verdict.QUANTIZED, False
    groups = _groups(source, target)
    zero = _zero_points(source, target)
    if groups is None or zero is None:
        return Verdict.QUANTIZED, False
    verdict, by_data = zero
    if verdict is Verdict.EXACT:
        verdict = groups
    # Without act-order in the target, g_idx must turn out to count the columns in order.
    by_data = by_data or (source.act_order and not target.act_order)
    scale, wanted = FLOATS[source.scale_dtype], FLOATS[target.scale_dtype]
    widened = _dense_to_dense(Dense(scale.name), Dense(wanted.name))[0] is Verdict.EXACT
    return verdict, by_data or not widened


def _groups(source: Grid, target: Grid) -> Verdict | None:
    if source.group_size == target.group_size:
        return Verdict.EXACT
    if source.act_order or not target.group_size or source.group_size % target.group_size:
        return None
    return Verdict.REGROUPED


def _zero_points(source: Grid, target: Grid) -> tuple[Verdict, bool] | None:
    """Return the verdict on codes and zero points, or None if the target cannot say them."""
    codes_fit = target.low <= source.low and source.high <= target.high
    rounding = Verdict.EXACT_TO_ROUNDING
    fraction_keeps_offset = {"float", "offset"} == {source.zero, target.zero}
    if fraction_keeps_offset:
        fraction, offset = source.scale_dtype, target.scale_dtype
        if source.zero == "offset":
            fraction, offset = offset, fraction
        # An offset of 24 bits is not found again from the fraction that it makes.
        kept = codes_fit and fraction == "float32" and offset != "float32"
        return (rounding, True) if kept else None
    if {"integer", "offset"} == {source.zero, target.zero}:
        if not codes_fit:
            return None
        if target.zero == "offset" and target.scale_dtype != "float32":
            return Verdict.OFFSETS_ROUNDED, True
        return _sum_of_products(source), target.zero == "integer"
    if target.zero == "fixed":
        if source.zero == "offset":
            # Offsets that are whole steps, as symmetric codes have them, are zero points.
            inside = source.high - source.low <= target.high - target.low
            return (Verdict.EXACT, True) if inside else None
        if source.zero == "float":
            return None
        low, high = source.signed_range
        target_low, target_high = target.signed_range
        inside = target_low <= low and high <= target_high
        return (Verdict.EXACT, source.zero == "integer") if inside else None
    signed = source.low < 0
    if source.zero == "fixed" and (codes_fit or (signed and target.zero != "offset")):
        span_fits = source.high - source.low <= target.high - target.low
        verdict = _sum_of_products(source) if target.zero == "offset" else Verdict.EXACT
        return (verdict, signed) if span_fits else None
    if source.zero == target.zero or (source.zero == "integer" and target.zero == "float"):
        return (Verdict.EXACT, target.zero == "float") if codes_fit else None
    return None


def _sum_of_products(source: Grid) -> Verdict:
    """Return how (code - zero) * scale fares as code * scale + offset.

    A short scale times a code or a zero point is exact in float32.
    """
    return Verdict.EXACT_TO_ROUNDING if source.scale_dtype == "float32" else Verdict.EXACT
