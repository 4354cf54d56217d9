"""ggml's IQ encodings: bytes and values on their own, without a peer."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.encoding import Scales, Unpacked
from halfbyte.ir.encodings.ggml_iq_points import points_of
from halfbyte.kernels.codebooks import GRID_KINDS
from halfbyte.kernels.layouts import LAYOUTS
from support.encoded import importance_for, normal_rows
from support.random_blocks import random_blocks

COLUMNS = 512
SIGNED = [name for name in GRID_KINDS if not name.startswith("IQ1")]
# sha256 of the reference encoder's bytes for `digest_rows`; each equals llama.cpp's.
DIGESTS = {
    "IQ2_XXS": "07ef147d405544c1",
    "IQ2_XS": "39cb313782245acb",
    "IQ2_S": "7f2c8aee6fa6efb5",
    "IQ3_XXS": "667a9192de4de7b3",
    "IQ3_S": "b86edce7264624e3",
    "IQ1_S": "d01e00c94015e0bd",
    "IQ1_M": "5fe2bc91acc1deb5",
}


def digest_rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    rows = (rng.standard_normal((8, 256)) ** 3).astype(np.float32)
    rows[1, 64:96] = 0
    rows[2] = np.float32(0.37)
    rows[3, ::3] = 0
    rows[4] *= np.float32(1e-6)
    importance = np.where(rng.random(256) < 0.2, 0, rng.random(256)).astype(np.float32)
    return rows, importance


@pytest.mark.parametrize("name", GRID_KINDS)
def test_reference_gives_the_stored_bytes(name: str) -> None:
    rows, importance = digest_rows()
    encoding = encoding_from_name(name)
    found = encoding.encode_reference(rows, importance)["data"].tobytes()  # type: ignore[attr-defined]
    if not encoding.needs_importance:
        found += encoding.encode_reference(rows)["data"].tobytes()  # type: ignore[attr-defined]
    assert hashlib.sha256(found).hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize("name", GRID_KINDS)
def test_random_bytes_survive_unpack_and_pack(name: str) -> None:
    data = random_blocks(name, 6, 2)
    encoding = encoding_from_name(name)
    packed = encoding.pack(encoding.unpack({"data": data}, COLUMNS))
    np.testing.assert_array_equal(packed["data"], data)


@pytest.mark.parametrize("name", GRID_KINDS)
def test_assign_gives_back_the_codes_of_random_blocks(name: str) -> None:
    data = random_blocks(name, 3, 2, seed=1)
    encoding = encoding_from_name(name)
    unpacked = encoding.unpack({"data": data}, COLUMNS)
    values = encoding.decode({"data": data}, COLUMNS)
    codes = encoding.assign(values, unpacked.scales)
    np.testing.assert_array_equal(codes, unpacked.codes)


@pytest.mark.parametrize("name", GRID_KINDS)
def test_assign_takes_nearer_points_than_encode(name: str) -> None:
    rows = normal_rows(4, 256)
    encoding = encoding_from_name(name)
    parts = encoding.encode(rows, importance_for(encoding, 256))
    scales = encoding.unpack(parts, 256).scales
    again = encoding.pack(Unpacked(encoding.assign(rows, scales), scales))
    errors = [((encoding.decode(p, 256) - rows) ** 2).sum() for p in (parts, again)]
    assert errors[1] < errors[0] < 0.6 * (rows**2).sum()


@pytest.mark.parametrize("name", ["IQ1_S", "IQ2_XXS", "IQ2_XS"])
def test_types_that_need_importance_say_so(name: str) -> None:
    encoding = encoding_from_name(name)
    assert encoding.needs_importance
    for method in (encoding.encode, encoding.encode_reference, encoding.fit):  # type: ignore[attr-defined]
        with pytest.raises(QuantizationError, match=r"needs the importance .*--imatrix"):
            method(normal_rows(1, 256))


def test_other_types_do_without_importance() -> None:
    free = {name for name in GRID_KINDS if not encoding_from_name(name).needs_importance}
    assert free == {"IQ1_M", "IQ2_S", "IQ3_XXS", "IQ3_S"}
    assert not encoding_from_name("Q4_K").needs_importance


@pytest.mark.parametrize("method", ["encode", "encode_reference"])
def test_iq3_s_writes_groups_after_zeros_where_they_belong(method: str) -> None:
    rows = normal_rows(2, 256)
    rows[:, 64:96] = 0
    encoding = encoding_from_name("IQ3_S")
    sane = getattr(encoding, method)(rows)
    slipped = getattr(encoding, method)(rows, compat=True)
    energy = (rows**2).sum()
    assert ((encoding.decode(sane, 256) - rows) ** 2).sum() < 0.05 * energy
    assert ((encoding.decode(slipped, 256) - rows) ** 2).sum() > energy
    assert getattr(encoding, method)(rows[:0], compat=True)["data"].shape == (0, 110)
    full = normal_rows(2, 256)
    for parts in (getattr(encoding, method)(full, compat=True), getattr(encoding, method)(full)):
        assert ((encoding.decode(parts, 256) - full) ** 2).sum() < 0.05 * (full**2).sum()


@pytest.mark.parametrize("name", GRID_KINDS)
def test_codes_off_the_codebook_are_refused(name: str) -> None:
    encoding = encoding_from_name(name)
    unpacked = encoding.unpack({"data": random_blocks(name, 1, 1)}, 256)
    for value in (0, 100, 1000, -1000):
        codes = unpacked.codes.copy()
        codes[0, 17] = value
        with pytest.raises(QuantizationError, match="no points of"):
            encoding.pack(Unpacked(codes, unpacked.scales))
    with pytest.raises(QuantizationError, match="not made of the fields"):
        encoding.pack(Unpacked(unpacked.codes, Scales(unpacked.scales.scale, 32)))


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ3_XXS"])
def test_an_odd_number_of_negatives_is_refused(name: str) -> None:
    encoding = encoding_from_name(name)
    unpacked = encoding.unpack({"data": random_blocks(name, 1, 1)}, 256)
    codes = unpacked.codes.copy()
    codes[0, 9] *= -1
    with pytest.raises(QuantizationError, match="no points of"):
        encoding.pack(Unpacked(codes, unpacked.scales))


def test_shifts_of_a_group_must_agree() -> None:
    for name, group in (("IQ1_S", 32), ("IQ1_M", 8)):
        encoding = encoding_from_name(name)
        unpacked = encoding.unpack({"data": random_blocks(name, 1, 1)}, 256)
        codes = unpacked.codes.copy()
        shift = 1 if codes[0, group] % 8 == 1 else -1
        codes[0, group] -= 2 * shift
        with pytest.raises(QuantizationError, match="no points of"):
            encoding.pack(Unpacked(codes, unpacked.scales))


@pytest.mark.parametrize("name", GRID_KINDS)
def test_weights_too_large_are_refused(name: str) -> None:
    encoding = encoding_from_name(name)
    for size in (1e10, 3e38):
        rows = normal_rows(1, 256).clip(-1, 1) * np.float32(size)
        for method in (encoding.encode, encoding.encode_reference):  # type: ignore[attr-defined]
            with pytest.raises(QuantizationError, match="leaves float16's range"):
                method(rows, importance_for(encoding, 256))


@pytest.mark.parametrize("name", GRID_KINDS)
def test_row_lengths_must_divide_into_blocks(name: str) -> None:
    with pytest.raises(QuantizationError, match="blocks of 256"):
        encoding_from_name(name).part_specs(1, 128)


@pytest.mark.parametrize("name", GRID_KINDS)
def test_scales_that_are_not_finite_are_refused(name: str) -> None:
    encoding = encoding_from_name(name)
    data = random_blocks(name, 1, 1)
    place = LAYOUTS[name].offsets.get("d")
    if place is None:
        data[0, LAYOUTS[name].offsets["scales"] :] = 0xFF
    else:
        data[0, place : place + 2] = 0xFF
    with pytest.raises(QuantizationError, match="leaves float16's range"):
        encoding.pack(encoding.unpack({"data": data}, 256))


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ3_S", "IQ1_S"])
def test_neighbours_are_the_points_at_the_smallest_distances(name: str) -> None:
    points = points_of(name)
    rng = np.random.default_rng(0)
    digits = rng.integers(0, points.base, (points.group, 500)).astype(np.int32)
    keys = points.keys(digits)[0]
    off = np.flatnonzero(points.index_of(keys) < 0)[:50]
    x = points.levels[0][0] + (points.levels.max() - points.levels.min()) / (
        points.base - 1
    ) * digits[:, off].astype(np.float32)
    ones = np.ones(x.shape, np.float32)
    found = points.best_neighbour(keys[off], x, ones, np.ones(len(off), np.float32))
    apart = ((points.book.digits[None].astype(int) - digits.T[off][:, None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(found, apart.argmin(axis=1))


@pytest.mark.parametrize("name", SIGNED)
def test_levels_are_positive_and_signs_free(name: str) -> None:
    encoding = encoding_from_name(name)
    codes = encoding.unpack({"data": random_blocks(name, 4, 2)}, COLUMNS).codes
    assert set(np.unique(np.abs(codes))) <= set(points_of(name).book.levels.tolist())
    assert 0.4 < (codes < 0).mean() < 0.6
