"""Attention operators of onnxruntime's domain against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.contrib_models import compare

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytestmark = pytest.mark.peer

# Sums in another order and another exp: a few roundings of float32, and of float16.
EXACT = 5e-6
HALF = 4e-3
BATCH, LENGTH, HEADS, GROUPS, SIZE = 2, 5, 4, 2, 32
Array = np.ndarray
Given = list["Array | None"]


def random(seed: int, *shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def lengths(*counts: int) -> Array:
    return np.asarray(counts, np.int32)


def separate(length: int = LENGTH, batch: int = BATCH, dtype: Any = np.float32) -> Given:
    widths = (HEADS, GROUPS, GROUPS)
    return [random(i, batch, length, w * SIZE, dtype=dtype) for i, w in enumerate(widths)]


def past(length: int, batch: int = BATCH, dtype: Any = np.float32) -> list[Array]:
    return [random(5 + i, batch, GROUPS, length, SIZE, dtype=dtype) for i in range(2)]


def chunk(dtype: Any = np.float32) -> Given:
    """Three new positions behind six; onnxruntime takes several for a batch of one only."""
    return [*separate(3, 1, dtype), *past(6, 1, dtype), lengths(8), total(9)]


def grouped(given: Given, tolerance: float = EXACT, **attributes: Any) -> None:
    options = {"num_heads": HEADS, "kv_num_heads": GROUPS} | attributes
    compare("GroupQueryAttention", given, options, outputs=3, constants={7, 8}, tolerance=tolerance)


def total(count: int) -> Array:
    return np.asarray(count, np.int32)


@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 5.0}, {"scale": 0.4}, {"local_window_size": 3}, {"smooth_softmax": 1}],
)
@pytest.mark.parametrize("length", [1, 3])
def test_grouped_attention_with_a_growing_past(options: dict[str, Any], length: int) -> None:
    grouped(chunk() if length > 1 else [*separate(1), *past(6), lengths(6, 6), total(7)], **options)


def test_grouped_attention_of_a_first_run() -> None:
    given = [*separate(), *past(0), lengths(4, 4), total(LENGTH)]
    grouped(given)
    grouped([*given[:3], None, None, *given[5:]])


def test_grouped_attention_in_a_buffer_that_is_longer() -> None:
    held = past(12)
    for array in held:
        array[:, :, 7:] = 0
    given = [*separate(1), *held, lengths(7, 7), total(8)]
    grouped(given)


def test_grouped_attention_over_rows_of_different_length() -> None:
    held = past(8)
    for array in held:
        array[0, :, 4:] = 0
    given = [*separate(1), *held, lengths(4, 8), total(9)]
    options = {"num_heads": HEADS, "kv_num_heads": GROUPS}
    # What stands behind the end of a short row is anything.
    compare("GroupQueryAttention", given, options, outputs=3, tolerance=EXACT, judged=1)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_grouped_attention_with_rotation(interleaved: int, partial: bool, packed: bool) -> None:
    angles = random(9, 32, SIZE // (4 if partial else 2))
    data, rest = separate(3, 1), chunk()[3:]
    if packed:
        data = [np.concatenate([v for v in data if v is not None], axis=-1), None, None]
    given = [*data, *rest, np.cos(angles), np.sin(angles)]
    grouped(given, do_rotary=1, rotary_interleaved=interleaved)


def test_grouped_attention_with_bias_and_cap() -> None:
    rest: Given = [None, None, None, random(11, 1, HEADS, 3, 9)]
    given = [*chunk(), *rest]
    grouped(given)
    grouped(given, softcap=4.0)


def test_grouped_attention_with_a_sink() -> None:
    rest: Given = [None, None, None, None, random(12, HEADS)]
    grouped([*chunk(), *rest])


def test_grouped_attention_in_half_precision() -> None:
    grouped(chunk(np.float16), HALF)


def multi(given: Given, outputs: int = 1, **attributes: Any) -> None:
    options = {"num_heads": HEADS} | attributes
    compare("MultiHeadAttention", given, options, outputs=outputs, constants={3}, tolerance=EXACT)


def plain(keys: int = LENGTH) -> Given:
    width = HEADS * SIZE
    counts = (LENGTH, keys, keys)
    return [random(20 + i, BATCH, n, width) for i, n in enumerate(counts)]


@pytest.mark.parametrize("bias", [False, True])
def test_multi_head_attention(bias: bool) -> None:
    multi([*plain(), random(28, 3 * HEADS * SIZE)] if bias else plain())


def test_multi_head_attention_over_keys_that_are_projected_already() -> None:
    given = [plain()[0], *(random(26 + i, BATCH, HEADS, 7, SIZE) for i in range(2))]
    multi(given)


@pytest.mark.parametrize("kind", ["lengths", "rows", "queries"])
def test_multi_head_attention_with_padding(kind: str) -> None:
    mask = {
        "lengths": lengths(3, 5),
        "rows": np.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32),
        "queries": np.tril(np.ones((BATCH, LENGTH, LENGTH), np.int32)),
    }[kind]
    multi([*plain(), None, mask])


def test_multi_head_attention_with_past_and_bias() -> None:
    held = [random(30 + i, BATCH, HEADS, 6, SIZE) for i in range(2)]
    added = random(32, 1, HEADS, LENGTH, 6 + LENGTH)
    multi([*plain(), None, None, added, *held], outputs=3)
    multi([*plain(), None, None, None, *held], outputs=3, unidirectional=1, scale=0.3)


def attention(given: Given, outputs: int = 1, **attributes: Any) -> None:
    options = {"num_heads": HEADS} | attributes
    compare("Attention", given, options, outputs=outputs, constants={1, 2}, tolerance=EXACT)


def merged(width: int = 3 * HEADS * SIZE) -> Given:
    return [random(40, BATCH, LENGTH, 24), random(41, 24, width) * 0.2, random(42, width)]


@pytest.mark.parametrize("directed", [0, 1])
@pytest.mark.parametrize("kind", ["none", "ends", "rows", "queries"])
def test_attention(kind: str, directed: int) -> None:
    mask = {
        "none": None,
        "ends": lengths(3, 5),
        "rows": np.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32),
        "queries": np.tril(np.ones((BATCH, LENGTH, LENGTH), np.int32)),
    }[kind]
    attention([*merged(), mask], unidirectional=directed)


def test_attention_with_ends_and_starts() -> None:
    given = [*merged(), lengths(5, 4, 0, 1)]
    options = {"num_heads": HEADS}
    compare("Attention", given, options, constants={1, 2}, tolerance=EXACT, shapes=[False])


def test_attention_with_past_and_bias() -> None:
    held = random(43, 2, BATCH, HEADS, 6, SIZE)
    attention([*merged(), None, held], outputs=2, unidirectional=1)
    attention([*merged(), None, None, random(44, 1, HEADS, LENGTH, LENGTH)])


def test_attention_of_other_value_width() -> None:
    sizes = [HEADS * SIZE, HEADS * SIZE, HEADS * 8]
    attention(merged(sum(sizes)), qkv_hidden_sizes=sizes)


@pytest.mark.parametrize("directed", [0, 1])
def test_quantized_attention(directed: int) -> None:
    width = 3 * HEADS * SIZE
    generator = np.random.default_rng(50)
    data = generator.integers(0, 256, (BATCH, LENGTH, 24)).astype(np.uint8)
    # 7 bits: without VNNI onnxruntime adds pairs of products in saturating int16.
    weight = generator.integers(-64, 64, (24, width)).astype(np.int8)
    given = [data, weight, random(51, width), np.asarray(0.01, np.float32)]
    given += [
        np.asarray(0.005, np.float32),
        None,
        np.asarray(120, np.uint8),
        np.asarray(0, np.int8),
    ]
    options = {"num_heads": HEADS, "unidirectional": directed}
    compare("QAttention", given, options, constants={1, 2, 3, 4, 6, 7}, tolerance=EXACT)
