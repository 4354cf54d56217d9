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
