"""Mixtures of experts of onnxruntime's domain against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.contrib_models import compare

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytestmark = pytest.mark.peer

EXACT = 5e-6
# onnxruntime rounds activations to 8 bits in front of 8-bit blocks, whatever is asked.
ROUNDED = 3e-2
TOKENS, EXPERTS, HIDDEN, INNER = 6, 4, 32, 64
Array = np.ndarray


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def codes(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def scales(seed: int, *shape: int) -> Array:
    return (np.random.default_rng(seed).random(shape) * 0.02 + 0.001).astype(np.float32)


def zero_points(seed: int, rows: int, columns: int, bits: int, block: int) -> Array:
    if block:
        return codes(seed, EXPERTS, rows, -(-(columns // block) * bits // 8))
    return codes(seed, EXPERTS, rows * bits // 8)


def quantized(
    bits: int, block: int, fused: int = 1, bias: bool = False, zeros: bool = False
) -> list[Array | None]:
    def grid(rows: int, columns: int, seed: int) -> Array:
        return scales(seed, EXPERTS, rows, *([columns // block] if block else []))

    wide = fused * INNER
    given: list[Array | None] = [
        random(1, 2, TOKENS // 2, HIDDEN),
        random(2, TOKENS, EXPERTS),
        codes(3, EXPERTS, wide, HIDDEN * bits // 8),
        grid(wide, HIDDEN, 4),
        random(5, EXPERTS, wide) if bias else None,
        codes(6, EXPERTS, HIDDEN, INNER * bits // 8),
        grid(HIDDEN, INNER, 7),
        random(8, EXPERTS, HIDDEN) if bias else None,
    ]
    if zeros:
        given += [None, None, None, zero_points(9, wide, HIDDEN, bits, block)]
        given += [zero_points(10, HIDDEN, INNER, bits, block)]
    return given


def check(given: list[Array | None], bits: int, block: int, limit: float, **options: Any) -> None:
    attributes = {"k": 2, "expert_weight_bits": bits, "normalize_routing_weights": 1} | options
    attributes |= {"block_size": block} if block else {}
    stored = set(range(2, len(given)))
    compare("QMoE", given, attributes, constants=stored, tolerance=limit)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "identity"])
@pytest.mark.parametrize(("bits", "block"), [(4, 0), (4, 32), (8, 0), (8, 32)])
def test_quantized_experts(bits: int, block: int, activation: str) -> None:
    limit = ROUNDED if (bits, block) == (8, 32) else EXACT
    check(quantized(bits, block), bits, block, limit, activation_type=activation)


def test_quantized_experts_with_a_gate() -> None:
    options = {"activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 0.5}
    given = quantized(4, 32, fused=2, bias=True)
    check(given, 4, 32, EXACT, activation_type="swiglu", swiglu_fusion=1, **options)


@pytest.mark.parametrize("block", [0, 16])
def test_quantized_experts_with_zero_points(block: int) -> None:
    given = quantized(4, block, bias=True, zeros=True)
    check(given, 4, block, EXACT, activation_type="silu")


@pytest.mark.parametrize("normal", [0, 1])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "identity"])
def test_experts(normal: int, activation: str) -> None:
    weights = [random(20, EXPERTS, INNER, HIDDEN) * 0.1, random(21, EXPERTS, HIDDEN, INNER) * 0.1]
    given = [random(22, TOKENS, HIDDEN), random(23, TOKENS, EXPERTS)]
    given += [np.float32(weights[0]), random(24, EXPERTS, INNER), np.float32(weights[1])]
    given += [random(25, EXPERTS, HIDDEN)]
    options = {"k": 2, "normalize_routing_weights": normal, "activation_type": activation}
    compare("MoE", given, options, constants={2, 3, 4, 5}, tolerance=EXACT)
