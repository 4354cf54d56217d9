"""Norms, activations, rotary embedding and attention against float64 numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from halfbyte.kernels import cpu
from support.kernel_cases import needs_extension

pytestmark = needs_extension
ULP = 2.0**-23


def normal(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


WIDE = np.concatenate(
    [np.linspace(-110, 110, 20011), np.geomspace(1e-30, 1, 999), -np.geomspace(1e-30, 1, 999)]
).astype(np.float32)


@pytest.mark.parametrize("n", [1, 7, 16, 64, 576, 1001])
@pytest.mark.parametrize("rows", [1, 3])
def test_norms(rows: int, n: int) -> None:
    x, weight, bias = normal(rows, n), normal(n, seed=4), normal(n, seed=5)
    wide = x.astype(np.float64)
    rms = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * weight
    np.testing.assert_allclose(cpu.rms_norm(x, weight, 1e-6), rms, rtol=8 * ULP, atol=1e-30)
    centred = wide - wide.mean(-1, keepdims=True)
    layer = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(cpu.layer_norm(x, weight), layer, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(cpu.layer_norm(x, weight, bias), layer + bias, rtol=1e-5, atol=2e-6)


def test_add_rms_norm_is_add_then_norm() -> None:
    x, residual, weight = normal(70, 576), normal(70, 576, seed=8), normal(576, seed=9)
    normed, total = cpu.add_rms_norm(x, residual, weight, 1e-5)
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_array_equal(normed, cpu.rms_norm(total, weight, 1e-5))
    cpu.add_rms_norm(x, residual, weight, 1e-5, sum_out=residual)
    np.testing.assert_array_equal(residual, total)


def test_a_row_does_not_depend_on_its_batch() -> None:
    x, weight = normal(300, 200), normal(200)
    for function in (
        lambda a: cpu.rms_norm(a, weight),
        lambda a: cpu.layer_norm(a, weight),
        cpu.softmax,
        cpu.silu,
        cpu.gelu,
    ):
        np.testing.assert_array_equal(function(x)[37:39], function(x[37:39].copy()))


def test_silu_and_swiglu() -> None:
    expected = WIDE / (1 + np.exp(-WIDE.astype(np.float64)))
    np.testing.assert_allclose(cpu.silu(WIDE), expected, rtol=4 * ULP, atol=1e-36)
    up = normal(len(WIDE))
    np.testing.assert_array_equal(cpu.swiglu(WIDE, up), cpu.silu(WIDE) * up)


def test_gelu() -> None:
    x = WIDE.astype(np.float64)
    exact = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    np.testing.assert_allclose(cpu.gelu(WIDE), exact, rtol=1e-6, atol=1.5e-6)
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(cpu.gelu(WIDE, "tanh"), tanh, rtol=1e-6, atol=5e-7)
    with pytest.raises(ValueError, match="approximate 'fast', required 'none' or 'tanh'"):
        cpu.gelu(WIDE, "fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 5, 16, 33, 1000])
def test_softmax(n: int) -> None:
    x = 20 * normal(9, n)
    wide = np.exp((x - x.max(-1, keepdims=True)).astype(np.float64))
    expected = wide / wide.sum(-1, keepdims=True)
    np.testing.assert_allclose(cpu.softmax(x), expected, rtol=1e-6, atol=1e-37)


def test_exponentials_are_accurate_to_the_limits() -> None:
    # softmax of [x, 0] is e^x to first order; with e^0 exactly 1 it shows the exponential itself.
    x = np.linspace(-103.5, -20, 5000, dtype=np.float32)
    pairs = np.stack([x, np.zeros_like(x)], axis=1)
    result = cpu.softmax(pairs)[:, 0]
    expected = np.exp(x.astype(np.float64))
    assert np.all(np.abs(result - expected) <= 1.5 * ULP * expected + 2.0**-149)
    hidden = cpu.softmax(np.array([[-np.inf, 1.0, 1.0]], np.float32))
    np.testing.assert_array_equal(hidden, [[0, 0.5, 0.5]])
    assert np.isnan(cpu.softmax(np.array([[np.nan, 1.0]], np.float32))).all()


def test_add_and_mul() -> None:
    a, b, row = normal(300, 130), normal(300, 130, seed=6), normal(130, seed=7)
    np.testing.assert_array_equal(cpu.add(a, b), a + b)
    np.testing.assert_array_equal(cpu.mul(a, b), a * b)
    np.testing.assert_array_equal(cpu.add(a, row), a + row)
    np.testing.assert_array_equal(cpu.mul(a, row), a * row)
    out = a.copy()
    assert cpu.add(out, b, out) is out
    np.testing.assert_array_equal(out, a + b)
    assert cpu.add(a[:0], b[:0]).shape == (0, 130)


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool) -> np.ndarray:
    half = cos.shape[-1]
    c, s = cos[:, :, None], sin[:, :, None]
    out = x.copy()
    first = (slice(0, 2 * half, 2) if interleaved else slice(0, half),)
    second = (slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half),)
    a, b = x[..., first[0]], x[..., second[0]]
    out[..., first[0]] = a * c - b * s
    out[..., second[0]] = a * s + b * c
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("d", "half"), [(64, 32), (64, 16), (20, 10), (80, 40), (6, 1)])
def test_rope(d: int, half: int, interleaved: bool) -> None:
    x = normal(2, 5, 3, d)
    angle = normal(2, 5, half, seed=11)
    cos, sin = np.cos(angle), np.sin(angle)
    expected = rotated(x, cos, sin, interleaved)
    np.testing.assert_array_equal(cpu.rope(x, cos, sin, interleaved=interleaved), expected)
    flat = x.reshape(2, 5, 3 * d)
    result = cpu.rope(flat, cos, sin, num_heads=3, interleaved=interleaved)
    np.testing.assert_array_equal(result, expected.reshape(2, 5, 3 * d))
    cpu.rope(x, cos, sin, interleaved=interleaved, out=x)
    np.testing.assert_array_equal(x, expected)


def test_rope_shares_one_batch_of_angles() -> None:
    x, angle = normal(3, 4, 2, 8), normal(1, 4, 4, seed=12)
    cos, sin = np.cos(angle), np.sin(angle)
    np.testing.assert_array_equal(cpu.rope(x, cos, sin), rotated(x, cos, sin, False))


def attended(q, k, v, length, *, scale, causal=True, offset=0, window=0, softcap=0.0, mask=None):
    """Return float64 attention of q [b, s, h, d] over the first `length` cached positions."""
    b, s, h, _ = q.shape
    group = h // k.shape[1]
    keys = np.repeat(k[:, :, :length], group, axis=1).astype(np.float64)
    values = np.repeat(v[:, :, :length], group, axis=1).astype(np.float64)
    scores = np.einsum("bshd,bhjd->bhsj", q.astype(np.float64), keys) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    position, j = offset + np.arange(s)[:, None], np.arange(length)[None]
    seen = np.ones((s, length), bool)
    if causal:
        seen &= j <= position
    if window:
        seen &= j > position - window
    seen = np.broadcast_to(seen, (b, 1, s, length)).copy()
    if mask is not None:
        seen &= mask[:, None, None, :].astype(bool)
    weight = np.where(seen, np.exp(scores - scores.max()), 0)
    total = weight.sum(-1, keepdims=True)
    weight = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    return np.einsum("bhsj,bhjd->bshd", weight, values)


ATTENTION = {
    "prefill": {},
    "decode": {"s": 1, "length": 45},
    "middle": {"s": 5, "length": 29},
    "no group": {"heads": 3},
    "narrow head": {"d": 20},
    "wide head": {"d": 136},
    "window": {"window": 7},
    "softcap": {"softcap": 3.0},
    "not causal": {"causal": False, "s": 11, "length": 21},
    "batch of two": {"batch": 2, "s": 13, "length": 13},
    "long": {"s": 3, "length": 300},
    "short": {"s": 2, "length": 2},
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str) -> None:
    options = dict(ATTENTION[name])
    b, s, h, d = (
        options.pop(key, value) for key, value in (("batch", 1), ("s", 37), ("heads", 9), ("d", 64))
    )
    length = options.pop("length", 37)
    q, k, v = normal(b, s, h, d), normal(b, 3, 320, d, seed=1), normal(b, 3, 320, d, seed=2)
    k[:, :, length:] = np.nan  # positions beyond the length are not valid
    v[:, :, length:] = np.nan
    result = cpu.attention(q, k, v, length, **options)
    offset = length - s
    expected = attended(q, k, v, length, scale=d**-0.5, offset=offset, **options)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=2e-6)
    flat = cpu.attention(q.reshape(b, s, h * d), k, v, length, **options)
    np.testing.assert_array_equal(flat, result.reshape(b, s, h * d))


def test_attention_row_does_not_depend_on_its_batch_or_threads() -> None:
    q, k, v = normal(1, 40, 9, 64), normal(1, 3, 64, 64, seed=1), normal(1, 3, 64, 64, seed=2)
    before = cpu.threads()
    cpu.set_threads(2)
    together = cpu.attention(q, k, v, 50, offset=10, window=20)
    cpu.set_threads(1)
    np.testing.assert_array_equal(cpu.attention(q, k, v, 50, offset=10, window=20), together)
    for i in (0, 7, 39):
        one = np.ascontiguousarray(q[:, i : i + 1])
        alone = cpu.attention(one, k, v, 11 + i, offset=10 + i, window=20)
        np.testing.assert_array_equal(alone, together[:, i : i + 1])
    cpu.set_threads(before)


def test_attention_mask_hides_positions() -> None:
    q, k, v = normal(2, 6, 4, 32), normal(2, 2, 6, 32, seed=1), normal(2, 2, 6, 32, seed=2)
    mask = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
    for dtype in (np.bool_, np.uint8):
        result = cpu.attention(q, k, v, 6, causal=False, mask=mask.astype(dtype))
        expected = attended(q, k, v, 6, scale=32**-0.5, causal=False, mask=mask)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=2e-6)
        assert not result[1].any()


def test_append_kv() -> None:
    k, v = np.zeros((2, 3, 8, 4), np.float32), np.zeros((2, 3, 8, 4), np.float32)
    new_k, new_v = normal(2, 5, 12), normal(2, 5, 12, seed=1)
    cpu.append_kv(k, v, new_k, new_v, 2)
    np.testing.assert_array_equal(k[:, :, 2:7], new_k.reshape(2, 5, 3, 4).transpose(0, 2, 1, 3))
    np.testing.assert_array_equal(v[:, :, 2:7], new_v.reshape(2, 5, 3, 4).transpose(0, 2, 1, 3))
    assert not k[:, :, :2].any() and not v[:, :, 7:].any()


Q, CACHE = np.zeros((1, 2, 4, 8), np.float32), np.zeros((1, 2, 6, 8), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cpu.attention(Q, CACHE, CACHE, 7), "length 7, required 1 to the capacity 6"),
        (lambda: cpu.attention(Q, CACHE, CACHE[:, :1].copy(), 2), "value cache [1, 1, 6, 8]"),
        (lambda: cpu.attention(Q, CACHE[0], CACHE[0], 2), "caches must be [batch, kv_heads"),
        (lambda: cpu.attention(Q[:, :, :3].copy(), CACHE, CACHE, 2), "a multiple of 2 heads of 8"),
        (lambda: cpu.attention(Q[0], CACHE, CACHE, 2), "required [batch, queries, heads"),
        (
            lambda: cpu.attention(Q, CACHE, CACHE, 2, mask=np.ones((1, 3), bool)),
            "mask has shape [1, 3], required 2 elements",
        ),
        (
            lambda: cpu.append_kv(CACHE, CACHE, Q[..., :3].copy(), Q, 0),
            "cache [1, 2, 6, 8]; required",
        ),
        (lambda: cpu.append_kv(CACHE[0], CACHE, Q, Q, 0), "caches must be [batch, kv_heads"),
        (
            lambda: cpu.append_kv(CACHE, CACHE, Q[:, :, :2].copy(), Q[:, :, :2].copy(), 5),
            "positions up to 7, required at most the capacity 6",
        ),
        (lambda: cpu.rope(Q, Q[0, 0], Q[0, 0]), "at most 4 columns"),
        (lambda: cpu.rope(Q, CACHE[:0], CACHE[:0]), "cos is empty, required [..., half]"),
        (lambda: cpu.rope(Q[0], Q, Q, num_heads=3), "required tokens of 3 heads"),
        (lambda: cpu.add(Q, CACHE), "b has shape [1, 2, 6, 8], a [1, 2, 4, 8]; required equal"),
        (lambda: cpu.rms_norm(Q, Q), "weight has shape [1, 2, 4, 8], required 8 elements"),
        (lambda: cpu.softmax(Q[..., :0].copy()), "x has no columns, required [..., columns]"),
    ],
)
def test_wrong_shapes_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)
