"""Affine encodings: layout, scale choice, restating of zero points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.encoding import Scales, Unpacked
from support.encoded import normal_rows


def test_layout_of_a_small_row() -> None:
    rows = np.asarray([[-8, -7, 0, 1, 7, 3.5, -8, 4]], np.float32)
    parts = Affine(4, 4).encode(rows)
    # Group 1 has its extreme -8 on code 0 (scale 1); group 2 likewise; 3.5 rounds to even 4.
    assert parts["codes"].tobytes() == bytes([0x10, 0x98, 0xCF, 0xC0])
    np.testing.assert_array_equal(parts["scales"], np.ones((1, 2), np.float16))
    assert list(parts) == ["codes", "scales"]


def test_three_bit_codes_cross_bytes() -> None:
    codes = np.asarray([[1, 2, 3, 4, 5, 6, 7, 0, 1]], np.int32)
    scales = Scales(np.ones((1, 1), np.float32), 9, np.full((1, 1), 4, np.int32))
    packed = Affine(3).pack(Unpacked(codes, scales))["codes"]
    stream = sum(int(code) << (3 * i) for i, code in enumerate(codes[0]))
    assert packed.tobytes() == stream.to_bytes(4, "little")


def test_the_last_group_may_be_short() -> None:
    encoding = Affine(8, 32)
    rows = normal_rows(3, 70)
    parts = encoding.encode(rows)
    assert parts["scales"].shape == (3, 3)
    tail = np.abs(rows[:, 64:]).max(axis=1) / np.float32(127)
    np.testing.assert_array_equal(parts["scales"][:, 2], tail.astype(np.float16))


def test_narrow_symmetric_types_put_the_extreme_on_the_lowest_code() -> None:
    rows = np.asarray([[3.0, -1.0, 0.5, 0.25]], np.float32)
    scales = Affine(4).fit(rows)
    assert scales.scale[0, 0] == -0.375
    assert Affine(4).decode(Affine(4).encode(rows), 4)[0, 0] == 3.0


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_that_choice_has_the_lower_error(bits: int) -> None:
    rows = normal_rows(400, 128)
    encoding = Affine(bits, 128)
    ours = encoding.decode(encoding.encode(rows), 128)
    plain = np.abs(rows).max(axis=1, keepdims=True) / np.float32((1 << (bits - 1)) - 1)
    zero = np.full(plain.shape, 1 << (bits - 1), np.int32)
    scales = Scales(plain.astype(np.float16).astype(np.float32), 128, zero)
    codes = np.maximum(encoding.assign(rows, scales), 1)
    other = encoding.decode(encoding.pack(Unpacked(codes, scales)), 128)
    assert np.square(ours - rows).sum() < np.square(other - rows).sum()


@pytest.mark.parametrize("bits", [7, 8])
def test_wide_symmetric_types_have_positive_scales(bits: int) -> None:
    rows = np.asarray([[3.0, -1.0], [-3.0, 1.0]], np.float32)
    scales = Affine(bits, scale_dtype="float32").fit(rows)
    np.testing.assert_array_equal(scales.scale, np.float32(3) / np.float32((1 << (bits - 1)) - 1))


def test_asymmetric_ranges_include_zero() -> None:
    rows = np.asarray([[1.0, 2.0, 15.0]], np.float32)
    parts = Affine(4, zero_point="uint8").encode(rows)
    assert parts["zero_points"][0, 0] == 0 and parts["scales"][0, 0] == 1
    negative = Affine(4, zero_point="uint8").encode(-rows)
    assert negative["zero_points"][0, 0] == 15


def test_float_zero_points_are_fractions() -> None:
    rows = np.asarray([[-0.25, 14.75]], np.float32)
    parts = Affine(4, zero_point="float").encode(rows)
    assert parts["zero_points"][0, 0] == 0.25
    np.testing.assert_array_equal(Affine(4, zero_point="float").decode(parts, 2), rows)


def test_groups_follow_g_idx() -> None:
    encoding = Affine(4, 2, act_order=True)
    parts = {
        "codes": np.asarray([[0x99, 0x99]], np.uint8),
        "scales": np.asarray([[1, 10]], np.float16),
        "g_idx": np.asarray([1, 0, 0, 1], np.int32),
    }
    np.testing.assert_array_equal(encoding.decode(parts, 4), [[10, 1, 1, 10]])
    unpacked = encoding.unpack(parts, 4)
    np.testing.assert_array_equal(encoding.pack(unpacked)["g_idx"], parts["g_idx"])
    with pytest.raises(QuantizationError, match="int4-g2 cannot keep the order of its groups"):
        Affine(4, 2).pack(unpacked)
    trivial = replace(unpacked.scales, group_of_column=np.asarray([0, 0, 1, 1], np.int32))
    assert "g_idx" not in Affine(4, 2).pack(Unpacked(unpacked.codes, trivial))


def test_importance_moves_the_error_where_it_matters_less() -> None:
    rows = normal_rows(50, 64)
    importance = np.where(np.arange(64) < 8, np.float32(100), np.float32(0.01))
    for encoding in (Affine(3, 32), Affine(3, 32, "uint8"), Affine(8, 32, "float")):
        plain = np.square(encoding.decode(encoding.encode(rows), 64) - rows)
        searched = np.square(encoding.decode(encoding.encode(rows, importance), 64) - rows)
        assert (searched * importance).sum() < (plain * importance).sum()


def packed(encoding: Affine, **fields: object) -> dict[str, np.ndarray]:
    base = Scales(np.ones((1, 2), np.float32), 4, np.full((1, 2), 8, np.int32))
    codes = np.arange(8, dtype=np.int32)[None]
    return encoding.pack(Unpacked(codes, replace(base, **fields)))


def test_pack_restates_zero_points() -> None:
    signed = Unpacked(np.asarray([[-8, 7]], np.int32), Scales(np.ones((1, 1), np.float32), 2))
    assert Affine(4).pack(signed)["codes"].tobytes() == bytes([0xF0])
    asymmetric = Affine(4, zero_point="uint8").pack(signed)
    assert asymmetric["zero_points"][0, 0] == 8
    whole = packed(Affine(4, 4, "uint8"), zero_point=np.full((1, 2), 3.0, np.float32))
    assert whole["zero_points"].tolist() == [[3, 3]]
    offset = packed(
        Affine(4, 4, "float", "float32"), zero_point=None, offset=np.full((1, 2), -2.5, np.float32)
    )
    assert offset["zero_points"].tolist() == [[2.5, 2.5]]


@pytest.mark.parametrize(
    ("encoding", "fields", "rule"),
    [
        (Affine(2, 4), {}, "its codes span -6..1, the target holds 0..3"),
        (Affine(2, 4, "uint8"), {}, "its codes span 0..7, the target holds 0..3"),
        (Affine(4, 2), {}, "its groups of 4 columns are not the 2 of int4-g2"),
        (
            Affine(4, 4),
            {"scale": np.full((1, 2), 0.1, np.float32)},
            "its scales (0.10000000149011612) do not fit float16 exactly",
        ),
        (
            Affine(4, 4, scale_dtype="float32"),
            {"scale": np.full((1, 2), np.inf, np.float32)},
            "a scale is NaN or infinite",
        ),
        (
            Affine(4, 4),
            {"offset": np.ones((1, 2), np.float32)},
            "its codes span 9..16, the target holds 0..15",
        ),
        (
            Affine(4, 4),
            {"offset": np.full((1, 2), 0.3, np.float32)},
            "an offset is no whole number of steps",
        ),
        (
            Affine(4, 4),
            {"zero_point": np.full((1, 2), 0.5, np.float32)},
            "its zero points are fractions of a code",
        ),
        (
            Affine(4, 4, "uint8"),
            {"zero_point": np.full((1, 2), 0.5, np.float32)},
            "its zero points are fractions of a code",
        ),
        (
            Affine(4, 4, "float", "float32"),
            {
                "zero_point": None,
                "scale": np.zeros((1, 2), np.float32),
                "offset": np.ones((1, 2), np.float32),
            },
            "a group has scale 0 and an offset, which no zero point can say",
        ),
        (
            Affine(4, 4, "uint8"),
            {"zero_point": np.full((1, 2), 300, np.int32)},
            "its codes span 300..300, the target holds 0..255",
        ),
    ],
)
def test_pack_refuses_what_it_cannot_say(encoding: Affine, fields: dict, rule: str) -> None:
    with pytest.raises(QuantizationError) as error:
        packed(encoding, **fields)
    assert error.value.rule == rule


def test_scales_beyond_float16_are_named() -> None:
    with pytest.raises(QuantizationError) as error:
        Affine(4, 32).encode(np.full((1, 32), 1e6, np.float32))
    assert error.value.rule == (
        "a scale leaves float16's range; choose a type with float32 scales, "
        "for example int4-g32-f32"
    )


def test_bits_per_weight_counts_scales_and_zero_points() -> None:
    assert Affine(4, 32).bits_per_weight == 4.5
    assert Affine(4, 32, "uint8").bits_per_weight == 4.75
    assert Affine(4, 32, "float", "float32").bits_per_weight == 6.0
    assert Affine(8).bits_per_weight == 8.0
    assert Affine(4).symmetric and not Affine(4, zero_point="float").symmetric
