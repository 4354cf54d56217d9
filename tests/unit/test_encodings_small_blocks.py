"""IQ4, ternary, FP4, one and two bits: references, refusals, what they hold for other encodings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings import encoding_from_name, ggml_block
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.encodings.encoding import Scales, Unpacked
from halfbyte.ir.encodings.ggml_fp4 import e8m0_exponent, ue4m3_bytes, ue4m3_values
from halfbyte.ir.encodings.reencode import reencoded
from halfbyte.ir.encodings.transcode import Verdict, judge, judge_tensor, transcode
from halfbyte.kernels.layouts import LAYOUTS
from support.encoded import bits, encoded, held, normal_rows
from support.kernel_cases import SMALL_KINDS, small_case
from support.weight_rows import stress_rows

COLUMNS = 512


def searches(name: str) -> list[np.ndarray | None]:
    plain = np.random.default_rng(2).random(COLUMNS).astype(np.float32) ** 2
    holes = np.where(plain < 0.3, np.float32(0), plain)
    return [None, plain, holes] if name.startswith("IQ4") else [None]


@pytest.mark.parametrize("name", SMALL_KINDS)
def test_encode_equals_its_reference(name: str) -> None:
    encoding = encoding_from_name(name)
    for case, rows in stress_rows(COLUMNS, rows=4):
        for importance in searches(name):
            ours = encoding.encode(rows * np.float32(0.1), importance)
            reference = encoding.encode_reference(rows * np.float32(0.1), importance)
            assert bits(ours) == bits(reference), case


@pytest.mark.parametrize("name", SMALL_KINDS)
def test_without_the_extension_numpy_gives_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, rows = encoding_from_name(name), normal_rows(3, COLUMNS)
    parts = encoding.encode(rows)
    values = encoding.decode(parts, COLUMNS)
    monkeypatch.setattr(ggml_block, "cpu_kernel", lambda function, kind: None)
    assert bits(encoding.encode(rows)) == bits(parts)
    np.testing.assert_array_equal(encoding.decode(parts, COLUMNS), values)


@pytest.mark.parametrize("name", SMALL_KINDS)
def test_pack_inverts_unpack_on_any_bytes(name: str) -> None:
    data, encoding = small_case(name, 8, COLUMNS).data, encoding_from_name(name)
    if name == "TQ1_0":  # 13 of 256 bytes are no five digits that an encoder writes
        data = encoding.pack(encoding.unpack({"data": data}, COLUMNS))["data"]
    unpacked = encoding.unpack({"data": data}, COLUMNS)
    assert encoding.pack(unpacked)["data"].tobytes() == data.tobytes()


@pytest.mark.parametrize("name", [k for k in SMALL_KINDS if k != "Q2_0"])
def test_values_equal_gguf_py(name: str) -> None:
    kind = getattr(GGMLQuantizationType, name, None)
    if kind is None or kind not in quants._type_traits:
        pytest.skip(f"this gguf does not know {name}")
    case = small_case(name, 8, COLUMNS)
    theirs = quants.dequantize(case.data, kind)
    np.testing.assert_array_equal(case.values.view(np.uint32), theirs.view(np.uint32))


def test_the_second_zero_of_e2m1_survives() -> None:
    encoding = encoding_from_name("MXFP4")
    data = np.full((1, LAYOUTS["MXFP4"].bytes), 0x80, np.uint8)
    unpacked = encoding.unpack({"data": data}, 32)
    assert unpacked.codes.tolist() == [[0] * 32]
    assert encoding.pack(unpacked)["data"].tobytes() == data.tobytes()
    bare = Unpacked(unpacked.codes, replace(unpacked.scales, fields=None))
    assert not encoding.pack(bare)["data"][0, 1:].any()


def test_codes_and_scales_that_do_not_fit_are_refused() -> None:
    def packed(name: str, code: int, scale: float, group: int) -> None:
        encoding = encoding_from_name(name)
        codes = np.full((1, 256), code, np.int32)
        scales = Scales(np.full((1, 256 // group), scale, np.float32), group)
        encoding.pack(Unpacked(codes, scales))

    packed("IQ4_NL", 113, 0.5, 32)
    packed("MXFP4", -12, 2.0**-127, 32)
    packed("NVFP4", 6, 224, 16)
    packed("TQ1_0", 1, 3, 256)
    for name, code, scale, group, message in [
        ("IQ4_NL", 2, 0.5, 32, "code 2 is none of the codebook"),
        ("IQ4_NL", 1, 0.1, 32, "do not fit float16"),
        ("IQ4_NL", 1, 0.5, 64, "groups of 32"),
        ("IQ4_XS", 1, 0.5, 32, "are not the products that IQ4_XS stores"),
        ("MXFP4", 1, 0.75, 32, "no power of two"),
        ("MXFP4", 5, 0.5, 32, "code 5 is none"),
        ("NVFP4", 1, 1.03125, 16, "none that NVFP4 stores"),
        ("NVFP4", 1, 240, 16, "none that NVFP4 stores"),
        ("TQ1_0", 2, 1, 256, "its codes span 3..3, the target holds 0..2"),
        ("Q1_0", 0, 1, 128, "code 0 is none"),
    ]:
        with pytest.raises(QuantizationError, match=message):
            packed(name, code, scale, group)


def test_rows_must_divide_into_blocks() -> None:
    with pytest.raises(QuantizationError, match=r"rows of 96 values .* blocks of 64 \(NVFP4\)"):
        encoding_from_name("NVFP4").encode(np.zeros((1, 96), np.float32))


@pytest.mark.parametrize("name", ["IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0"])
def test_scales_beyond_float16_are_refused(name: str) -> None:
    rows = np.full((1, 256), 1e9, np.float32)
    with pytest.raises(QuantizationError, match="leaves float16's range"):
        encoding_from_name(name).encode(rows)


@pytest.mark.parametrize("largest", [1e4, 3e12, 3e38])
def test_nvfp4_says_how_far_it_reaches(largest: float) -> None:
    rows = np.full((1, 64), largest, np.float32)
    encoding = encoding_from_name("NVFP4")
    for method in (encoding.encode, encoding.encode_reference):  # type: ignore[attr-defined]
        with pytest.raises(QuantizationError, match="beyond the 2688"):
            method(rows)


def test_mxfp4_takes_the_power_of_two_below_the_largest() -> None:
    rows = np.zeros((4, 32), np.float32)
    rows[:, 0] = [1, 7.9, 2.0**-140, 2.0**127]
    encoding = encoding_from_name("MXFP4")
    data = encoding.encode(rows)["data"]
    assert data[:, 0].tolist() == [125, 127, 0, 252]
    assert encoding.decode({"data": data}, 32)[:, 0].tolist() == [1, 6, 0, 2.0**127]
    data[0, 0] = 255
    with pytest.raises(QuantizationError, match="a scale is NaN"):
        encoding.require_finite_scales(data)


def test_exponents_follow_a_rounded_logarithm() -> None:
    edges = np.ldexp(np.float32(1), np.arange(-120, 128))
    below = [edges]
    for _ in range(60):
        below.append(np.nextafter(below[-1], np.float32(0)))
    values = np.stack(below)
    exact = np.floor(np.log2(values.astype(np.float64)).astype(np.float32)) + 125
    np.testing.assert_array_equal(e8m0_exponent(values), exact)


def test_ue4m3_bytes_are_nearest() -> None:
    values = 2 * ue4m3_values()[:0x7F]
    np.testing.assert_array_equal(ue4m3_bytes(values, compat=False), np.arange(0x7F))
    between = np.linspace(2**-9, 448, 5000, dtype=np.float32)
    found = values[ue4m3_bytes(between, compat=False)]
    step = np.diff(values).max()
    assert (np.abs(found - between) <= step / 2).all()
    large = ue4m3_bytes(np.array([255, 256, 300, 447], np.float32), compat=True)
    assert large.tolist() == [0x7E] * 4


def test_nvfp4_keeps_small_and_large_groups_unless_compatible() -> None:
    encoding = encoding_from_name("NVFP4")
    rows = np.zeros((1, 64), np.float32)
    rows[0, :16], rows[0, 16:32] = 0.001, 1800.0
    for method in (encoding.encode, encoding.encode_reference):
        ours = encoding.decode(method(rows), 64)
        theirs = encoding.decode(method(rows, compat=True), 64)
        np.testing.assert_allclose(ours[0, :16], 0.001, rtol=0.03)
        np.testing.assert_allclose(ours[0, 16:32], 1800, rtol=0.07)
        assert not theirs[0, :16].any() and (np.abs(theirs[0, 16:32] - 1800) == 8).all()
    rows[0, 40] = 2800
    for method in (encoding.encode, encoding.encode_reference):
        with pytest.raises(
            QuantizationError, match="a weight is beyond the 2688 that NVFP4 reaches"
        ):
            method(rows)
        assert encoding.decode(method(rows, compat=True), 64)[0, 40] == 2688


@pytest.mark.parametrize(
    ("source", "target", "verdict"),
    [
        ("IQ4_NL", "Q8_0", Verdict.EXACT),
        ("IQ4_NL", "int8-g32", Verdict.EXACT),
        ("IQ4_NL", "float32", Verdict.EXACT),
        ("IQ4_XS", "int8-g32-f32", Verdict.EXACT),
        ("MXFP4", "Q8_0", Verdict.EXACT),
        ("MXFP4", "int5-g32-bf16", Verdict.EXACT),
        ("NVFP4", "int5-g16", Verdict.EXACT),
        ("TQ1_0", "TQ2_0", Verdict.EXACT),
        ("TQ2_0", "Q4_0", Verdict.REGROUPED),
        ("TQ1_0", "Q2_0", Verdict.REGROUPED),
        ("Q2_0", "Q4_0", Verdict.REGROUPED),
        ("Q1_0", "Q2_0", Verdict.REGROUPED),
    ],
)
def test_what_other_encodings_hold(source: str, target: str, verdict: Verdict) -> None:
    tensor, wanted = encoded(source, 4, 256), encoding_from_name(target)
    assert judge(tensor.encoding, wanted) is verdict
    assert judge_tensor(tensor, wanted) is verdict
    moved = held(transcode(tensor, wanted))
    np.testing.assert_array_equal(moved.float32(), tensor.float32())


def test_no_codebook_takes_other_codes() -> None:
    for target in ("IQ4_NL", "MXFP4", "NVFP4", "Q1_0"):
        verdict = judge(encoding_from_name("Q8_0"), encoding_from_name(target))
        assert verdict is Verdict.QUANTIZED


def test_powers_of_two_beyond_float16_do_not_become_q8_0() -> None:
    rows = normal_rows(2, 64) * np.float32(2.0**-40)
    tensor = encoded("MXFP4", 2, 64)
    tiny = replace(tensor, parts=encoded_parts("MXFP4", rows))
    assert judge_tensor(tensor, encoding_from_name("Q8_0")) is Verdict.EXACT
    assert judge_tensor(tiny, encoding_from_name("Q8_0")) is Verdict.QUANTIZED


def encoded_parts(name: str, rows: np.ndarray):
    from halfbyte.ir.tensor import ArrayPart

    parts = encoding_from_name(name).encode(rows)
    return {key: ArrayPart(array) for key, array in parts.items()}


FUSED = ["Q4_0", "Q8_0", "IQ4_NL", "NVFP4", "TQ2_0"]


@pytest.mark.parametrize("source", ["float16", "float32", "bfloat16", "Q8_0", "Q6_K"])
@pytest.mark.parametrize("target", FUSED)
def test_one_pass_gives_what_decoding_and_encoding_give(source: str, target: str) -> None:
    tensor, wanted = encoded(source, 40, 768), encoding_from_name(target)
    for importance in (None, np.random.default_rng(1).random(768).astype(np.float32)):
        found = reencoded(tensor.encoding, tensor.read(), 768, wanted, importance)
        assert bits(found) == bits(wanted.encode(tensor.float32(), importance))


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_one_pass_refuses_what_is_not_finite(bad: float) -> None:
    rows = normal_rows(40, 768).astype(np.float16)
    rows[39, 700] = bad
    for target in FUSED:
        with pytest.raises(QuantizationError, match="NaN or infinite"):
            reencoded(Dense("float16"), {"data": rows}, 768, encoding_from_name(target))
