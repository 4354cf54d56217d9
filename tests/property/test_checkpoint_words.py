"""Words of quantized checkpoints on arbitrary codes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.converters.hugging_face.checkpoints.awq import pack_outputs, unpack_outputs
from halfbyte.converters.hugging_face.checkpoints.ct_words import RowCodes, unpack_whole
from halfbyte.converters.hugging_face.checkpoints.gathered import GatheredPart
from halfbyte.converters.hugging_face.checkpoints.words import (
    ByteWords,
    ColumnCodes,
    pack_words,
    unpack_words,
    word_count,
)
from halfbyte.ir.tensor import ArrayPart
from support.checkpoint_words import codes_of, stream

QUICK = settings(max_examples=60, deadline=None)
widths = st.integers(2, 8)
seeds = st.integers(0, 2**32 - 1)


def random_codes(bits: int, shape: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, shape).astype(np.uint8)


@QUICK
@given(widths, st.integers(1, 5), st.integers(1, 130), seeds)
def test_words_are_one_stream(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = random_codes(bits, (rows, columns), seed)
    words = pack_words(codes, bits)
    assert words[0].view(np.uint32).tolist() == stream(codes[0].tolist(), bits)
    assert codes_of(words[-1], bits, columns) == codes[-1].tolist()
    assert np.array_equal(unpack_words(words, bits, columns), codes)


@QUICK
@given(st.integers(1, 6), st.integers(1, 40), seeds)
def test_awq_order_turns_back(eighths: int, columns: int, seed: int) -> None:
    codes = random_codes(4, (8 * eighths, columns), seed)
    assert np.array_equal(unpack_outputs(pack_outputs(codes).T), codes)


@QUICK
@given(widths, st.integers(1, 130), st.integers(1, 4), st.data())
def test_zero_points_down_the_outputs_are_read_by_ranges(
    bits: int, outputs: int, groups: int, data: st.DataObject
) -> None:
    zeros = random_codes(bits, (groups, outputs), outputs)
    start = data.draw(st.integers(0, outputs))
    stop = data.draw(st.integers(start, outputs))
    part = ArrayPart(pack_words(zeros, bits))
    assert np.array_equal(ColumnCodes(part, bits, outputs).read(start, stop), zeros.T[start:stop])
    step = 32 // bits
    whole = [
        [stream(row[at : at + step].tolist(), bits)[0] for at in range(0, outputs, step)]
        for row in zeros
    ]
    old = np.array(whole, np.uint32).view(np.int32)
    assert np.array_equal(unpack_whole(old, bits, outputs), zeros)
    words = ByteWords(RowCodes(ArrayPart(old), bits, outputs), word_count(outputs, bits))
    assert np.array_equal(ColumnCodes(words, bits, outputs).read(start, stop), zeros.T[start:stop])


@QUICK
@given(st.integers(1, 20), st.integers(1, 50), st.integers(1, 60), st.data())
def test_gathered_columns_make_the_whole(
    length: int, width: int, step: int, data: st.DataObject
) -> None:
    whole = np.arange(length * width, dtype=np.int32).reshape(length, width)
    part = GatheredPart(whole.dtype, whole.shape, step, lambda a, b: whole[:, a:b])
    for _ in range(2):
        cut = data.draw(st.integers(0, length))
        assert np.array_equal(part.read(0, cut), whole[:cut])
        assert np.array_equal(part.read(cut, length), whole[cut:])
