"""The standard's Attention against a loop over queries, and the caches it reads."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Value
from halfbyte.ir.ops.spec import UNKNOWN, normal
from support.op_evaluation import evaluated, evaluated_one, inferred


def looped(q, k, v, *, scale=None, softcap=0.0, bias=None, sees=None) -> np.ndarray:
    """Return attention one query at a time; sees(b, i, j) says whether query i sees key j."""
    batch, heads, queries, size = q.shape
    shared = heads // k.shape[1]
    out = np.zeros((batch, heads, queries, v.shape[3]))
    scale = 1 / np.sqrt(size) if scale is None else scale
    for b, h, i in np.ndindex(batch, heads, queries):
        keys = [j for j in range(k.shape[2]) if sees is None or sees(b, i, j)]
        scores = np.asarray([scale * float(q[b, h, i] @ k[b, h // shared, j]) for j in keys])
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        if bias is not None:
            scores = (
                scores + np.broadcast_to(bias, (batch, heads, queries, k.shape[2]))[b, h, i][keys]
            )
        if len(keys):
            weights = np.exp(scores - scores.max())
            out[b, h, i] = weights @ v[b, h // shared, keys] / weights.sum()
    return out


Q, K, V = normal(1, 2, 4, 3, 8), normal(2, 2, 2, 5, 8), normal(3, 2, 2, 5, 6)
BOUNDS = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize(
    ("attributes", "sees"),
    [
        ({}, None),
        ({"scale": 0.3, "softcap": 1.5}, None),
        ({"is_causal": 1}, lambda b, i, j: j <= i),
        ({"left_window_size": 1}, lambda b, i, j: j >= i - 1),
        ({"right_window_size": 1}, lambda b, i, j: j <= i + 1),
        (
            {"left_window_size": 0, "right_window_size": 2, "is_causal": 1},
            lambda b, i, j: j == i,
        ),
    ],
)
def test_attention_is_the_loop(attributes: dict, sees) -> None:
    result = evaluated_one("Attention", Q, K, V, **attributes)
    options = {n: attributes[n] for n in ("scale", "softcap") if n in attributes}
    np.testing.assert_allclose(result, looped(Q, K, V, sees=sees, **options), **BOUNDS)


def test_masks_of_both_kinds_and_a_short_one() -> None:
    added = normal(4, 3, 5)
    result = evaluated_one("Attention", Q, K, V, added)
    np.testing.assert_allclose(result, looped(Q, K, V, bias=added), **BOUNDS)
    shown = normal(5, 2, 1, 3, 4) > 0
    shown[0, 0, 1] = False
    result = evaluated_one("Attention", Q, K, V, shown)
    wanted = looped(Q, K, V, sees=lambda b, i, j: j < 4 and shown[b, 0, i, j])
    np.testing.assert_allclose(result, wanted, **BOUNDS)
    assert not result[0, :, 1].any()


def test_packed_heads_with_past() -> None:
    new = [normal(6, 2, 2, 16), normal(7, 2, 2, 8), normal(8, 2, 2, 6)]
    past = [normal(9, 2, 2, 3, 4), normal(10, 2, 2, 3, 3)]
    heads = {"q_num_heads": 4, "kv_num_heads": 2, "is_causal": 1}
    result, keys, values = evaluated("Attention", *new, None, *past, outputs=3, **heads)
    q = new[0].reshape(2, 2, 4, 4).transpose(0, 2, 1, 3)
    added = [a.reshape(2, 2, 2, -1).transpose(0, 2, 1, 3) for a in new[1:]]
    np.testing.assert_array_equal(keys, np.concatenate([past[0], added[0]], axis=2))
    np.testing.assert_array_equal(values, np.concatenate([past[1], added[1]], axis=2))
    wanted = looped(q, keys, values, sees=lambda b, i, j: j <= i + 3)
    np.testing.assert_allclose(result, wanted.transpose(0, 2, 1, 3).reshape(2, 2, 12), **BOUNDS)


def test_caches_kept_outside() -> None:
    valid = np.asarray([5, 2])
    result = evaluated_one("Attention", Q, K, V, *[None] * 3, valid, is_causal=1)
    wanted = looped(Q, K, V, sees=lambda b, i, j: j <= i + valid[b] - 3 and j < valid[b])
    np.testing.assert_allclose(result, wanted, **BOUNDS)
    # sample 1 holds two keys for three queries: the first query sees none
    assert not result[1, :, 0].any()
    plain = evaluated_one("Attention", Q, K, V, *[None] * 3, valid)
    wanted = looped(Q, K, V, sees=lambda b, i, j: j < valid[b])
    np.testing.assert_allclose(plain, wanted, **BOUNDS)


def test_scores_at_each_stage() -> None:
    bias = normal(11, 3, 5)
    shown = [
        evaluated("Attention", Q, K, V, bias, outputs=4, softcap=2.0, qk_matmul_output_mode=mode)[3]
        for mode in range(4)
    ]
    raw = np.einsum("bghid,bgjd->bghij", Q.reshape(2, 2, 2, 3, 8), K).reshape(2, 4, 3, 5)
    raw = raw.astype(np.float64) / np.sqrt(8)
    capped = 2 * np.tanh(raw / 2)
    powers = np.exp(capped + bias)
    stages = (raw, capped, capped + bias, powers / powers.sum(axis=-1, keepdims=True))
    for found, wanted in zip(shown, stages, strict=True):
        np.testing.assert_allclose(found, wanted, **BOUNDS)


def test_narrow_types() -> None:
    half = [a.astype(np.float16) for a in (Q, K, V)]
    exact = looped(*(a.astype(np.float64) for a in half))
    result = evaluated_one("Attention", *half)
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, exact, rtol=1e-3, atol=1e-3)
    rough = evaluated_one("Attention", Q, K, V, softmax_precision="float16")
    np.testing.assert_allclose(rough, looped(Q, K, V), rtol=1e-2, atol=1e-2)
    assert np.abs(rough - looped(Q, K, V)).max() > 1e-5


def test_shapes_with_symbols() -> None:
    q = Value("q", "float32", ("b", "s", 32))
    k, past = Value("k", "float32", ("b", "s", 16)), Value("p", "float32", ("b", 2, 7, 8))
    heads = {"q_num_heads": 4, "kv_num_heads": 2}
    kinds = inferred("Attention", q, k, k, None, past, past, outputs=4, **heads)
    assert [kind.shape for kind in kinds] == [
        ("b", "s", 32),
        ("b", 2, UNKNOWN, 8),
        ("b", 2, UNKNOWN, 8),
        ("b", 4, "s", UNKNOWN),
    ]
    assert inferred("Attention", Value("q", "float32"), k, k, **heads)[0].shape is None


@pytest.mark.parametrize(
    ("given", "attributes", "rule"),
    [
        ([Q, K, V, None, K, None], {}, "past_key and past_value go together"),
        ([Q, K, V, None, K, V, np.asarray([1, 2])], {}, "give no past"),
        ([Q[0], K, V], {}, "input 0 has rank 3; give rank 4, or rank 3 with q_num_heads"),
        ([Q[0], K, V], {"q_num_heads": 3}, "width 8 is no multiple of q_num_heads 3"),
        ([Q[:, :3], K, V], {}, "3 query heads are no multiple of 2"),
    ],
)
def test_broken_rules(given: list, attributes: dict, rule: str) -> None:
    with pytest.raises(GraphError, match=rule):
        inferred("Attention", *given, **attributes)


def test_scatter_writes_a_copy() -> None:
    cache = np.zeros((2, 4, 2), np.float32)
    update = np.arange(1, 9, dtype=np.float32).reshape(2, 2, 2)
    linear = evaluated_one("TensorScatter", cache, update, np.asarray([0, 2]))
    assert linear[0, :, 0].tolist() == [1, 3, 0, 0]
    assert linear[1, :, 0].tolist() == [0, 0, 5, 7]
    around = evaluated_one("TensorScatter", cache, update, np.asarray([3, 5]), mode="circular")
    assert around[0, :, 1].tolist() == [4, 0, 0, 2]
    assert around[1, :, 1].tolist() == [0, 6, 8, 0]
    last = evaluated_one("TensorScatter", cache.swapaxes(1, 2), update.swapaxes(1, 2), axis=-1)
    assert last[0].tolist() == [[1, 3, 0, 0], [2, 4, 0, 0]]
    with pytest.raises(GraphError, match="positions up to 5 of a cache of 4"):
        evaluated_one("TensorScatter", cache, update, np.asarray([0, 3]))
    with pytest.raises(GraphError, match="axis 0 is the batch"):
        evaluated_one("TensorScatter", cache, update, axis=0)
    with pytest.raises(GraphError, match="mode is 'ring'"):
        evaluated_one("TensorScatter", cache, update, mode="ring")
