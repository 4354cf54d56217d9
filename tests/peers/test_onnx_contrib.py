"""Operators of onnxruntime's domain against onnxruntime, one at a time."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from support.contrib_models import compare

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytestmark = pytest.mark.peer

# Ours sums in another order than onnxruntime: a few roundings of float32 and of float16.
EXACT = 2e-6
HALF = 2e-3
Array = np.ndarray


def random(seed: int, *shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def integers(seed: int, low: int, high: int, *shape: int, dtype: Any = np.uint8) -> Array:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def nbits_inputs(
    bits: int, block: int, rows: int, columns: int, zero: str, dtype: Any = np.float32
) -> list[Array | None]:
    blocks = -(-columns // block)
    codes = integers(1, 0, 256, rows, blocks, block * bits // 8)
    scales = np.abs(random(2, rows, blocks, dtype=dtype)) + dtype(0.1)
    zeros: Array | None = None
    if zero == "packed":
        zeros = integers(3, 0, 256, rows, -(-blocks * bits // 8))
    if zero == "float":
        zeros = (random(3, rows, blocks) + 2 ** (bits - 1)).astype(dtype)
    return [random(4, 3, columns, dtype=dtype), codes, scales, zeros]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero", ["none", "packed", "float"])
@pytest.mark.parametrize(("block", "columns"), [(16, 64), (32, 80), (128, 100)])
def test_matmul_nbits(bits: int, zero: str, block: int, columns: int) -> None:
    if bits == 8 and zero == "float":
        pytest.skip("onnxruntime takes no float zero points for 8 bits")
    given = nbits_inputs(bits, block, 24, columns, zero)
    attributes = {"K": columns, "N": 24, "bits": bits, "block_size": block}
    compare("MatMulNBits", given, attributes, constants={1, 2, 3}, tolerance=EXACT)


def test_matmul_nbits_with_bias_and_batch() -> None:
    given = nbits_inputs(4, 32, 24, 96, "none")
    given = [random(9, 2, 5, 96), *given[1:3], None, None, random(8, 24)]
    attributes = {"K": 96, "N": 24, "bits": 4, "block_size": 32}
    compare("MatMulNBits", given, attributes, constants={1, 2, 5}, tolerance=EXACT)


def test_matmul_nbits_in_half_precision() -> None:
    given = nbits_inputs(4, 32, 24, 96, "packed", np.float16)
    attributes = {"K": 96, "N": 24, "bits": 4, "block_size": 32}
    compare("MatMulNBits", given, attributes, constants={1, 2, 3}, tolerance=HALF)


def test_matmul_nbits_in_the_order_of_groups() -> None:
    # With stored zero points onnxruntime takes 8 all the same when the groups are mixed.
    given = nbits_inputs(4, 32, 24, 96, "none")
    groups = np.random.default_rng(5).permutation(np.arange(96) // 32).astype(np.int32)
    attributes = {"K": 96, "N": 24, "bits": 4, "block_size": 32}
    compare("MatMulNBits", [*given, groups], attributes, constants={1, 2, 3, 4}, tolerance=EXACT)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_gather_block_quantized_of_bytes(bits: int, zeros: bool) -> None:
    table = integers(10, 0, 256, 9, 64 * bits // 8)
    scales = random(11, 9, 2)
    points = integers(12, 0, 256, 9, 2 * bits // 8) if zeros else None
    ids = np.asarray([[0, 8, -1], [7, 12, -20]])
    attributes = {"bits": bits, "block_size": 32, "gather_axis": 0, "quantize_axis": 1}
    given = [table, ids, scales, points]
    compare("GatherBlockQuantized", given, attributes, constants={0, 2, 3})


@pytest.mark.parametrize("name", ["int4", "uint4"])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("gather", "quantized"), [(0, 1), (1, 0), (1, 1)])
def test_gather_block_quantized_of_narrow_types(
    name: str, zeros: bool, gather: int, quantized: int
) -> None:
    dtype = getattr(ml_dtypes, name)
    low = -8 if name == "int4" else 0
    table = integers(13, low, low + 16, 9, 40, dtype=np.int8).astype(dtype)
    shape = (9, 3) if quantized == 1 else (1, 40)
    points = integers(14, low, low + 16, *shape, dtype=np.int8).astype(dtype) if zeros else None
    attributes = {"block_size": 16, "gather_axis": gather, "quantize_axis": quantized}
    given = [table, np.asarray([3, 0, 8]), random(15, *shape), points]
    compare("GatherBlockQuantized", given, attributes, constants={0, 2, 3})


@pytest.mark.parametrize("kind", [0, 1])
def test_matmul_bnb4(kind: int) -> None:
    codes, largest = integers(16, 0, 256, 24 * 96 // 2), np.abs(random(17, 24 * 96 // 32))
    attributes = {"K": 96, "N": 24, "block_size": 32, "quant_type": kind}
    given = [random(18, 5, 96), codes, largest]
    compare("MatMulBnb4", given, attributes, constants={1, 2}, tolerance=EXACT)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("form", ["ids", "offset", "partial", "rank4"])
def test_rotary_embedding(interleaved: int, form: str) -> None:
    angles = random(20, 32, 4 if form == "partial" else 8)
    data = random(21, 2, 5, 64) if form != "rank4" else random(21, 2, 4, 5, 16)
    ids = np.asarray([[3, 4, 5, 6, 7], [0, 1, 2, 3, 4]])
    if form == "offset":
        ids = np.asarray([7])
    attributes = {"interleaved": interleaved}
    if form == "partial":
        attributes |= {"num_heads": 4, "rotary_embedding_dim": 8}
    given = [data, ids, np.cos(angles), np.sin(angles)]
    compare("RotaryEmbedding", given, attributes, constants={2, 3})


@pytest.mark.parametrize("op", ["Gelu", "QuickGelu", "FastGelu", "BiasGelu", "FastGeluBias"])
def test_activations(op: str) -> None:
    given = [random(22, 3, 32) * 3]
    if "Bias" in op:
        given.append(random(23, 32))
    # onnxruntime approximates erf and tanh by polynomials.
    compare(op.removesuffix("Bias") if op != "BiasGelu" else op, given, tolerance=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("beta", [False, True])
@pytest.mark.parametrize("shared_skip", [False, True])
def test_skip_layer_normalization(bias: bool, beta: bool, shared_skip: bool) -> None:
    skip = random(31, 1, 5, 32) if shared_skip else random(31, 2, 5, 32)
    given = [random(30, 2, 5, 32), skip, random(32, 32), random(33, 32) if beta else None]
    given.append(random(34, 32) if bias else None)
    # Output 3 is the sum; onnxruntime's CPU kernel does not fill outputs 1 and 2.
    compare("SkipLayerNormalization", given, {"epsilon": 1e-5}, tolerance=EXACT)


@pytest.mark.parametrize("bias", [False, True])
def test_skip_simplified_layer_normalization(bias: bool) -> None:
    given = [random(35, 2, 5, 32), random(36, 2, 5, 32), random(37, 32)]
    given += [random(38, 32)] if bias else []
    compare("SkipSimplifiedLayerNormalization", given, {"epsilon": 1e-6}, tolerance=EXACT)


def test_simplified_layer_normalization() -> None:
    given = [random(39, 2, 5, 32), random(40, 32)]
    attributes = {"epsilon": 1e-6, "axis": -1}
    compare("SimplifiedLayerNormalization", given, attributes, domain="", tolerance=EXACT)


def test_layer_normalization_before_the_standard_had_it() -> None:
    given = [random(41, 2, 5, 32), random(42, 32), random(43, 32)]
    compare("LayerNormalization", given, {"axis": -1}, domain="", opset=14, tolerance=EXACT)


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("ids", [False, True])
def test_embed_layer_normalization(segments: bool, ids: bool) -> None:
    tokens = integers(44, 0, 20, 2, 6, dtype=np.int32)
    given = [
        tokens,
        integers(45, 0, 2, 2, 6, dtype=np.int32) if segments else None,
        random(46, 20, 32),
        random(47, 12, 32),
        random(48, 2, 32) if segments else None,
        random(49, 32),
        random(50, 32),
        np.asarray([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], np.int32),
        np.asarray([[5, 4, 3, 2, 1, 0]] * 2, np.int32) if ids else None,
    ]
    tables = {2, 3, 4, 5, 6}
    compare(
        "EmbedLayerNormalization",
        given,
        {"epsilon": 1e-5},
        outputs=3,
        constants=tables,
        tolerance=EXACT,
    )


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("right", [0, 1])
@pytest.mark.parametrize("batch", [0, 1])
def test_fused_matmul(left: int, right: int, batch: int) -> None:
    a = random(51, 2, 3, 4) if not batch else random(51, 3, 2, 4)
    b = random(52, 2, 4, 5) if not batch else random(52, 4, 2, 5)
    a, b = (a.swapaxes(-1, -2) if left and not batch else a), b
    if left and batch:
        a = random(51, 4, 2, 3)
    if right:
        b = random(52, 2, 5, 4) if not batch else random(52, 5, 2, 4)
    attributes = {"transA": left, "transB": right, "transBatchA": batch, "transBatchB": batch}
    given = [np.ascontiguousarray(a), b]
    compare("FusedMatMul", given, attributes | {"alpha": 0.5}, tolerance=EXACT)


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Tanh", "Sigmoid"])
def test_fused_gemm(activation: str) -> None:
    attributes: dict[str, Any] = {"activation": activation, "transB": 1, "alpha": 0.5, "beta": 2.0}
    if activation == "LeakyRelu":
        attributes["activation_alpha"] = 0.2
    given = [random(53, 3, 8), random(54, 5, 8), random(55, 5)]
    compare("FusedGemm", given, attributes, tolerance=EXACT)


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Clip", "HardSigmoid"])
@pytest.mark.parametrize("rest", [False, True])
def test_fused_conv(activation: str, rest: bool) -> None:
    attributes: dict[str, Any] = {"activation": activation, "pads": [1, 1, 1, 1]}
    attributes["kernel_shape"] = [3, 3]
    attributes |= {"LeakyRelu": {"activation_params": [0.2]}}.get(activation, {})
    attributes |= {"Clip": {"activation_params": [-0.5, 0.75]}}.get(activation, {})
    attributes |= {"HardSigmoid": {"activation_params": [0.3, 0.4]}}.get(activation, {})
    given = [random(56, 1, 4, 6, 6), random(57, 8, 4, 3, 3), random(58, 8)]
    given += [random(59, 1, 8, 6, 6)] if rest else []
    compare("FusedConv", given, attributes, tolerance=EXACT)


def test_nhwc_max_pool() -> None:
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    compare("NhwcMaxPool", [integers(60, 0, 256, 1, 7, 7, 4)], attributes)


def scale_and_zero(dtype: Any, scale: float = 0.03, zero: int = 7) -> list[Array]:
    return [np.asarray(scale, np.float32), np.asarray(zero, dtype)]


def weights(seed: int, *shape: int) -> Array:
    """Return int8 codes of 7 bits: without VNNI onnxruntime adds pairs in saturating int16."""
    return integers(seed, -64, 64, *shape, dtype=np.int8)


def coded(seed: int, *shape: int, dtype: Any = np.uint8) -> Array:
    low = 0 if dtype == np.uint8 else -128
    return integers(seed, low, low + 256, *shape, dtype=dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_quantized_arithmetic(op: str, dtype: Any) -> None:
    left, right = coded(70, 2, 3, 16, dtype=dtype), coded(71, 3, 16, dtype=dtype)
    given = [left, *scale_and_zero(dtype), right, *scale_and_zero(dtype, 0.02, 3)]
    given += scale_and_zero(dtype, 0.05, 1)
    # onnxruntime multiplies by a ratio of scales: half-way values fall one step apart.
    compare(op, given, constants={1, 2, 4, 5, 6, 7}, steps=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("op", ["QLinearSigmoid", "QLinearLeakyRelu"])
def test_quantized_activations(op: str, dtype: Any) -> None:
    given = [coded(72, 2, 40, dtype=dtype), *scale_and_zero(dtype)]
    given += scale_and_zero(dtype, 0.01 if op == "QLinearSigmoid" else 0.04, 0)
    attributes = {"alpha": 0.2} if op == "QLinearLeakyRelu" else {}
    compare(op, given, attributes, constants={1, 2, 3, 4}, steps=1)


@pytest.mark.parametrize(("opset", "axis"), [(13, -1), (12, 1)])
def test_quantized_softmax(opset: int, axis: int) -> None:
    given = [
        coded(73, 2, 3, 8),
        *scale_and_zero(np.uint8, 0.05),
        *scale_and_zero(np.uint8, 0.004, 0),
    ]
    attributes = {"opset": opset, "axis": axis}
    compare("QLinearSoftmax", given, attributes, constants={1, 2, 3, 4}, steps=1)


def test_quantized_concat() -> None:
    given = [*scale_and_zero(np.uint8, 0.06, 5), coded(74, 2, 3), *scale_and_zero(np.uint8)]
    given += [coded(75, 2, 4), *scale_and_zero(np.uint8, 0.05, 9)]
    compare("QLinearConcat", given, {"axis": 1}, constants={0, 1, 3, 4, 6, 7}, steps=1)


def test_quantized_where() -> None:
    chosen = integers(76, 0, 2, 2, 8).astype(np.bool_)
    given = [chosen, coded(77, 2, 8), *scale_and_zero(np.uint8), coded(78, 2, 8)]
    given += [*scale_and_zero(np.uint8, 0.05, 9), *scale_and_zero(np.uint8, 0.06, 5)]
    compare("QLinearWhere", given, constants={2, 3, 5, 6, 7, 8}, steps=1)


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("op", ["QLinearAveragePool", "QLinearGlobalAveragePool"])
def test_quantized_pooling(op: str, last: int) -> None:
    data = coded(79, 1, 6, 6, 4) if last else coded(79, 1, 4, 6, 6)
    given = [data, *scale_and_zero(np.uint8), *scale_and_zero(np.uint8, 0.02, 3)]
    attributes: dict[str, Any] = {"channels_last": last}
    if op == "QLinearAveragePool":
        attributes |= {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
    compare(op, given, attributes, constants={1, 2, 3, 4}, steps=1)


@pytest.mark.parametrize("last", [0, 1])
def test_quantized_convolution(last: int) -> None:
    data = coded(80, 1, 6, 6, 4) if last else coded(80, 1, 4, 6, 6)
    weight, bias = weights(81, 8, 4, 3, 3), integers(82, -99, 99, 8, dtype=np.int32)
    scales = np.abs(random(83, 8)) * np.float32(0.01)
    given = [data, *scale_and_zero(np.uint8), weight, scales, np.zeros(8, np.int8)]
    given += [*scale_and_zero(np.uint8, 0.3, 100), bias]
    attributes = {"channels_last": last, "pads": [1, 1, 1, 1]}
    compare("QLinearConv", given, attributes, constants={1, 2, 3, 4, 5, 6, 7, 8}, steps=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("columns", [False, True])
def test_dynamic_quantize_matmul(dtype: Any, columns: bool) -> None:
    count = 12 if columns else 1
    weight = coded(84, 32, 12) if dtype == np.uint8 else weights(84, 32, 12)
    scales = np.abs(random(85, count)) * np.float32(0.01) + np.float32(0.001)
    zeros = integers(86, 0, 5, count, dtype=dtype)
    given = [random(87, 2, 5, 32), weight, scales, zeros, random(88, 12)]
    compare("DynamicQuantizeMatMul", given, constants={1, 2, 3, 4}, tolerance=EXACT)


@pytest.mark.parametrize("kinds", [(np.uint8, np.int8), (np.uint8, np.uint8), (np.int8, np.int8)])
def test_matmul_integer_to_float(kinds: tuple[Any, Any]) -> None:
    left = coded(89, 5, 32, dtype=kinds[0])
    right = coded(90, 32, 12) if kinds[1] == np.uint8 else weights(90, 32, 12)
    given = [left, right, np.asarray(0.02, np.float32), np.abs(random(91, 12))]
    given += [np.asarray(3, kinds[0]), np.full(12, 2, kinds[1]), random(92, 12)]
    compare("MatMulIntegerToFloat", given, constants={1, 3, 5, 6}, tolerance=EXACT)


@pytest.mark.parametrize("out", [False, True])
@pytest.mark.parametrize("right", [0, 1])
def test_quantized_gemm(out: bool, right: int) -> None:
    weight = weights(93, 12, 32) if right else weights(93, 32, 12)
    given = [coded(94, 5, 32), *scale_and_zero(np.uint8), weight]
    given += [np.abs(random(95, 12)) * np.float32(0.01), np.zeros(12, np.int8)]
    given += [integers(96, -999, 999, 12, dtype=np.int32)]
    given += scale_and_zero(np.uint8, 0.4, 128) if out else [None, None]
    stored = {1, 2, 3, 4, 5, 6, 7, 8}
    attributes = {"transB": right, "alpha": 0.5}
    compare("QGemm", given, attributes, constants=stored, steps=1, tolerance=EXACT)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_sixteen_bit_codes(dtype: Any) -> None:
    pair = [np.asarray(0.001, np.float32), np.asarray(100, dtype)]
    compare("QuantizeLinear", [random(97, 3, 8), *pair], constants={1, 2})
    codes = integers(98, 0, 900, 3, 8, dtype=dtype)
    compare("DequantizeLinear", [codes, *pair], constants={1, 2})


def test_operators_under_other_names() -> None:
    compare("Trilu", [random(99, 5, 5), np.asarray(1, np.int64)], {"upper": 0}, constants={1})
    compare("ExpandDims", [random(99, 5, 5), np.asarray(-1, np.int32)], constants={1})
    compare("CDist", [random(99, 5, 8), random(100, 6, 8)], {"metric": "euclidean"}, tolerance=1e-5)
    compare("Pad", [random(99, 3, 4), np.asarray([1, 0, 0, 2])], {"mode": "edge"}, constants={1})
    compare("Range", [np.asarray(v, np.float32) for v in (1.0, 4.0)], constants={0, 1})
    places = integers(101, 0, 3, 4, 1, dtype=np.int64)
    compare("GatherND", [random(99, 3, 4), places])
    compare("Unique", [np.asarray([2, 1, 2, 5, 1], np.float32)], outputs=3)


def test_grid_sample() -> None:
    grid = np.tanh(random(102, 1, 4, 4, 2))
    attributes = {"mode": "bilinear", "padding_mode": "border", "align_corners": 1}
    given = [random(103, 1, 2, 5, 5), grid]
    compare("GridSample", given, attributes, tolerance=1e-5, shapes=[False])


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("states", [False, True])
def test_dynamic_quantize_lstm(direction: str, states: bool) -> None:
    count, hidden = 2 if direction == "bidirectional" else 1, 16
    codes = [weights(110, count, 24, 4 * hidden), weights(111, count, hidden, 4 * hidden)]
    grid = [np.full(count, 0.01, np.float32), np.zeros(count, np.int8)]
    first: list[Array | None] = [random(112 + i, count, 1, hidden) for i in range(2)]
    given = [random(114, 7, 1, 24), *codes, random(115, count, 8 * hidden), None]
    given += [*(first if states else [None, None]), None, *grid, *grid]
    attributes = {"hidden_size": hidden, "direction": direction}
    stored = {1, 2, 3, 8, 9, 10, 11}
    compare("DynamicQuantizeLSTM", given, attributes, outputs=3, constants=stored, tolerance=1e-5)
