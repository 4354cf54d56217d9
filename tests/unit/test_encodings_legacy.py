"""ggml's 32-value blocks: layout, searches, refusals, kernel choice."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.encoding import Scales, Unpacked
from halfbyte.ir.encodings.ggml_search import nearest_int, scale_min_search, symmetric_search
from halfbyte.ir.encodings.kernel_choice import cpu_kernel
from support.encoded import normal_rows

LEGACY = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
RAMP = np.arange(32, dtype=np.float32)[None]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # d = 31 / -8, code j = trunc(8.5 - j / 3.875); byte k holds codes k and k + 16.
        ("Q4_0", "c0c3 48483737373726262626151515150404"),
        ("Q4_1", "2240 0000 80809191a2a2b3b3c4c4d5d5e6e6f7f7"),
        ("Q5_0", "c0bf 01000000 807f7f6e6e5d5d4c4c3b3b2a2a191908"),
        ("Q5_1", "003c 0000 0000ffff 00112233445566778899aabbccddeeff"),
    ],
)
def test_bytes_of_a_ramp(name: str, expected: str) -> None:
    data = encoding_from_name(name).encode(RAMP)["data"]
    assert data.tobytes().hex() == expected.replace(" ", "")


def test_q8_0_rounds_half_away_from_zero() -> None:
    rows = np.zeros((1, 32), np.float32)
    rows[0, :5] = [127, 0.5, -0.5, 1.5, 2.5]
    data = encoding_from_name("Q8_0").encode(rows)["data"]
    assert data[0, :2].tobytes() == np.float16(1).tobytes()
    assert data[0, 2:7].view(np.int8).tolist() == [127, 1, -1, 2, 3]


def test_nearest_int_rounds_half_to_even() -> None:
    values = np.asarray([0.5, 1.5, -0.5, -2.5, 2.4999], np.float32)
    assert nearest_int(values).tolist() == [0, 2, 0, -2, 2]


def test_searches_leave_zero_blocks_zero() -> None:
    zeros = np.zeros((32, 2), np.float32)
    ones = np.ones_like(zeros)
    codes, scale = symmetric_search(zeros, ones, 8)
    assert not codes.any() and not scale.any()
    codes, scale, low = scale_min_search(zeros - 2, ones, 15, -0.9, 0.05, 36)
    assert not codes.any() and not scale.any() and (low == -2).all()


def test_absolute_errors_are_a_choice_of_the_search() -> None:
    x = normal_rows(32, 50)
    ones = np.ones_like(x)

    def error(absolute: bool) -> float:
        codes, scale, low = scale_min_search(x, ones, 3, -0.5, 0.1, 15, absolute)
        return float(np.abs(codes * scale + low - x).sum())

    assert error(True) < error(False)


def test_importance_lowers_the_weighted_error() -> None:
    rows = normal_rows(64, 128)
    importance = np.where(np.arange(128) % 32 < 4, np.float32(50), np.float32(0.1))
    for name in LEGACY[:4]:
        encoding = encoding_from_name(name)
        plain = encoding.decode(encoding.encode(rows), 128)
        weighted = encoding.decode(encoding.encode(rows, importance), 128)
        assert (np.square(weighted - rows) * importance).sum() < (
            np.square(plain - rows) * importance
        ).sum()


@pytest.mark.parametrize("name", LEGACY)
def test_rows_must_divide_into_blocks(name: str) -> None:
    with pytest.raises(QuantizationError) as error:
        encoding_from_name(name).part_specs(2, 48)
    assert error.value.rule == (
        f"rows of 48 values do not divide into blocks of 32 ({name}); "
        "choose float16 or an affine type"
    )


@pytest.mark.parametrize("name", LEGACY)
def test_scales_beyond_float16_are_refused(name: str) -> None:
    rows = normal_rows(1, 32) * np.float32(1e9)
    with pytest.raises(QuantizationError) as error:
        encoding_from_name(name).encode(rows)
    assert error.value.rule == (
        f"a scale leaves float16's range, {name} stores it as float16; "
        "keep the tensor in bfloat16 or float32"
    )


def test_offsets_beyond_float16_are_refused() -> None:
    rows = np.full((1, 32), -1e6, np.float32)
    with pytest.raises(QuantizationError, match="an offset leaves float16's range, Q4_1"):
        encoding_from_name("Q4_1").encode(rows)


def unpacked(groups: int = 2, **fields: object) -> Unpacked:
    scale = np.ones((1, groups), np.float32)
    return Unpacked(np.zeros((1, 64), np.int32), Scales(scale, 64 // groups, **fields))


def test_pack_needs_groups_of_32_in_order() -> None:
    encoding = encoding_from_name("Q4_0")
    order = np.zeros(64, np.int32)
    for bad in (unpacked(1), unpacked(4), unpacked(2, group_of_column=order)):
        with pytest.raises(QuantizationError, match="Q4_0 needs groups of 32 columns in order"):
            encoding.pack(bad)
    assert encoding.decode(encoding.pack(unpacked()), 64).tolist() == [[0.0] * 64]


def test_pack_restates_zero_points_as_offsets() -> None:
    encoding = encoding_from_name("Q4_1")
    data = encoding.pack(unpacked(zero_point=np.full((1, 2), 3, np.int32)))
    np.testing.assert_array_equal(encoding.decode(data, 64), np.full((1, 64), -3))
    assert encoding.decode(encoding.pack(unpacked()), 64)[0, 0] == 0
    with pytest.raises(QuantizationError, match=r"its offsets \(-2049.0\) do not fit float16"):
        encoding.pack(unpacked(offset=np.full((1, 2), -2049, np.float32)))
    with pytest.raises(QuantizationError, match=r"its codes span 16..16, the target holds 0..15"):
        encoding.pack(Unpacked(np.full((1, 64), 16, np.int32), unpacked().scales))


def fake_cpu(**fields: object) -> types.ModuleType:
    module = types.ModuleType("halfbyte.kernels.cpu")
    module.__dict__.update(
        available=lambda: True,
        CLAIMS={"encode": frozenset({"Q8_0"}), "decode": frozenset({"Q8_0"})},
        encode=lambda kind, rows, importance, compat: np.zeros((len(rows), 34), np.uint8),
        decode=lambda kind, data, columns: np.full((len(data), columns), 7, np.float32),
        **fields,
    )
    return module


def test_a_claimed_encoding_uses_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "halfbyte.kernels.cpu", fake_cpu())
    encoding = encoding_from_name("Q8_0")
    assert encoding.encode(RAMP)["data"].tolist() == [[0] * 34]
    assert encoding.decode(encoding.encode(RAMP), 32)[0, 0] == 7
    with pytest.raises(QuantizationError, match="NaN or infinite"):
        encoding.encode(RAMP * np.float32(np.nan))
    other = encoding_from_name("Q4_0")
    assert other.encode(RAMP)["data"].any()
    assert cpu_kernel("encode", "Q4_0") is None


def test_bytes_of_a_kernel_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_cpu()
    module.encode = lambda kind, rows, importance, compat: np.full((1, 34), 0x7C, np.uint8)
    monkeypatch.setitem(sys.modules, "halfbyte.kernels.cpu", module)
    with pytest.raises(QuantizationError, match="a scale leaves float16's range"):
        encoding_from_name("Q8_0").encode(RAMP)


def test_without_the_extension_numpy_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_cpu()
    module.available = lambda: False
    monkeypatch.setitem(sys.modules, "halfbyte.kernels.cpu", module)
    assert cpu_kernel("encode", "Q8_0") is None
    monkeypatch.setitem(sys.modules, "halfbyte.kernels.cpu", None)
    assert cpu_kernel("encode", "Q8_0") is None
