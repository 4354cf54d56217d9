"""Codes of n bits as nibble matrices: planes, tables, and the values that the products give."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.converters.onnx import nbits
from halfbyte.ir.encodings.affine import unpack_bits

BITS = range(2, 9)


def codes(bits: int, rows: int = 7, columns: int = 96) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 1 << bits, (rows, columns)).astype(np.int32)


@pytest.mark.parametrize("bits", BITS)
def test_planes_hold_every_bit_once(bits):
    given = codes(bits)
    stored = {p.name: nbits.pack_plane(given, bits, p) for p in nbits.planes(bits)}
    assert {name: array.shape for name, array in stored.items()} == {
        p.name: (7, p.width(96)) for p in nbits.planes(bits)
    }
    np.testing.assert_array_equal(nbits.join_planes(stored, bits, 96), given)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_planes_take_no_more_bits_than_the_codes(bits):
    assert sum(p.bits for p in nbits.planes(bits)) == bits


def matrix(given: np.ndarray, bits: int, which: str) -> np.ndarray:
    """Return a nibble matrix as a runtime makes it: by the tables, joined with OR."""
    whole = np.zeros((7, 96 // 2), np.uint8)
    for plane in nbits.planes(bits):
        if plane.matrix == which:
            stored = nbits.pack_plane(given, bits, plane)
            whole |= stored if plane.is_plain else plane.table()[stored].reshape(7, -1)
    return unpack_bits(whole, 4, 96).astype(np.int32)


@pytest.mark.parametrize("bits", BITS)
def test_nibble_matrices_give_the_centered_codes(bits):
    given = codes(bits)
    low = matrix(given, bits, nbits.CODES) - 8
    expected = given - (1 << (bits - 1))
    if nbits.has_high_matrix(bits):
        high = matrix(given, bits, nbits.HIGH) - 8
        np.testing.assert_array_equal(16 * high + low + 8, expected)
    else:
        np.testing.assert_array_equal(low, expected)


@pytest.mark.parametrize(
    ("columns", "group", "block"),
    [(576, 32, 32), (576, 64, 64), (512, 512, 256), (576, 576, 64), (96, 48, 16), (80, 40, 0)],
)
def test_block_size_lies_inside_a_group(columns, group, block):
    assert nbits.block_size(columns, group) == block


@pytest.mark.parametrize(("bits", "dtype"), [(2, "int4"), (4, "int4"), (5, "int8"), (8, "int8")])
def test_signed_dtype(bits, dtype):
    assert nbits.signed_dtype(bits) == dtype
