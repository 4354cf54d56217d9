"""Encodings on arbitrary values and bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.affine import Affine, pack_bits, unpack_bits
from halfbyte.ir.encodings.dense import FLOATS, Dense
from halfbyte.ir.encodings.transcode import judge, transcode
from halfbyte.ir.tensor import ArrayPart, Tensor, tensor_from_array
from halfbyte.quant.algorithms.rtn import requantize
from support.encoded import bits, read_in_ranges
from support.tolerance import TOLERANCES

QUICK = settings(max_examples=40, deadline=None)
legacy = st.sampled_from(["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]).map(encoding_from_name)
affine = st.builds(
    Affine,
    st.integers(2, 8),
    st.sampled_from([0, 1, 7, 16, 32, 64, 200]),
    st.sampled_from(["none", "uint8", "float"]),
    st.sampled_from(["float16", "bfloat16", "float32"]),
    st.booleans(),
)
# Magnitudes whose scales are normal float16 numbers at every width.
finite = st.floats(-1000, 1000, width=32).map(lambda x: x if abs(x) > 0.25 else 0.0)


def group_maxima(rows: np.ndarray, width: int) -> np.ndarray:
    padded = np.zeros((len(rows), -(-rows.shape[1] // width) * width), np.float32)
    padded[:, : rows.shape[1]] = np.abs(rows)
    return padded.reshape(len(rows), -1, width).max(2).repeat(width, 1)[:, : rows.shape[1]]


@QUICK
@given(legacy, arrays(np.float32, (3, 96), elements=finite))
def test_legacy_blocks_stay_within_their_bound(encoding, rows) -> None:
    decoded = encoding.decode(encoding.encode(rows), 96)
    limit = encoding.error_bound * group_maxima(rows, 32)
    assert (
        np.abs(decoded - rows) <= limit + TOLERANCES["encode with float16 scales"].absolute
    ).all()


@QUICK
@given(affine, st.integers(1, 70), st.data())
def test_affine_groups_stay_within_their_bound(encoding, columns, data) -> None:
    rows = data.draw(arrays(np.float32, (2, columns), elements=finite))
    decoded = encoding.decode(encoding.encode(rows), columns)
    limit = encoding.error_bound * group_maxima(rows, encoding.group_size or columns)
    assert (
        np.abs(decoded - rows) <= limit + TOLERANCES["encode with float16 scales"].absolute
    ).all()


@QUICK
@given(affine)
def test_affine_names_are_one_to_one(encoding) -> None:
    assert encoding_from_name(encoding.name) == encoding


@QUICK
@given(legacy, arrays(np.uint8, (2, 6, 34)))
def test_legacy_bytes_survive_unpack_and_pack(encoding, random) -> None:
    blocks = random[..., : encoding.block_bytes].copy()
    blocks[..., 1] &= 0xBF  # an exponent below 31: finite scales
    blocks[..., 3] &= 0xBF
    data = blocks.reshape(2, -1)
    packed = encoding.pack(encoding.unpack({"data": data}, 6 * 32))
    assert packed["data"].tobytes() == data.tobytes()


@QUICK
@given(affine, st.integers(1, 70), st.data())
def test_affine_bytes_survive_unpack_and_pack(encoding, columns, data) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    parts = {}
    for name, spec in encoding.part_specs(2, columns).items():
        if name == "codes":
            codes = rng.integers(0, encoding.levels + 1, (2, columns)).astype(np.uint8)
            parts[name] = pack_bits(codes, encoding.bits)
        elif name == "g_idx":
            groups = encoding.part_specs(2, columns)["scales"].shape[1]
            parts[name] = rng.integers(0, groups, spec.shape).astype(spec.dtype)
        elif name == "zero_points" and spec.dtype == np.uint8:
            parts[name] = rng.integers(0, 256, spec.shape).astype(spec.dtype)
        else:
            parts[name] = rng.standard_normal(spec.shape).astype(spec.dtype)
    assert bits(encoding.pack(encoding.unpack(parts, columns))) == bits(parts)


@QUICK
@given(st.integers(2, 8), st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_bit_streams_are_least_significant_first(width, columns, seed) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << width, (2, columns)).astype(np.uint8)
    packed = pack_bits(codes, width)
    assert packed.shape == (2, -(-columns * width // 8))
    for row, stream in zip(codes, packed, strict=True):
        number = int.from_bytes(stream.tobytes(), "little")
        assert number == sum(int(code) << (i * width) for i, code in enumerate(row))
    np.testing.assert_array_equal(unpack_bits(packed, width, columns), codes)


@QUICK
@given(st.one_of(legacy, affine), st.integers(1, 4), st.integers(1, 9), st.integers(0, 99))
def test_row_ranges_equal_the_whole(encoding, cut, rows, seed) -> None:
    values = np.random.default_rng(seed).standard_normal((rows + 4, 64)).astype(np.float32)
    tensor = tensor_from_array("w", values)
    whole = requantize(tensor, encoding).read()
    assert bits(read_in_ranges(requantize(tensor, encoding), cut)) == bits(whole)
    assert bits(encoding.encode(values)) == bits(whole)


@QUICK
@given(st.one_of(legacy, affine), st.one_of(legacy, affine), st.integers(0, 99))
def test_a_lossless_verdict_means_equal_values_or_a_refusal(source, target, seed) -> None:
    values = np.random.default_rng(seed).standard_normal((3, 64)).astype(np.float32)
    parts = {name: ArrayPart(array) for name, array in source.encode(values).items()}
    tensor = Tensor("w", (3, 64), source, parts)
    verdict = judge(source, target)
    if not verdict.is_lossless:
        return
    try:
        moved = transcode(tensor, target).decode()
    except Exception as error:
        assert type(error).__name__ == "QuantizationError"
        return
    before = tensor.decode()
    limit = TOLERANCES["exact to rounding"].relative if verdict == "exact to rounding" else 0.0
    assert (np.abs(moved - before) <= limit * np.abs(before).max(initial=0)).all()


@QUICK
@given(
    st.sampled_from(list(FLOATS)),
    arrays(np.float64, (2, 9), elements=st.floats(-400, 400).map(float)),
)
def test_dense_types_round_to_nearest_even(name, rows) -> None:
    encoding = Dense(name)
    decoded = encoding.encode(rows)["data"].astype(np.float64)
    word = np.dtype(f"u{encoding.dtype.itemsize}")
    for value, got in zip(rows.ravel(), decoded.ravel(), strict=True):
        code = np.asarray(got).astype(encoding.dtype).view(word)
        for step in (-1, 1):
            near = np.asarray(int(code) + step & int(np.iinfo(word).max), word)
            other = float(near.view(encoding.dtype).astype(np.float64))
            if np.isfinite(other) and np.sign(other) * np.sign(got) >= 0:
                assert abs(got - value) <= abs(other - value)
