"""Float8, FP4 and NF4: golden bytes, naive oracles, scales that rows share, kernels of the CPU."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.encoding import Unpacked
from halfbyte.ir.encodings.float8 import Float8
from halfbyte.ir.encodings.ggml_fp4 import MXFP4, NVFP4
from halfbyte.ir.encodings.nf4 import TABLES, Quantile4
from halfbyte.ir.encodings.power_scales import powers_above
from halfbyte.ir.encodings.transcode import Verdict, judge, judge_tensor, transcode
from halfbyte.ir.tensor import ArrayPart, Tensor, tensor_from_array
from halfbyte.quant.algorithms import get_algorithm
from halfbyte.quant.algorithms.rtn import requantize
from halfbyte.quant.algorithms.shared_rows import row_encoder
from support.encoded import bits, encoded, held, normal_rows, read_in_ranges
from support.model_folders import outputs_of, tiny_model

E4M3 = ml_dtypes.float8_e4m3fn
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
NAMES = ["fp8", "fp8-tensor", "fp8-block128", "mxfp8", "mxfp4", "nvfp4", "nf4", "bnb-fp4"]
NAMES += ["int4-g64-bias", "int8-g32-bias-bf16", "int3-g64-bias-f32"]


def coded(name: str, rows: list[list[float]]) -> dict[str, np.ndarray]:
    return encoding_from_name(name).encode(np.array(rows, np.float32))


def test_float8_bytes() -> None:
    parts = coded("fp8", [[448.0, -448.0, 1.0, 0.0, 2.0**-9, 0.4375, 17.0, 18.5]])
    assert parts["scales"].tolist() == [[1.0]]
    found = parts["codes"].view(np.uint8)[0].tolist()
    assert found == [0x7E, 0xFE, 0x38, 0x00, 0x01, 0x2E, 0x58, 0x59]


def test_mxfp4_bytes() -> None:
    row = [6.0, -6.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 0.25, 0.75, 2.5, 5.0, *[0.0] * 20]
    parts = coded("mxfp4", [row])
    assert parts["scales"].tolist() == [[127]]
    # 0.25 -> 0, 0.75 -> 1, 2.5 -> 2, 5 -> 4: ties to the even code; the low nibble comes first.
    assert parts["codes"][0, :6].tolist() == [0xF7, 0x21, 0x43, 0x65, 0x20, 0x64]


def test_nvfp4_bytes() -> None:
    row = [6.0 * 448, -448.0, *[0.0] * 14, 12.0, *[0.0] * 15]
    parts = coded("nvfp4", [row])
    # Room for the largest value at 4 of 6: 2688 / 1792 = 1.5, so the tensor's scale is 2.
    assert parts["tensor_scales"].tolist() == [[2.0]]
    assert parts["scales"].astype(np.float32).tolist() == [[224.0, 1.0]]
    assert parts["codes"][0, 0] == 0xA7 and parts["codes"][0, 8] == 0x07


def test_nf4_bytes_have_the_first_value_in_the_high_nibble() -> None:
    parts = coded("nf4", [[-2.0, 2.0, 0.0, 0.16, *[0.0] * 61]])
    assert parts["scales"].tolist() == [[2.0, 0.0]]
    assert parts["codes"][0, :2].tolist() == [0x0F, 0x78] and parts["codes"].shape == (1, 33)


def nearest(value: float, levels: list[float]) -> float:
    return min(levels, key=lambda level: abs(level - value))


@pytest.mark.parametrize("name", ["nf4", "bnb-fp4"])
def test_quantiles_are_the_nearest(name: str) -> None:
    rows = normal_rows(3, 100)
    encoding = Quantile4(name, 32)
    parts = encoding.encode(rows)
    levels = [float(level) for level in TABLES[name]]
    for row, group in itertools.product(range(3), range(4)):
        block = rows[row, 32 * group : 32 * group + 32]
        scale = float(np.abs(block).max())
        assert parts["scales"][row, group] == np.float32(scale)
        decoded = encoding.decode(parts, 100)[row, 32 * group : 32 * group + 32]
        for value, got in zip(block, decoded, strict=True):
            best = nearest(float(value) / scale, levels) * scale
            assert abs(got - value) <= abs(best - value) + 1e-6 * scale


def test_every_code_of_every_type_survives() -> None:
    codes = np.array([[b for b in range(256) if b & 0x7F != 0x7F]], np.uint8)
    wide = Float8()
    parts = {"codes": codes.view(E4M3), "scales": np.array([[0.37]], np.float32)}
    assert bits(wide.pack(wide.unpack(parts, codes.shape[1]))) == bits(parts)
    value = codes.view(E4M3).astype(np.float32) * np.float32(0.37)
    np.testing.assert_array_equal(wide.decode(parts, codes.shape[1]), value)
    pairs = np.arange(256, dtype=np.uint8)[None]
    four = encoding_from_name("mxfp4")
    parts = {"codes": pairs, "scales": np.arange(100, 116, dtype=np.uint8)[None]}
    assert bits(four.pack(four.unpack(parts, 512))) == bits(parts)
    signed = np.array([*E2M1, *(-level for level in E2M1)], np.float32)
    scale = np.exp2(np.arange(100, 116) - 127).astype(np.float32).repeat(32)
    expected = np.stack([signed[pairs & 15], signed[pairs >> 4]], 2).reshape(1, 512) * scale
    assert four.decode(parts, 512).tobytes() == expected.tobytes()


def test_casts_saturate_and_never_give_nan() -> None:
    encoding = Float8(scale_dtype="bfloat16")
    rows = normal_rows(40, 64) * np.float32(1000)
    parts = encoding.encode(rows)
    assert np.isfinite(encoding.decode(parts, 64)).all()
    scales = encoding.fit(rows / np.float32(8))
    codes = encoding.pack(Unpacked(encoding.assign(rows, scales), scales))["codes"]
    assert np.abs(codes.astype(np.float32)).max() == 448


def test_nan_codes_and_scales_are_refused() -> None:
    bad = {"codes": np.full((1, 4), 0x7F, np.uint8).view(E4M3)}
    bad["scales"] = np.ones((1, 1), np.float32)
    with pytest.raises(QuantizationError, match="float8 code is NaN"):
        Float8().unpack(bad, 4)
    four = {"codes": np.zeros((1, 16), np.uint8), "scales": np.full((1, 1), 255, np.uint8)}
    with pytest.raises(QuantizationError, match="scale is NaN"):
        encoding_from_name("mxfp4").unpack(four, 32)


@pytest.mark.parametrize(
    "name", ["fp8-row", "fp8-g32-ue8m0", "fp8-tensor-f32", "nf4-g64", "nvfp4-f32", "fp4"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedError):
        encoding_from_name(name)


def test_rows_share_their_scale_within_a_matrix_only() -> None:
    stack = np.random.default_rng(1).standard_normal((2, 300, 200)).astype(np.float32)
    stack[1] *= 3
    tensor = tensor_from_array("w", stack)
    blocks = requantize(tensor, encoding_from_name("fp8-block128"))
    scales = blocks.read()["scales"]
    assert scales.shape == (600, 2)
    for matrix, start in itertools.product(range(2), (0, 128, 256)):
        stop = min(start + 128, 300)
        own = scales[300 * matrix + start : 300 * matrix + stop]
        for group, columns in enumerate((slice(0, 128), slice(128, 200))):
            largest = np.abs(stack[matrix, start:stop, columns]).max()
            assert (own[:, group] == largest / np.float32(448)).all()
    whole = requantize(tensor, encoding_from_name("fp8-tensor"))
    assert bits(read_in_ranges(whole, 7, 290, 310)) == bits(whole.read())
    assert len(np.unique(whole.read()["scales"])) == 2
    even = tensor_from_array("w", np.ascontiguousarray(stack[..., :192]))
    by_matrix = requantize(even, encoding_from_name("nvfp4"))
    assert bits(read_in_ranges(by_matrix, 7, 290, 310)) == bits(by_matrix.read())


def test_powers_bring_the_largest_into_reach_and_no_further() -> None:
    largest = np.abs(normal_rows(1, 4000)).reshape(-1)
    largest = np.concatenate([largest, np.float32([448, 224, 896, np.nextafter(448, 449)])])
    scale = powers_above(largest.astype(np.float32), 448.0)
    assert (largest <= 448 * scale).all() and (largest > 224 * scale).all()


def test_microscaled_blocks_are_ggml_blocks() -> None:
    tensor = encoded("MXFP4", 8, 256)
    assert judge(tensor.encoding, encoding_from_name("mxfp4")) is Verdict.EXACT
    there = held(transcode(tensor, encoding_from_name("mxfp4")))
    np.testing.assert_array_equal(there.decode(), tensor.decode())
    # ggml keeps element j and j + 16 in one byte, the others element 2 j and 2 j + 1.
    nibbles = tensor.read()["data"].reshape(8, 8, 17)[:, :, 1:]
    flat = np.concatenate([nibbles & 15, nibbles >> 4], axis=2).reshape(8, 128, 2)
    np.testing.assert_array_equal(there.read()["codes"], flat[..., 0] | flat[..., 1] << 4)
    assert bits(transcode(there, MXFP4()).read()) == bits(tensor.read())


def test_nvfp4_goes_to_ggml_where_the_scale_of_the_tensor_folds_in() -> None:
    tensor = encoded("nvfp4", 8, 256)
    assert judge_tensor(tensor, NVFP4()).is_lossless
    np.testing.assert_array_equal(transcode(tensor, NVFP4()).decode(), tensor.decode())
    parts = dict(tensor.read())
    parts["tensor_scales"] = parts["tensor_scales"] * np.float32(1.1)
    other = Tensor("w", (8, 256), tensor.encoding, {n: ArrayPart(a) for n, a in parts.items()})
    assert judge_tensor(other, NVFP4()) is Verdict.QUANTIZED


def squared(encoding_name: str, rows: np.ndarray, method: str = "rtn") -> float:
    tensor = tensor_from_array("w", rows)
    found = get_algorithm(method)(tensor, encoding_from_name(encoding_name))
    return float(((found.float32() - rows).astype(np.float64) ** 2).sum())


def plain_nvfp4(rows: np.ndarray) -> float:
    """Return the squared error of the plain recipe: largest value at 6, global scale amax/2688."""
    ts = np.abs(rows).max() / 2688
    groups = rows.reshape(-1, 16)
    scale = (np.abs(groups).max(axis=1) / 6 / ts).astype(E4M3).astype(np.float32) * ts
    levels = np.array([*E2M1, *(-x for x in E2M1)])
    nearest_code = np.abs(groups[..., None] / scale[:, None, None] - levels).argmin(axis=2)
    return float(((levels[nearest_code] * scale[:, None] - groups) ** 2).sum())


def test_searches_lessen_the_error() -> None:
    rows = normal_rows(64, 512) * np.float32(0.02)
    assert squared("nvfp4", rows) < 0.93 * plain_nvfp4(rows)
    assert squared("nvfp4", rows, "exhaustive") < squared("nvfp4", rows)
    ggml = encoding_from_name("MXFP4")
    floor = ((ggml.decode(ggml.encode(rows), 512) - rows) ** 2).sum()
    assert squared("mxfp4", rows) < floor
    assert squared("mxfp4", rows, "exhaustive") <= squared("mxfp4", rows)
    assert squared("nf4", rows, "exhaustive") < squared("nf4", rows)


@pytest.mark.parametrize("name", NAMES)
def test_the_cpu_runs_them(name: str) -> None:
    model = tiny_model("llama", hidden_size=64, intermediate_size=128)
    encoding = encoding_from_name(name)
    weights, plain = {}, {}
    for key, tensor in model.weights.items():
        is_matrix = len(tensor.shape) == 2 and tensor.columns % 64 == 0
        weights[key] = held(requantize(tensor, encoding)) if is_matrix else tensor
        values = tensor_from_array(tensor.name, weights[key].numpy()).identified(tensor.key)
        plain[key] = values
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    got = outputs_of(model.with_weights(weights), ids)
    wanted = outputs_of(model.with_weights(plain), ids)
    for key, value in wanted.items():
        np.testing.assert_allclose(got[key], value, rtol=0, atol=1e-5 * np.abs(value).max())


@pytest.mark.parametrize("name", ["fp8-tensor", "fp8-block128", "nvfp4"])
def test_ranges_of_a_matrix_are_encoded_as_the_whole(name: str) -> None:
    rows = normal_rows(300, 64) * np.linspace(0.1, 3, 300, dtype=np.float32)[:, None]
    encoding = encoding_from_name(name)
    encode = row_encoder(rows, encoding)
    pieces = [encode(rows[a:b], a, None) for a, b in ((0, 100), (100, 250), (250, 300))]
    whole = {part: np.concatenate([p[part] for p in pieces]) for part in pieces[0]}
    assert bits(whole) == bits(encoding.encode(rows))
