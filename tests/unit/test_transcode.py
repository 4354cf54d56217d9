"""Verdicts and transcoding between encodings."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.transcode import (
    Verdict,
    depends_on_data,
    judge,
    judge_tensor,
    lossless_alternatives,
    refusal,
    transcode,
)
from halfbyte.ir.tensor import ArrayPart, Tensor, tensor_from_array
from support.encoded import bits, encoded, held, normal_rows

E, G, R = "exact", "exact after regrouping", "exact to rounding"
ROUNDED, Q, X = "rounded", "quantized", "refused"
OFFSETS = "exact codes, rounded offsets"

# source, target, verdict, whether the data may overrule it
VERDICTS = [
    # dense to dense
    ("float32", "float32", E, False),
    ("float16", "float32", E, False),
    ("bfloat16", "float32", E, False),
    ("float32", "float64", E, False),
    ("float8_e4m3fn", "float16", E, False),
    ("float8_e4m3fn", "bfloat16", E, False),
    ("float8_e4m3fn", "float32", E, False),
    ("float8_e5m2", "float16", E, False),
    ("float8_e5m2", "float8_e4m3fn", ROUNDED, True),
    ("float8_e4m3fn", "float8_e5m2", ROUNDED, False),
    ("bfloat16", "float16", ROUNDED, True),
    ("float16", "bfloat16", ROUNDED, False),
    ("float32", "float16", ROUNDED, True),
    ("float32", "float8_e4m3fn", ROUNDED, True),
    ("float64", "float32", ROUNDED, True),
    ("i8", "i16", E, False),
    ("u8", "i16", E, False),
    ("u8", "i8", X, False),
    ("i32", "i16", X, False),
    ("bool", "u8", E, False),
    ("i8", "float16", E, False),
    ("i16", "float16", X, False),
    ("i32", "float16", X, False),
    ("i32", "float64", E, False),
    ("i32", "float32", X, False),
    ("float32", "i8", X, False),
    # into and out of codes
    ("float32", "Q4_0", Q, False),
    ("bfloat16", "int4-g128", Q, False),
    ("i8", "Q8_0", X, False),
    ("Q4_0", "float32", E, False),
    ("Q4_0", "float64", E, False),
    ("Q8_0", "float32", E, False),
    ("Q4_1", "float32", R, False),
    ("Q5_1", "float32", R, False),
    ("int4-g128", "float32", E, False),
    ("int4-g32-asym", "float32", E, False),
    ("int8-g32-bf16", "float32", E, False),
    ("int8-g32-f32", "float32", R, False),
    ("int4-g32-fzp", "float32", R, False),
    ("Q4_0", "float16", ROUNDED, True),
    ("Q8_0", "bfloat16", ROUNDED, True),
    ("Q4_0", "i8", X, False),
    # codes to codes
    ("Q4_0", "int4-g32", E, False),
    ("int4-g32", "Q4_0", E, False),
    ("Q8_0", "int8-g32", E, False),
    ("int8-g32", "Q8_0", E, False),
    ("Q5_0", "int5-g32", E, False),
    ("int5-g32", "Q5_0", E, False),
    ("Q4_0", "Q5_0", E, False),
    ("Q4_0", "Q8_0", E, False),
    ("Q4_0", "Q4_1", E, False),
    ("Q5_0", "Q5_1", E, False),
    ("Q4_1", "Q5_1", E, False),
    ("Q4_1", "Q4_0", E, True),
    ("Q8_0", "Q4_0", Q, False),
    ("Q4_0", "int4-g32-f32", E, False),
    ("Q4_0", "int4-g32-bf16", E, True),
    ("int4-g32-f32", "Q4_0", E, True),
    ("Q4_0", "int4-g64", Q, False),
    ("Q4_0", "int4-g32-actorder", E, False),
    ("Q4_0", "int4-g16-actorder", G, False),
    ("int4-g128", "Q4_0", G, False),
    ("int4-g128", "int4-g32", G, False),
    ("int4-g128", "int4-g48", Q, False),
    ("int4-g32", "int4-g128", Q, False),
    ("int4", "int4-g128", G, False),
    ("int4-g128", "int4", Q, False),
    ("int8", "Q8_0", G, False),
    ("int8", "int8-f32", E, False),
    ("int4-g32", "int8-g32", E, False),
    ("int4-g128-actorder", "int4-g128", E, True),
    ("int4-g32-actorder", "Q4_0", E, True),
    ("int4-g128-actorder", "Q4_0", Q, False),
    ("int4-g128-actorder", "int8-g128-actorder", E, False),
    ("int4-g128-actorder", "int4-g64-actorder", Q, False),
    ("int4-g32", "int4-g32-asym", E, False),
    ("int4-g32-asym", "int4-g32", Q, False),
    ("int4-g32-asym", "Q5_0", E, True),
    ("int4-g32-asym", "Q4_1", OFFSETS, True),
    ("int4-g32-asym", "int4-g32-fzp", E, True),
    ("int4-g32-fzp", "int4-g32-asym", Q, False),
    ("int4-g32-fzp", "int4-g32", Q, False),
    ("Q8_0", "int8-g32-asym", E, True),
    ("Q4_1", "int4-g32-fzp-f32", R, True),
    ("int4-g32-fzp-f32", "Q4_1", R, True),
    ("Q4_1", "int4-g32-fzp", Q, False),
    ("Q5_1", "int4-g32-fzp-f32", Q, False),
]


@pytest.mark.parametrize(("source", "target", "verdict", "by_data"), VERDICTS)
def test_verdicts(source: str, target: str, verdict: str, by_data: bool) -> None:
    pair = encoding_from_name(source), encoding_from_name(target)
    assert str(judge(*pair)) == verdict
    assert depends_on_data(*pair) is by_data


def test_q4_0_and_int4_hold_the_same_codes() -> None:
    tensor = encoded("Q4_0", 4, 64)
    moved = transcode(tensor, encoding_from_name("int4-g32")).read()
    blocks = tensor.read()["data"].reshape(4, 2, 18)
    assert moved["scales"].tobytes() == blocks[..., :2].tobytes()
    nibbles = blocks[..., 2:]
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).reshape(4, 64)
    assert moved["codes"].tobytes() == (codes[:, ::2] | codes[:, 1::2] << 4).tobytes()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("Q4_0", "int4-g32"),
        ("Q4_0", "int4-g32-f32"),
        ("Q4_0", "int4-g32-asym"),
        ("Q4_1", "int4-g32-fzp-f32"),
        ("Q5_1", "int5-g32-fzp-f32"),
        ("Q8_0", "int8-g32"),
        ("Q5_0", "int5-g32"),
    ],
)
def test_the_way_back_is_byte_identical(source: str, target: str) -> None:
    tensor = encoded(source, 16, 128)
    tensor.read()["data"][0, :2] = np.frombuffer(np.float16(-0.5).tobytes(), np.uint8)
    there = held(transcode(tensor, encoding_from_name(target)))
    if target.endswith("asym"):  # by type a zero point may be anywhere; the codes come back
        assert not judge(there.encoding, tensor.encoding).is_lossless
        assert bits(tensor.encoding.pack(there.encoding.unpack(there.read(), 128))) == bits(
            tensor.read()
        )
    else:
        assert bits(transcode(there, tensor.encoding).read()) == bits(tensor.read())


def test_code_minus_128_passes_from_q8_0_to_int8() -> None:
    data = np.zeros((1, 34), np.uint8)
    data[0, 1], data[0, 2] = 0x3C, 0x80
    tensor = Tensor("w", (1, 32), encoding_from_name("Q8_0"), {"data": ArrayPart(data)})
    moved = transcode(tensor, encoding_from_name("int8-g32"))
    assert moved.decode()[0, 0] == -128.0
    assert moved.read()["codes"][0, :2].tolist() == [0, 128]


def scaled(scale: float, source: str = "int4-g32-f32") -> Tensor:
    tensor = encoded(source, 3, 64)
    parts = dict(tensor.parts)
    scales = parts["scales"].read().copy()
    scales[2, 1] = scale
    parts["scales"] = ArrayPart(scales)
    return replace(tensor, parts=parts)


def test_scales_that_do_not_survive_are_found() -> None:
    target = encoding_from_name("Q4_0")
    exact = scaled(0.5)
    exact = replace(exact, parts={**exact.parts, "scales": ArrayPart(np.full((3, 2), 0.5, "f4"))})
    assert judge_tensor(exact, target) is Verdict.EXACT
    wrong = scaled(0.1)
    assert judge_tensor(wrong, target) is Verdict.QUANTIZED
    with pytest.raises(QuantizationError, match=r"tensor 'w': its scales .* do not fit float16"):
        transcode(wrong, target).read()
    tiny = replace(exact, parts={**exact.parts, "scales": ArrayPart(np.full((3, 2), 1e-9, "f4"))})
    assert judge_tensor(tiny, target) is Verdict.QUANTIZED


def test_zero_points_that_do_not_survive_are_found() -> None:
    tensor = encoded("int4-g32-asym", 3, 64)
    target = encoding_from_name("Q5_0")
    assert judge_tensor(tensor, target) is Verdict.EXACT
    far = replace(
        tensor, parts={**tensor.parts, "zero_points": ArrayPart(np.full((3, 2), 40, "u1"))}
    )
    assert judge_tensor(far, target) is Verdict.QUANTIZED
    with pytest.raises(QuantizationError, match=r"its codes span .* the target holds 0\.\.31"):
        transcode(far, target).read()


def test_an_order_of_groups_that_is_none_may_go() -> None:
    tensor = encoded("int4-g32-actorder", 3, 64)
    target = encoding_from_name("Q4_0")
    assert judge_tensor(tensor, target) is Verdict.EXACT
    order = np.repeat(np.asarray([1, 0], np.int32), 32)
    turned = replace(tensor, parts={**tensor.parts, "g_idx": ArrayPart(order)})
    assert judge_tensor(turned, target) is Verdict.QUANTIZED
    assert "Q4_0" not in refusal(turned, target).supported
    assert "Q4_0" in refusal(tensor, target).supported


def test_a_flat_block_has_no_fractional_zero_point() -> None:
    tensor = tensor_from_array("flat", np.full((1, 32), 0.5, np.float32))
    q4_1 = encoding_from_name("Q4_1")
    parts = {n: ArrayPart(a) for n, a in q4_1.encode(tensor.decode()).items()}
    flat = replace(tensor, encoding=q4_1, parts=parts)
    assert judge_tensor(flat, encoding_from_name("int4-g32-fzp-f32")) is Verdict.QUANTIZED
    assert judge_tensor(flat, encoding_from_name("float32")) is Verdict.EXACT_TO_ROUNDING


def test_dense_ranges_are_checked_on_the_data() -> None:
    half = encoding_from_name("float16")
    large = tensor_from_array("big", np.asarray([[1, 1e5]], ml_dtypes.bfloat16))
    with pytest.raises(QuantizationError, match="tensor 'big': holds 99840, beyond the range"):
        judge_tensor(large, half)
    with pytest.raises(QuantizationError, match="tensor 'big': holds 99840"):
        transcode(large, half).read()
    small = tensor_from_array("small", np.asarray([[1, 2]], ml_dtypes.bfloat16))
    assert judge_tensor(small, half) is Verdict.ROUNDED
    assert transcode(small, half).decode().dtype == np.float16


def test_row_length_is_checked_before_anything_is_read() -> None:
    tensor = encoded("int4-g32", 2, 40)
    for call in (judge_tensor, transcode):
        with pytest.raises(QuantizationError, match="tensor 'w': rows of 40 values do not divide"):
            call(tensor, encoding_from_name("Q4_0"))


def test_refusals_name_lossless_alternatives() -> None:
    tensor = encoded("Q4_1", 2, 64)
    assert str(refusal(tensor, encoding_from_name("Q4_0"))) == (
        "tensor 'w': Q4_1 to Q4_0 without loss is not supported; "
        "supported: int4-g32-bias-f32, Q5_1, int5-g32-bias-f32, float32, float64 and 2 more; "
        "or allow it to be quantized again (--requantize)"
    )
    short = refusal(encoded("int4-g32", 2, 40), encoding_from_name("Q4_0"))
    assert "Q4_0" not in short.supported and "int4-g32-f32" in short.supported
    only = refusal(tensor, encoding_from_name("Q4_0"), lambda encoding: not encoding.is_quantized)
    assert only.supported == ["float32", "float64"]


@pytest.mark.parametrize("target", ["float16", "Q8_0", "i8"])
def test_quantized_weights_never_pass_silently_through_float(target: str) -> None:
    with pytest.raises((UnsupportedError, QuantizationError)):
        transcode(encoded("Q5_1", 2, 64), encoding_from_name(target)).read()


def test_dense_weights_are_not_quantized_here() -> None:
    with pytest.raises(UnsupportedError, match="float32 to Q4_0 without loss"):
        transcode(encoded("float32", 2, 64), encoding_from_name("Q4_0"))


def test_same_encoding_is_the_same_tensor() -> None:
    tensor = encoded("Q4_0", 2, 64)
    assert transcode(tensor, tensor.encoding) is tensor


def test_alternatives_come_smallest_first_and_sure_ones_before_unsure() -> None:
    names = [e.name for e in lossless_alternatives(encoding_from_name("int4-g32"))]
    assert names[0] == "Q4_0" and names.index("Q5_0") < names.index("Q8_0")
    wide = [e.name for e in lossless_alternatives(encoding_from_name("int4-g32-f32"))]
    assert wide.index("float32") < wide.index("Q4_0")


def test_transcoding_reads_only_the_rows_asked_for() -> None:
    rows = normal_rows(8, 64)
    q8_0 = encoding_from_name("Q8_0")
    asked: list[tuple[int, int | None]] = []

    class Watched(ArrayPart):
        def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
            asked.append((start, stop))
            return super().read(start, stop)

    part = Watched(q8_0.encode(rows)["data"])
    tensor = transcode(Tensor("w", (8, 64), q8_0, {"data": part}), encoding_from_name("int8-g32"))
    assert asked == []
    first = tensor.parts["codes"].read(2, 4)
    assert first.shape == (2, 64) and asked == [(2, 4)]
    tensor.parts["scales"].read(2, 4)
    assert asked == [(2, 4)]
