"""What every entry of ENCODINGS keeps. A new encoding is tested by being in the table."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from halfbyte.errors import HalfbyteError, QuantizationError
from halfbyte.ir.encodings import ENCODINGS, encoding_from_name, list_encodings
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.dense import FLOATS, float_limits
from halfbyte.ir.encodings.encoding import Encoding, Unpacked
from halfbyte.ir.encodings.grid import values_of
from halfbyte.ir.encodings.kernel_choice import cpu_kernel
from halfbyte.ir.encodings.transcode import (
    Verdict,
    depends_on_data,
    judge,
    judge_tensor,
    lossless_alternatives,
    transcode,
)
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.algorithms.rtn import requantize
from support.encoded import (
    bits,
    dense_tensor,
    encoded,
    held,
    importance_for,
    normal_rows,
    read_in_ranges,
)
from support.tolerance import TOLERANCES

ALL = list_encodings()
QUANTIZED = [e for e in ALL if e.is_quantized]
ON_GRID = [e for e in QUANTIZED if e.grid is not None]
FLOATING = [e for e in ALL if not e.is_quantized and getattr(e, "is_float", False)]
# A power of two may pass from the tensor's scale to those of the groups.
SCALES_OF_TWO_FACTORS = {"nvfp4"}
ROWS, COLUMNS = 12, 256


def each(encodings: list[Encoding]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("encoding", encodings, ids=str)


def test_every_line_of_the_table_gives_an_encoding() -> None:
    shown = {type(encoding).__name__ for encoding in ALL}
    assert {target.split(":")[1] for target in ENCODINGS.values()} == shown
    assert len({encoding.name for encoding in ALL}) == len(ALL)


@each(ALL)
def test_name_and_fields_are_one_to_one(encoding: Encoding) -> None:
    again = encoding_from_name(encoding.name)
    assert again == encoding and hash(again) == hash(encoding)
    assert str(encoding) == encoding.name
    assert all(encoding != other for other in ALL if other.name != encoding.name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        encoding.bits = 3  # type: ignore[attr-defined]


@each(ALL)
def test_parts_have_the_announced_types_and_shapes(encoding: Encoding) -> None:
    tensor = encoded(encoding, ROWS, COLUMNS)
    specs = encoding.part_specs(ROWS, COLUMNS)
    assert list(tensor.parts) == list(specs)
    for name, part in tensor.parts.items():
        assert (part.dtype, part.shape) == (specs[name].dtype, specs[name].shape)
    assert tensor.nbytes == encoding.nbytes(ROWS, COLUMNS)
    decoded = tensor.decode()
    assert decoded.shape == (ROWS, COLUMNS)
    if encoding.is_quantized:
        assert decoded.dtype == np.float32


@each(ALL)
def test_bits_per_weight_is_what_long_rows_take(encoding: Encoding) -> None:
    columns = 1 << 20
    specs = encoding.part_specs(1, columns)
    stored = sum(spec.nbytes for spec in specs.values() if spec.per_row)
    assert 8 * stored / columns == pytest.approx(encoding.bits_per_weight, rel=1e-4)


@each(QUANTIZED)
def test_pack_inverts_unpack(encoding: Encoding) -> None:
    parts = encoded(encoding, ROWS, COLUMNS).read()
    unpacked = encoding.unpack(parts, COLUMNS)
    assert unpacked.codes.dtype == np.int32 and unpacked.scales.scale.dtype == np.float32
    assert bits(encoding.pack(unpacked)) == bits(parts)


@each(ON_GRID)
def test_decode_is_the_grid_arithmetic(encoding: Encoding) -> None:
    tensor = encoded(encoding, ROWS, COLUMNS)
    on_grid = values_of(encoding.unpack(tensor.read(), COLUMNS))
    np.testing.assert_array_equal(tensor.decode().view(np.uint32), on_grid.view(np.uint32))
    grid = encoding.grid
    assert grid is not None
    codes = encoding.unpack(tensor.read(), COLUMNS).codes
    assert grid.low <= codes.min() and codes.max() <= grid.high


@each(QUANTIZED + FLOATING)
def test_row_ranges_equal_the_whole(encoding: Encoding) -> None:
    tensor = dense_tensor(ROWS, COLUMNS)
    coded = requantize(tensor, encoding, importance_for(encoding, COLUMNS))
    assert bits(read_in_ranges(coded, 1, 5)) == bits(coded.read())
    coded = held(coded)
    ranges = np.concatenate([coded.decode(0, 7), coded.decode(7, ROWS)])
    assert ranges.tobytes() == coded.decode().tobytes()


@each(QUANTIZED + FLOATING)
def test_encode_stays_within_the_error_bound(encoding: Encoding) -> None:
    rows = normal_rows(64, COLUMNS)
    importance = importance_for(encoding, COLUMNS)
    decoded = encoding.decode(encoding.encode(rows, importance), COLUMNS).astype(np.float64)
    kept = encoding.grid or encoding.codebook
    width = encoding.block_shape[1] if kept is None or kept.group_size else COLUMNS
    largest = np.abs(rows).reshape(64, -1, width).max(axis=2).repeat(width, axis=1)
    reason = "encode with float16 scales" if encoding.is_quantized else "encode dense"
    limit = encoding.error_bound * largest + TOLERANCES[reason].absolute
    assert (np.abs(decoded - rows) <= limit).all()


@each(QUANTIZED)
def test_assign_finds_the_codes_of_decoded_values(encoding: Encoding) -> None:
    parts = encoded(encoding, ROWS, COLUMNS).read()
    scales = encoding.unpack(parts, COLUMNS).scales
    values = encoding.decode(parts, COLUMNS)
    again = encoding.pack(Unpacked(encoding.assign(values, scales), scales))
    np.testing.assert_array_equal(encoding.decode(again, COLUMNS), values)


@each(QUANTIZED)
def test_fit_gives_scales_that_pack_exactly(encoding: Encoding) -> None:
    rows = normal_rows(ROWS, COLUMNS)
    scales = encoding.fit(rows, importance_for(encoding, COLUMNS))
    codes = encoding.assign(rows, scales)
    packed = encoding.pack(Unpacked(codes, scales))
    np.testing.assert_array_equal(encoding.unpack(packed, COLUMNS).codes, codes)
    separate = encoding.pack_scales(scales, COLUMNS)
    if len(packed) > 1:
        assert bits(encoding.encode(rows)) == bits(packed)
        again = encoding.unpack_scales(separate, COLUMNS)
        np.testing.assert_array_equal(again.scale, scales.scale)
    else:
        assert separate == {}
        with pytest.raises(NotImplementedError):
            encoding.unpack_scales(separate, COLUMNS)


@each(QUANTIZED)
def test_importance_changes_no_shape_and_keeps_row_ranges(encoding: Encoding) -> None:
    importance = np.random.default_rng(5).random(COLUMNS).astype(np.float32)
    tensor = dense_tensor(ROWS, COLUMNS)
    whole = requantize(tensor, encoding, importance).read()
    assert bits(read_in_ranges(requantize(tensor, encoding, importance), 4)) == bits(whole)
    assert bits(encoding.encode(normal_rows(ROWS, COLUMNS), importance)) == bits(whole)


@each(QUANTIZED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(encoding: Encoding, bad: float) -> None:
    rows = normal_rows(2, COLUMNS)
    rows[1, 3] = bad
    with pytest.raises(QuantizationError, match="NaN or infinite"):
        encoding.encode(rows, importance_for(encoding, COLUMNS))


@each(QUANTIZED)
def test_zero_rows_and_all_zero_weights(encoding: Encoding) -> None:
    zeros = np.zeros((2, COLUMNS), np.float32)
    importance = importance_for(encoding, COLUMNS)
    decoded = encoding.decode(encoding.encode(zeros, importance), COLUMNS)
    np.testing.assert_array_equal(decoded, zeros)
    empty = encoding.encode(np.zeros((0, COLUMNS), np.float32), importance)
    assert encoding.decode(empty, COLUMNS).shape == (0, COLUMNS)


@each(QUANTIZED)
def test_scales_beyond_the_dtype_are_refused_or_exact(encoding: Encoding) -> None:
    rows = normal_rows(1, COLUMNS) * np.float32(1e30)
    try:
        encoded_rows = encoding.encode(rows, importance_for(encoding, COLUMNS))
        decoded = encoding.decode(encoded_rows, COLUMNS)
    except QuantizationError as error:
        assert "float16" in str(error)
    else:
        assert np.isfinite(decoded).all()


@each(ALL)
def test_alternatives_are_lossless(encoding: Encoding) -> None:
    names = [found.name for found in lossless_alternatives(encoding)]
    assert encoding.name not in names
    assert all(judge(encoding, encoding_from_name(name)).is_lossless for name in names)


def require_rounded_offsets(tensor: Tensor, target: Encoding) -> None:
    """Check that values differ by at most half a unit in the last place of their offset."""
    if not judge_tensor(tensor, target).keeps_codes:
        return
    scales = tensor.encoding.unpack(tensor.read(), tensor.columns).scales
    assert scales.zero_point is not None and target.grid is not None
    largest = np.abs(scales.zero_point * scales.scale).max(axis=1, keepdims=True)
    limit = np.float32(float_limits(FLOATS[target.grid.scale_dtype]).eps / 2) * largest
    difference = np.abs(transcode(tensor, target).float32() - tensor.float32())
    # The sum of product and offset rounds once more.
    assert (difference <= limit * (1 + 2.0**-10)).all()


@pytest.mark.parametrize("source", [e for e in ALL if e.is_quantized], ids=str)
def test_verdicts_hold_on_data(source: Encoding) -> None:
    tensor = encoded(source, ROWS, COLUMNS)
    before = tensor.float32()
    limit = TOLERANCES["exact to rounding"]
    for target in ALL:
        verdict = judge(source, target)
        if verdict is Verdict.OFFSETS_ROUNDED:
            require_rounded_offsets(tensor, target)
            continue
        if not verdict.is_lossless:
            with pytest.raises(HalfbyteError):
                transcode(tensor, target)
            continue
        if not judge_tensor(tensor, target).is_lossless:
            assert depends_on_data(source, target)
            continue
        moved = held(transcode(tensor, target))
        if verdict is Verdict.EXACT_TO_ROUNDING:
            difference = np.abs(moved.float32() - before)
            assert (difference <= limit.relative * np.abs(before).max(axis=1, keepdims=True)).all()
        else:
            np.testing.assert_array_equal(moved.float32(), before)
        if judge(target, source).is_lossless:
            again = transcode(moved, source)
            np.testing.assert_array_equal(again.float32(), before)
            if source.name not in SCALES_OF_TWO_FACTORS:
                assert bits(again.read()) == bits(tensor.read())


@each(QUANTIZED)
def test_compiled_kernels_equal_the_reference(encoding: Encoding) -> None:
    kind = "affine" if isinstance(encoding, Affine) else encoding.name
    if cpu_kernel("decode", kind) is None:
        pytest.skip(f"no compiled kernel claims {kind}")
    rows = normal_rows(ROWS, COLUMNS)
    needed = importance_for(encoding, COLUMNS)
    parts = encoding.encode(rows, needed)
    reference = encoding.decode_reference(parts, COLUMNS)  # type: ignore[attr-defined]
    assert encoding.decode(parts, COLUMNS).tobytes() == reference.tobytes()
    if cpu_kernel("encode", kind) is None:
        return
    importance = np.random.default_rng(5).random(COLUMNS).astype(np.float32)
    parts = encoding.encode_reference(rows, needed)  # type: ignore[attr-defined]
    assert bits(encoding.encode(rows, needed)) == bits(parts)
    weighted = encoding.encode_reference(rows, importance)  # type: ignore[attr-defined]
    assert bits(encoding.encode(rows, importance)) == bits(weighted)
